"""Every op in plain PyTorch: the ground truth of the tests, and the path of any device.

The functions here trust their arguments; ``operations.py`` and ``tt_operations.py`` check them.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from .philox import CHUNK, draw, philox

__all__ = ["add_noise_", "draw", "perturbed_copies", "philox", "tt_apply",
           "tt_apply_backward", "tt_factors"]

# Elements worked on at a time, a multiple of 128 so that pieces start on whole counters.
PIECE = 4 * CHUNK
# Ranges closer than this are drawn in one go, and the noise of the gap is thrown away.
GAP = 128

Member = tuple[int, Tensor, Tensor]


def _runs(members: list[Member]) -> Iterator[list[Member]]:
    """Group (offset, input, output) triples whose ranges nearly tile a range, in order."""
    run: list[Member] = []
    end = 0
    for member in sorted(members, key=lambda item: item[0]):
        offset = member[0]
        if run and not end <= offset <= end + GAP:
            yield run
            run = []
        run.append(member)
        end = offset + member[1].numel()
    if run:
        yield run


@torch.no_grad()
def add_noise_(inputs: Sequence[Tensor], outputs: Sequence[Tensor], offsets: Sequence[int],
               seeds: Tensor, coefficients: Tensor, decay: float, distribution: str) -> None:
    """Write ``decay * theta + sum_k c_k z(s_k)`` for each input to its output, without a graph.

    Float32 throughout, one rounding per multiply and per add, terms in the order of k, and one
    rounding to the output's dtype at the end.

    Args:
        inputs: contiguous tensors theta_t.
        outputs: tensors of the same shapes and dtypes; an output may be its input.
        offsets: index of the first element of each tensor in the space of the noise.
        seeds: int64 (Q,).
        coefficients: float32 (Q,), on the device of the seeds.
        decay: a float that is exact in float32.
        distribution: ``"gaussian"`` or ``"rademacher"``.
    """
    members = [(offset, theta.view(-1), out.view(-1))
               for offset, theta, out in zip(offsets, inputs, outputs, strict=True)
               if theta.numel()]
    for run in _runs(members):
        begin, end = run[0][0], run[-1][0] + run[-1][1].numel()
        while begin < end:
            stop = min(end, (begin // PIECE + 1) * PIECE)
            value = torch.empty(stop - begin, device=seeds.device)
            places, sizes, cursor = [], [], begin
            for offset, theta, out in run:
                low, high = max(begin, offset), min(stop, offset + theta.numel())
                if low < high:
                    if high - low < theta.numel():
                        part = slice(low - offset, high - offset)
                        theta, out = theta[part], out[part]
                    places.append((theta, out))
                    sizes += [low - cursor, high - low]
                    cursor = high
            views = value.split([*sizes, stop - cursor])[1:-1:2]
            for view, (theta, _) in zip(views, places, strict=True):
                view.copy_(theta)
            value.mul_(decay)
            step = max(1, PIECE // (stop - begin))
            for probe in range(0, len(seeds), step):
                part = slice(probe, probe + step)
                noise = draw(seeds[part], begin, stop - begin, 0, distribution)
                for term in noise.mul_(coefficients[part, None]):
                    value.add_(term)
            for view, (_, out) in zip(views, places, strict=True):
                out.copy_(view)
            begin = stop


def perturbed_copies(theta: Tensor, seeds: Tensor, coefficients: Tensor, offset: int,
                     stream: int, distribution: str) -> Tensor:
    """Return (P, *theta.shape): row p is ``theta + c_p z(s_p)`` in theta's dtype.

    Args:
        theta: contiguous tensor.
        seeds: int64 (P,); a seed that occurs more than once is drawn once.
        coefficients: float32 (P,).
        offset: index of the first element of theta in the space of the noise.
        stream: third counter word of the noise.
        distribution: ``"gaussian"`` or ``"rademacher"``.
    """
    flat = theta.detach().reshape(-1)
    distinct, rows = torch.unique(seeds, return_inverse=True)
    out = torch.empty((len(seeds), flat.numel()), dtype=theta.dtype, device=theta.device)
    step = max(128, PIECE // max(1, len(seeds)) // 128 * 128)
    for begin in range(0, flat.numel() if len(seeds) else 0, step):
        stop = min(begin + step, flat.numel())
        noise = draw(distinct, offset + begin, stop - begin, stream, distribution)[rows]
        out[:, begin:stop] = noise.mul_(coefficients[:, None]).add_(flat[begin:stop])
    return out.view(len(seeds), *theta.shape)


def tt_factors(cores: Sequence[Tensor], cut: int, in_features: int,
               out_features: int) -> tuple[Tensor, Tensor]:
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


def tt_apply(x: Tensor, a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    """Return (x A) B + bias, computed in float32 (float64 for float64 x), in x's dtype.

    Args:
        x: (N, in), or (P, N, in) beside stacked factors.
        a: (in, R) or (P, in, R).
        b: (R, out) or (P, R, out).
        bias: (out,), (P, out) beside stacked factors, or None.
    """
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    y = (x.to(wide) @ a.to(wide)) @ b.to(wide)
    if bias is not None:
        y += (bias if bias.dim() == 1 else bias[:, None]).to(wide)
    return y.to(x.dtype)


def tt_apply_backward(grad: Tensor, x: Tensor, a: Tensor, b: Tensor,
                      bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Return the gradients of x, A, B and bias for :func:`tt_apply`, each in its own dtype.

    With H = x A: dH = dY B^T, dx = dH A^T, dA = x^T dH, dB = H^T dY, and dbias = sum of dY over
    the rows.

    Args:
        grad: dY, the shape of the output.
        x: as in :func:`tt_apply`, and so are the others.
        a: left factor.
        b: right factor.
        bias: bias or None.
    """
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    grad_, x_, a_, b_ = (value.to(wide) for value in (grad, x, a, b))
    hidden = grad_ @ b_.mT
    grad_b = (x_ @ a_).mT @ grad_
    grad_bias = None
    if bias is not None:
        rows = grad_.sum(-2)
        grad_bias = (rows.sum(0) if rows.dim() > bias.dim() else rows).to(bias.dtype)
    return ((hidden @ a_.mT).to(x.dtype), (x_.mT @ hidden).to(a.dtype), grad_b.to(b.dtype),
            grad_bias)
