"""``full_parameter``: zeroth-order training of every weight.

``drift``: 20 steps in bfloat16 from the same weights. Before each update the weights must be, bit
for bit, what the probes so far replay to from the start; what is not is drift. Providers:

- ``streamed``, ``buffer``: exact, or the suite refuses to report;
- ``in_place``: the sequence ``+eps, -2 eps, +eps`` on our noise, float32 arithmetic;
- ``reference``: the official step, noise and arithmetic in bfloat16, with a learning rate of zero,
  so that all that moves is drift.

``step``: a float32 step with one query, estimate and update, over the bare forwards it needs.
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from adazeta import ZOSGD
from benchmarks.measure.harness import Cell, Options, Provider, Row, compare, require
from benchmarks.subjects.steps import EPS, LR, reference_step
from benchmarks.subjects.workload import Batch, Workload, workload

STEPS = 20
EXACT = ("streamed", "buffer")
PERTURBATIONS = (*EXACT, "in_place")
_DRIFT_LR = 1e-6


def rows(options: Options) -> list[Row]:
    """Measure drift, then time."""
    work = workload(options)
    found: list[Row] = []
    cell = Cell("full_parameter", "drift", "train_step", "steps", STEPS, options.device, "bfloat16")
    if options.wants(cell.benchmark, cell.op, cell.mode):
        found += drift_rows(work, cell, options)
    size = 3 if options.small else 16
    cell = Cell("full_parameter", "step", f"batch_{size}", "queries", 1, options.device)
    if options.wants(cell.benchmark, cell.op, cell.mode):
        found += time_rows(work, cell, work.batch(size), options)
    return found


def drift_rows(work: Workload, cell: Cell, options: Options) -> list[Row]:
    """Report the share of the weights that drifted, and by how much over eps.

    Drift hangs on the number of steps and not on the batch: the quick variant has one row of eight
    tokens, for CPUs without bfloat16 instructions, and leaves out ``buffer``.

    Raises:
        Refused: a perturbation that is to be exact is not.
    """
    found = []
    batch = work.batch(1, width=8) if options.quick else work.batch(2 if options.small else 4)
    config = {"model": work.name, "eps": EPS, "rows": len(batch["labels"])}
    measures: dict[str, Callable[[], tuple[float, float]]] = {
        name: lambda name=name: drift(work, name, batch)  # type: ignore[misc]
        for name in PERTURBATIONS
        if not (options.quick and name == "buffer")
    }
    measures["reference"] = lambda: official_drift(work, batch)
    for name, measure in measures.items():
        share, size = measure()
        require(
            name not in EXACT or share == 0,
            f"with perturbation={name!r} {share:.2%} of the weights are not what the probes "
            "replay to",
        )
        found.append(cell.row(name, "drifted_share", "%", [100 * share], config))
        found.append(cell.row(name, "drift_over_eps", "times", [size / EPS], config))
    return found


@torch.no_grad()
def drift(work: Workload, perturbation: str, batch: Batch) -> tuple[float, float]:
    """Train for some steps and compare with the replay of the probes before each update.

    Returns:
        The share of weights that differed before the last update, and the root mean square of the
        differences; where the perturbation is to be exact, the largest before any update.
    """
    model, replica = bfloat16_model(work), bfloat16_model(work)
    optimizer = optimizer_of(model, perturbation, lr=_DRIFT_LR)
    replay = optimizer_of(replica, "streamed", lr=_DRIFT_LR)
    share = size = 0.0
    for step in range(STEPS):
        optimizer.accumulate(lambda inputs: work.losses(model, inputs)[0], batch)
        if perturbation in EXACT or step == STEPS - 1:
            now = differences(model, list(replica.parameters()))
            share, size = max(share, now[0]), max(size, now[1])
        optimizer.step()
        assert optimizer.last is not None
        replay.apply(optimizer.last)
    return share, size


@torch.no_grad()
def official_drift(work: Workload, batch: Batch) -> tuple[float, float]:
    """Drift of the official step after the same number of steps that ought to change nothing."""
    model = bfloat16_model(work)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    official = reference_step(work, model, batch, queries=1, lr=0.0)
    for _ in range(STEPS):
        official.step(batch)
    return differences(model, before)


def differences(model: nn.Module, others: list[Tensor]) -> tuple[float, float]:
    """Share of weights that differ from others, and root mean square of the differences."""
    count = changed = 0
    squares = 0.0
    for parameter, other in zip(model.parameters(), others, strict=True):
        count += parameter.numel()
        if not torch.equal(parameter, other):
            gap = parameter.detach().float() - other.detach().float()
            changed += int((gap != 0).sum())
            squares += float(gap.double().square().sum())
    return changed / count, (squares / count) ** 0.5


def bfloat16_model(work: Workload) -> nn.Module:
    """Return a trainable copy of the base in bfloat16."""
    return copy.deepcopy(work.base).bfloat16().requires_grad_(True)


def optimizer_of(model: nn.Module, perturbation: str, *, lr: float) -> ZOSGD:
    """Return MeZO over all weights, with stochastic rounding of the update."""
    return ZOSGD(
        model,
        lr=lr,
        eps=EPS,
        check_eps=False,
        perturbation=perturbation,
        rounding="stochastic",
    )


def time_rows(work: Workload, cell: Cell, batch: Batch, options: Options) -> list[Row]:
    """Time steps on one model, interleaved, and the two forwards alone."""
    model = work.model("full")
    bare = work.model("bare")
    count = sum(parameter.numel() for parameter in model.parameters())

    def forwards() -> None:
        with torch.no_grad():
            for _ in range(2):
                work.losses(bare, batch)

    providers: dict[str, Provider] = {"floor": forwards}
    for name in PERTURBATIONS:
        # One copy each: a flat buffer would move the weights under the others.
        own = copy.deepcopy(model)
        optimizer = optimizer_of(own, name, lr=LR)

        def step(own: nn.Module = own, optimizer: ZOSGD = optimizer) -> float | None:
            return optimizer.step(lambda inputs: work.losses(own, inputs)[0], batch)

        providers[name] = step
    config = {"model": work.name, "parameters": count, "tokens": batch["input_ids"].shape[1]}
    return compare(cell, providers, options, config=config)
