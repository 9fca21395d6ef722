"""Modules that are left out at random in training: for one estimate, or one gradient, at a time.

Each module is left out with its probability p, gamma ~ Bernoulli(1 - p), and what the others add is
divided by 1 - p, so that the mean over gamma is what is added without. Source: after the adapter
dropping of R-Adapter (arXiv 2408.05749), whose code draws a gamma for each position of a text; one
for a module keeps stacked evaluations, packed rows and a short forward.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from adazeta.support.seeds import derive_seed


class Droppable:
    """A module that adds something to its input, and can be left out.

    Attributes:
        enabled: False where it is left out: its input is returned as it is, nothing is computed.
        scale: factor on what it adds.
        drop: probability p that it is left out in training.
    """

    enabled: bool = True
    scale: float = 1.0
    drop: float = 0.0


def droppables(source: Any) -> list[Droppable]:
    """Find the trained modules that are to be left out at random; none if this is no model.

    Frozen ones stay, since what is computed of them may be shared and kept.
    """
    modules = source.modules() if isinstance(source, nn.Module) else ()
    return [
        module
        for module in modules
        if isinstance(module, Droppable)
        and module.drop
        and any(parameter.requires_grad for parameter in module.parameters())
    ]


@contextmanager
def dropping(modules: Sequence[Droppable], seed: int) -> Iterator[bool]:
    """Leave modules out inside the context, by a mask that is a pure function of the seed.

    Args:
        modules: of :func:`droppables`.
        seed: of the mask.

    Yields:
        Whether any module stays, or there is none.
    """
    before = [(module.enabled, module.scale) for module in modules]
    try:
        for index, module in enumerate(modules):
            if derive_seed(seed, index) < module.drop * (1 << 63):
                module.enabled = False
            else:
                module.scale = module.scale / (1 - module.drop)
        yield not modules or any(module.enabled for module in modules)
    finally:
        for module, (enabled, scale) in zip(modules, before, strict=True):
            module.enabled, module.scale = enabled, scale
