"""Which curves a run has: named figures of series of points, by step and by evaluations."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from adazeta.report.gathering import RunRecord


class Point(NamedTuple):
    """A value at a step of the trainer, after some evaluations of a batch (None: unknown)."""

    step: int
    evaluations: int | None
    value: float


@dataclass
class Series:
    """A line of a figure.

    Attributes:
        label: its name in the legend.
        points: in order of their steps; their values are finite.
        colour: number of its colour.
    """

    label: str
    points: list[Point] = field(default_factory=list)
    colour: int = 0

    @property
    def constant(self) -> bool:
        """Whether all of its values are the same."""
        return len({point.value for point in self.points}) < 2


@dataclass
class Figure:
    """Curves with common axes.

    Attributes:
        title: what is drawn.
        series: the curves.
        levels: horizontal lines, by label.
        counts: whether the values are whole numbers from 0.
        scales: whether the values are chosen sizes, of which ratios matter between runs.
    """

    title: str
    series: list[Series] = field(default_factory=list)
    levels: dict[str, float] = field(default_factory=dict)
    counts: bool = False
    scales: bool = False


class Kind(NamedTuple):
    """A figure that runs may have.

    Attributes:
        title: of the figure.
        keys: what is drawn, by label, as the trainer logs it.
        record: attribute of the probe log's records that has it at each step.
    """

    title: str
    keys: Mapping[str, str]
    record: str | None = None


KINDS = (
    Kind("Reward", {"training": "reward", "evaluation": "eval_reward"}),
    Kind("Accuracy", {"evaluation": "eval_accuracy"}),
    Kind("Loss", {"training": "loss", "evaluation": "eval_loss"}, "loss"),
    Kind("Spread of rewards", {"training": "reward_std", "evaluation": "eval_reward_std"}),
    Kind("Share of informative pairs", {"training": "informative_pairs"}),
    Kind("Divergence from the base (KL, a token)", {"evaluation": "eval_kl"}),
    Kind("Perplexity of completions under the base", {"evaluation": "eval_base_perplexity"}),
    Kind("Length of completions, in tokens",
         {"training": "completion_length", "evaluation": "eval_completion_length"}),
    Kind("Tokens per second", {"training": "tokens_per_second"}),
    Kind("Learning rate", {"training": "learning_rate"}, "rate"),
    Kind("Scale of the perturbation (eps)", {"training": "eps"}, "eps"),
    Kind("Directions of a step (queries)", {"training": "queries"}, "queries"),
    Kind("Spread of the projected gradient", {"training": "projected_gradient_std"}),
    Kind("Dropped probes", {"training": "dropped_probes"}, "dropped"),
)  # fmt: skip
_COUNTS = ("Dropped probes", "Directions of a step (queries)")
_SCALES = ("Learning rate", "Scale of the perturbation (eps)")
_OF_TIME = ("runtime", "per_second", "preparation_time", "compilation_time", "total_flos")
_NOT_DRAWN = {"step", "epoch", "evaluations", "num_input_tokens_seen"}


def figures(runs: Sequence[RunRecord]) -> list[Figure]:
    """Return the figures of one run, or those that compare several.

    One run has its training and its evaluations in one figure. Several have a figure for each,
    with a curve a run. Whatever else the trainer logged more than once has figures too, after the
    others.
    """
    found: list[Figure] = []
    logged = [curves(run) for run in runs]
    for title in _titles(logged):
        labels = list(dict.fromkeys(label for one in logged for label in one.get(title, {})))
        if len(runs) == 1:
            figure = Figure(title, list(logged[0][title].values()), counts=title in _COUNTS)
            figure.levels = _levels(runs[0], title)
            found.append(figure)
            continue
        for label in labels:
            figure = Figure(f"{title}, {label}" if len(labels) > 1 else title)
            figure.counts, figure.scales = title in _COUNTS, title in _SCALES
            for place, (run, one) in enumerate(zip(runs, logged, strict=True)):
                points = one[title][label].points if label in one.get(title, {}) else []
                figure.series.append(Series(run.name, points, place))
            found.append(figure)
    return found


def curves(run: RunRecord) -> dict[str, dict[str, Series]]:
    """Return the curves of a run: title of the figure -> label -> series."""
    clock = Clock(run)
    found: dict[str, dict[str, Series]] = {}
    keys = [key for kind in KINDS for key in kind.keys.values()]
    for kind in KINDS:
        for label, key in kind.keys.items():
            points = list(_logged(run, key, clock))
            if label == "training" and kind.record and (kind.record != "loss" or not points):
                points = list(_recorded(run, kind.record, clock)) or points
            # With rewards, the loss is the reward with the other sign.
            if points and not (kind.title == "Loss" and "Reward" in found):
                found.setdefault(kind.title, {})[label] = _series(label, points)
    rest = dict.fromkeys(key for entry in run.history for key in entry if key not in keys)
    for key in rest:
        label, name = "training", key
        if key.startswith("eval_"):
            label, name = "evaluation", key.removeprefix("eval_")
        if key in _NOT_DRAWN or name.endswith(_OF_TIME) or key.startswith(("train_", "test_")):
            continue
        points = list(_logged(run, key, clock))
        if len(points) > 1:
            title = name.replace("_", " ").replace("/", ": ")
            found.setdefault(title[:1].upper() + title[1:], {})[label] = _series(label, points)
    return found


def _series(label: str, points: list[Point]) -> Series:
    return Series(label, points, int(label == "evaluation"))


class Clock:
    """Tells how many evaluations of a batch a run had done after a step."""

    def __init__(self, run: RunRecord) -> None:
        self._known: dict[int, int] = {}
        first = 0 if run.header is None else run.header.first_global_step or 0
        done = 0
        if first == 0:  # else evaluations before the log's beginning are not told
            for index, record in enumerate(run.steps):
                done += record.evaluations
                self._known[index + 1] = done
        for entry in run.history:
            if isinstance(entry.get("evaluations"), int):
                self._known[entry["step"]] = entry["evaluations"]
        self._known.setdefault(0, 0)
        self._first = first

    def at(self, step: int) -> int | None:
        """Return the evaluations, None if they are not known."""
        return self._known.get(step)


def _titles(logged: Sequence[Mapping[str, Any]]) -> list[str]:
    known = [kind.title for kind in KINDS]
    there = list(dict.fromkeys(title for one in logged for title in one))
    # Metrics of the task first, then what explains them, then whatever else was logged.
    return [t for t in known if t in there] + [t for t in there if t not in known]


def _logged(run: RunRecord, key: str, clock: Clock) -> Iterator[Point]:
    for entry in run.history:
        value, step = entry.get(key), entry.get("step", 0)
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            yield Point(int(step), clock.at(int(step)), float(value))


def _recorded(run: RunRecord, attribute: str, clock: Clock) -> Iterator[Point]:
    first = 0 if run.header is None else run.header.first_global_step or 0
    for index, record in enumerate(run.steps):
        if attribute == "rate":
            value = record.rates[0] if record.rates else math.nan
        else:
            value = float(getattr(record, attribute))
        if math.isfinite(value):
            step = first + index + 1
            yield Point(step, clock.at(step), value)


def _levels(run: RunRecord, title: str) -> dict[str, float]:
    """Return what a demo measured before training, as levels to compare with."""
    metric = title.lower()
    ends = {"before": "test, before", "bias_corrected": "test, best bias"}
    return {
        label: float(run.measured[key])
        for end, label in ends.items()
        for key in (f"test_{metric}_{end}", f"{metric}_{end}")
        if isinstance(run.measured.get(key), int | float)
    }
