"""The randomized gradient estimator: a loss function in, a few scalars out.

For queries q = 1..Q with directions z_q ~ N(0, I) (AdaZeta, arXiv 2406.18060; MeZO, 2305.17333)::

    c_q = (l(theta + eps z_q) - l(theta - eps z_q)) / (2 eps)        two-sided
    c_q = (l(theta + eps z_q) - l(theta)) / eps                      one-sided
    g   = (1 / Q) sum_q c_q z_q

With a direction per example (or group of examples) the same two forwards of a batch of B give B
projected gradients, ``g = (1 / B) sum_i c_i z_i``, unbiased for the gradient of the mean loss.

Where several processes train together (:mod:`adazeta.estimation.distributed`), each makes its share
of the evaluations, and all form the same probes from the losses of everyone.
"""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from adazeta.estimation.displacement import REACH, Displacement, run_scale
from adazeta.estimation.distributed import Ranks, check_same, digest_of
from adazeta.estimation.eps import EPS_GRID, EpsReport, profile_eps
from adazeta.estimation.findings import Findings
from adazeta.estimation.perturbed_losses import (
    Evaluation,
    Evaluator,
    evaluate,
    plain_losses,
    stacked_losses,
)
from adazeta.estimation.probes import Probes, merge
from adazeta.estimation.probes_per_forward import StackSize
from adazeta.estimation.queries import QuerySchedule, queries_at
from adazeta.estimation.score_scale import find_scale
from adazeta.estimation.shaping import Shaping
from adazeta.parameters.space import ParameterSpace
from adazeta.support.batches import rows_of
from adazeta.support.seeds import DROP_SEEDS, PROFILE_SEEDS, SIZE_SEEDS, derive_seed

LossFn = Callable[..., Tensor]
Batch = Mapping[str, Any]

_PROFILE_PROBES = 8  # directions that measure the noise of the forward pass, at the least
_MOVES = 2  # directions a group of rows that measure larger moves
_LOOK = 16  # steps from one check that processes which should see the same batches do to the next


