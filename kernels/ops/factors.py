"""The public ops that contract cores to factors: of one layer, and of a whole model at every probe.

W = A B is the tensor-train matrix of AdaZeta (arXiv 2406.18060, section 3.1), input modes first
and the cut on a core boundary, so W itself is never built.
"""

from collections.abc import Sequence
from functools import lru_cache
from math import prod
from typing import Any

import torch
from torch import Tensor

from ..cpu import factors as native
from ..dispatch import backend_name, needs_op, wants_gradient
from ..plan import FactorPlan
from ..reference import factors as reference
from .checks import check_distribution


def _check_cores(cores: Sequence[Tensor], cut: int) -> None:
    shapes = [tuple(core.shape) for core in cores]
    if not 1 <= cut < len(cores):
        raise ValueError(
            f"cut is {cut} for {len(cores)} cores; at least one core must lie on each side"
        )
    dims = {len(shape) for shape in shapes}
    if dims not in ({3}, {4}):
        raise ValueError(
            f"cores of shapes {shapes}; pass all of shape (r, n, r') or all of shape (P, r, n, r')"
        )
    if len({shape[:-3] for shape in shapes}) > 1:
        raise ValueError(f"cores of shapes {shapes} are stacked for different P; stack all alike")
    ranks = [shapes[0][-3], *(shape[-1] for shape in shapes)]
    if ranks[0] != 1 or ranks[-1] != 1 or [shape[-3] for shape in shapes] != ranks[:-1]:
        raise ValueError(
            f"cores of shapes {shapes} do not chain; the last size of each must be "
            "the first of the next, and the outer two must be 1"
        )


def tt_factors(
    cores: Sequence[Tensor], *, cut: int, in_features: int, out_features: int
) -> tuple[Tensor, Tensor]:
    """Contract the cores on either side of the cut to the factors of W = A B.

    The tensor train (Oseledets, SIAM J. Sci. Comput. 33(5), 2011) of AdaZeta, section 3.1::

        A[i, r] = G_1[:, i_1, :] ... G_c[:, i_c, r]        i = (i_1, ..., i_c), the first slowest
        B[r, j] = G_{c+1}[r, j_1, :] ... G_d[:, j_{d-c}, :]

    Differentiable. Rows of A beyond ``in_features`` and columns of B beyond ``out_features``
    (the padding of widths that do not factor) are cut off. The factors of all layers of a model
    at once, with noise, are :func:`stacked_factors`.

    Args:
        cores: tensors (r_{k-1}, n_k, r_k), or all stacked (P, r_{k-1}, n_k, r_k); the first
            ``cut`` carry input modes, the others output modes.
        cut: number of input cores.
        in_features: rows of W, at most the product of the input modes.
        out_features: columns of W, at most the product of the output modes.

    Returns:
        A (in_features, R) and B (R, out_features), or (P, in_features, R) and
        (P, R, out_features), in the cores' dtype; R is the rank at the cut.

    Raises:
        ValueError: if the cores do not chain, are stacked unequally or are too small.

    Example:
        >>> cores = [torch.randn(1, 4, 2), torch.randn(2, 3, 2), torch.randn(2, 5, 1)]
        >>> a, b = tt_factors(cores, cut=2, in_features=11, out_features=5)
        >>> a.shape, b.shape
        (torch.Size([11, 2]), torch.Size([2, 5]))
    """
    _check_cores(cores, cut)
    rows = prod([core.shape[-2] for core in cores[:cut]])
    columns = prod([core.shape[-2] for core in cores[cut:]])
    if not 0 < in_features <= rows or not 0 < out_features <= columns:
        raise ValueError(
            f"modes of {rows} x {columns} cannot hold a matrix of {in_features} x "
            f"{out_features}; choose larger modes"
        )
    return reference.tt_factors(cores, cut, in_features, out_features)


def _factors(
    theta: Tensor,
    plan: FactorPlan,
    seeds: Tensor | None,
    scales: Tensor | None,
    distribution: str,
    out: Tensor | None = None,
) -> Tensor:
    backend = backend_name(theta)
    if backend == "reference":
        found = reference.stacked_factors(theta, plan, seeds, scales, distribution)
        return found if out is None else out.copy_(found)
    if out is None:
        out = torch.empty((1 if seeds is None else len(seeds), plan.size), device=theta.device)
    elif not out.is_inference():
        torch.autograd.graph.increment_version(out)
    if out.numel():
        if backend == "triton":
            from ..gpu.factors import stacked_factors as write
        else:
            write = native.stacked_factors
        write(theta, plan, seeds, scales, distribution, out)
    return out


@lru_cache(maxsize=16)
def _plan_of(code: tuple[int, ...]) -> FactorPlan:
    return FactorPlan.decode(code)


@torch.library.custom_op("adazeta::stacked_factors", mutates_args=())
def stacked_factors_op(
    theta: Tensor,
    plan: Tensor,
    seeds: Tensor | None,
    scales: Tensor | None,
    size: int,
    distribution: str,
) -> Tensor:
    """Contract all layers; ``plan`` is ``FactorPlan.code``, ``size`` is ``FactorPlan.size``."""
    return _factors(theta, _plan_of(tuple(plan.tolist())), seeds, scales, distribution)


@stacked_factors_op.register_fake
def _(
    theta: Tensor,
    plan: Tensor,
    seeds: Tensor | None,
    scales: Tensor | None,
    size: int,
    distribution: str,
) -> Tensor:
    return theta.new_empty((1 if seeds is None else seeds.shape[0], size))


