"""Updates inside of the backward pass, so that the gradients of a model never exist together.

As LOMO (arXiv 2306.09782) does it: a parameter is updated as soon as its gradient is whole, and the
gradient is dropped.
"""

from collections.abc import Callable
from typing import Any, Protocol

from torch import nn


class OneByOne(Protocol):
    """An optimizer whose update of a parameter needs nothing of the others."""

    param_groups: list[dict[str, Any]]

    def update_parameter(self, parameter: nn.Parameter, group: dict[str, Any]) -> None:
        """Update one parameter from its gradient."""

    def register_step_post_hook(self, hook: Any) -> Any:
        """As that of ``torch.optim.Optimizer``."""


class FusedBackward:
    """Hooks by which ``backward()`` updates the parameters; :meth:`remove` takes them off.

    Args:
        optimizer: updates them.
    """

    def __init__(self, optimizer: OneByOne) -> None:
        self._optimizer = optimizer
        self._done: set[int] = set()
        self._handles = [optimizer.register_step_post_hook(self._begin_step)]
        for index, group in enumerate(optimizer.param_groups):
            for parameter in group["params"]:
                if parameter.requires_grad:
                    hook = self._hook(index)
                    self._handles.append(parameter.register_post_accumulate_grad_hook(hook))

    def _hook(self, index: int) -> Callable[[nn.Parameter], None]:
        def update(parameter: nn.Parameter) -> None:
            if id(parameter) in self._done:
                raise RuntimeError(
                    "a parameter got a second gradient within one step of a fused backward pass: "
                    "call optimizer.step() after each backward(), without gradient accumulation, "
                    "and use gradient checkpointing with use_reentrant=False"
                )
            self._done.add(id(parameter))
            # A state that is loaded makes the groups anew.
            self._optimizer.update_parameter(parameter, self._optimizer.param_groups[index])
            parameter.grad = None

        return update

    def _begin_step(self, *arguments: Any) -> None:
        self._done.clear()

    def remove(self) -> None:
        """Take the hooks off; ``optimizer.step()`` then updates again."""
        for handle in self._handles:
            handle.remove()
        self._handles = []


def fuse_into_backward(optimizer: OneByOne) -> FusedBackward:
    """Update each parameter as soon as its gradient is whole, and drop the gradient.

    The bits are those of ``optimizer.step()`` after the backward pass. Keep calling that: it has
    nothing left to update, and it ends the step. What needs all gradients together is impossible:
    clipping by their norm, accumulation, and averaging over processes.

    Args:
        optimizer: such as :class:`~adazeta.optim.adalomo.AdaLomo`.

    Returns:
        The hooks, with ``remove()``.

    Raises:
        TypeError: the optimizer cannot update one parameter alone.

    Example:
        >>> model = torch.nn.Linear(3, 1)
        >>> optimizer = adazeta.AdaLomo(model.parameters())
        >>> handle = adazeta.fuse_into_backward(optimizer)
        >>> model(torch.ones(2, 3)).sum().backward()  # updates, and keeps no gradient
        >>> optimizer.step()
    """
    if not hasattr(optimizer, "update_parameter"):
        raise TypeError(
            f"{type(optimizer).__name__} has no update_parameter(parameter, group), so it cannot "
            "update one parameter alone; use AdaLomo"
        )
    return FusedBackward(optimizer)
