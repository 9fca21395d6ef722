"""The project's own targets, checked against rows: met or missed, with the numbers."""

from collections.abc import Iterable
from dataclasses import dataclass

from benchmarks.measure.harness import Row


@dataclass(frozen=True)
class Target:
    """A bound on the median of one row, or on the ratio of two.

    Attributes:
        text: what is wanted.
        row: ``(benchmark, op, mode, x_value, provider, metric)`` of the row; None in a place
            matches anything.
        bound: the number.
        at_least: whether the value must not be below the bound (else: not above).
        over: provider whose row of the same cell the value is divided by.
        dtype: of the row, if it matters.
    """

    text: str
    row: tuple[str | int | None, ...]
    bound: float
    at_least: bool
    over: str | None = None
    dtype: str | None = None


def _step(op: str, batch: int, queries: int | None, provider: str, metric: str) -> tuple:
    return ("step", op, f"batch_{batch}", queries, provider, metric)


_REFERENCE = "speedup_over_reference"
TARGETS = (
    Target("noise of a full-parameter step, 100M elements: 5 times the reference's speed",
           ("noise", "step", None, 100_000_000, "adazeta", _REFERENCE), 5.0, True),
    Target("the same with pairs: 12 times the reference's speed",
           ("noise", "step", None, 100_000_000, "adazeta_pairs", _REFERENCE), 12.0, True),
    Target("one pass, 100M elements: pairs 1.7 times the speed of version 1",
           ("noise", "pass", None, 100_000_000, "adazeta", "time"), 1.7, True, "adazeta_pairs"),
    Target("one pass, 100M elements: 10 times a plain multiply",
           ("noise", "pass", None, 100_000_000, "adazeta", "time"), 10.0, False, "floor"),
    Target("adapters in all layers, batch 16: 1.10 times the bare forwards",
           _step("adapters_all", 16, None, "adazeta", "time"), 1.10, False, "floor"),
    Target("adapters in all layers, batch 16, padded: 1.10 times the bare forwards",
           _step("adapters_all", 16, None, "adazeta_padded", "time"), 1.10, False, "floor"),
    Target("adapters in all layers, batch 16: 1.5 times the reference's speed",
           _step("adapters_all", 16, None, "adazeta", _REFERENCE), 1.5, True),
    Target("adapters in all layers, batch 16, padded: 1.5 times the reference's speed",
           _step("adapters_all", 16, None, "adazeta_padded", _REFERENCE), 1.5, True),
    Target("adapters in the last 10, batch 16: 1.8 times the reference's speed",
           _step("adapters_last10", 16, None, "adazeta", _REFERENCE), 1.8, True),
    Target("adapters in the last 10, batch 16, padded: 1.8 times the reference's speed",
           _step("adapters_last10", 16, None, "adazeta_padded", _REFERENCE), 1.8, True),
    Target("the same with the lower layers' output kept: 3 times",
           _step("adapters_last10", 16, None, "adazeta_cached", _REFERENCE), 3.0, True),
    Target("full parameters, batch 16: 3 times the reference's speed",
           _step("full", 16, None, "adazeta", _REFERENCE), 3.0, True),
    Target("full parameters, batch 4: 3 times the reference's speed",
           _step("full", 4, None, "adazeta", _REFERENCE), 3.0, True),
    Target("full parameters, batch 16, padded: 3 times the reference's speed",
           _step("full", 16, None, "adazeta_padded", _REFERENCE), 3.0, True),
    Target("full parameters, batch 4, padded: 3 times the reference's speed",
           _step("full", 4, None, "adazeta_padded", _REFERENCE), 3.0, True),
    Target("batch 4, 16 queries: stacked at most the time of sequential",
           _step("adapters_all", 4, 16, "adazeta_stacked", "time"), 1.0, False, "adazeta"),
    Target("batch 16: stacked at most the time of sequential",
           _step("adapters_all", 16, None, "adazeta_stacked", "time"), 1.0, False, "adazeta"),
    Target("add_noise_ in float32: 0.85 of a device copy",
           ("gpu", "add_noise_", "1 probes", None, "adazeta", "fraction_of_copy"), 0.85, True,
           dtype="float32"),
    Target("add_noise_ with pairs in bfloat16: 0.80 of a device copy",
           ("gpu", "add_noise_", "1 probes", None, "adazeta_pairs", "fraction_of_copy"), 0.80,
           True, dtype="bfloat16"),
    Target("sequential step of a 7B model at 4 x 64 tokens, as graphs: at most 1.05 times the "
           "eager bare forwards",
           ("large", "step", "batch_4", None, "adazeta_adapters_graphs", "time"), 1.05, False,
           "floor"),
    Target("peak memory with adapters: 1.10 times inference",
           ("memory", "train_step", None, None, "adazeta_adapters", "peak_over_inference"),
           1.10, False),
)  # fmt: skip


def report(rows: Iterable[Row]) -> list[str]:
    """Describe how the rows stand to the targets; targets without a row are left out."""
    every = list(rows)
    lines = []
    for target in TARGETS:
        for row in every:
            if not _matches(row, target.row) or target.dtype not in (None, row["dtype"]):
                continue
            value = row["median"]
            if target.over is not None:
                cell = (*target.row[:3], row["x_value"], target.over, row["metric"])
                # Of the same machine and dtype, and from the same run.
                base = [
                    r for r in every
                    if _matches(r, cell) and r["device"] == row["device"]
                    and r["dtype"] == row["dtype"] and r["mode"] == row["mode"]
                ]  # fmt: skip
                if not base:
                    continue
                value = value / base[-1]["median"]
            met = value >= target.bound if target.at_least else value <= target.bound
            sign = ">=" if target.at_least else "<="
            lines.append(
                f"{'met   ' if met else 'MISSED'} {value:6.2f} {sign} {target.bound:<5.2f} "
                f"{target.text} ({row['x_name']} {row['x_value']:,})"
            )
    return lines


def _matches(row: Row, wanted: tuple[str | int | None, ...]) -> bool:
    keys = ("benchmark", "op", "mode", "x_value", "provider", "metric")
    return all(value in (None, row[key]) for key, value in zip(keys, wanted, strict=True))
