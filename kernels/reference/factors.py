"""The factors of tensor-train layers in plain PyTorch: ground truth, and the path of any device.

The functions here trust their arguments; ``ops/factors.py`` checks them.
"""

from collections.abc import Iterator, Sequence
from math import prod

import torch
from torch import Tensor
from torch.nn import functional

from ..plan import FactorLayer, FactorPlan, Group
from .noise import perturbed_copies
from .philox import PERTURBATION_STREAM

# Elements of a contraction worked on at a time: few enough for a CPU's cache.
PIECE = 1 << 16


def tt_factors(
    cores: Sequence[Tensor], cut: int, in_features: int, out_features: int
) -> tuple[Tensor, Tensor]:
    """Chain the cores on either side of the cut: W = A B, A (in, R), B (R, out).

    Args:
        cores: (r_{k-1}, n_k, r_k) each, or (P, r_{k-1}, n_k, r_k) each.
        cut: how many cores carry input modes.
        in_features: rows kept of A.
        out_features: columns kept of B.
    """
    lead = cores[0].shape[:-3]
    left = cores[0].reshape(*lead, -1, cores[0].shape[-1])
    for core in cores[1:cut]:
        left = left @ core.reshape(*lead, core.shape[-3], -1)
        left = left.reshape(*lead, -1, core.shape[-1])
    right = cores[-1].reshape(*lead, cores[-1].shape[-3], -1)
    for core in reversed(cores[cut:-1]):
        right = core.reshape(*lead, -1, core.shape[-1]) @ right
        right = right.reshape(*lead, core.shape[-3], -1)
    return left[..., :in_features, :], right[..., :out_features]


def _ordered(left: Tensor, right: Tensor) -> Tensor:
    """Return left @ right with every product and sum rounded, terms in order: (L, m, n)."""
    total = left[:, :, :1] * right[:, :1]
    term = torch.empty_like(total)
    for t in range(1, left.shape[-1]):
        torch.mul(left[:, :, t : t + 1], right[:, t : t + 1], out=term)
        total.add_(term)
    return total


def _chain_left(cores: Sequence[Tensor]) -> Tensor:
    total = cores[0].flatten(1, 2)
    for core in cores[1:]:
        total = _ordered(total, core.flatten(2)).view(len(core), -1, core.shape[-1])
    return total


def _chain_right(cores: Sequence[Tensor]) -> Tensor:
    total = cores[-1].flatten(2)
    for core in reversed(cores[:-1]):
        total = _ordered(core.flatten(1, 2), total).view(len(core), core.shape[1], -1)
    return total


