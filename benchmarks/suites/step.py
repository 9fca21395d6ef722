"""``step``: a whole training step, against the official one and the bare forwards it needs.

Providers of a cell (placement, batch, queries):

- ``reference``: the official step (``reference_path``), full logits, queries one after another;
- ``adazeta``: the same estimate by ``ZOTrainer`` as it is by default, one evaluation per forward:
  lower layers shared, most of the padding left out (the same losses up to rounding, and fewer
  tokens than the floor computes);
- ``adazeta_padded``: with the padding (``padding_free=False``), as the reference and the floor;
- ``adazeta_stacked``: several evaluations per forward, as many as ``"auto"`` finds best;
- ``adazeta_cached``: with the lower layers' output of the batch kept from an earlier epoch;
- ``floor``: 2 Q forwards of the model without adapters, with the label words' logits only;
- ``lora_adamw`` (at Q = 1): one first-order step of LoRA, rank 8, with AdamW.
"""

from typing import Any

import torch

from adazeta import ParameterSpace
from adazeta.kernels import add_noise_
from benchmarks.measure.harness import Cell, Options, Provider, Row, compare
from benchmarks.subjects.reference_path import all_logits, as_reference
from benchmarks.subjects.steps import (
    EPS,
    LR,
    FirstOrderStep,
    OurStep,
    check,
    forward,
    lora_model,
    reference_step,
)
from benchmarks.subjects.workload import Batch, Workload, workload


def rows(options: Options) -> list[Row]:
    """Time the steps, and where their time goes."""
    work = workload(options)
    found: list[Row] = []
    for placement in ("adapters_all", "adapters_last10", "full"):
        checked = False
        for batch, queries in _grid(options):
            cell = Cell("step", placement, f"batch_{batch}", "queries", queries, options.device)
            if not options.wants(cell.benchmark, cell.op, cell.mode, f"queries_{queries}"):
                continue
            if not checked:
                check(work, placement)
                checked = True
            found += measure(work, cell, work.batch(batch), options)
    for batch in (3,) if options.small else (4, 16):
        cell = Cell("step", "parts", f"batch_{batch}", "queries", 1, options.device)
        if options.wants(cell.benchmark, cell.op, cell.mode) and not options.quick:
            found += parts(work, cell, work.batch(batch), options)
    return found


def _grid(options: Options) -> list[tuple[int, int]]:
    """Batches and queries; the quick ones are a subset of all."""
    if options.small:
        return [(3, 2)]
    if options.quick:
        return [(4, 1)]
    return [(batch, queries) for batch in (4, 16) for queries in (1, 4, 16)]


def measure(work: Workload, cell: Cell, batch: Batch, options: Options) -> list[Row]:
    """Time all providers of one cell."""
    placement, queries = cell.op, int(cell.x_value)
    official = reference_step(work, work.model(placement), batch, queries=queries)
    bare = work.model("bare")

    def floor() -> None:
        for _ in range(2 * queries):
            forward(work, bare, batch)

    def ours(**settings: Any) -> OurStep:
        return OurStep(work, work.model(placement), batch, queries=queries, **settings)

    providers: dict[str, Provider] = {
        "reference": lambda: official.step(batch),
        "adazeta": ours(),
        "adazeta_padded": ours(padding_free="false"),
        "floor": floor,
    }
    if placement != "full":
        providers["adazeta_stacked"] = ours(probes_per_forward="auto")
    if placement == "adapters_last10":
        providers["adazeta_cached"] = ours(cache_trunk="memory")
    if placement == "adapters_all" and queries == 1:
        providers["lora_adamw"] = FirstOrderStep(work, lora_model(work), batch)
    config = {
        "model": work.name,
        "tokens": int(batch["attention_mask"].sum()),
        "width": batch["input_ids"].shape[1],
        "optimizer": "sgd",
    }
    found = compare(cell, providers, options, config=config)
    for row in found:
        step = providers[row["provider"]]
        if isinstance(step, OurStep):
            row["config"] = {**row["config"], "evaluations_per_forward": step.stack()}
    return found


def parts(work: Workload, cell: Cell, batch: Batch, options: Options) -> list[Row]:
    """Time what steps are made of: forwards of each kind, and passes over the parameters."""
    bare, adapted = work.model("bare"), work.model("adapters_all")
    tensordot = as_reference(adapted)
    own = ParameterSpace(adapted)
    full = work.model("full")
    space = ParameterSpace(full)
    official_adapters = reference_step(work, work.model("adapters_all"), batch, queries=1)
    official_full = reference_step(work, work.model("full"), batch, queries=1)

    scratch = [torch.empty_like(tensor) for tensor in space.pieces(space.parameters)[0]]

    @torch.no_grad()
    def perturb_adapters() -> None:
        with own.perturbed(1, EPS):
            pass

    def perturb_full() -> None:
        tensors, offsets = space.pieces(space.parameters)
        add_noise_(tensors, [1], [EPS], offsets=offsets, out=scratch)

    def update(of: ParameterSpace) -> None:
        tensors, offsets = of.pieces(of.parameters)
        add_noise_(tensors, [1], [-LR], offsets=offsets)

    @torch.no_grad()
    def full_logits() -> None:
        all_logits(bare, batch)

    providers: dict[str, Provider] = {
        "forward": lambda: forward(work, bare, batch),
        "forward_full_logits": full_logits,
        "forward_adapted": lambda: forward(work, adapted, batch),
        "forward_tensordot": lambda: forward(work, tensordot, batch),
        "adapters_perturb": perturb_adapters,
        "adapters_perturb_reference": lambda: official_adapters.perturb(1, 1),
        "adapters_update": lambda: update(own),
        "full_perturb": perturb_full,
        "full_perturb_reference": lambda: official_full.perturb(1, 1),
        "full_update": lambda: update(space),
    }
    config = {"model": work.name, "adapter_parameters": own.size, "full_parameters": space.size}
    return compare(cell, providers, options, bases=("forward",), config=config)
