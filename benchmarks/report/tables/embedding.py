"""The table of R-Adapter's pieces on a model of embeddings: the suite ``embedding``."""

from collections.abc import Sequence

from benchmarks.measure.harness import Row
from benchmarks.report.tables.scales import Arms

ARMS = ("all", "no_drop", "no_average", "cross_entropy")
NO_EMBEDDING = "No rows yet: `python -m benchmarks embedding --json FILE` makes them."
_PIECES = {
    "no_drop": "Dropping",
    "no_average": "The average",
    "cross_entropy": "MPM-NCE in the place of the cross entropy",
}


def embedding_table(rows: Sequence[Row]) -> str:
    """Return the accuracies at each scale, and below what docs/related.md asks of them."""
    arms = Arms(rows, "embedding", ARMS)
    if not arms.names:
        return NO_EMBEDDING
    said = [arms.rescaling(arm) for arm in arms.names]
    for without, piece in _PIECES.items():
        if {"all", without} <= set(arms.names):
            word, gain, error = arms.compared("all", without)
            film = 100 * (arms.film("all")[-1] - arms.film(without)[-1])
            said.append(
                f"{piece}: **{word}**, {gain:+.1f} points on the others at the best scale of each, "
                f"where a standard error is {error:.1f}; {film:+.1f} on film reviews at scale 1."
            )
    return "\n".join([*arms.table(), "", *(f"- {text}" for text in said)])
