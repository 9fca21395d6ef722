"""One recorded graph for each evaluation: perturbing, the forward and the losses start as one.

What an evaluation launches depends on the shapes of the batch and on how many parameter vectors
share the forward; seeds, scales and inputs are only read by it. So they are copied to memory that
stays where it is, a graph is recorded once for each such shape, and an evaluation is a replay.

A graph is of exact shapes. To pad batches to a few lengths would let fewer graphs do, but sums over
a padded row round differently; where that is wanted the batches are padded before, for evaluations
with and without graphs alike (``pad_to_multiple_of`` of a collator of transformers).

A replay has the bits of the evaluation that it stands for. Nobody takes that on trust: the first
replay of each graph, at other seeds and scales than it was recorded at, and its first one of
another batch are compared with plain evaluations. Where one differs, or nothing can be recorded,
there are no graphs from then on, and a message says why.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from adazeta.estimation.perturbed_losses import Evaluation, is_stacked, plain_losses
from adazeta.estimation.recordable import Recordable, whole_batch
from adazeta.estimation.recorder import CudaRecorder, Record
from adazeta.kernels.tables import holding_tables
from adazeta.models.unmasked import unmasked
from adazeta.parameters.dropping import Droppable
from adazeta.parameters.space import ParameterSpace
from adazeta.support.batches import same_values

logger = logging.getLogger(__name__)

_MOST = 8  # graphs that are kept
_COMPARED = 2  # batches of each graph whose losses are compared with plain evaluations
_TRIALS = 16  # recordings after which a replay must have paid for one
_WORTH = 4  # replays a recording: it takes about five evaluations


@dataclass
class _Graph:
    """A recorded evaluation.

    Attributes:
        tensors: what it reads of a batch.
        seeds: int64 (P,), that it reads.
        scales: float32 (P,), that it reads.
        losses: what it writes.
        held: other memory that it reads or writes.
        replay: starts it.
        filled: number of the batch that lies in ``tensors``.
        compared: batches whose losses were compared with plain evaluations.
    """

    tensors: dict[str, Tensor]
    seeds: Tensor
    scales: Tensor
    losses: Tensor
    held: list[Any] = field(default_factory=list)
    replay: Callable[[], None] = lambda: None
    filled: int = 0
    compared: int = 0


class EvaluationGraphs:
    """Computes evaluations by replaying graphs; set it as an estimator's ``evaluator``.

    The space must be that of the estimator. Evaluations of a loss function without a batch, and
    those whose loss function cannot be taken apart, are plain.

    Args:
        space: the parameters.
        model: that the loss function runs, in evaluation mode, and which keeps its modules.
        any_loss: take any loss function of the batch; the caller promises that it reads nothing
            else that changes but the parameters. By default only those that have a method
            ``recordable(batch, copies)``, which returns a :class:`Recordable` for the batch
            repeated ``copies`` times, or a reason against it.
        insist: raise where there can be no graphs, instead of going on without.
        record: records a function; by default as a CUDA graph.
        most: graphs that are kept; the one that was not used for longest makes room.

    Attributes:
        problem: why there are no graphs; None while there are.
        recordings: graphs that were recorded.
        replays: evaluations that came from a graph alone.

    Raises:
        ValueError: with ``insist``, there can be no graphs for these parameters.

    Example:
        >>> from adazeta import ZOSGD
        >>> optimizer = ZOSGD(model, lr=1e-4)                             # doctest: +SKIP
        >>> graphs = EvaluationGraphs(optimizer.space, model, any_loss=True)  # doctest: +SKIP
        >>> optimizer.estimator.evaluator = graphs                        # doctest: +SKIP
    """

    def __init__(
        self,
        space: ParameterSpace,
        model: nn.Module,
        *,
        any_loss: bool = False,
        insist: bool = False,
        record: Record | None = None,
        most: int = _MOST,
    ) -> None:
        if most < 1:
            raise ValueError(f"most must be 1 graph or more, got {most}")
        self.problem: str | None = None
        self.recordings = self.replays = 0
        self._space, self._model = space, model
        self._any, self._insist, self._most = any_loss, insist, most
        self._graphs: OrderedDict[Hashable, _Graph] = OrderedDict()
        self._batches: dict[Hashable, tuple[int, Recordable]] = {}
        self._number = 0
        self._state: tuple[Any, ...] = ()
        self._modules = list(model.modules())
        self._tables = [
            table for m in self._modules for table in (m._parameters, m._buffers) if table
        ]
        self._switches = [module for module in self._modules if isinstance(module, Droppable)]
        self._hooks = [h for m in self._modules for h in (m._forward_hooks, m._forward_pre_hooks)]
        problem = _problem_of(space, record)
        self._record = record
        if problem is None and record is None:
            self._record = CudaRecorder(space.device)
        if problem is not None:
            self._give_up(problem)
        space.add_watch(self._sequence)

    def __call__(
        self,
        space: ParameterSpace,
        loss_fn: Callable[..., Tensor],
        batch: Mapping[str, Any] | None,
        jobs: Sequence[Evaluation],
    ) -> Tensor:
        """Compute evaluations that share a forward; see :func:`plain_losses`.

        Raises:
            ValueError: with ``insist``, there can be no graph of this evaluation.
        """
        if self.problem is not None or batch is None:
            return plain_losses(space, loss_fn, batch, jobs)
        copies = len(jobs)
        found = self._taken_apart(loss_fn, batch, copies)
        if isinstance(found, str):
            self._give_up(found)
            return plain_losses(space, loss_fn, batch, jobs)
        number, parts = found
        seeds = [seed for job in jobs for seed in job.seeds]
        scales = [job.scale for job in jobs for _ in job.seeds]
        stacked = is_stacked(batch, jobs)
        still = not stacked and scales[0] == 0
        shapes = tuple((n, x.shape, x.dtype, x.device) for n, x in parts.tensors.items())
        key = (parts.key, parts.whole, len(seeds), copies, stacked, still, shapes)
        graph = self._graphs.get(key)
        known = graph is not None and (graph.compared >= _COMPARED or graph.filled == number)
        expected = None if known else plain_losses(space, loss_fn, batch, jobs)
        if graph is None:
            assert expected is not None
            graph = self._recorded(parts, seeds, scales, expected, stacked=stacked, still=still)
            if graph is None:
                return expected
            self._graphs[key] = graph
            while len(self._graphs) > self._most:
                self._graphs.popitem(last=False)
        self._graphs.move_to_end(key)
        losses = self._replayed(graph, number, parts, seeds, scales)
        if expected is None:
            self.replays += 1
            return losses
        graph.compared += 1
        if not same_values(losses, expected):
            self._give_up("a replay differs from the evaluation that it stands for")
        elif not self._insist and self.recordings >= _TRIALS:
            if self.replays < _WORTH * self.recordings:
                self._give_up(
                    f"{self.recordings} recordings, one for each shape of a batch, served "
                    f"{self.replays} evaluations; pad batches to fewer lengths"
                )
        return expected

    def _taken_apart(
        self, loss_fn: Callable[..., Tensor], batch: Mapping[str, Any], copies: int
    ) -> tuple[int, Recordable] | str:
        """Take a loss function apart, once for the evaluations of a batch that follow each other.

        Returns:
            A number for the batch, and the parts; or why not.
        """
        # Whoever evaluates holds both of them to the end of the sequence, so no id is given twice.
        key = (id(loss_fn), id(batch), copies, _versions(batch))
        found = self._batches.get(key)
        if found is not None:
            return found
        if torch.is_autocast_enabled(self._space.device.type):
            return "what autocast keeps of the weights does not stay where it is"
        if hasattr(loss_fn, "recordable"):
            parts = loss_fn.recordable(batch, copies)
        elif self._any:
            parts = whole_batch(loss_fn, batch, copies)
        else:
            parts = "the loss function does not say what it reads"
        if isinstance(parts, str):
            return parts
        self._number += 1
        self._batches[key] = self._number, parts
        return self._number, parts

    def _recorded(
        self,
        parts: Recordable,
        seeds: Sequence[int],
        scales: Sequence[float],
        like: Tensor,
        *,
        stacked: bool,
        still: bool,
    ) -> _Graph | None:
        """Record an evaluation; None if that is impossible, after which nothing is recorded."""
        assert self._record is not None
        device = self._space.device
        # At other seeds and scales than those of the replay that is compared: what the graph took
        # for constant would show there.
        graph = _Graph(
            {name: value.clone() for name, value in parts.tensors.items()},
            torch.tensor([seed ^ 1 for seed in seeds], device=device),
            torch.tensor([-scale for scale in scales], dtype=torch.float32, device=device),
            torch.empty_like(like),
        )

        def run() -> None:
            unseen = unmasked(self._model) if parts.whole else nullcontext()
            with self._moved(graph, stacked=stacked, still=still), unseen:
                losses = parts.compute(graph.tensors)
                if losses.shape != graph.losses.shape or losses.dtype != graph.losses.dtype:
                    shape = tuple(losses.shape)
                    raise RuntimeError(f"the losses came out as {losses.dtype} {shape}")
                graph.losses.copy_(losses)

        try:
            with holding_tables() as held:
                graph.replay = self._record(run)
        except Exception as error:
            # Whatever a model does that cannot be recorded, it was just computed without.
            what = " ".join(f"{type(error).__name__}: {error}".split())
            self._give_up(f"an evaluation cannot be recorded ({what})")
            return None
        graph.held = [held, self._space.strategy.held()]
        self.recordings += 1
        return graph

    def _moved(self, graph: _Graph, *, stacked: bool, still: bool) -> AbstractContextManager[None]:
        """Evaluate at what lies in a graph's memory inside the context."""
        if stacked:
            return self._space.stacked(graph.seeds, graph.scales)
        if still:
            return self._space.perturbed(0, 0.0)
        return self._space.perturbed(graph.seeds, graph.scales)

    def _replayed(
        self,
        graph: _Graph,
        number: int,
        parts: Recordable,
        seeds: Sequence[int],
        scales: Sequence[float],
    ) -> Tensor:
        """Fill a graph's memory, replay it, and return a copy of the losses."""
        if graph.filled != number:
            for name, value in parts.tensors.items():
                graph.tensors[name].copy_(value, non_blocking=True)
            graph.filled = number
        _fill(graph.seeds, torch.tensor(seeds, dtype=torch.int64))
        _fill(graph.scales, torch.tensor(scales, dtype=torch.float32))
        graph.replay()
        return graph.losses.clone()  # the next replay writes over it

    @contextmanager
    def _sequence(self) -> Iterator[None]:
        """Drop the graphs if the model is another than they were recorded with; forget the batch.

        A graph reads the weights where they lay, and runs what the modules did then.
        """
        state = self._looked_at() if self.problem is None else ()
        if state != self._state:
            self._graphs.clear()
            self._state = state
        try:
            yield
        finally:
            self._batches.clear()

    def _looked_at(self) -> tuple[Any, ...]:
        places = [t.data_ptr() for table in self._tables for t in table.values() if t is not None]
        modes = [module.training for module in self._modules]
        switches = [(module.enabled, module.scale) for module in self._switches]
        return (places, modes, switches, list(map(len, self._hooks)))

    def _give_up(self, problem: str) -> None:
        """Use no graphs from now on, and say why."""
        self.problem = problem
        self._graphs.clear()
        if self._insist:
            raise ValueError(
                f"evaluations are not replayed as CUDA graphs: {problem}; choose cuda_graphs='auto'"
                " or 'false', which go on without"
            )
        logger.warning("evaluations run without CUDA graphs: %s", problem)


def _problem_of(space: ParameterSpace, record: Record | None) -> str | None:
    """Say why nothing can be recorded for some parameters."""
    if record is None and space.device.type != "cuda":
        return f"the parameters are on {space.device}, and graphs are of CUDA devices"
    if not space.strategy.takes_tensors:
        return f"perturbation={space.perturbation!r} computes its steps on the host"
    if space.droppable:
        return "adapters are left out at random (drop), so every step runs other modules"
    if space.schedule is not None:
        return "the direction changes in the course of training"
    return None


def _versions(batch: Mapping[str, Any]) -> tuple[int, ...]:
    """Count the writes to the tensors of a batch; those of inference mode do not count them."""
    return tuple(
        value._version
        for value in batch.values()
        if isinstance(value, Tensor) and not value.is_inference()
    )


def _fill(target: Tensor, values: Tensor) -> None:
    """Copy from the host without waiting for what the device has still to do."""
    target.copy_(values.pin_memory() if target.is_cuda else values, non_blocking=True)
