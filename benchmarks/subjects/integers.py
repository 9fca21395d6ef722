"""Frozen linears that multiply in 8-bit integers: rounded once by channel, activations by token.

The products of integers are exact in int32; both scales are float32. ``torch._int_mm`` multiplies,
which is private, so it is used here and nowhere in the package.
"""

import torch
from torch import Tensor, nn

LEVELS = 127


class IntegerProduct:
    """The product of a linear with an int8 copy of its weight.

    Args:
        linear: its weight ``(out, in)`` is rounded to multiples of each row's largest value over
            127; its bias stays as it is.
    """

    def __init__(self, linear: nn.Linear) -> None:
        weight = linear.weight.detach().float()
        self.scale = step_of(weight)[:, 0]
        self.weight = (weight / self.scale[:, None]).round().to(torch.int8).t()
        self.bias = linear.bias

    def __call__(self, input: Tensor) -> Tensor:
        """Return about what the linear does to ``(..., in)``; each token has its own scale."""
        tokens = input.reshape(-1, input.shape[-1])
        step = step_of(tokens.float())
        rounded = (tokens / step).round_().to(torch.int8)
        product = torch._int_mm(rounded, self.weight).float().mul_(step).mul_(self.scale)
        if self.bias is not None:
            product += self.bias
        return product.to(input.dtype).view(*input.shape[:-1], -1)


def step_of(rows: Tensor) -> Tensor:
    """Return the distance of the levels of each row, ``(rows, 1)``; positive."""
    largest = rows.abs().amax(-1, keepdim=True)
    return largest.clamp_min(torch.finfo(rows.dtype).tiny * LEVELS) / LEVELS


def multiply_in_integers(module: nn.Module) -> list[str]:
    """Have all frozen linears below a module multiply in integers; hooks on them stay.

    Returns:
        The names of the linears.
    """
    found = [
        name
        for name, part in module.named_modules()
        if type(part) is nn.Linear and not part.weight.requires_grad
    ]
    for name in found:
        linear = module.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        linear.forward = IntegerProduct(linear)  # type: ignore[method-assign]
    return found
