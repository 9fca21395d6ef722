"""What a direction does in the course of training."""

from typing import Any, Protocol

from torch import Tensor


class Schedule(Protocol):
    """What a direction does after steps: fold what was trained, and draw other bases."""

    def after_step(self, optimizer: Any) -> None:
        """Called after every step; a pure function of the optimizer's state."""

    def tensors(self) -> dict[str, Tensor]:
        """Return what steps change beside the trainable parameters, by name."""

    def settle(self) -> None:
        """Follow those tensors after somebody else has written to them."""
