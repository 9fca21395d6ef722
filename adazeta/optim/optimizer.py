"""The base of the zeroth-order optimizers: estimation, state, and the loop around an update rule.

The gradient estimate ``g = sum_k c_k z(seed_k)`` is never more than scalars until it is applied.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from adazeta.estimation.estimator import RandomizedGradientEstimator
from adazeta.estimation.probes import Probes, merge
from adazeta.estimation.queries import QuerySchedule
from adazeta.kernels.ops.checks import ROUNDINGS
from adazeta.optim.averaging import NAME, check_average, check_space, follow_, weight_at
from adazeta.optim.loaded_state import keep_dtypes
from adazeta.optim.rate import AUTO, AutoRate, check_factors
from adazeta.parameters.space import ParameterSpace
from adazeta.support.seeds import ROUNDING_SEEDS, derive_seed

Params = nn.Module | ParameterSpace | Iterable[nn.Parameter] | Iterable[dict[str, Any]]


class ZerothOrderOptimizer(torch.optim.Optimizer):
    """Base of the optimizers: estimation, state, and the loop around an update rule.

    A subclass implements :meth:`update`.

    Args:
        params: a model, a :class:`ParameterSpace`, parameters, or parameter groups. A model (or a
            space made from one) allows stacked evaluation. All parameters must be trainable.
        defaults: hyper-parameters of the groups. With an ``lr`` of ``"auto"`` the rate is measured
            before the first step (:mod:`adazeta.optim.rate`); the ``lr`` of each group is then a
            factor on it, 1 at first, for a schedule to change.
        space: the space that ``params`` belong to, when ``params`` are groups of one.
        queries, eps, probes, one_sided, probes_per_forward, check_eps, seed: see
            :class:`~adazeta.estimation.estimator.RandomizedGradientEstimator`.
        distribution: ``"gaussian"``, ``"rademacher"`` or ``"pairs"`` directions.
        perturbation: how perturbed parameters are evaluated, see :class:`ParameterSpace`.
        rounding: of bfloat16 and float16 parameters after an update: ``"stochastic"``, exact in
            the mean, or ``"nearest"``, which loses the updates below half the parameter's
            resolution, and those are most of them. float32 parameters are the same either way.
        anchored: let weight decay pull towards the parameters' values before the first step,
            instead of zero: ``theta <- theta - lr weight_decay (theta - theta_0)`` beside the
            update (anchored decay, 2605.30148). Needs float32 parameters.
        average: m of a running average of the parameters, see :mod:`adazeta.optim.averaging` and
            :meth:`averaged`; 0 keeps none. Takes 4 bytes a trained number, and needs float32
            parameters in a buffer.
        average_warmup: let the average forget faster in the first steps.

    Attributes:
        space: the parameters.
        estimator: the estimator that :meth:`step` and :meth:`accumulate` use.
        steps: optimizer steps done.
        evaluations: losses of a whole batch computed so far.
        last: the probes of the last step.
        auto_rate: the rate that is measured; None where one was given.
        buffers: states of the rule by name, each over the whole index space.
        journal: called with the probes of each step before they are applied; what it raises keeps
            the parameters as they are.
        group_state: keys of a parameter group that the rule changes: state, not settings.
        closure_gives: what a closure with a batch returns: ``"losses"`` of the examples, or the
            ``"logits"`` of a classification.
    """

    group_state: tuple[str, ...] = ()
    closure_gives = "losses"

    def __init__(
        self,
        params: Params,
        defaults: dict[str, Any],
        *,
        space: ParameterSpace | None = None,
        queries: int | QuerySchedule = 1,
        eps: float | str = "auto",
        probes: int | str = "batch",
        one_sided: bool = False,
        probes_per_forward: int | str = 1,
        check_eps: bool = True,
        distribution: str = "gaussian",
        perturbation: str = "auto",
        rounding: str = "stochastic",
        anchored: bool = False,
        average: float = 0.0,
        average_warmup: bool = True,
        seed: int = 0,
    ) -> None:
        if rounding not in ROUNDINGS:
            raise ValueError(f"rounding must be 'stochastic' or 'nearest', got {rounding!r}")
        self.auto_rate = AutoRate() if defaults["lr"] == AUTO else None
        if self.auto_rate is not None:
            defaults = {**defaults, "lr": 1.0}
        if not (isinstance(defaults["lr"], float | int | Tensor) and defaults["lr"] >= 0):
            raise ValueError(f"lr must be 0 or more, or 'auto', got {defaults['lr']!r}")
        if not defaults["weight_decay"] >= 0:
            raise ValueError(f"weight_decay must be 0 or more, got {defaults['weight_decay']}")
        space, groups = _space_and_groups(params, space, distribution, perturbation)
        if self.auto_rate is not None:
            check_factors(groups)
        if anchored:
            coarse = next((p.dtype for p in space.parameters if p.dtype != torch.float32), None)
            if coarse is not None:
                raise ValueError(
                    f"anchored decay is for float32 parameters, and some are {coarse}, whose "
                    "rounding would swallow it; train adapters, or leave it off"
                )
            defaults = {**defaults, "anchored": True}
        check_average(average, average_warmup)
        if average:
            check_space(space)
            defaults = {**defaults, "average": average, "average_warmup": average_warmup}
        self.space = space
        super().__init__(groups, defaults)
        self.estimator = RandomizedGradientEstimator(
            space,
            queries=queries,
            eps=eps,
            probes=probes,
            one_sided=one_sided,
            probes_per_forward=probes_per_forward,
            check_eps=check_eps,
            seed=seed,
        )
        self.rounding = rounding
        self.steps = 0
        self.evaluations = 0
        self.last: Probes | None = None
        self.journal: Callable[[Probes], None] | None = None
        self._pending: list[Probes] = []
        self.buffers: dict[str, Tensor] = {}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters of the space, as in ``torch.optim``.

        Raises:
            ValueError: a parameter of the group is none of the space's, or belongs to a group.
        """
        given = param_group["params"]
        strangers = {id(p) for p in ([given] if isinstance(given, Tensor) else given)}
        strangers -= {id(parameter) for parameter in self.space.parameters}
        if strangers:
            raise ValueError(
                f"{len(strangers)} parameter(s) of a group are not among the "
                f"{len(self.space.parameters)} that this optimizer perturbs; leave out frozen ones "
                "(requires_grad=False), and make an optimizer of all that is to be trained"
            )
        super().add_param_group(param_group)

    def __getstate__(self) -> dict[str, Any]:
        """Refuse to be copied or pickled: the copy would perturb parameters of no model.

        Raises:
            TypeError: always.
        """
        raise TypeError(
            f"{type(self).__name__} belongs to its model and can't be copied or pickled; make one "
            "for the other model, and load what state_dict() gives"
        )

    def update(
        self,
        group: dict[str, Any],
        probes: Probes,
        tensors: Sequence[Tensor],
        options: dict[str, Any],
    ) -> None:
        """Apply the probes to the parameters of one group.

        Args:
            group: the parameter group.
            probes: the gradient estimate, one probe or more.
            tensors: the tensors that cover the group's parameters.
            options: what every update op of :mod:`adazeta.kernels` takes: ``offsets`` of the
                tensors, ``decay`` of the parameters, ``distribution``, ``rounding`` and
                ``rounding_seed``.
        """
        raise NotImplementedError

    def unit(self, group: dict[str, Any], square: float, count: int) -> float:
        """Return the root mean square of the elements of a step at a rate of 1, in the long run.

        Args:
            group: the parameter group.
            square: mean square of the slopes along the directions.
            count: directions of a step, of unit variance.

        Raises:
            ValueError: the rule has no such size, so that its rate cannot be chosen.
        """
        raise ValueError(f"{type(self).__name__} cannot choose its rate; give lr as a number")

    def decide(self, probes: Probes) -> None:
        """Settle what else a step needs, before its probes are recorded and applied.

        Nothing here. What a subclass settles belongs into the parameter groups: the log has them.

        Args:
            probes: the gradient estimate of the whole step.
        """

    @property
    def rule(self) -> str:
        """Name of the update rule in logs: that of the class which applies their probes."""
        return type(self).__name__

    @torch.no_grad()
    def step(  # type: ignore[override]
        self,
        closure: Callable[..., Tensor] | None = None,
        batch: Mapping[str, Any] | None = None,
        *,
        epoch: float = 0.0,
    ) -> float | None:
        """Estimate the gradient and update the parameters.

        Args:
            closure: the loss, evaluated at perturbed parameters; see
                :meth:`RandomizedGradientEstimator.__call__`. Without a closure the probes that
                :meth:`accumulate` gathered are applied.
            batch: the examples, if the closure takes them.
            epoch: epochs done so far, for a query schedule.

        Returns:
            The mean loss, or None without a closure. If no loss was finite the parameters stay as
            they are, and NaN is returned.
        """
        if closure is not None:
            self.accumulate(closure, batch, epoch=epoch)
        probes = merge(self._pending)
        self._pending = []
        if self.auto_rate is not None:
            self.auto_rate.choose(probes, self.unit, self.param_groups)
        with nullcontext() if self.auto_rate is None else self.auto_rate.on(self.param_groups):
            self.decide(probes)
            if self.journal is not None:
                self.journal(probes)
            self.apply(probes)
        return None if closure is None else probes.loss

    @torch.no_grad()
    def apply(self, probes: Probes) -> None:
        """Do a step with probes that were estimated before or elsewhere, as in a replay.

        Args:
            probes: the gradient estimate; without any the parameters stay as they are.
        """
        self.last = probes
        with self._average_following() if self.averages else nullcontext():
            if len(probes):
                self.move(probes)
        self.steps += 1
        if self.auto_rate is not None:
            self.auto_rate.note(probes.loss)
        self.space.after_step(self)

    @property
    def averages(self) -> bool:
        """Whether an average of the parameters is kept."""
        return bool(self.param_groups[0].get("average"))

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Let the parameters have the values of their average inside the context.

        The values themselves are not touched, and are the parameters' again when it ends, however
        it ends. Nothing can be trained meanwhile. Before the first step the two are the same.

        Raises:
            ValueError: no average is kept.
        """
        if not self.averages:
            raise ValueError("no average of the parameters is kept; set average above 0")
        if NAME not in self.buffers:
            yield
            return
        self.states(NAME, (), ())  # on the device where the parameters are now
        with self.space.showing(self.buffers[NAME]):
            yield

    @contextmanager
    def _average_following(self) -> Iterator[None]:
        """Let the average follow the step that is done inside the context."""
        tensors, offsets = self.space.pieces(self.space.parameters)
        average = self._from_start(NAME, tensors, offsets)
        yield
        follow_(average, tensors, weight_at(self.param_groups[0], self.steps))

    def move(self, probes: Probes, choice: int | None = None) -> None:
        """Apply the rule once, without counting a step.

        Args:
            probes: one or more.
            choice: factor on the change of the parameters, 1, 0 or -1; by default that of the
                parameter groups. The rule's state is advanced in any case.
        """
        rounding_seed = derive_seed(self.estimator.seed, ROUNDING_SEEDS, self.steps)
        for group in self.param_groups:
            tensors, offsets = self.space.pieces(group["params"])
            rate = group["lr"]
            factor = group.get("choice", 1) if choice is None else choice
            try:
                if factor != 1:
                    group["lr"] = factor * rate
                options = {
                    "offsets": offsets,
                    "decay": 1 - float(group["lr"]) * group["weight_decay"],
                    "distribution": self.space.distribution,
                    "rounding": self.rounding,
                    "rounding_seed": rounding_seed,
                }
                anchored = group.get("anchored")
                anchors = self._from_start("anchor", tensors, offsets) if anchored else []
                self.update(group, probes, tensors, options)
                for tensor, anchor in zip(tensors, anchors, strict=False):
                    # The rule has pulled towards 0; what it took of the start is given back.
                    tensor.add_(anchor, alpha=1 - options["decay"])
            finally:
                group["lr"] = rate

    def _from_start(
        self, name: str, tensors: Sequence[Tensor], offsets: Sequence[int]
    ) -> list[Tensor]:
        """Return a state that begins with the parameters' values before the first step.

        Such are the average, and the anchors that weight decay pulls towards; a snapshot has them.
        """
        if name not in self.buffers:
            buffer = self._new_buffer(name, torch.float32)
            for parameter in self.space.parameters:
                self.space.view_of(buffer, parameter).copy_(parameter.data)
        return self.states(name, tensors, offsets)

    def accumulate(
        self,
        closure: Callable[..., Tensor],
        batch: Mapping[str, Any] | None = None,
        *,
        epoch: float = 0.0,
    ) -> Probes:
        """Estimate on one micro-batch and keep the probes for :meth:`step`.

        The micro-batches of a step count equally. If the closure raises, the step begins anew:
        what was gathered for it is dropped.

        Args:
            closure: see :meth:`step`.
            batch: see :meth:`step`.
            epoch: see :meth:`step`.

        Returns:
            The probes of this micro-batch.
        """
        try:
            probes = self.estimator(
                closure, batch, step=self.steps, micro_step=len(self._pending), epoch=epoch
            )
            if self.auto_rate is not None and not self._pending:
                probes.evaluations += self.auto_rate.measure(self.estimator, closure, batch)
        except BaseException:
            self._pending = []
            raise
        self._pending.append(probes)
        self.evaluations += probes.evaluations
        return probes

    def measured(self) -> dict[str, Any]:
        """Return what was measured and decides the steps to come, as a log has it."""
        found = self.estimator.state_dict()
        if self.auto_rate is not None:
            found["rate"] = self.auto_rate.chosen
        return found

    def take_measured(self, found: Mapping[str, Any]) -> None:
        """Take over what :meth:`measured` returned."""
        self.estimator.load_state_dict(found)
        if self.auto_rate is not None:
            self.auto_rate.chosen = found.get("rate")

    def states(
        self,
        name: str,
        tensors: Sequence[Tensor],
        offsets: Sequence[int],
        dtype: torch.dtype = torch.float32,
    ) -> list[Tensor]:
        """Return a state for each tensor, in its shape, zero at first.

        The state is one vector over the index space. Every parameter's entry in ``self.state`` is
        a view of its part of it, so that ``state_dict()`` sees ordinary tensors.

        Args:
            name: of the state.
            tensors: as :meth:`update` gets them.
            offsets: index of the first element of each.
            dtype: of the state.
        """
        buffer = self.buffers.get(name)
        if buffer is None or buffer.device != self.space.device:
            buffer = self._new_buffer(name, dtype)
        return [
            buffer[offset : offset + tensor.numel()].view(tensor.shape)
            for tensor, offset in zip(tensors, offsets, strict=True)
        ]

    def _new_buffer(self, name: str, dtype: torch.dtype) -> Tensor:
        """Make the vector of a state, with what the parameters' entries hold of it."""
        buffer = self.space.new_buffer().to(dtype)
        for parameter in self.space.parameters:
            view = self.space.view_of(buffer, parameter)
            if name in self.state[parameter]:
                view.copy_(self.state[parameter][name])
            self.state[parameter][name] = view
        self.buffers[name] = buffer
        return buffer

    def state_dict(self) -> dict[str, Any]:
        """Return the state, with the step and what was measured: they fix what is to come."""
        return {
            **super().state_dict(),
            "zeroth_order": {
                "steps": self.steps,
                "evaluations": self.evaluations,
                **self.estimator.state_dict(),
                **({} if self.auto_rate is None else {"rate": self.auto_rate.state_dict()}),
            },
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state; training then continues as if it had not been interrupted.

        Raises:
            ValueError: the state is not that of a zeroth-order optimizer.
        """
        if "zeroth_order" not in state_dict:
            raise ValueError(
                "this optimizer state lacks 'zeroth_order': it was not saved by a zeroth-order "
                "optimizer; start without it"
            )
        ours = state_dict["zeroth_order"]
        super().load_state_dict({k: v for k, v in state_dict.items() if k != "zeroth_order"})
        found = keep_dtypes(self, state_dict)
        self.buffers = {}
        for name, dtype in found.items():
            self._new_buffer(name, dtype)
        self.steps = ours["steps"]
        self.evaluations = ours["evaluations"]
        self.estimator.load_state_dict(ours)
        if self.auto_rate is not None and "rate" in ours:
            self.auto_rate.load_state_dict(ours["rate"])
        if self.steps:
            self.estimator.check_eps = False


def _space_and_groups(
    params: Params, space: ParameterSpace | None, distribution: str, perturbation: str
) -> tuple[ParameterSpace, list[dict[str, Any]]]:
    """Find the parameter space and the groups behind whatever form the parameters came in."""
    if isinstance(params, ParameterSpace):
        return params, [{"params": params.parameters}]
    if isinstance(params, nn.Module):
        space = space or ParameterSpace(
            params, distribution=distribution, perturbation=perturbation
        )
        return space, [{"params": space.parameters}]
    entries: list[Any] = list(params)
    groups = entries if entries and isinstance(entries[0], dict) else [{"params": entries}]
    groups = [{**group, "params": list(group["params"])} for group in groups]
    groups = [group for group in groups if group["params"]]
    if space is None:
        every = [parameter for group in groups for parameter in group["params"]]
        named = [(f"parameter {index}", parameter) for index, parameter in enumerate(every)]
        space = ParameterSpace(named, distribution=distribution, perturbation=perturbation)
    return space, groups
