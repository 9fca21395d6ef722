"""The table of the game of ZSAQ, and what it says: the suite ``zsaq``."""

import math
import statistics
from collections.abc import Mapping, Sequence

from benchmarks.measure.harness import Row
from benchmarks.report.tables.markdown import NO_GAIN, head, line

ARMS = {
    "rounded": "nothing trained",
    "random": "random tokens",
    "random_sam": "random tokens, and SAM",
    "zsaq": "the game: a generator, and SAM",
    "real": "film reviews without labels",
    "random_slow": "random tokens, a tenth of the rate",
    "zsaq_slow": "the game, a tenth of the rate",
    "real_slow": "film reviews without labels, a tenth of the rate",
}
JUDGED_ARMS = {
    "The game at {}": ("rounded", "random", "zsaq"),
    "The game at {} with a tenth of the rate": ("rounded", "random_slow", "zsaq_slow"),
}
JUDGED = "w2a8"
SEEDS = 3
NO_GAME = "No rows yet: `python -m benchmarks zsaq --json FILE` makes them."

Values = Mapping[float, float]  # seed -> value


def zsaq_table(rows: Sequence[Row]) -> str:
    """Return what each arm wins back, and below what docs/related.md asks of the game."""
    of: dict[tuple[str, str, str], dict[float, float]] = {}
    teachers: dict[float, float] = {}
    for row in rows:
        if (row["benchmark"], row["op"]) == ("zsaq", "train"):
            student, arm = row["mode"].split(" ")
            of.setdefault((student, arm, row["metric"]), {})[row["x_value"]] = row["median"]
            teachers[row["x_value"]] = row["config"]["teacher_accuracy"]
    if not of:
        return NO_GAME
    lines = head(
        ("student", "trained on", "agreement", "accuracy", "divergence", "on random tokens", "time",
         "seeds")
    )  # fmt: skip
    for student in sorted({student for student, _, _ in of}, reverse=True):
        for arm, title in ARMS.items():
            if (student, arm, "agreement") in of:
                agreement, accuracy, divergence, random, seconds = (
                    statistics.fmean(of[student, arm, metric].values())
                    for metric in (
                        "agreement", "accuracy", "divergence", "random_divergence", "seconds",
                    )
                )  # fmt: skip
                cells = (
                    student.upper(), title, f"{agreement:.1%}", f"{accuracy:.1%}",
                    f"{divergence:.3f}", f"{random:.3f}", f"{seconds:,.0f} s",
                    len(of[student, arm, "agreement"]),
                )  # fmt: skip
                lines.append(line(cells))
    said = f"- The teachers' accuracy is {statistics.fmean(teachers.values()):.1%}."
    agreements = {
        arm: of[JUDGED, arm, "agreement"] for arm in ARMS if (JUDGED, arm, "agreement") in of
    }
    verdicts = [
        _verdict(title.format(JUDGED.upper()), *(agreements[arm] for arm in judged))
        for title, judged in JUDGED_ARMS.items()
        if all(arm in agreements for arm in judged)
    ]
    return "\n".join([*lines, "", said, *verdicts])


def _verdict(title: str, rounded: Values, random: Values, game: Values) -> str:
    """Return a sentence of what counts, from the agreements of three arms by seed."""
    seeds = sorted(rounded.keys() & random.keys() & game.keys())
    if len(seeds) < SEEDS:
        return f"- {title}: open, as there are {len(seeds)} seeds of three."
    gain, error = _gain(game, random, seeds)
    over_rounded, error_of_rounded = _gain(game, rounded, seeds)
    of_random, _ = _gain(random, rounded, seeds)
    word = NO_GAIN
    if gain > error and of_random > 0:
        word = "works"
    elif over_rounded < -error_of_rounded:
        word = "worse"
    return (
        f"- {title}: **{word}**, {100 * gain:+.1f} points of agreement over random tokens (a "
        f"standard error is {100 * error:.1f}), and {100 * over_rounded:+.1f} over the rounded "
        f"model ({100 * error_of_rounded:.1f}); random tokens have {100 * of_random:+.1f} over it."
    )


def _gain(values: Values, base: Values, seeds: Sequence[float]) -> tuple[float, float]:
    """Return the mean difference of two arms over the seeds, and its standard error."""
    differences = [values[seed] - base[seed] for seed in seeds]
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    return statistics.fmean(differences), error
