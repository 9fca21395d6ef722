"""Float32 steps that both versions of the noise take; small, so that neither holds the other's."""

import torch
from torch import Tensor


def horner(x: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    """Evaluate a polynomial, lowest coefficient first; each product and sum is rounded."""
    total = x * coefficients[-1]
    for coefficient in coefficients[-2:0:-1]:
        total.add_(coefficient).mul_(x)
    return total.add_(coefficients[0])


def square_root(value: Tensor) -> Tensor:
    """Return the correctly rounded square roots of a float32 tensor.

    On a CPU torch leaves the root to MKL, which misses the nearest float32 for every seventh
    argument. Its float64 root, rounded to float32, is the nearest: no root of a float32 lies as
    near to the middle between two as the float64 error.

    Args:
        value: float32 tensor, no element negative.

    Returns:
        float32 tensor of the same shape.
    """
    if value.device.type != "cpu":
        return value.sqrt()
    return value.double().sqrt_().to(torch.float32)
