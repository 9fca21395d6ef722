"""Tensor-train layers in plain PyTorch: ground truth of the tests, and the path of any device.

The functions here trust their arguments; ``ops/layers.py`` checks them.
"""

import torch
from torch import Tensor

from ..plan import Factors


def wide_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype that x is computed in: float32, or float64 for float64 x."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def widened(factors: Factors, dtype: torch.dtype) -> Factors:
    """Return factors in another dtype."""
    a, b, bias = factors
    return Factors(a.to(dtype), b.to(dtype), None if bias is None else bias.to(dtype))


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x W + bias for (N, n), (n, m), (m,); or (P, N, n), (P, n, m), (m,) or (P, m)."""
    if bias is None:
        return x @ weight
    if x.dim() == 2:
        return torch.addmm(bias, x, weight)
    return torch.baddbmm(bias if bias.dim() == 1 else bias[:, None], x, weight)


def bias_grad(grad: Tensor, bias: Tensor | None) -> Tensor | None:
    """Return the gradient of a bias that was added to every row."""
    if bias is None:
        return None
    rows = grad.sum(-2)
    return (rows.sum(0) if rows.dim() > bias.dim() else rows).to(bias.dtype)


def tt_apply(x: Tensor, a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    """Return (x A) B + bias, computed in float32 (float64 for float64 x), in x's dtype.

    Args:
        x: (N, in), or (P, N, in) beside stacked factors.
        a: (in, R) or (P, in, R).
        b: (R, out) or (P, R, out).
        bias: (out,), (P, out) beside stacked factors, or None.
    """
    wide = wide_dtype(x)
    factors = widened(Factors(a, b, bias), wide)
    return product(product(x.to(wide), factors.a), factors.b, factors.bias).to(x.dtype)


def tt_apply_backward(
    grad: Tensor, x: Tensor, a: Tensor, b: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
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
    wide = wide_dtype(x)
    grad_, x_, a_, b_ = (value.to(wide) for value in (grad, x, a, b))
    hidden = grad_ @ b_.mT
    grad_b = (x_ @ a_).mT @ grad_
    return (
        (hidden @ a_.mT).to(x.dtype),
        (x_.mT @ hidden).to(a.dtype),
        grad_b.to(b.dtype),
        bias_grad(grad_, bias),
    )