def _pieces(layer: FactorLayer, count: int) -> Iterator[slice]:
    largest = layer.rank * max(
        prod(shape[1] for shape in layer.shapes[: layer.cut]),
        prod(shape[1] for shape in layer.shapes[layer.cut :]),
    )
    step = max(1, PIECE // largest)
    for start in range(0, count, step):
        yield slice(start, start + step)


def _rows_at(theta: Tensor, starts: Sequence[int], width: int) -> Tensor:
    """Return theta[start : start + width] for each start, (len(starts), width)."""
    steps = {after - before for before, after in zip(starts, starts[1:], strict=False)} or {0}
    step = steps.pop()
    if not steps and step >= 0:
        # Layers of one kind mostly lie at equal distances: a view serves.
        return theta.as_strided((len(starts), width), (step, 1), theta.storage_offset() + starts[0])
    return torch.stack([theta[start : start + width] for start in starts])


def _contract(theta: Tensor, out: Tensor, plan: FactorPlan, group: Group) -> None:
    """Write the factors of one group of layers for one parameter vector (extent,)."""
    layers = [plan.layers[index] for index in group.layers]
    count, rank = len(layers), layers[0].rank
    cut, n, m = layers[0].cut, layers[0].in_features, layers[0].out_features
    a = out[group.a : group.a + count * n * rank].view(count, rank, n).mT
    b = out[group.b : group.b + count * rank * m].view(count, rank, m)
    for part in _pieces(layers[0], count):
        cores = [
            _rows_at(theta, [layer.offsets[k] for layer in layers[part]], prod(shape)).unflatten(
                1, shape
            )
            for k, shape in enumerate(layers[0].shapes)
        ]
        a[part] = _chain_left(cores[:cut])[:, :n]
        b[part] = _chain_right(cores[cut:])[..., :m]
    starts = [layer.bias for layer in layers if layer.bias is not None]
    if starts:
        out[group.bias : group.bias + count * m].view(count, m).copy_(_rows_at(theta, starts, m))


@torch.no_grad()
def stacked_factors(
    theta: Tensor, plan: FactorPlan, seeds: Tensor | None, scales: Tensor | None, distribution: str
) -> Tensor:
    """Contract the cores of all layers for P parameter vectors ``theta + scales[p] z(seeds[p])``.

    Normative for every backend, to the bit: the parameter is rounded as by ``add_noise_``. A is
    chained from the first core to the cut, ``A_k[(i, j), s] = sum_r A_{k-1}[i, r] G_k[r, j, s]``,
    and B from the last core back to the cut, ``B_k[r, (j, i)] = sum_s G_k[r, j, s] B_{k+1}[s,
    i]``; each product and each sum is rounded to float32, and the sums run over the inner rank 0,
    1, ... from their first term.

    Args:
        theta: float32 vector, at least ``plan.extent`` long.
        plan: the layers.
        seeds: int64 (P,), or None for theta itself (P = 1).
        scales: float32 (P,), or None beside no seeds.
        distribution: ``"gaussian"`` or ``"rademacher"``.

    Returns:
        float32 (P, plan.size); the padding between blocks is not written.
    """
    theta = theta[: plan.extent].detach()
    if seeds is None or scales is None:
        copies = theta[None]
    else:
        copies = perturbed_copies(theta, seeds, scales, 0, PERTURBATION_STREAM, distribution)
    out = torch.empty((len(copies), plan.size), device=theta.device)
    for copy, row in zip(copies, out, strict=True):
        for group in plan.groups:
            _contract(copy, row, plan, group)
    return out


def _chain_left_backward(grad: Tensor, cores: Sequence[Tensor]) -> list[Tensor]:
    """Return the gradients of cores (P, l, n, r) from that of their chain, (P, rows, R)."""
    chains = [cores[0].flatten(1, 2)]
    for core in cores[1:-1]:
        chains.append((chains[-1] @ core.flatten(2)).reshape(len(core), -1, core.shape[-1]))
    grads = []
    for core, chain in zip(cores[:0:-1], chains[::-1], strict=False):
        grad = grad.reshape(len(core), chain.shape[1], -1)
        grads.append((chain.mT @ grad).view(core.shape))
        grad = grad @ core.flatten(2).mT
    return [grad.reshape(cores[0].shape), *grads[::-1]]


def _chain_right_backward(grad: Tensor, cores: Sequence[Tensor]) -> list[Tensor]:
    """Return the gradients of cores (P, l, n, r) from that of their chain, (P, R, columns)."""
    mirrored = [core.permute(0, 3, 2, 1) for core in reversed(cores)]
    modes = [core.shape[2] for core in cores]
    # The mirrored chain has the modes in reverse order.
    grad = grad.reshape(len(grad), -1, *modes).permute(0, *range(len(modes) + 1, 1, -1), 1)
    grads = _chain_left_backward(grad.flatten(1, -2), mirrored)
    return [value.permute(0, 3, 2, 1) for value in reversed(grads)]


def stacked_factors_backward(
    grad: Tensor,
    theta: Tensor,
    plan: FactorPlan,
    seeds: Tensor | None,
    scales: Tensor | None,
    distribution: str,
) -> Tensor:
    """Return the gradient of theta for :func:`stacked_factors`.

    Args:
        grad: gradient of the output, (P, plan.size).
        theta: as in :func:`stacked_factors`, and so are the others.
        plan: the layers.
        seeds: seeds or None.
        scales: scales or None.
        distribution: of the noise.
    """
    copies = theta.detach()[None]
    if seeds is not None and scales is not None:
        copies = perturbed_copies(copies[0], seeds, scales, 0, PERTURBATION_STREAM, distribution)
    result = torch.zeros_like(theta)
    for layer, wanted in zip(plan.layers, plan.views(grad.contiguous()), strict=True):
        cores = [
            copies[:, offset : offset + prod(shape)].view(-1, *shape)
            for offset, shape in zip(layer.offsets, layer.shapes, strict=True)
        ]
        rows, columns = (
            prod(shape[1] for shape in side)
            for side in (layer.shapes[: layer.cut], layer.shapes[layer.cut :])
        )
        a = functional.pad(wanted.a, (0, 0, 0, rows - layer.in_features))
        b = functional.pad(wanted.b, (0, columns - layer.out_features))
        grads = _chain_left_backward(a, cores[: layer.cut])
        grads += _chain_right_backward(b, cores[layer.cut :])
        for offset, value in zip(layer.offsets, grads, strict=True):
            result[offset : offset + value[0].numel()] += value.sum(0).reshape(-1)
        if layer.bias is not None and wanted.bias is not None:
            result[layer.bias : layer.bias + layer.out_features] += wanted.bias.sum(0)
    return result
