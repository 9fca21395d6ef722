"""The tables of training by scores: the suite ``rewards``."""

from collections.abc import Sequence
from typing import Any

from benchmarks.measure.harness import Row
from benchmarks.report.tables.markdown import head, line

# What docs/rewards.md calls the tasks of benchmarks.subjects.reward_tasks.
TASKS = {
    "reviews": "`reviews`: sentiment of what it writes",
    "concise": "`concise`: an answer that ends early",
    "lists": "`lists`: an answer with three commas",
    "format": "`format`: `<answer>` tags",
    "chain_sum": "`chain_sum`: sums of one-digit numbers",
    "letters": "`letters`: how often a letter is in a word",
}
NO_REWARDS = "No rows yet: `python -m benchmarks rewards --json FILE` makes them."


def rewards_table(rows: Sequence[Row]) -> str:
    """Return what the score was before and after training, a task and seed a line."""
    found: dict[tuple[str, float], dict[tuple[str, str], Row]] = {}
    for row in rows:
        if (row["benchmark"], row["op"]) == ("rewards", "train"):
            cell = found.setdefault((row["mode"], row["x_value"]), {})
            cell[row["provider"], row["metric"]] = row
    if not found:
        return NO_REWARDS
    titles = (
        "task", "seed", "before", "95% interval", "after", "beyond it", "generations", "steps",
        "distinct word pairs", "perplexity, base",
    )  # fmt: skip
    lines = head(titles)
    for task in TASKS:
        for (_, seed), cell in sorted(item for item in found.items() if item[0][0] == task):
            lines.append(line((TASKS[task], f"{seed:g}", *_cells(cell))))
    return "\n".join(lines)


def _cells(cell: dict[tuple[str, str], Row]) -> list[Any]:
    """Return the figures of one run."""
    before = cell["zero_shot", "reward"]
    config, after = before["config"], cell["adazeta", "reward"]["median"]
    texts = ("distinct_bigrams", "base_perplexity")
    distinct, perplexity = (
        [cell[provider, metric]["median"] for provider in ("zero_shot", "adazeta")]
        for metric in texts
    )
    return [
        f"{before['median']:.3f}",
        f"{config['ci95_low']:.3f} to {config['ci95_high']:.3f}",
        f"{after:.3f}",
        "yes" if after > config["ci95_high"] else "no",
        f"{cell['adazeta', 'generations']['median']:,.0f}",
        config["steps"],
        " to ".join(f"{share:.0%}" for share in distinct),
        " to ".join(f"{value:.1f}" for value in perplexity),
    ]
