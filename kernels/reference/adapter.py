"""A whole adapter in plain PyTorch: ground truth of the tests, and the path of any device.

The functions here trust their arguments; ``ops/adapter.py`` checks them.
"""

from math import pi, sqrt

import torch
from torch import Tensor
from torch.nn import functional

from ..plan import Factors
from .layers import bias_grad, product, wide_dtype, widened

ACTIVATIONS = ("relu", "gelu", "gelu_tanh", "silu", "tanh", "identity")

Grads = tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor, Tensor, Tensor | None]


def activate(hidden: Tensor, activation: str) -> Tensor:
    """Return phi(hidden), which may overwrite hidden; names as in :func:`tt_adapter`."""
    if activation == "relu":
        return hidden.relu_()
    if activation == "gelu":
        return functional.gelu(hidden)
    if activation == "gelu_tanh":
        return functional.gelu(hidden, approximate="tanh")
    if activation == "silu":
        return functional.silu(hidden, inplace=True)
    return hidden.tanh_() if activation == "tanh" else hidden


def derivative(hidden: Tensor, activation: str) -> Tensor:
    """Return phi'(hidden); names as in :func:`tt_adapter`."""
    if activation == "relu":
        return (hidden > 0).to(hidden.dtype)
    if activation == "gelu":
        density = torch.exp(-0.5 * hidden.square()) / sqrt(2 * pi)
        return 0.5 * (1 + torch.erf(hidden / sqrt(2))) + hidden * density
    if activation == "gelu_tanh":
        square = hidden.square()
        tanh = torch.tanh(sqrt(2 / pi) * hidden * (1 + 0.044715 * square))
        slope = sqrt(2 / pi) * (1 + 3 * 0.044715 * square)
        return 0.5 * (1 + tanh) + 0.5 * hidden * (1 - tanh.square()) * slope
    if activation == "silu":
        sigmoid = torch.sigmoid(hidden)
        return sigmoid * (1 + hidden * (1 - sigmoid))
    if activation == "tanh":
        return 1 - torch.tanh(hidden).square()
    return torch.ones_like(hidden)


def tt_adapter(x: Tensor, down: Factors, up: Factors, activation: str, scale: float) -> Tensor:
    """Return x + scale * Up(phi(Down(x))), in float32 (float64 for float64 x), in x's dtype.

    Where the delta is zero, y has the bits of x, also those of -0.0.

    Args:
        x: (N, width), or (P, N, width) beside stacked factors.
        down: factors of width -> bottleneck, as in ``layers.tt_apply``.
        up: factors of bottleneck -> width.
        activation: ``"relu"``, ``"gelu"``, ``"gelu_tanh"``, ``"silu"``, ``"tanh"`` or
            ``"identity"``.
        scale: factor on the delta.
    """
    wide = wide_dtype(x)
    x_, down, up = x.to(wide), widened(down, wide), widened(up, wide)
    hidden = product(product(x_, down.a), down.b, down.bias)
    hidden = product(activate(hidden, activation), up.a).mul_(-scale)
    # What is subtracted is +0.0 where it is zero, because the sums begin with +0.0, and
    # x - 0.0 has the bits of x; x + 0.0 would turn -0.0 into 0.0.
    bias = up.b.new_zeros(up.b.shape[-1]) if up.bias is None else (up.bias * -scale).add_(0.0)
    delta = product(hidden, up.b, bias)
    return torch.sub(x_, delta, out=delta).to(x.dtype)


def tt_adapter_backward(
    grad: Tensor, x: Tensor, down: Factors, up: Factors, activation: str, scale: float
) -> Grads:
    """Return the gradients of x and of both layers' A, B and bias for :func:`tt_adapter`.

    Args:
        grad: gradient of y, the shape of x.
        x: as in :func:`tt_adapter`, and so are the others.
        down: down-projection.
        up: up-projection.
        activation: name.
        scale: factor on the delta.
    """
    wide = wide_dtype(x)
    x_, grad_ = x.to(wide), grad.to(wide)
    down_, up_ = widened(down, wide), widened(up, wide)
    low = product(x_, down_.a)
    before = product(low, down_.b, down_.bias)
    slope = derivative(before, activation)
    middle = activate(before, activation)
    high = product(middle, up_.a)
    delta = grad_ * scale
    grad_high = delta @ up_.b.mT
    grad_middle = (grad_high @ up_.a.mT).mul_(slope)
    grad_low = grad_middle @ down_.b.mT
    return (
        (grad_ + grad_low @ down_.a.mT).to(x.dtype),
        (x_.mT @ grad_low).to(down.a.dtype),
        (low.mT @ grad_middle).to(down.b.dtype),
        bias_grad(grad_middle, down.bias),
        (middle.mT @ grad_high).to(up.a.dtype),
        (high.mT @ delta).to(up.b.dtype),
        bias_grad(delta, up.bias),
    )
