"""What a run is and what came of it, as rows of texts."""

import math
from collections.abc import Sequence
from typing import Any

from adazeta.report.curves import Clock
from adazeta.report.figures import number_text
from adazeta.report.gathering import RunRecord

_SETS = {"test": "Test", "validation": "Validation", "eval": "Evaluation", "train": "Training"}
_NO_RESULT = (
    "runtime", "per_second", "preparation_time", "compilation_time", "_ci95_low", "_ci95_high",
)  # fmt: skip
# Of report.json: told elsewhere.
_TOLD = {"seed", "steps", "evaluations", "eps", "task", "trainable_parameters", "train_seconds"}
_ENDS = {
    "before": "before training",
    "bias_corrected": "best label bias alone",
    "after": "after training",
}


def facts(run: RunRecord) -> dict[str, str]:
    """Return what a run is, by name, for people."""
    header, told = run.header, run.settings
    base = told.get("model") or (header and header.base.name_or_path)
    planned = run.state.get("max_steps")
    of = f" of {planned:,}" if isinstance(planned, int) and planned > run.step else ""
    found = {
        "Model": base and str(base).rstrip("/").rpartition("/")[2],
        "Task": run.task.get("type"),
        "Method": told.get("method") or (header and header.optimizer.rule),
        "Steps": f"{run.step:,}{of}",
        "Evaluations of a batch": _evaluations(run),
        "Trained numbers": _trained(run),
        "Seed": told.get("seed", header and header.seed),
        "Training time": _duration(_last(run, "train_runtime")),
        "Version": header and header.version,
        "State": "finished" if run.finished else "not finished",
    }
    return {name: str(value) for name, value in found.items() if value not in (None, "")}


def results(run: RunRecord) -> dict[str, str]:
    """Return the metrics of a run, by name; with their intervals where it recorded them.

    Baselines that a demo measured stand among them.
    """
    found: dict[str, str] = {}
    for prefix, title in _SETS.items():
        mine = [name for name in run.results if name.startswith(f"{prefix}_")]
        for name in sorted(mine, key=lambda name: name.endswith("loss")):
            metric = name.removeprefix(f"{prefix}_")
            if not _is_number(run.results[name]) or metric.endswith(_NO_RESULT):
                continue
            for end in ("before", "bias_corrected"):
                if _is_number(run.measured.get(f"{name}_{end}")):
                    text = _metric(f"{name}_{end}", run.measured[f"{name}_{end}"], run.measured)
                    found[_measured(f"{name}_{end}")] = text
            label = f"{title} {metric.replace('_', ' ')}"
            found[label] = _metric(name, run.results[name], run.results)
    for name, value in run.measured.items():
        twice = name.removesuffix("_after") in run.results or name == "dev_accuracy"
        if _is_number(value) and name not in _TOLD and not twice:
            found.setdefault(_measured(name), _metric(name, value, run.measured))
    return found


def table(columns: Sequence[dict[str, str]]) -> dict[str, list[str]]:
    """Return rows of several runs: by name, the text of each run, a dash where it has none."""
    names = dict.fromkeys(name for column in columns for name in column)
    return {name: [column.get(name, "–") for column in columns] for name in names}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _metric(name: str, value: float, among: dict[str, Any]) -> str:
    interval = among.get(f"{name}_interval")
    if interval is None and f"{name}_ci95_low" in among:
        interval = [among[f"{name}_ci95_low"], among.get(f"{name}_ci95_high")]
    text = (
        _share(value) if "accuracy" in name else number_text(value) if math.isfinite(value) else "–"
    )
    if isinstance(interval, list) and len(interval) == 2:
        ends = (_share(end) if "accuracy" in name else number_text(end) for end in interval)
        return f"{text} (95%: {' to '.join(ends)})"
    return text


def _share(value: float) -> str:
    return f"{value:.1%}" if 0 <= value <= 1 else number_text(value)


def _measured(name: str) -> str:
    for end, title in _ENDS.items():
        if name.endswith(f"_{end}"):
            metric = name.removesuffix(f"_{end}").replace("_", " ")
            return f"{metric[:1].upper()}{metric[1:]}, {title}"
    text = name.replace("_mb", ", MiB").replace("_seconds", " time, s").replace("_", " ")
    return text[:1].upper() + text[1:]


def _trained(run: RunRecord) -> str | None:
    if run.header is None or None in run.header.layout.parameters:
        return None
    sizes = [math.prod(p.shape) for p in run.header.layout.parameters if p is not None]
    return f"{sum(sizes):,}" if sizes else None


def _evaluations(run: RunRecord) -> str | None:
    found = Clock(run).at(run.step)
    return None if not found else f"{found:,}"


def _last(run: RunRecord, key: str) -> Any:
    logged = [entry[key] for entry in run.history if key in entry]
    return run.results.get(key, logged[-1] if logged else None)


def _duration(seconds: Any) -> str | None:
    if not isinstance(seconds, int | float):
        return None
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.3g} s"
