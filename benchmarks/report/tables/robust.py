"""The table of shares of adapters on other domains, and what it says: the suite ``robust``."""

from collections.abc import Sequence

from benchmarks.measure.harness import Row
from benchmarks.report.tables.scales import Arms

ARMS = ("linear", "drop", "average", "all", "relu", "fixed", "average_fixed")
NO_ROBUST = "No rows yet: `python -m benchmarks robust --json FILE` makes them."


def robust_table(rows: Sequence[Row]) -> str:
    """Return the accuracies at each scale, and below what docs/related.md asks of them."""
    arms = Arms(rows, "robust", ARMS)
    if not arms.names:
        return NO_ROBUST
    return "\n".join([*arms.table(), "", *(f"- {text}" for text in _verdicts(arms))])


def _verdicts(arms: Arms) -> list[str]:
    """Return a sentence for each of what would count, as far as there are rows."""
    said = []
    there = set(arms.names)
    if {"linear", "relu"} <= there:
        change = 100 * (arms.film("linear")[-1] - arms.film("relu")[-1])
        word = "works" if change >= -1 else "worse"
        said.append(f"Without an activation: **{word}**, {change:+.1f} points on film reviews.")
    said += [arms.rescaling(arm) for arm in arms.names]
    if {"linear", "drop"} <= there:
        word, gain, error = arms.compared("drop", "linear")
        said.append(
            f"Dropping: **{word}**, {gain:+.1f} points at the best scale of each, where a "
            f"standard error is {error:.1f}."
        )
    for falling, averaged, rate in (
        ("linear", "average", "constant rate"),
        ("fixed", "average_fixed", "constant rate of 0.02"),
    ):
        if {falling, averaged} <= there:
            both = zip(arms.by_seed(averaged, "dev"), arms.by_seed(falling, "dev"), strict=False)
            changes = [100 * (one - other) for one, other in both]
            word = "works" if min(changes) >= -0.5 else "worse"
            shown = ", ".join(f"{change:+.1f}" for change in changes)
            said.append(f"An average and a {rate}: **{word}**, {shown} points on the dev texts.")
    return said
