"""Parameters laid out in contiguous buffers, so that one launch serves them all."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn

from adazeta.kernels import add_noise_
from adazeta.parameters.perturbation import Perturbation, one_term
from adazeta.parameters.stacking import Stacks

# Elements of a parameter, on average, up to which the values are exchanged instead of the places.
_TINY = 1 << 10


class BufferedPerturbation(Perturbation):
    """Keeps the parameters in one buffer, and exact values through a second one of that size.

    During an evaluation the parameters point to perturbed values in the second buffer. Where there
    are many tiny ones, as the cores of hundreds of adapters, to turn each there and back takes the
    host longer than all else: under ``torch.no_grad()`` those stay where they are, the buffer is
    perturbed, and the second one keeps the values that it has again when the evaluation ends. Then,
    too, tensor-train layers compute from factors that one launch contracts from the perturbed ones.

    Args:
        parameters: float32, bfloat16 or float16, on one device.
        offsets: index of each parameter's first element.
        size: length of the index space.
        distribution: ``"gaussian"``, ``"rademacher"`` or ``"pairs"``.
        stacks: of the modules that hold the parameters.
    """

    takes_tensors = True

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        offsets: Sequence[int],
        size: int,
        distribution: str,
        stacks: Stacks,
    ) -> None:
        super().__init__(parameters, offsets, distribution)
        self._size = size
        self._stacks = stacks
        self._tiny = size <= _TINY * len(self.parameters)

    def lay_out(self) -> None:
        """Make the parameters views into buffers, one for each run of one dtype."""
        self._flat = FlatBuffers(self.parameters, self.offsets, self._size)
        self.tensors, self.starts = self._flat.buffers, self._flat.starts
        self.settle(self._flat.views)
        self._install(self.values)

    @contextmanager
    def perturbed(self, seed: int | Tensor, scale: float | Tensor) -> Iterator[None]:
        """Evaluate at ``theta + scale * z(seed)`` inside the context.

        Args:
            seed: 63-bit seed of the direction; or int64 (1,).
            scale: step along it, in units of the parameters; 0 evaluates at theta. Or float32
                (1,).

        Raises:
            RuntimeError: a perturbed evaluation is going on already.
        """
        self.refuse_inside()
        moves = isinstance(scale, Tensor) or scale != 0
        # A graph of this evaluation may outlive it, and reads what it kept where it lies.
        exchanged = self._tiny and not torch.is_grad_enabled()
        # Held here: they are put back whatever else becomes of this object.
        theta, values, kept = self.tensors, self.values, None
        if exchanged:
            kept, _ = self._flat.scratch()
            _copy(theta, kept)
        elif moves:
            theta, views = self._flat.scratch()
            self._perturb(theta, seed, scale)
        try:
            self.busy = True
            if moves and exchanged:
                self._perturb(theta, seed, scale)
            elif moves:
                self._install(views)
            # Factors have no graph to the cores, so whoever wants gradients gets chains.
            if self.stackable and not torch.is_grad_enabled():
                self._stacks.set_factors(theta[0])
            yield
        finally:
            try:
                self._stacks.clear()
            finally:
                self._end(values, kept)

    def _end(self, values: Sequence[Tensor], kept: Sequence[Tensor] | None) -> None:
        """Give the parameters their values again, also if that is interrupted."""
        try:
            self._put_back(values, kept)
        except BaseException:
            self._put_back(values, kept)
            raise

    def _put_back(self, values: Sequence[Tensor], kept: Sequence[Tensor] | None) -> None:
        if kept is not None:
            _copy(kept, self.tensors)
        if self.moved:  # to the scratch; or by the forward, and perturbed values went along
            self._install(values)
        # Last: after an interrupt before it the next evaluation is refused.
        self.busy = False

    def _perturb(self, out: Sequence[Tensor], seed: int | Tensor, scale: float | Tensor) -> None:
        """Write ``theta + scale * z(seed)`` to buffers, which may be those of theta."""
        add_noise_(
            self.tensors,
            *one_term(seed, scale),
            offsets=self.starts,
            out=out,
            distribution=self.distribution,
        )

    def held(self) -> list[Tensor]:
        """Return the buffers, and the factors of one parameter vector."""
        return [*self.tensors, *self._flat.scratch()[0], *self._stacks.held()]

    @property
    def stackable(self) -> bool:
        """Whether all parameters are float32 and belong to modules that support stacking."""
        one = len(self.tensors) == 1 and self.tensors[0].dtype == torch.float32
        return one and self._stacks.possible

    def stacked(self, seeds: Tensor, scales: Tensor) -> AbstractContextManager[None]:
        """Evaluate several parameter vectors in one forward, see :meth:`Perturbation.stacked`."""
        if not self.stackable:
            return super().stacked(seeds, scales)
        return self._stacked(seeds, scales)

    @contextmanager
    def _stacked(self, seeds: Tensor, scales: Tensor) -> Iterator[None]:
        self.refuse_inside()
        try:
            self.busy = True
            with self._stacks.of(self.tensors[0], seeds, scales):
                yield
        finally:
            self.busy = False

    def _install(self, tensors: Sequence[Tensor]) -> None:
        for parameter, tensor in zip(self.parameters, tensors, strict=True):
            parameter.data = tensor


def _copy(sources: Sequence[Tensor], targets: Sequence[Tensor]) -> None:
    for source, target in zip(sources, targets, strict=True):
        target.copy_(source)


class FlatBuffers:
    """A copy of the parameters' values in one buffer per run of one dtype, with gaps for alignment.

    Args:
        parameters: tensors on one device.
        offsets: index of each tensor's first element, ascending.
        size: length of the index space.

    Attributes:
        buffers: one-dimensional, one per run of consecutive parameters of one dtype.
        starts: index of each buffer's first element.
        views: each parameter's part of its buffer, in its shape.
    """

    def __init__(self, parameters: Sequence[Tensor], offsets: Sequence[int], size: int) -> None:
        self._shapes = [parameter.shape for parameter in parameters]
        self._offsets = offsets
        self._runs = _runs_of_one_dtype(parameters, offsets, size)
        self.starts = [start for _, _, start, _ in self._runs]
        # A tensor that inference mode made could not be copied to outside of it.
        with torch.inference_mode(False):
            self.buffers = [
                parameters[first].new_zeros(end - start) for first, _, start, end in self._runs
            ]
        self.views = self._views_into(self.buffers)
        for view, parameter in zip(self.views, parameters, strict=True):
            view.copy_(parameter.detach())
        self._scratch: list[Tensor] = []
        self._scratch_views: list[Tensor] = []

    def scratch(self) -> tuple[list[Tensor], list[Tensor]]:
        """Return buffers like these and their views, uninitialised, the same at every call."""
        if not self._scratch:
            with torch.inference_mode(False):
                scratch = [torch.empty_like(buffer) for buffer in self.buffers]
            self._scratch_views = self._views_into(scratch)
            self._scratch = scratch  # last: it says that both are there
        return self._scratch, self._scratch_views

    def _views_into(self, buffers: Sequence[Tensor]) -> list[Tensor]:
        return [
            buffer[offset - start : offset - start + shape.numel()].view(shape)
            for buffer, (first, last, start, _) in zip(buffers, self._runs, strict=True)
            for shape, offset in zip(
                self._shapes[first:last], self._offsets[first:last], strict=True
            )
        ]


def _runs_of_one_dtype(
    parameters: Sequence[Tensor], offsets: Sequence[int], size: int
) -> list[tuple[int, int, int, int]]:
    """Split into runs ``(first, last, start, end)`` of consecutive parameters of one dtype."""
    runs = []
    first = 0
    for index in range(1, len(parameters) + 1):
        if index == len(parameters) or parameters[index].dtype != parameters[first].dtype:
            end = offsets[index] if index < len(parameters) else size
            runs.append((first, index, offsets[first], end))
            first = index
    return runs
