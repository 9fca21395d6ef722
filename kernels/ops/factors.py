"""The public op that contracts the cores of a whole model: at every probe."""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from . import native, tt_reference
from .dispatch import backend_name
from .factor_plan import FactorPlan
from .philox import DISTRIBUTIONS
from .tt_operations import needs_op


def _factors(theta: Tensor, plan: FactorPlan, seeds: Tensor | None, scales: Tensor | None,
             distribution: str) -> Tensor:
    backend = backend_name(theta)
    if backend == "triton":
        from . import contraction
        return contraction.stacked_factors(theta, plan, seeds, scales, distribution)
    module = native if backend == "native" else tt_reference
    return module.stacked_factors(theta, plan, seeds, scales, distribution)


@lru_cache(maxsize=16)
def _plan_of(code: tuple[int, ...]) -> FactorPlan:
    return FactorPlan.decode(code)


@torch.library.custom_op("adazeta::stacked_factors", mutates_args=())
def stacked_factors_op(theta: Tensor, plan: Tensor, seeds: Tensor | None, scales: Tensor | None,
                       size: int, distribution: str) -> Tensor:
    """Contract all layers; ``plan`` is ``FactorPlan.code``, ``size`` is ``FactorPlan.size``."""
    return _factors(theta, _plan_of(tuple(plan.tolist())), seeds, scales, distribution)


@stacked_factors_op.register_fake
def _(theta: Tensor, plan: Tensor, seeds: Tensor | None, scales: Tensor | None, size: int,
      distribution: str) -> Tensor:
    return theta.new_empty((1 if seeds is None else seeds.shape[0], size))


@torch.library.custom_op("adazeta::stacked_factors_backward", mutates_args=())
def _stacked_factors_backward(grad: Tensor, theta: Tensor, plan: Tensor, seeds: Tensor | None,
                              scales: Tensor | None, distribution: str) -> Tensor:
    """Return the gradient of theta."""
    return tt_reference.stacked_factors_backward(grad, theta, _plan_of(tuple(plan.tolist())),
                                                 seeds, scales, distribution)


@_stacked_factors_backward.register_fake
def _(grad: Tensor, theta: Tensor, plan: Tensor, seeds: Tensor | None, scales: Tensor | None,
      distribution: str) -> Tensor:
    return theta.new_empty(theta.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    theta, plan, seeds, scales, _, ctx.distribution = inputs
    ctx.save_for_backward(theta, plan, seeds, scales)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return (_stacked_factors_backward(grad, *ctx.saved_tensors, ctx.distribution),
            None, None, None, None, None)


stacked_factors_op.register_autograd(_backward, setup_context=_save)


def stacked_factors(theta: Tensor, plan: FactorPlan, seeds: Tensor | None = None,
                    scales: Tensor | None = None, *, distribution: str = "gaussian") -> Tensor:
    """Contract the cores of all layers of a model, at P perturbed parameter vectors at once.

    :func:`tt_factors` of every layer (AdaZeta, arXiv 2406.18060, section 3.1) where probe p sees
    ``theta + scales[p] * z(seeds[p])``, element i of theta being element i of the noise. One
    kernel launch for all layers and probes; on accelerators one before it makes the perturbed
    cores, a hundredth of the factors. The same bits on every backend:
    ``tt_reference.stacked_factors`` states the order of all sums. Differentiable in theta.

    Args:
        theta: contiguous float32 vector that holds the cores and biases.
        plan: where they lie.
        seeds: int64 (P,), or None for theta itself (P = 1).
        scales: float32 (P,); given if and only if seeds are.
        distribution: ``"gaussian"`` or ``"rademacher"``.

    Returns:
        float32 (P, plan.size); ``plan.views`` cuts it into A, B and bias of each layer.

    Raises:
        TypeError: theta, seeds or scales are of another dtype or number of dimensions.
        ValueError: theta is too short or not contiguous, seeds and scales differ in length or
            device, or the distribution is unknown.

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
    if distribution not in DISTRIBUTIONS:
        raise ValueError(f"distribution is {distribution!r}; choose one of "
                         f"{', '.join(DISTRIBUTIONS)}")
    if theta.dtype != torch.float32 or theta.dim() != 1:
        raise TypeError(f"theta is {theta.dtype} of shape {tuple(theta.shape)}; pass a float32 "
                        "vector")
    if not theta.is_contiguous() or len(theta) < plan.extent:
        raise ValueError(f"theta has {len(theta)} elements and stride {theta.stride()}; the plan "
                         f"needs {plan.extent} contiguous ones")
    if (seeds is None) != (scales is None):
        raise ValueError("seeds and scales go together; pass both or neither")
    if seeds is not None and scales is not None:
        if seeds.dtype != torch.int64 or scales.dtype != torch.float32 or seeds.dim() != 1:
            raise TypeError(f"seeds are {seeds.dtype} of shape {tuple(seeds.shape)} and scales "
                            f"{scales.dtype}; pass int64 (P,) and float32 (P,)")
        if seeds.shape != scales.shape or {seeds.device, scales.device} != {theta.device}:
            raise ValueError(f"seeds of shape {tuple(seeds.shape)} on {seeds.device} and scales "
                             f"of shape {tuple(scales.shape)} on {scales.device}, theta on "
                             f"{theta.device}; pass one scale per seed, beside theta")
    if needs_op(theta):
        return stacked_factors_op(theta, plan.code, seeds, scales, plan.size, distribution)
    return _factors(theta, plan, seeds, scales, distribution)
