"""Perturbation in place, as most code of the field does it: inexact, and for comparison only."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from adazeta.kernels import add_noise_
from adazeta.parameters.perturbation import Perturbation


class InPlacePerturbation(Perturbation):
    """Adds the perturbation to the parameters themselves and subtracts it afterwards.

    The evaluations at ``+eps`` and ``-eps`` of one direction make MeZO's sequence ``+eps, -2 eps,
    +eps`` (2305.17333). Each addition rounds to the parameters' dtype, so they come back changed:
    in bfloat16 about 4 in 10 elements a step. An exception is undone in the same inexact way. The
    noise itself and the arithmetic are float32; code that draws and adds in the parameters' dtype
    drifts more.

    Args:
        parameters: float32, bfloat16 or float16 tensors on one device.
        offsets: index of each parameter's first element.
        distribution: ``"gaussian"``, ``"rademacher"`` or ``"pairs"``.
    """

    def __init__(
        self, parameters: Sequence[nn.Parameter], offsets: Sequence[int], distribution: str
    ) -> None:
        super().__init__(parameters, offsets, distribution)
        self._seed = 0
        self._scale = 0.0
        self._deferred = False

    @contextmanager
    def perturbed(self, seed: int | Tensor, scale: float | Tensor) -> Iterator[None]:
        """Evaluate at ``theta + scale * z(seed)`` inside the context.

        Args:
            seed: 63-bit seed of the direction.
            scale: step along it, in units of the parameters.
        """
        seed, scale = int(seed), float(scale)
        try:
            self._move(seed, scale)
            yield
        finally:
            if not self._deferred:
                self._move(seed, 0.0)

    @contextmanager
    def sequence(self) -> Iterator[None]:
        """Go straight from one evaluation to the next of the same direction inside the context."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
            self._move(self._seed, 0.0)

    def _move(self, seed: int, scale: float) -> None:
        if seed != self._seed and self._scale != 0:
            self._add(-self._scale)
        self._seed = seed
        if scale != self._scale:
            self._add(scale - self._scale)

    def _add(self, step: float) -> None:
        tensors = [parameter.data for parameter in self.parameters]
        add_noise_(
            tensors, [self._seed], [step], offsets=self.offsets, distribution=self.distribution
        )
        self._scale += step
