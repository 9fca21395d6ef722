"""Gradients of a step taken ahead of the parameters: extrapolation, and sharpness-aware ascent.

After Extrapolation for Large-batch Training (arXiv 2006.05720) and SAM (arXiv 2010.01412): a
micro-batch's gradient is that at ``w - scale zeta``, and the optimizer steps from w with it.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from adazeta.kernels import add_noise_, aligned_offsets
from adazeta.support.seeds import EXTRAPOLATION_SEEDS, derive_seed

KINDS = {
    "none": "at the parameters",
    "local": "along the gradient of the same micro-batch, for twice the time",
    "past": "along the gradient of the step before, for a copy of the gradients",
    "gaussian": "along normal numbers",
    "filter": "along normal numbers times the norm of the weight's row",
    "ascent": "uphill along the gradient over its norm, as SAM, for twice the time",
}
"""Where gradients are taken, by the value of the setting."""

ASCENT = 0.05
"""Default scale of ``"ascent"``."""

_TWICE = ("local", "ascent")


class Extrapolation:
    """How gradients of one run are taken ahead.

    Args:
        kind: a key of :data:`KINDS`, not ``"none"``.
        scale: factor on zeta, 0 or more.
        until: steps that are taken so.
        seed: of the run, for the noise.

    Attributes:
        past: the mean gradient of the last step, of ``"past"``; empty before the first.
    """

    def __init__(self, kind: str, scale: float, until: int, seed: int) -> None:
        self.kind, self.scale, self.until, self.seed = kind, scale, until, seed
        self.past: list[Tensor] = []

    def evaluate(
        self,
        backward: Callable[[], Tensor],
        parameters: Sequence[nn.Parameter],
        *,
        place: tuple[int, int],
        count: int = 1,
        last: bool = True,
    ) -> Tensor:
        """Add the gradient of a micro-batch, taken ahead, to ``.grad`` of the parameters.

        The parameters are as they were when this returns or raises, bit for bit. Where a
        micro-batch is evaluated twice, both draw the same random numbers.

        Args:
            backward: evaluates the micro-batch, adds its gradient divided by ``count`` to
                ``.grad``, and returns its loss.
            parameters: those that are trained.
            place: optimizer steps done, and micro-batches of this one.
            count: micro-batches of the step.
            last: whether this is the last of them.

        Returns:
            The loss at the parameters, where that is computed, else the one ahead.
        """
        if place[0] >= self.until or not self.scale:
            return backward()
        before = [parameter.grad for parameter in parameters]
        _clear(parameters)
        try:
            loss = None
            if self.kind in _TWICE:
                with _same_draws():
                    loss = backward()
                gradient = [parameter.grad for parameter in parameters]
                _clear(parameters)
            else:
                gradient = list(self.past) or [None] * len(parameters)
            with self._ahead(parameters, gradient, count, place):
                del gradient
                found = backward()
        finally:
            for parameter, kept in zip(parameters, before, strict=True):
                if kept is not None:
                    parameter.grad = kept if parameter.grad is None else kept.add_(parameter.grad)
        if self.kind == "past" and last:
            self.past = [_or_zero(parameter).clone() for parameter in parameters]
        return found if loss is None else loss

    @contextmanager
    @torch.no_grad()
    def _ahead(
        self,
        parameters: Sequence[nn.Parameter],
        gradient: Sequence[Tensor | None],
        count: int,
        place: tuple[int, int],
    ) -> Iterator[None]:
        """Move the parameters, and put them back from a copy: a sum taken back loses bits."""
        copies = [parameter.detach().clone() for parameter in parameters]
        try:
            self._move(parameters, gradient, count, place)
            with torch.enable_grad():
                yield
        finally:
            for parameter, value in zip(parameters, copies, strict=True):
                parameter.data.copy_(value)

    def _move(
        self,
        parameters: Sequence[nn.Parameter],
        gradient: Sequence[Tensor | None],
        count: int,
        place: tuple[int, int],
    ) -> None:
        tensors = [parameter.data for parameter in parameters]
        if self.kind in ("gaussian", "filter"):
            seed = derive_seed(self.seed, EXTRAPOLATION_SEEDS, *place)
            offsets = aligned_offsets([tensor.numel() for tensor in tensors])
            if self.kind == "gaussian":
                add_noise_(tensors, [seed], [-self.scale], offsets=offsets)
                return
            for tensor, offset in zip(tensors, offsets, strict=True):
                noise = torch.zeros(tensor.shape, device=tensor.device)
                add_noise_(noise, [seed], [-self.scale], offsets=offset)
                tensor.add_(noise.mul_(_row_norms(tensor)).to(tensor.dtype))
            return
        factor = -self.scale * count if self.kind == "local" else -self.scale
        if self.kind == "ascent":
            norms = [each.float().norm() for each in gradient if each is not None]
            norm = torch.stack(norms).norm().item() if norms else 0.0
            factor = self.scale / norm if norm else 0.0
        for tensor, each in zip(tensors, gradient, strict=True):
            if each is not None:
                tensor.add_(each.to(tensor.dtype), alpha=factor)


def _clear(parameters: Sequence[nn.Parameter]) -> None:
    for parameter in parameters:
        parameter.grad = None


def _or_zero(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _row_norms(tensor: Tensor) -> Tensor:
    """Norm of each row over all but the first dimension; of a tensor of fewer than two, its own."""
    value = tensor.float()
    if value.dim() < 2:
        return value.norm()
    return value.flatten(1).norm(dim=1).view(-1, *[1] * (value.dim() - 1))


@contextmanager
def _same_draws() -> Iterator[None]:
    """Put the generators of torch back in the end, so that what comes next draws the same."""
    devices = [torch.accelerator.current_accelerator()] if torch.accelerator.is_available() else []
    kinds = {device.type for device in devices if device is not None}
    with torch.random.fork_rng(device_type=kinds.pop() if kinds else "cuda"):
        yield
