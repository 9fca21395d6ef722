"""The trainable parameters of a model as one index space, with exact perturbed views of it.

``theta`` is never lost: an evaluation at ``theta + c z`` reads other memory, or leaves a copy of
``theta`` in it, so an exception in the loss function leaves every parameter as it was, bit for bit.
(The usual sequence of the field, ``+eps, -2 eps, +eps`` in place, loses bits at every step; it
exists here for comparison.)
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from adazeta.kernels import aligned_offsets
from adazeta.kernels.reference.philox import DISTRIBUTIONS
from adazeta.parameters.buffered import BufferedPerturbation
from adazeta.parameters.checks import Holders, check_frozen, check_trainable
from adazeta.parameters.dropping import droppables, dropping
from adazeta.parameters.in_place import InPlacePerturbation
from adazeta.parameters.perturbation import Perturbation, casts_forgotten, shown
from adazeta.parameters.stacking import NamedParameters, Owner, Stacks
from adazeta.parameters.streamed import StreamedPerturbation, is_compiled

PERTURBATIONS = ("auto", "buffer", "streamed", "in_place")

_SMALL = 1 << 24  # elements: 64 MiB of float32


class ParameterSpace:
    """The trainable parameters as one flat index space.

    Every parameter owns a fixed range of indices: in the order of ``named_parameters()``, tied
    tensors once, each range aligned to 4 (to 8 with ``"pairs"``). Hence the noise of an element
    depends on the seed and on its index alone.

    How an evaluation at perturbed parameters is made (``perturbation``):

    - ``"buffer"``: parameters of one dtype become views into one contiguous buffer, and one launch
      writes their perturbed values to a second one, or perturbs tiny ones while the second keeps
      them (:class:`~adazeta.parameters.buffered.BufferedPerturbation`). Twice the memory of the
      trainable parameters.
    - ``"streamed"``: the parameters stay where they are; each module's own are perturbed into a
      scratch just before it runs (:class:`~adazeta.parameters.streamed.StreamedPerturbation`). The
      memory of the largest module's parameters.
    - ``"in_place"``: the parameters themselves are perturbed and restored, up to rounding
      (:class:`~adazeta.parameters.in_place.InPlacePerturbation`). No memory; for comparison.
    - ``"auto"``: ``"buffer"`` if all trainable parameters belong to tensor-train layers or are at
      most 2^24 elements (adapters, where one launch counts), if ``source`` is no model, or if the
      model is compiled; else ``"streamed"``.

    Args:
        source: a model (its parameters with ``requires_grad``), or ``(name, parameter)`` pairs.
        distribution: of the directions, ``"gaussian"``, ``"rademacher"`` or ``"pairs"``.
        perturbation: see above.
        direction: name and settings of what the parameters stand for, see
            :mod:`adazeta.directions.table`; by default the model's own numbers.
        schedule: what happens after steps, for a direction that changes in the course of training.

    Attributes:
        names: the parameters' names.
        parameters: the parameters, float32, bfloat16 or float16, all on one device.
        offsets: index of each parameter's first element.
        size: length of the index space, padding included.
        distribution: of the directions, ``"gaussian"``, ``"rademacher"`` or ``"pairs"``.
        perturbation: ``"buffer"``, ``"streamed"`` or ``"in_place"``.
        strategy: makes the evaluations in that way.
        direction: name and settings of what the parameters stand for.
        schedule: what happens after steps, or None.
        groups: parameter vectors of the stack that is set, 1 outside of :meth:`stacked`.
        droppable: modules of the model that :meth:`dropping` leaves out at random.
        dropped_all: whether the last :meth:`dropping` left all of them out.

    Raises:
        ValueError: nothing is trainable, the parameters lie on several devices or share memory
            without being tied, also with what is frozen, or the perturbation is unknown or
            impossible here.
        TypeError: a trainable parameter is not float32, bfloat16 or float16.
    """

    def __init__(
        self,
        source: nn.Module | NamedParameters,
        *,
        distribution: str = "gaussian",
        perturbation: str = "auto",
        direction: Mapping[str, Any] | None = None,
        schedule: "Schedule | None" = None,
    ) -> None:
        if distribution not in DISTRIBUTIONS:
            raise ValueError(
                f"distribution must be one of {', '.join(DISTRIBUTIONS)}, got {distribution!r}"
            )
        if perturbation not in PERTURBATIONS:
            raise ValueError(
                f"perturbation must be one of {', '.join(PERTURBATIONS)}, got {perturbation!r}"
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
        check_trainable(self.names, self.parameters)
        self._holders = None
        if isinstance(source, nn.Module):
            check_frozen(source, self.names, self.parameters)
            self._holders = Holders(source, self.names, self.parameters)
        *self.offsets, self.size = aligned_offsets(
            [*(p.numel() for p in self.parameters), 0], distribution=distribution
        )
        self._ranges = {
            id(p): (offset, p.numel())
            for p, offset in zip(self.parameters, self.offsets, strict=True)
        }
        self._stacks = Stacks(source, self.parameters, self.offsets, distribution)
        self.direction = dict(direction or {"name": "full", "settings": {}})
        self.schedule = schedule
        self.groups = 1
        self._watches: list[Callable[[], AbstractContextManager[None]]] = []
        self._shown = False
        self.droppable = droppables(source)
        self.dropped_all = False
        self.perturbation = self._choose(perturbation, source)
        self.strategy = self._strategy(source)
        self.strategy.lay_out()

    def _choose(self, perturbation: str, source: nn.Module | NamedParameters) -> str:
        """Resolve ``"auto"``."""
        if perturbation != "auto":
            return perturbation
        small = self.size <= _SMALL or self._stacks.possible
        if small or not isinstance(source, nn.Module) or is_compiled(source):
            return "buffer"
        return "streamed"

    def _strategy(self, source: nn.Module | NamedParameters) -> Perturbation:
        """Make what evaluates as :attr:`perturbation` says."""
        if self.perturbation == "buffer":
            return BufferedPerturbation(
                self.parameters, self.offsets, self.size, self.distribution, self._stacks
            )
        if self.perturbation == "in_place":
            return InPlacePerturbation(self.parameters, self.offsets, self.distribution)
        if not isinstance(source, nn.Module):
            raise ValueError(
                "perturbation='streamed' perturbs module by module: build the ParameterSpace "
                "(or the optimizer) from the model, not from its parameters"
            )
        by_name = dict(zip(self.names, self.parameters, strict=True))
        return StreamedPerturbation(source, by_name, self.offsets, self.distribution)

    def _lay_out(self) -> None:
        """Check the parameters and bring them into the form that the perturbation needs."""
        for name, parameter, value in zip(
            self.names, self.parameters, self.strategy.values, strict=True
        ):
            if parameter.shape != value.shape:
                raise ValueError(
                    f"parameter {name!r} has shape {tuple(parameter.shape)} now and had "
                    f"{tuple(value.shape)} when the optimizer was made; make it anew, since "
                    "directions and state are those of the old shape"
                )
        check_trainable(self.names, self.parameters)
        self.strategy.lay_out()

    def synchronize(self) -> None:
        """Follow a parameter that was moved or rebound, e.g. by ``model.to(device)``.

        Raises:
            RuntimeError: the parameters have other values for now, those of :meth:`showing` or of
                a perturbed evaluation.
            ValueError: a parameter has another shape than before.
        """
        if self._shown:
            raise RuntimeError(
                "the parameters have the values of their average here; leave the context of "
                "optimizer.averaged() before a step or a perturbed evaluation"
            )
        self.strategy.refuse_inside()
        if self.strategy.moved:
            self._lay_out()

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return self.parameters[0].device

    @property
    def stackable(self) -> bool:
        """Whether several parameter vectors can be evaluated in one forward.

        True if every trainable parameter is float32 and belongs to a module that supports
        stacking (:class:`~adazeta.parameters.stacking.StackedParameters`: all tensor-train layers
        do; beside them also plain linear layers, such as a classification head), and the
        perturbation is ``"buffer"``.
        """
        return self.strategy.stackable

    @property
    def owners(self) -> list[Owner]:
        """The modules that hold the parameters, each once; none if some hold none that stacks."""
        return self._stacks.owners

    def new_buffer(self) -> Tensor:
        """Return a float32 zero vector over the index space, ``(size,)``, for optimizer state."""
        return torch.zeros(self.size, dtype=torch.float32, device=self.device)

    def after_step(self, optimizer: Any) -> None:
        """Do what a direction has to do after some steps; called after every step and replay.

        Args:
            optimizer: the optimizer whose step it was; what happens is a pure function of its
                state.
        """
        if self.schedule is not None:
            self.schedule.after_step(optimizer)

    @property
    def kept(self) -> dict[str, Tensor]:
        """What a snapshot keeps: the parameters by name, and what :attr:`schedule` changes."""
        kept: dict[str, Tensor] = dict(zip(self.names, self.parameters, strict=True))
        return kept if self.schedule is None else {**kept, **self.schedule.tensors()}

    def follow_snapshot(self) -> None:
        """Follow :attr:`kept` tensors that were written to from outside, as by a snapshot."""
        if self.schedule is not None:
            self.schedule.follow_snapshot()

    def view_of(self, buffer: Tensor, parameter: nn.Parameter) -> Tensor:
        """Return the part of a ``(size,)`` buffer that belongs to a parameter, in its shape."""
        offset, count = self._ranges[id(parameter)]
        return buffer[offset : offset + count].view(parameter.shape)

    def offset_of(self, parameter: nn.Parameter) -> int:
        """Return the index of a parameter's first element.

        Raises:
            KeyError: the parameter does not belong to this space.
        """
        return self._ranges[id(parameter)][0]

    def pieces(self, parameters: Sequence[nn.Parameter]) -> tuple[list[Tensor], list[int]]:
        """Return tensors that cover the given parameters, and their offsets, for ``add_noise_``.

        All parameters of a flat space come back as the flat buffers themselves.
        """
        self.synchronize()
        return self.strategy.pieces(parameters)

    @contextmanager
    def perturbed(self, seed: int | Tensor, scale: float | Tensor) -> Iterator[None]:
        """Evaluate at ``theta + scale * z(seed)`` inside the context, for every model.

        The parameters are restored when the context ends, however it ends.

        Args:
            seed: 63-bit seed of the direction; or, unless the perturbation is ``"in_place"``, int64
                (1,) beside the parameters.
            scale: step along it, in units of the parameters; 0 evaluates at theta. Or float32
                (1,).
        """
        self.synchronize()
        with casts_forgotten(), self.strategy.perturbed(seed, scale):
            yield

    @contextmanager
    def showing(self, values: Tensor) -> Iterator[None]:
        """Let the parameters have other values inside the context, for every model.

        The parameters are restored when the context ends, however it ends. Perturbing them
        meanwhile is an error.

        Args:
            values: float32 ``(size,)``, over the index space. The parameters, which must be
                float32, are views of it in the context.
        """
        if self._shown:  # with the same values: an evaluation inside of one
            yield
            return
        self.synchronize()
        self._shown = True
        try:
            views = [self.view_of(values, p) for p in self.parameters]
            with casts_forgotten(), shown(self.parameters, views):
                yield
        finally:
            self._shown = False

    @contextmanager
    def dropping(self, seed: int) -> Iterator[None]:
        """Leave adapters out at random inside the context, for the evaluations of one estimate.

        Those evaluations must see one mask: a coefficient is a difference of losses over eps, so
        two masks would make it noise over eps.

        Args:
            seed: of the mask.
        """
        with dropping(self.droppable, seed) as kept:
            self.dropped_all = not kept
            yield

    @contextmanager
    def sequence(self) -> Iterator[None]:
        """Enter around evaluations that belong together: those of one estimate.

        Raises:
            RuntimeError: the model holds another parameter in the place of one of these.
            ValueError: a parameter has another shape than before.
        """
        if self._holders is not None:
            self._holders.check()
        if self.strategy.reshaped:
            self._lay_out()
        with ExitStack() as stack:
            for watch in self._watches:
                stack.enter_context(watch())
            stack.enter_context(self.strategy.sequence())
            yield

    def add_watch(self, watch: Callable[[], AbstractContextManager[None]]) -> None:
        """Enter a context around every :meth:`sequence` from now on, beside those added before.

        Args:
            watch: makes the context anew for each sequence; it finds the parameters at rest when
                it is entered and when it ends.
        """
        self._watches.append(watch)

    @contextmanager
    def stacked(self, seeds: Tensor, scales: Tensor) -> Iterator[None]:
        """Evaluate P parameter vectors ``theta + scales[p] * z(seeds[p])`` in one forward.

        Inside the context every tensor-train layer treats its input as P equal, consecutive
        groups of rows and computes group p with parameter vector p. Costs the factors of P
        parameter vectors in memory; no core is copied.

        Args:
            seeds: int64 (P,).
            scales: float32 (P,).

        Raises:
            ValueError: the space is not :attr:`stackable`.
        """
        self.synchronize()
        before, self.groups = self.groups, len(seeds)
        try:
            with self.strategy.stacked(seeds, scales):
                yield
        finally:
            self.groups = before

    def keep_groups(self, groups: Tensor) -> None:
        """Leave some parameter vectors of a stack out, for the rest of its context.

        Args:
            groups: int64, indices of those that stay, among those that are there.
        """
        self._stacks.keep(groups)
        self.groups = len(groups)


class Schedule(Protocol):
    """What a direction does after steps: fold what was trained, and draw other bases."""

    def after_step(self, optimizer: Any) -> None:
        """Called after every step; a pure function of the optimizer's state."""

    def tensors(self) -> dict[str, Tensor]:
        """Return what steps change beside the trainable parameters, by name."""

    def follow_snapshot(self) -> None:
        """Follow those tensors after somebody else has written to them."""