@torch.library.custom_op("adazeta::stacked_factors_backward", mutates_args=())
def _stacked_factors_backward(
    grad: Tensor,
    theta: Tensor,
    plan: Tensor,
    seeds: Tensor | None,
    scales: Tensor | None,
    distribution: str,
) -> Tensor:
    """Return the gradient of theta."""
    return reference.stacked_factors_backward(
        grad, theta, _plan_of(tuple(plan.tolist())), seeds, scales, distribution
    )


@_stacked_factors_backward.register_fake
def _(
    grad: Tensor,
    theta: Tensor,
    plan: Tensor,
    seeds: Tensor | None,
    scales: Tensor | None,
    distribution: str,
) -> Tensor:
    return theta.new_empty(theta.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    theta, plan, seeds, scales, _, ctx.distribution = inputs
    ctx.save_for_backward(theta, plan, seeds, scales)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return (
        _stacked_factors_backward(grad, *ctx.saved_tensors, ctx.distribution),
        None,
        None,
        None,
        None,
        None,
    )


stacked_factors_op.register_autograd(_backward, setup_context=_save)


def stacked_factors(
    theta: Tensor,
    plan: FactorPlan,
    seeds: Tensor | None = None,
    scales: Tensor | None = None,
    *,
    distribution: str = "gaussian",
    out: Tensor | None = None,
) -> Tensor:
    """Contract the cores of all layers of a model, at P perturbed parameter vectors at once.

    :func:`tt_factors` of every layer (AdaZeta, arXiv 2406.18060, section 3.1) where probe p sees
    ``theta + scales[p] * z(seeds[p])``, element i of theta being element i of the noise. One
    kernel launch for all layers and probes; on accelerators one before it makes the perturbed
    cores, a hundredth of the factors. The same bits on every backend:
    ``reference.factors.stacked_factors`` states the order of all sums. Differentiable in theta.

    Args:
        theta: contiguous float32 vector that holds the cores and biases.
        plan: where they lie.
        seeds: int64 (P,), or None for theta itself (P = 1).
        scales: float32 (P,); given if and only if seeds are.
        distribution: ``"gaussian"``, ``"rademacher"`` or ``"pairs"``.
        out: contiguous float32 (P, plan.size) beside theta that the factors are written to, by
            default a new one. No gradient goes through it.

    Returns:
        float32 (P, plan.size); ``plan.views`` cuts it into A, B and bias of each layer.

    Raises:
        TypeError: theta, seeds or scales are of another dtype or number of dimensions.
        ValueError: theta is too short or not contiguous, seeds and scales differ in length or
            device, the distribution is unknown, ``out`` is of another shape, dtype or device, or
            it is given where a gradient is asked for.

    Example:
        >>> from adazeta.kernels import FactorLayer
        >>> layer = FactorLayer(offsets=(0, 24), shapes=((1, 8, 3), (3, 5, 1)), cut=1,
        ...                     in_features=8, out_features=5, bias=None)
        >>> plan = FactorPlan((layer,))
        >>> found = stacked_factors(torch.randn(39), plan, torch.tensor([7, 7]),
        ...                         torch.tensor([0.01, -0.01]))
        >>> [factors] = plan.views(found)
        >>> factors.a.shape, factors.b.shape
        (torch.Size([2, 8, 3]), torch.Size([2, 3, 5]))
    """
    check_distribution(distribution)
    if theta.dtype != torch.float32 or theta.dim() != 1:
        raise TypeError(
            f"theta is {theta.dtype} of shape {tuple(theta.shape)}; pass a float32 vector"
        )
    if not theta.is_contiguous() or len(theta) < plan.extent:
        raise ValueError(
            f"theta has {len(theta)} elements and stride {theta.stride()}; the plan "
            f"needs {plan.extent} contiguous ones"
        )
    if (seeds is None) != (scales is None):
        raise ValueError("seeds and scales go together; pass both or neither")
    if seeds is not None and scales is not None:
        if seeds.dtype != torch.int64 or scales.dtype != torch.float32 or seeds.dim() != 1:
            raise TypeError(
                f"seeds are {seeds.dtype} of shape {tuple(seeds.shape)} and scales "
                f"{scales.dtype}; pass int64 (P,) and float32 (P,)"
            )
        if seeds.shape != scales.shape or {seeds.device, scales.device} != {theta.device}:
            raise ValueError(
                f"seeds of shape {tuple(seeds.shape)} on {seeds.device} and scales "
                f"of shape {tuple(scales.shape)} on {scales.device}, theta on "
                f"{theta.device}; pass one scale per seed, beside theta"
            )
    if out is not None:
        _check_out(out, theta, (1 if seeds is None else len(seeds), plan.size))
    if needs_op(theta, seeds, scales):
        found = stacked_factors_op(theta, plan.code, seeds, scales, plan.size, distribution)
        return found if out is None else out.copy_(found)
    return _factors(theta, plan, seeds, scales, distribution, out)


def _check_out(out: Tensor, theta: Tensor, shape: tuple[int, int]) -> None:
    fits = out.shape == shape and out.dtype == torch.float32 and out.is_contiguous()
    if not fits or out.device != theta.device:
        raise ValueError(
            f"out is {out.dtype} of shape {tuple(out.shape)} and stride {out.stride()} on "
            f"{out.device}; pass contiguous float32 {shape} on {theta.device}"
        )
    if wants_gradient(theta):
        raise ValueError("out is given, and theta asks for a gradient; leave out one of the two")
