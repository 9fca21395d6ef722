"""Linears that compute with rounded weights and activations, and can be trained all the same.

Values are those of :mod:`benchmarks.subjects.rounding`; gradients pass the rounding as if it were
not there (the straight-through estimator). Numbers stay floating, so no memory is saved.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.subjects.rounding import GROUP, rounded

ACTIVATION_BITS = 8


class _StraightThrough(torch.autograd.Function):
    """Rounding with the gradient of the identity; the value is the rounded one, bit for bit."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, bits: int, group: int) -> Tensor:
        return rounded(value, bits, group)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0], None, None


class FakeQuantised(nn.Linear):
    """A linear on the weight and bias of another one, rounded in each forward pass.

    Args:
        linear: whose weight ``(out, in)`` and bias are used, not copied.
        bits: of a weight; groups of a row's inputs share their levels.
        group: inputs of a group.

    Raises:
        ValueError: the inputs are no whole number of groups.
    """

    def __init__(self, linear: nn.Linear, bits: int, group: int = GROUP) -> None:
        nn.Module.__init__(self)  # nothing is drawn: the weights are there already
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.bits, self.group = bits, group
        rounded(self.weight, bits, group)  # now, not in a run, tell if that cannot be

    def forward(self, input: Tensor) -> Tensor:
        """Apply to ``(..., in)``; each token's activations have levels of their own."""
        tokens = input.reshape(-1, self.in_features)
        low = _StraightThrough.apply(tokens, ACTIVATION_BITS, self.in_features).view_as(input)
        weight = _StraightThrough.apply(self.weight, self.bits, self.group)
        return functional.linear(low, weight, self.bias)


def fake_quantise(module: nn.Module, bits: int, group: int = GROUP) -> list[str]:
    """Put fake-quantised linears in the place of all linears below a module.

    Returns:
        The names of the linears.
    """
    found = [name for name, part in module.named_modules() if isinstance(part, nn.Linear)]
    for name in found:
        linear = module.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        module.set_submodule(name, FakeQuantised(linear, bits, group))
    return found
