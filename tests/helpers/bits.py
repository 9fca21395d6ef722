"""Copies and comparisons of tensors, bit for bit."""

import torch
from torch import Tensor, nn


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors are equal bit for bit, where 0.0 and -0.0 differ."""
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return a.dtype == b.dtype and torch.equal(a.view(integers), b.view(integers))


def bits(module: nn.Module) -> list[Tensor]:
    """Copies of all parameters, to compare bit for bit."""
    return [parameter.detach().clone() for parameter in module.parameters()]


def assert_same_bits(module: nn.Module, before: list[Tensor]) -> None:
    for parameter, copy in zip(module.parameters(), before, strict=True):
        assert torch.equal(parameter.detach(), copy)
