"""What every way to evaluate a model at perturbed parameters has in common."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class Perturbation(ABC):
    """One way to evaluate at ``theta + scale * z(seed)``.

    Args:
        parameters: float32, bfloat16 or float16, on one device.
        offsets: index of each parameter's first element, ascending.
        distribution: ``"gaussian"``, ``"rademacher"`` or ``"pairs"``.

    Attributes:
        parameters, offsets, distribution: those.
        tensors: cover all parameters, as few as there can be; known after :meth:`lay_out`.
        starts: index of each tensor's first element.
        values: each parameter's values outside of an evaluation, in its shape.
        takes_tensors: whether seed and scale of :meth:`perturbed` may be tensors.
        busy: whether the parameters have, or point to, other values than :attr:`values` for now.
    """

    takes_tensors = False
    busy = False
    tensors: list[Tensor]
    starts: list[int]
    values: list[Tensor]

    def __init__(
        self, parameters: Sequence[nn.Parameter], offsets: Sequence[int], distribution: str
    ) -> None:
        self.parameters, self.offsets = list(parameters), list(offsets)
        self.distribution = distribution
        self._offset_by_id = dict(zip(map(id, self.parameters), self.offsets, strict=True))

    def lay_out(self) -> None:
        """Bring the parameters into the form that evaluations need: here, contiguous."""
        for parameter in self.parameters:
            if not parameter.is_contiguous():
                parameter.data = parameter.data.contiguous()
        self.settle([parameter.data for parameter in self.parameters])
        self.tensors, self.starts = self.values, self.offsets

    def settle(self, values: list[Tensor]) -> None:
        """Take what the parameters hold for their values, until one is moved."""
        self.values = values
        self._places, self._looks = _places(values), _looks(values)

    @property
    def moved(self) -> bool:
        """Whether a parameter was moved or rebound since :meth:`lay_out`.

        Its address tells, as :attr:`values` keep the old memory: asked twice an evaluation, of
        hundreds of parameters. What stays where it is and is :attr:`reshaped` is asked for apart.
        """
        return _places(self.parameters) != self._places

    @property
    def reshaped(self) -> bool:
        """Whether a parameter looks at its memory otherwise than at :meth:`lay_out`."""
        return _looks(self.parameters) != self._looks

    def refuse_inside(self) -> None:
        """Raise where an evaluation has not ended: its values would be taken for theta.

        Raises:
            RuntimeError: the parameters are :attr:`busy`.
        """
        if self.busy:
            raise RuntimeError(
                "a perturbed evaluation cannot contain another one, nor anything else that needs "
                "the parameters' own values"
            )

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return self.parameters[0].device

    def pieces(self, parameters: Sequence[nn.Parameter]) -> tuple[list[Tensor], list[int]]:
        """Return tensors that cover the given parameters, and their offsets."""
        if self._offset_by_id.keys() == set(map(id, parameters)):
            return self.tensors, self.starts
        return [p.data for p in parameters], [self._offset_by_id[id(p)] for p in parameters]

    @abstractmethod
    def perturbed(self, seed: int | Tensor, scale: float | Tensor) -> AbstractContextManager[None]:
        """Evaluate at ``theta + scale * z(seed)`` inside the context.

        Args:
            seed: 63-bit seed of the direction.
            scale: step along it, in units of the parameters; 0 evaluates at theta.

        Both may be tensors beside the parameters, int64 and float32 ``(1,)``, where
        :attr:`takes_tensors` says so: what is launched then reads them when it runs, and no value
        decides what that is.
        """

    def held(self) -> list[Tensor]:
        """Return the memory that evaluations read and write beside what is made in them."""
        return list(self.tensors)

    @contextmanager
    def sequence(self) -> Iterator[None]:
        """Enter around evaluations that belong together; here each stands for itself."""
        yield

    @property
    def stackable(self) -> bool:
        """Whether several parameter vectors can be evaluated in one forward; by default not."""
        return False

    def stacked(self, seeds: Tensor, scales: Tensor) -> AbstractContextManager[None]:
        """Evaluate P parameter vectors ``theta + scales[p] * z(seeds[p])`` in one forward.

        Args:
            seeds: int64 (P,).
            scales: float32 (P,).

        Raises:
            ValueError: this is not :attr:`stackable`.
        """
        raise ValueError(
            "a trainable parameter belongs to a module that cannot be stacked; use "
            "probes='batch' and probes_per_forward=1, or freeze everything but the "
            "tensor-train layers"
        )


@contextmanager
def shown(parameters: Sequence[nn.Parameter], values: Sequence[Tensor]) -> Iterator[None]:
    """Let parameters have other values inside the context, without a copy of either.

    Args:
        parameters: any; what they hold is theirs again when the context ends, however it ends.
        values: of the parameters' shapes and dtypes.
    """
    held = [parameter.data for parameter in parameters]
    try:
        for parameter, value in zip(parameters, values, strict=True):
            parameter.data = value
        yield
    finally:
        for parameter, data in zip(parameters, held, strict=True):
            parameter.data = data


@contextmanager
def casts_forgotten() -> Iterator[None]:
    """Have autocast cast parameters anew inside the context, and after it.

    Until its outermost region ends it keeps what it cast, whatever values a parameter gets.
    """
    torch.clear_autocast_cache()
    try:
        yield
    finally:
        torch.clear_autocast_cache()


def one_term(
    seed: int | Tensor, scale: float | Tensor
) -> tuple[Tensor | list[int], Tensor | list[float]]:
    """Return a seed and a scale as ``add_noise_`` takes them, several at once."""
    return (
        seed if isinstance(seed, Tensor) else [seed],
        scale if isinstance(scale, Tensor) else [scale],
    )


def _places(tensors: Sequence[Tensor]) -> list[int]:
    return list(map(Tensor.data_ptr, tensors))


def _looks(tensors: Sequence[Tensor]) -> tuple[list[Any], ...]:
    sizes, strides = list(map(Tensor.size, tensors)), list(map(Tensor.stride, tensors))
    return sizes, strides, [tensor.dtype for tensor in tensors]