class RandomizedGradientEstimator:
    """Estimates a gradient from losses at perturbed parameters; computes no derivative.

    Args:
        space: the parameters, see :class:`~adazeta.parameters.space.ParameterSpace`.
        queries: directions per step (and example), or a :class:`QuerySchedule` of the epoch.
        eps: perturbation scale in units of the parameters, or ``"auto"``: measure it before the
            first step (see :func:`adazeta.estimation.eps.profile_eps`).
        probes: ``"batch"`` (one direction for the whole batch), ``"example"`` (one per example) or
            a number of groups of examples. More than one direction needs stackable parameters.
        one_sided: differences against l(theta): Q + 1 evaluations instead of 2 Q, biased by
            O(eps) instead of O(eps^2).
        probes_per_forward: perturbed evaluations of the batch that share one forward. 1 keeps the
            memory of plain inference; more reads the frozen weights less often, and needs
            stackable parameters and a loss per example. ``"auto"`` measures what is fastest and
            fits, once, on the first batch
            (:class:`~adazeta.estimation.probes_per_forward.StackSize`); since that is a measurement
            of time, two runs may differ by the rounding of differently grouped sums, while a
            resumed run keeps what was chosen. If memory runs out with several, it goes on with half
            as many.
        check_eps: with a fixed eps, measure once, before the first step, whether it lies in the
            rounding noise of the forward pass, and warn if so.
        seed: of the run. The directions are a pure function of it, the step and the query.

    Attributes:
        eps_report: what the measurement found, once it was made.
        stack: how many evaluations share a forward.
        findings: what was found of cheap ways to the losses; carried for whoever computes them.
        ranks: the processes that estimate together; by default this one alone.
        evaluator: computes the evaluations of a forward; see :mod:`adazeta.estimation.graphs`.
        shaping: set where the losses are scores with the other sign, which move in jumps: they
            are shaped before they are differenced, and ``eps="auto"`` is another search
            (:mod:`adazeta.estimation.score_scale`).

    Raises:
        ValueError: an argument is out of its range, or asks for stacking that the parameters do
            not support.
    """

    def __init__(
        self,
        space: ParameterSpace,
        *,
        queries: int | QuerySchedule = 1,
        eps: float | str = "auto",
        probes: int | str = "batch",
        one_sided: bool = False,
        probes_per_forward: int | str = 1,
        check_eps: bool = True,
        seed: int = 0,
    ) -> None:
        if isinstance(queries, int) and queries < 1:
            raise ValueError(f"queries must be 1 or more, got {queries}")
        if eps != "auto" and not (isinstance(eps, (int, float)) and 0 < eps < float("inf")):
            raise ValueError(f"eps must be a positive number or 'auto', got {eps!r}")
        if probes not in ("batch", "example") and not (isinstance(probes, int) and probes > 0):
            raise ValueError(
                f"probes must be 'batch', 'example' or a number of groups, got {probes!r}"
            )
        most = queries.maximum if isinstance(queries, QuerySchedule) else queries
        stack = StackSize(probes_per_forward, most + 1 if one_sided else 2 * most)
        if not space.stackable and (probes != "batch" or stack.of(None) > 1):
            raise ValueError(
                f"probes={probes!r} with probes_per_forward={probes_per_forward} evaluates several "
                "parameter vectors in one forward, which only tensor-train layers in float32 "
                "support; use probes='batch' and probes_per_forward=1, or build the "
                "ParameterSpace from a model whose only trainable parameters are tensor-train "
                "layers"
            )
        self.space = space
        self.queries = queries
        self.eps: float | None = None if eps == "auto" else float(eps)
        self.probes = probes
        self.one_sided = one_sided
        self.stack = stack
        self.check_eps = check_eps
        self.seed = seed
        self.eps_report: EpsReport | None = None
        self.findings = Findings()
        self.ranks = Ranks()
        self.evaluator: Evaluator = plain_losses
        self._pilot: dict[float, Tensor] = {}
        self.shaping: Shaping | None = None

    @torch.no_grad()
    def __call__(
        self,
        loss_fn: LossFn,
        batch: Batch | None = None,
        *,
        step: int = 0,
        micro_step: int = 0,
        epoch: float = 0.0,
    ) -> Probes:
        """Estimate the gradient of the mean loss.

        Args:
            loss_fn: without a batch: called as ``loss_fn()``, returns a scalar. With a batch:
                called as ``loss_fn(batch)``; returns the losses of the examples, ``(rows,)``, or,
                if nothing is stacked, their mean as a scalar. It must be deterministic (dropout
                off) and is called under ``torch.no_grad()``.
            batch: tensors whose leading dimension is the examples, by name. Stacking repeats them
                along it; anything else in the mapping is passed through.
            step: index of the optimizer step, from 0; with the run's seed it fixes the directions.
            micro_step: index of the micro-batch within the step. Directions shared by the batch
                are shared by the micro-batches too; directions of examples are not.
            epoch: epochs done so far, for a query schedule.

        Returns:
            The probes. A probe with a non-finite loss is left out and counted in ``dropped``.

        Raises:
            ValueError: the loss function returned the wrong number of losses.
        """
        groups = self._groups(batch)
        calls_before = self._size_stack(loss_fn, batch, groups)
        place = f"step {step}, micro-batch {micro_step}"
        rows, counts = self._shards(batch, groups, place, look=step % _LOOK == 0)
        if self.shaping is not None:
            if self.eps is None:
                calls_before += self._profile_scores(loss_fn, batch, groups, counts)
        elif self.eps is None or (self.check_eps and self.eps_report is None):
            calls_before += self._profile(loss_fn, batch, groups, rows, counts)
        assert self.eps is not None
        queries = queries_at(self.queries, epoch)
        seeds = self._seeds(step, micro_step, queries, counts)
        mine = seeds[self.ranks.shard].tolist()
        plan = [Evaluation(s, side) for s in mine for side in self._sides(self.eps)]
        if self.one_sided:
            plan.insert(0, Evaluation(mine[0], 0.0))
        # What was measured above is of the model as it is evaluated: nothing is left out.
        with self.space.dropping(derive_seed(self.seed, DROP_SEEDS, step, micro_step)):
            losses = self._losses(loss_fn, batch, plan, place, by_row=self.shaping is not None)
        mean = None
        if self.shaping is not None:
            self.shaping.check_members(len(plan))
            losses = self.shaping(losses, one_sided=self.one_sided)
            mean = -self.shaping.seen[-1].mean  # of the losses themselves
        parts = [self._differences(*each, self.eps) for each in zip(losses, seeds, strict=True)]
        probes = merge(parts, rows)
        if mean is not None:
            probes.loss = mean
        probes.evaluations += calls_before
        return probes

    @torch.no_grad()
    def measure_displacement(self, loss_fn: LossFn, batch: Batch | None = None) -> Displacement:
        """Measure how far the parameters can move along random directions.

        What the choice of eps has measured is used; larger or smaller moves are measured until
        the wall is found. Of scores nothing is measured, see :data:`REACH`.

        Args:
            loss_fn: see :meth:`__call__`, which comes first.
            batch: the one that was given there.
        """
        if self.shaping is not None:
            return Displacement(REACH * float(self.eps or math.nan), None, 0)
        groups = self._groups(batch)
        place = "the choice of the rate"
        rows, counts = self._shards(batch, groups, place, look=False)
        seeds = self._profile_seeds(_MOVES, groups)
        taken = 1
        plan = [Evaluation(seeds[0], 0.0)]
        present = float(self._joined(loss_fn, batch, plan, rows, counts, place).mean())
        slopes: list[Tensor] = []

        def rise_at(scale: float) -> float:
            nonlocal taken
            plan = [Evaluation(s, side) for s in seeds for side in (scale, -scale)]
            losses = self._joined(loss_fn, batch, plan, rows, counts, place)
            taken += len(plan)
            slopes.append((losses[0::2] - losses[1::2]) / (2 * scale))
            return float(losses.mean()) - present

        known = {scale: float(pairs.mean()) - present for scale, pairs in self._pilot.items()}
        scale = run_scale(rise_at, known, present)
        if self._pilot and self.eps is not None:
            nearest = min(self._pilot, key=lambda each: abs(each / float(self.eps or 1) - 1))
            pairs = self._pilot[nearest]
            slopes = [(pairs[:, 0] - pairs[:, 1]) / (2 * nearest)]
        self._pilot = {}
        squares = torch.cat([found.flatten() for found in slopes]).square()
        finite = squares[squares.isfinite()]
        return Displacement(scale, float(finite.mean()) if len(finite) else 0.0, taken)

    def state_dict(self) -> dict[str, Any]:
        """Return what was measured and decides the estimates to come."""
        measured = {"eps": self.eps, "stack": self.stack.state_dict()}
        return {**measured, **self.findings.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what was measured."""
        self.eps = state["eps"]
        self.stack.load_state_dict(state["stack"])
        self.findings.load_state_dict(state)

    def _shards(
        self, batch: Batch | None, groups: int, place: str, *, look: bool
    ) -> tuple[list[int], list[int]]:
        """Find the numbers of rows and of groups in the batch of each data shard.

        Processes that divide a batch must also divide it alike, so all take the smallest stack.
        """
        rows = 1 if batch is None else rows_of(batch)
        if self.ranks.size == 1:
            return [rows], [groups]
        digest = digest_of(batch) if look and batch is not None else 0
        mine = {"rows": rows, "groups": groups, "batch": digest, **self.stack.state_dict()}
        found = self.ranks.exchange(f"the start of {place}", mine)
        for shard in range(self.ranks.shards):
            check_same(
                [
                    {"the batch": (each["rows"], each["batch"])}
                    for each in found[shard :: self.ranks.shards]
                ],
                f"at {place}",
            )
        sizes = [each["elements"] for each in found if each["elements"] is not None]
        limit = min(each["limit"] for each in found)
        self.stack.load_state_dict({"limit": limit, "elements": min(sizes, default=None)})
        shards = found[: self.ranks.shards]
        return [each["rows"] for each in shards], [each["groups"] for each in shards]

    def _seeds(
        self, step: int, micro_step: int, queries: int, counts: Sequence[int]
    ) -> list[Tensor]:
        """Return the seeds of a step for each data shard, int64 (queries, groups of the shard).

        The shards are like micro-batches: they share the directions of the batch, and have their
        own directions of examples.
        """
        width = sum(counts) if max(counts) > 1 else 1
        first = micro_step * width if width > 1 else 0
        grid = torch.tensor(
            [
                [derive_seed(self.seed, step, query, first + column) for column in range(width)]
                for query in range(queries)
            ],
            dtype=torch.int64,
        )
        return list(grid.split(list(counts), 1)) if width > 1 else [grid] * len(counts)

    def _losses(
        self,
        loss_fn: LossFn,
        batch: Batch | None,
        plan: Sequence[Evaluation],
        place: str,
        *,
        by_row: bool = False,
    ) -> list[Tensor]:
        """Make this process's share of the evaluations; return everyone's, for each data shard.

        The losses are means of groups, or of rows each.
        """
        mine = self.ranks.share(len(plan), self.stack.of(batch))
        some = plan[mine.start : mine.stop]
        if some:
            losses = evaluate(
                self.space, loss_fn, batch, some, self.stack,
                by_row=by_row, evaluator=self.evaluator,
            )  # fmt: skip
        else:
            width = rows_of(batch) if by_row and batch is not None else len(plan[0].seeds)
            losses = torch.empty(0, width, dtype=torch.float64)
        return self.ranks.collect(losses.to(self.space.device), place)

    def _size_stack(self, loss_fn: LossFn, batch: Batch | None, groups: int) -> int:
        """Find how many evaluations share a forward if that is open; return those it took."""
        if batch is None or not self.stack.undecided or not self.space.stackable:
            return 0
        seeds = [derive_seed(self.seed, SIZE_SEEDS, group) for group in range(groups)]
        # At theta itself: a loss that is not finite anywhere else is no reason to stop.
        job = Evaluation(seeds, 0.0)
        return self.stack.measure(
            batch,
            lambda count: stacked_losses(self.space, loss_fn, batch, [job] * count),
            rows_of(batch),
        )

    def _sides(self, eps: float) -> tuple[float, ...]:
        return (eps,) if self.one_sided else (eps, -eps)

    def _groups(self, batch: Batch | None) -> int:
        """Number of directions per query: a divisor of the number of rows."""
        if self.probes == "batch":
            return 1
        if batch is None:
            raise ValueError(
                f"probes={self.probes!r} needs the batch: call with loss_fn(batch) -> losses of "
                "the examples, and batch=..."
            )
        rows = rows_of(batch)
        wanted = rows if self.probes == "example" else min(int(self.probes), rows)
        return next(count for count in range(wanted, 0, -1) if rows % count == 0)

    def _differences(self, losses: Tensor, seeds: Tensor, eps: float) -> Probes:
        """Turn losses (evaluations, groups), or those of the rows, into probes."""
        queries, groups = seeds.shape
        if self.one_sided:
            base, plus = losses[0], losses[1:]
            projected = (plus - base) / eps
            used = base.expand_as(plus)
        else:
            plus, minus = losses[0::2], losses[1::2]
            projected = (plus - minus) / (2 * eps)
            used = (plus + minus) / 2
        if projected.shape[1] != groups:  # a row without a loss is left out of its group's mean
            projected = torch.where(projected.isfinite(), projected, torch.nan)
            projected, used = (x.view(queries, groups, -1).nanmean(-1) for x in (projected, used))
        finite = projected.isfinite()
        kept = int(finite.sum())
        loss = used[finite].mean().item() if kept else float("nan")
        flat = projected[finite].float()
        device = self.space.device
        return Probes(
            seeds=seeds.to(device)[finite.to(device)],
            coefficients=(flat / max(kept, 1)).to(device),
            projected=flat,
            loss=loss,
            evaluations=len(losses),
            queries=queries,
            dropped=queries * groups - kept,
        )

    def _profile_scores(
        self, loss_fn: LossFn, batch: Batch | None, groups: int, counts: Sequence[int]
    ) -> int:
        """Choose eps by the share of completions that it changes; return what that took."""
        assert self.shaping is not None and batch is not None
        differs: LossFn = loss_fn.differs(batch)  # type: ignore[attr-defined]
        queries = max(-(-_PROFILE_PROBES // max(counts)), 1)
        seeds = [
            [derive_seed(self.seed, PROFILE_SEEDS, q, group) for group in range(groups)]
            for q in range(queries)
        ]

        def share(eps: float) -> float:
            plan = [Evaluation(s, eps) for s in seeds]
            place = f"the choice of eps, at {eps:g}"
            return torch.cat(self._losses(differs, batch, plan, place), 1).mean().item()

        self.eps, tried = find_scale(share, self.shaping.share)
        return 1 + tried * queries

    def _profile(
        self,
        loss_fn: LossFn,
        batch: Batch | None,
        groups: int,
        rows: Sequence[int],
        counts: Sequence[int],
    ) -> int:
        """Choose eps, or check the given one; return the evaluations that took."""
        fixed = self.eps
        grid = EPS_GRID if fixed is None else (fixed / 10**0.5, fixed, fixed * 10**0.5)
        queries = max(-(-_PROFILE_PROBES // max(counts)), 1)
        seeds = self._profile_seeds(queries, groups)
        plan = [Evaluation(s, side) for eps in grid for s in seeds for side in (eps, -eps)]
        found = self._joined(loss_fn, batch, plan, rows, counts, "the choice of eps")
        pairs = found.view(len(grid), queries, 2, -1)
        self._pilot = dict(zip(grid, pairs, strict=True))
        scales = 2 * torch.tensor(grid, dtype=pairs.dtype, device=pairs.device)
        projected = (pairs[:, :, 0] - pairs[:, :, 1]).flatten(1) / scales[:, None]
        self.eps_report = profile_eps(projected.double().cpu(), grid)
        if fixed is None:
            self.eps = self.eps_report.eps
        elif self.eps_report.reliability_at(fixed) < 0.5:
            warnings.warn(
                f"eps={fixed:g} lies in the noise of the forward pass: the projected gradients "
                f"correlate {self.eps_report.reliability_at(fixed):.2f} with their noise-free "
                "values; eps='auto' measures a better scale",
                stacklevel=3,
            )
        return len(plan)

    def _profile_seeds(self, queries: int, groups: int) -> list[list[int]]:
        """Return the seeds of the directions along which properties of the loss are measured."""
        return [
            [derive_seed(self.seed, PROFILE_SEEDS, q, group) for group in range(groups)]
            for q in range(queries)
        ]

    def _joined(
        self,
        loss_fn: LossFn,
        batch: Batch | None,
        plan: Sequence[Evaluation],
        rows: Sequence[int],
        counts: Sequence[int],
        place: str,
    ) -> Tensor:
        """Make evaluations; return the losses over all data shards, (evaluations, groups)."""
        found = self._losses(loss_fn, batch, plan, place)
        if len(rows) > 1 and max(counts) == 1:  # the shards share their directions
            weights = torch.tensor(rows, dtype=torch.float64, device=found[0].device)
            return (torch.cat(found, 1) @ (weights / weights.sum()))[:, None]
        return torch.cat(found, 1)
