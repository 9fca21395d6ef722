"""The trainable parameters of a model as one index space, with exact perturbed views of it.

``theta`` itself is never perturbed: an evaluation at ``theta + c z`` reads another buffer, so an
exception in the loss function, at whatever moment, leaves every parameter as it was, bit for bit.
(The usual sequence of the field, ``+eps, -2 eps, +eps`` in place, loses bits at every step.)
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from adazeta.kernels import add_noise_, aligned_offsets, perturbed_copies
from adazeta.stacking import StackedParameters

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

NamedParameters = Iterable[tuple[str, nn.Parameter]]


class ParameterSpace:
    """The trainable parameters as one flat index space.

    Every parameter owns a fixed range of indices: in the order of ``named_parameters()``, tied
    tensors once, each range aligned to 4. Hence the noise of an element depends on the seed and
    on its index alone (design: noise version 1). Parameters of one dtype become views into one
    contiguous buffer, so that one kernel launch perturbs or updates them all.

    Args:
        source: a model (its parameters with ``requires_grad``), or ``(name, parameter)`` pairs.

    Attributes:
        names: the parameters' names.
        parameters: the parameters, float32, bfloat16 or float16, all on one device.
        offsets: index of each parameter's first element.
        size: length of the index space, padding included.
        distribution: of the directions, ``"gaussian"`` or ``"rademacher"``.

    Raises:
        ValueError: nothing is trainable, or the parameters lie on several devices.
        TypeError: a trainable parameter is not float32, bfloat16 or float16.
    """

    def __init__(
        self, source: nn.Module | NamedParameters, *, distribution: str = "gaussian"
    ) -> None:
        if distribution not in ("gaussian", "rademacher"):
            raise ValueError(
                f"distribution must be 'gaussian' or 'rademacher', got {distribution!r}"
            )
        named = source.named_parameters() if isinstance(source, nn.Module) else source
        trainable = {id(p): (name, p) for name, p in named if p.requires_grad}
        if not trainable:
            raise ValueError(
                "no parameter has requires_grad=True; call add_tt_adapters(model, config) first, "
                "or unfreeze what is to be trained"
            )
        self.distribution = distribution
        self.names = [name for name, _ in trainable.values()]
        self.parameters = [parameter for _, parameter in trainable.values()]
        self._check()
        *self.offsets, self.size = aligned_offsets([*(p.numel() for p in self.parameters), 0])
        self._ranges = {
            id(p): (offset, p.numel())
            for p, offset in zip(self.parameters, self.offsets, strict=True)
        }
        self._owners = _stacked_owners(source, self.parameters)
        self._flatten()

    def _check(self) -> None:
        for name, parameter in zip(self.names, self.parameters, strict=True):
            if parameter.dtype not in _DTYPES:
                raise TypeError(
                    f"trainable parameter {name!r} is {parameter.dtype}; convert it to float32, "
                    "bfloat16 or float16, or freeze it"
                )
        devices = sorted({str(parameter.device) for parameter in self.parameters})
        if len(devices) > 1:
            raise ValueError(
                f"trainable parameters lie on several devices ({', '.join(devices)}); "
                "move them to one"
            )

    def _flatten(self) -> None:
        """Move the parameters' values into contiguous buffers, one per run of one dtype."""
        self._check()
        self._runs = _runs_of_one_dtype(self.parameters, self.offsets, self.size)
        self._starts = [start for _, _, start, _ in self._runs]
        self._theta = [
            torch.zeros(end - start, dtype=self.parameters[first].dtype, device=self.device)
            for first, _, start, end in self._runs
        ]
        self._views = self._views_into(self._theta)
        for view, parameter in zip(self._views, self.parameters, strict=True):
            view.copy_(parameter.data)
        self._scratch: list[Tensor] | None = None
        self._install(self._views)

    def _views_into(self, buffers: Sequence[Tensor]) -> list[Tensor]:
        """Return each parameter's part of one buffer per run."""
        return [
            self._slice(buffer, start, parameter)
            for buffer, (first, last, start, _) in zip(buffers, self._runs, strict=True)
            for parameter in self.parameters[first:last]
        ]

    def _slice(self, buffer: Tensor, start: int, parameter: nn.Parameter) -> Tensor:
        offset, count = self._ranges[id(parameter)]
        begin = offset - start
        return buffer[begin : begin + count].view(parameter.shape)

    def _install(self, tensors: Sequence[Tensor]) -> None:
        for parameter, tensor in zip(self.parameters, tensors, strict=True):
            parameter.data = tensor

    def synchronize(self) -> None:
        """Flatten again if a parameter was moved or rebound, e.g. by ``model.to(device)``."""
        for parameter, view in zip(self.parameters, self._views, strict=True):
            if parameter.data_ptr() != view.data_ptr() or parameter.dtype != view.dtype:
                self._flatten()
                return

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return self.parameters[0].device

    @property
    def stackable(self) -> bool:
        """Whether several parameter vectors can be evaluated in one forward.

        True if every trainable parameter is float32 and belongs to a module that supports
        stacking (:class:`~adazeta.stacking.StackedParameters`: all tensor-train layers do).
        """
        return self._owners is not None and len(self._theta) == 1 and self._theta[0].dtype == (
            torch.float32
        )

    def new_buffer(self) -> Tensor:
        """Return a float32 zero vector over the index space, ``(size,)``, for optimizer state."""
        return torch.zeros(self.size, dtype=torch.float32, device=self.device)

    def view_of(self, buffer: Tensor, parameter: nn.Parameter) -> Tensor:
        """Return the part of a ``(size,)`` buffer that belongs to a parameter, in its shape."""
        return self._slice(buffer, 0, parameter)

    def offset_of(self, parameter: nn.Parameter) -> int:
        """Return the index of a parameter's first element.

        Raises:
            KeyError: the parameter does not belong to this space.
        """
        return self._ranges[id(parameter)][0]

    def pieces(self, parameters: Sequence[nn.Parameter]) -> tuple[list[Tensor], list[int]]:
        """Return tensors that cover the given parameters, and their offsets, for ``add_noise_``.

        All parameters of the space come back as the flat buffers themselves.
        """
        self.synchronize()
        if len(parameters) == len(self.parameters):
            return self._theta, self._starts
        return [p.data for p in parameters], [self.offset_of(p) for p in parameters]

    @contextmanager
    def perturbed(self, seed: int, scale: float) -> Iterator[None]:
        """Evaluate at ``theta + scale * z(seed)`` inside the context.

        Works for every model: the parameters point to a scratch buffer of the size of the
        trainable parameters until the context ends, however it ends.

        Args:
            seed: 63-bit seed of the direction.
            scale: step along it, in units of the parameters; 0 evaluates at theta.
        """
        self.synchronize()
        if scale == 0:
            yield
            return
        if self._scratch is None:
            self._scratch = [torch.empty_like(theta) for theta in self._theta]
            self._scratch_views = self._views_into(self._scratch)
        add_noise_(
            self._theta,
            [seed],
            [scale],
            offsets=self._starts,
            out=self._scratch,
            distribution=self.distribution,
        )
        try:
            self._install(self._scratch_views)
            yield
        finally:
            self._install(self._views)

    @contextmanager
    def stacked(self, seeds: Tensor, scales: Tensor) -> Iterator[None]:
        """Evaluate P parameter vectors ``theta + scales[p] * z(seeds[p])`` in one forward.

        Inside the context every tensor-train layer treats its input as P equal, consecutive
        groups of rows and computes group p with parameter vector p. Costs P copies of the
        trainable parameters in memory.

        Args:
            seeds: int64 (P,).
            scales: float32 (P,).

        Raises:
            ValueError: the space is not :attr:`stackable`.
        """
        self.synchronize()
        if not self.stackable or self._owners is None:
            raise ValueError(
                "a trainable parameter belongs to a module that cannot be stacked; use "
                "probes='batch' and probes_per_forward=1, or freeze everything but the "
                "tensor-train layers"
            )
        copies = perturbed_copies(
            self._theta[0], seeds, scales, offset=0, distribution=self.distribution
        )
        count = copies.shape[0]
        try:
            for (module, local), parameter in zip(self._owners, self.parameters, strict=True):
                offset, numel = self._ranges[id(parameter)]
                if module.stacked is None:
                    module.stacked = {}
                module.stacked[local] = copies[:, offset : offset + numel].view(
                    count, *parameter.shape
                )
            yield
        finally:
            for module, _ in self._owners:
                module.stacked = None


def _runs_of_one_dtype(
    parameters: Sequence[nn.Parameter], offsets: Sequence[int], size: int
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


def _stacked_owners(
    source: nn.Module | NamedParameters, parameters: Sequence[nn.Parameter]
) -> list[tuple[StackedParameters, str]] | None:
    """Find the one stackable module of each parameter; None if a parameter has none or several."""
    if not isinstance(source, nn.Module):
        return None
    owners: dict[int, list[tuple[StackedParameters, str]]] = {id(p): [] for p in parameters}
    for module in source.modules():
        if isinstance(module, StackedParameters):
            for local, parameter in module.named_parameters(remove_duplicate=False):
                if id(parameter) in owners:
                    owners[id(parameter)].append((module, local))
    if any(len(found) != 1 for found in owners.values()):
        return None
    return [owners[id(parameter)][0] for parameter in parameters]
