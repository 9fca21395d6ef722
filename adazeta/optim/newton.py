"""Training by responses: few evaluations for informed adapters, and no rate to choose.

A perturbed evaluation usually gives one loss, of which all numbers but one are thrown away. The
output of an informed adapter lies in r directions, so r evaluations tell how every logit of every
example answers to it, and with the adapter's input that is the slope along all numbers of its core,
however many. The best core under these linear logits come from a small convex problem
(:mod:`adazeta.optim.linearised`), after which the slopes are measured anew.

Source: ours. Perturbing activations instead of weights is the idea of node perturbation; of
Gauss-Newton methods it has the linear model.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from adazeta.adapters.informed import InformedAdapter
from adazeta.estimation.probes import Probes
from adazeta.optim.linearised import Responses, fit_core
from adazeta.optim.optimizer import Params, ZerothOrderOptimizer
from adazeta.support.batches import repeat_rows, rows_of, targets_of

_OFFSET = 0.5  # of a core's output; a step of one moves a hidden state by a twentieth of its length
_TRIALS = 4  # lengths of a step that are tried: 1, 1/2, 1/4, 1/8


class ZONewton(ZerothOrderOptimizer):
    """Fits the core of an informed adapter to measured responses.

    One step takes the responses of all micro-batches since the last one, ``1 + S r`` evaluations
    of each for S adapters with r directions, and one evaluation of each for every length of the
    step that is tried. The first step chooses the one adapter whose core alone predicts best what
    was held out, and later steps train that one; the others stay at zero. More examples in a step
    are better than more steps.

    Args:
        params: a model whose trainable parameters are the cores of informed adapters, or a
            :class:`~adazeta.parameters.space.ParameterSpace` of it, or parameter groups of one.
        lr: factor on the steps, 1 by default.
        **options: of :class:`~adazeta.optim.optimizer.ZerothOrderOptimizer`. ``eps`` is the offset
            of a core's output (0.5 for ``"auto"``); ``one_sided=False`` measures at both signs of
            it.

    Raises:
        ValueError: there are other trainable parameters, or weight decay, directions of examples,
            several queries or an average are asked for: the ridge and the responses stand in their
            place.
    """

    closure_gives = "logits"

    def __init__(self, params: Params, lr: float = 1.0, **options: Any) -> None:
        decay = options.pop("weight_decay", 0.0)
        for name, value, plain in (
            ("weight_decay", decay, 0.0),
            ("probes", options.get("probes", "batch"), "batch"),
            ("queries", options.get("queries", 1), 1),
            ("average", options.get("average", 0.0), 0.0),
        ):
            if value != plain:
                raise ValueError(
                    f"method 'newton' measures responses, so {name} must be {plain!r}, got "
                    f"{value!r}; choose another method, e.g. 'zo-adam', to use it"
                )
        self._offset = options.get("eps", "auto")
        if self._offset == "auto":
            self._offset = options["eps"] = _OFFSET
        options = {"one_sided": True, **options, "check_eps": False}
        super().__init__(params, {"lr": lr, "weight_decay": 0.0}, **options)
        owners = self.space.owners
        self._adapters = [module for module in owners if isinstance(module, InformedAdapter)]
        if not self._adapters or len(self._adapters) < len(owners):
            raise ValueError(
                "method 'newton' trains informed adapters and nothing else; add them with "
                "TTAdapterConfig(form='informed'), or choose another method, e.g. 'zo-adam'"
            )
        self._responses: list[list[Responses]] = []  # of each batch, of each adapter
        self._jobs: list[tuple[Callable[..., Tensor], Mapping[str, Any]]] = []

    @torch.no_grad()
    def accumulate(
        self,
        closure: Callable[..., Tensor],
        batch: Mapping[str, Any] | None = None,
        *,
        epoch: float = 0.0,
    ) -> Probes:
        """Measure the responses of one micro-batch and keep them for :meth:`step`.

        Args:
            closure: ``closure(batch) -> logits`` of the candidates, ``(B, C)``; it must be
                deterministic.
            batch: with ``labels``, int64 ``(B,)``, and perhaps a teacher's probabilities.
            epoch: unused.

        Returns:
            The loss of the micro-batch, without a probe.

        Raises:
            ValueError: there is no batch, or the logits and labels are not of a classification.
        """
        if self.estimator.ranks.size > 1:
            raise ValueError(
                f"method 'newton' trains in one process. {self.estimator.ranks.size} would fit "
                "a core of its own each; start one, or choose another method"
            )
        if batch is None or not isinstance(batch.get("labels"), Tensor):
            raise ValueError("method 'newton' needs a batch with labels, int64 (B,)")
        try:
            found = self._measure(closure, batch)
        except BaseException:
            self._responses, self._jobs, self._pending = [], [], []
            raise
        self._responses.append(found)
        self._jobs.append((closure, batch))
        losses = functional.cross_entropy(found[0].logits, found[0].labels, reduction="none")
        finite = losses.isfinite()
        probes = _nothing(float(losses[finite].mean()) if finite.any() else float("nan"))
        probes.evaluations = 1 + self._directions * len(self._sides)
        probes.dropped = int((~finite).sum())
        self._pending.append(replace(probes))  # the step writes into its own
        self.evaluations += probes.evaluations
        return probes

    def decide(self, probes: Probes) -> None:
        """Fit a core to what was measured, and move it as far as the loss falls.

        Args:
            probes: of the step, without a probe; those along the coordinates are written into it.
        """
        by_adapter = zip(*self._responses, strict=True)
        found, jobs = [Responses.together(list(parts)) for parts in by_adapter], self._jobs
        self._responses, self._jobs = [], []
        whole = torch.stack([each.is_finite() for each in found]).all(0)
        known = [each.part(whole) for each in found]
        losses = functional.cross_entropy(known[0].logits, known[0].labels, reduction="none")
        probes.loss = float(losses.mean()) if len(losses) else float("nan")
        probes.dropped = len(whole) - len(losses)
        if len(losses) >= 2:
            adapter, change = self._best(known)
            length, tried = self._length(adapter, change, jobs, whole, probes.loss)
            probes.evaluations += tried * len(jobs)
            self.evaluations += tried * len(jobs)
            self._write(probes, adapter, change * length)

    def update(
        self,
        group: dict[str, Any],
        probes: Probes,
        tensors: Sequence[Tensor],
        options: dict[str, Any],
    ) -> None:
        """Subtract each coefficient from the element that its seed numbers."""
        for tensor, offset in zip(tensors, options["offsets"], strict=True):
            inside = (probes.seeds >= offset) & (probes.seeds < offset + tensor.numel())
            where = probes.seeds[inside] - offset
            tensor.view(-1)[where] -= float(group["lr"]) * probes.coefficients[inside]

    @property
    def _sides(self) -> tuple[float, ...]:
        return (1.0,) if self.estimator.one_sided else (1.0, -1.0)

    @property
    def _active(self) -> list[InformedAdapter]:
        """The adapters that are trained: all until the first step has chosen one."""
        return [a for a in self._adapters if bool(a.core.any())] or self._adapters

    @property
    def _directions(self) -> int:
        return sum(adapter.core.shape[1] for adapter in self._active)

    def _best(self, responses: Sequence[Responses]) -> tuple[InformedAdapter, Tensor]:
        """Return the adapter whose core alone is expected to predict best, and its change."""
        fits = []
        for place, (adapter, known) in enumerate(zip(self._active, responses, strict=True)):
            start = adapter.core.detach().cpu()
            found = fit_core(known, start, seed=self.estimator.seed)
            fits.append((found.expected, place, found.core - start))
        _, place, change = min(fits, key=lambda fit: fit[:2])
        return self._active[place], change

    def _measure(self, closure: Callable[..., Tensor], batch: Mapping[str, Any]) -> list[Responses]:
        """Evaluate a batch as it is, and with an offset along each direction of each adapter."""
        labels = batch["labels"]
        kept: list[list[Tensor]] = []
        logits = self._evaluate(closure, batch, None, kept)
        if logits.dim() != 2 or labels.shape != logits.shape[:1] or labels.is_floating_point():
            raise ValueError(
                f"method 'newton' is for classification: logits {tuple(logits.shape)} and labels "
                f"{tuple(labels.shape)} of {labels.dtype} are not (B, C) and integers (B,); choose "
                "another method, e.g. 'zo-adam'"
            )
        rows = rows_of(batch)
        seen = [_of_one_token(features, rows) for features in kept]
        plan = [
            (place, column, side)
            for place, adapter in enumerate(self._active)
            for column in range(adapter.core.shape[1])
            for side in self._sides
        ]
        changes = []
        most = self.estimator.stack.of(batch)
        for begin in range(0, len(plan), most):
            some = plan[begin : begin + most]
            changes.append(self._evaluate(closure, batch, some).view(len(some), *logits.shape))
        changed = torch.cat(changes)
        if len(self._sides) == 1:
            slopes = (changed - logits) / self._offset
        else:
            slopes = (changed[0::2] - changed[1::2]) / (2 * self._offset)
        of_each = slopes.split([adapter.core.shape[1] for adapter in self._active])
        return [
            Responses(logits, targets_of(batch), features, own.transpose(0, 1))
            for features, own in zip(seen, of_each, strict=True)
        ]

    def _evaluate(
        self,
        closure: Callable[..., Tensor],
        batch: Mapping[str, Any],
        some: Sequence[tuple[int, int, float]] | None,
        kept: list[list[Tensor]] | None = None,
    ) -> Tensor:
        """Return logits, float32, of the batch once for each offset; of the batch for None."""
        with ExitStack() as stack:
            for place, adapter in enumerate(self._active):
                offsets = None
                if some is not None:
                    offsets = torch.zeros(len(some), adapter.core.shape[1])
                    for row, (where, column, side) in enumerate(some):
                        if where == place:
                            offsets[row, column] = side * self._offset
                    offsets = offsets.to(adapter.core.device)
                features = stack.enter_context(adapter.offset(offsets))
                if kept is not None:
                    kept.append(features)
            times = 1 if some is None else len(some)
            logits = closure(repeat_rows(batch, times) if times > 1 else dict(batch))
        return logits.float()

    def _length(
        self,
        adapter: InformedAdapter,
        change: Tensor,
        jobs: Sequence[tuple[Callable[..., Tensor], Mapping[str, Any]]],
        whole: Tensor,
        before: float,
    ) -> tuple[float, int]:
        """Return the longest of the tried lengths at which the true loss falls, and the trials.

        The loss is that of the examples whose responses are finite, as ``before`` is.
        """
        core = adapter.core.data
        kept = core.clone()
        for trial in range(_TRIALS):
            length = 0.5**trial
            try:
                core += length * change.to(core.device)
                losses = [
                    functional.cross_entropy(
                        closure(dict(batch)).float(), targets_of(batch), reduction="none"
                    )
                    for closure, batch in jobs
                ]
            finally:
                core.copy_(kept)
            if float(torch.cat(losses)[whole].mean()) < before:
                return length, trial + 1
        return 0.0, _TRIALS

    def _write(self, probes: Probes, adapter: InformedAdapter, change: Tensor) -> None:
        """Write the change of a core as probes along the coordinates."""
        first = self.space.offset_of(adapter.core)
        seeds, coefficients = torch.arange(first, first + change.numel()), -change.reshape(-1)
        kept = coefficients != 0
        probes.seeds = seeds[kept].to(self.space.device)
        probes.coefficients = coefficients[kept].to(self.space.device)
        probes.projected = coefficients[kept]


def _nothing(loss: float) -> Probes:
    """Return an estimate without a probe."""
    empty = torch.zeros(0)
    return Probes(
        seeds=torch.zeros(0, dtype=torch.int64), coefficients=empty, projected=empty, loss=loss,
        evaluations=0, queries=1,
    )  # fmt: skip


def _of_one_token(found: list[Tensor], rows: int) -> Tensor:
    """Return the features of a forward in which the adapter saw one token a row, (B, k)."""
    if len(found) != 1 or found[0].shape[:2] != (rows, 1):
        shapes = [tuple(each.shape) for each in found]
        raise ValueError(
            "method 'newton' needs one forward in which the adapters see one token of each of "
            f"{rows} examples, and they saw {shapes}; set adapt to 'last' (a causal model)"
        )
    return found[0][:, 0]
