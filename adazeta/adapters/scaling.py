"""Adapters of which a model takes a share only: between the base model and the trained one."""

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from torch import nn

from adazeta.adapters.attach import disable_adapters
from adazeta.adapters.attached import adapter_config, attached_adapters
from adazeta.adapters.config import TTAdapterConfig

SCALES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""The shares among which one is fitted, as R-Adapter's figures have them."""


def check_scale(config: TTAdapterConfig, alpha: float) -> None:
    """Refuse a share of adapters that means nothing.

    Args:
        config: of the adapters.
        alpha: the share.

    Raises:
        ValueError: ``alpha`` is not finite, or modules of the base were trained in full.
    """
    if not math.isfinite(alpha):
        raise ValueError(f"the scale of adapters must be finite, got {alpha!r}")
    if alpha != 1 and config.modules_to_save:
        raise ValueError(
            f"modules_to_save ({', '.join(config.modules_to_save)}) were trained in full and their "
            f"values before are not kept, so a scale of {alpha:g} would mix two models; use 1"
        )


@contextmanager
def adapter_scale(model: nn.Module, alpha: float) -> Iterator[None]:
    """Let a model take a share of what its adapters do for the length of a ``with`` block.

    What each adapter adds is multiplied: ``y = x + alpha s Up(phi(Down(x)))`` for a bottleneck,
    ``W x + alpha s (x A) B`` for the linear form, ``h + alpha (...) Z U`` for an informed one, and
    for a mixer all that it changes of its block's input. A tensor train in a linear's place gives
    ``alpha`` of its output and the rest of the linear's.
    Adapters without an activation then compute what weights ``alpha W_trained + (1 - alpha) W``
    would. 0 is the base model and 1 the trained one, both bit for bit. Contexts nest as products.

    Source: after the re-scaling of R-Adapter (arXiv 2408.05749), for adapters of any form.

    Args:
        model: a model with adapters.
        alpha: the share; less than 0 and more than 1 extrapolate.

    Yields:
        None.

    Raises:
        ValueError: the model has no adapters, or see :func:`check_scale`.
    """
    check_scale(adapter_config(model), alpha)
    adapters = [adapter for _, adapter in attached_adapters(model)]
    before = [adapter.scale for adapter in adapters]
    # The base's own bits: a sum with zero would turn a -0.0 into 0.0.
    with disable_adapters(model) if alpha == 0 else nullcontext():
        try:
            for adapter, scale in zip(adapters, before, strict=True):
                adapter.scale = scale * alpha
            yield
        finally:
            for adapter, scale in zip(adapters, before, strict=True):
                adapter.scale = scale
