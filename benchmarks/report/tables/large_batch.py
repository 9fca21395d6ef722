"""The tables of large batches, and what they say: the suite ``large_batch``."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence

from benchmarks.measure.harness import Row
from benchmarks.report.tables.best_rate import Best
from benchmarks.report.tables.markdown import NO_GAIN, head, line

EXTRAPOLATION = {
    "none": "none",
    "local": "`local`",
    "gaussian": "`gaussian`",
    "ascent": "`ascent` (SAM)",
    "local_half": "`local`, first half",
}
ADVERSARIAL = {
    "small": "AdamW, batches of 32",
    "adamw": "AdamW",
    "lamb": "LAMB",
    "lamb_random": "LAMB, embeddings moved at random",
    "lamb_gradient": "LAMB, moved uphill",
}
NO_ROWS = "No rows yet: `python -m benchmarks large_batch --json FILE` makes them."
_NEVER = math.inf


def extrapolation_table(rows: Sequence[Row]) -> str:
    """Return what each place of the gradient gives, and below what docs/related.md asks."""
    found = _arms(rows, EXTRAPOLATION)
    if not found:
        return NO_ROWS
    lines = head(
        ("extrapolation", "rate", "training loss at a quarter", "dev loss", "dev", "test", "time",
         "seeds")
    )  # fmt: skip
    for name, best in found.items():
        cells = (
            EXTRAPOLATION[name], best.shown_rate(), f"{best.mean('train_loss_at_quarter'):.3f}",
            f"{best.mean('dev_loss'):.3f}", f"{best.mean('dev_accuracy'):.1%}",
            f"{best.mean('test_accuracy'):.1%}", f"{best.mean('seconds'):,.0f} s",
            len(best.seeds),
        )  # fmt: skip
        lines.append(line(cells))
    if {"none", "local"} <= found.keys():
        lines += ["", _of_extrapolation(found["none"], found["local"])]
    return "\n".join(lines)


def _of_extrapolation(none: Best, local: Best) -> str:
    quarter = "train_loss_at_quarter"
    seeds = sorted({*none.seeds} & {*local.seeds})
    ahead = sum(local.values[quarter][s] < none.values[quarter][s] for s in seeds)
    behind = sum(local.values[quarter][s] > none.values[quarter][s] for s in seeds)
    ends = [local.values["dev_loss"][s] - none.values["dev_loss"][s] for s in seeds]
    error = statistics.stdev(ends) / math.sqrt(len(ends)) if len(ends) > 1 else 0.0
    end = statistics.fmean(ends)
    word = NO_GAIN
    if ahead == len(seeds) and end <= error:
        word = "works"
    elif behind == len(seeds) or end > 2 * error > 0:
        word = "worse"
    return (
        f"- `local`: **{word}**. After a quarter of the steps its training loss is below that of "
        f"none in {ahead} of {len(seeds)} seeds; its dev loss ends {end:+.4f} from it "
        f"(a standard error is {error:.4f})."
    )


def adversarial_table(rows: Sequence[Row]) -> str:
    """Return how quickly large batches reach what small ones do, and what docs/related.md asks."""
    found = _arms(rows, ADVERSARIAL)
    if not found:
        return NO_ROWS
    lines = head(
        ("training", "rate", "steps", "steps to the dev accuracy of small batches, by seed", "dev",
         "test", "time", "seeds")
    )  # fmt: skip
    reached = {name: steps_to(best, found.get("small")) for name, best in found.items()}
    for name, best in found.items():
        steps = [reached[name].get(seed, _NEVER) for seed in best.seeds]
        cells = (
            ADVERSARIAL[name], best.shown_rate(), best.steps,
            "-" if name == "small" else ", ".join(map(_shown, steps)),
            f"{best.mean('dev_accuracy'):.1%}", f"{best.mean('test_accuracy'):.1%}",
            f"{best.mean('seconds'):,.0f} s", len(best.seeds),
        )  # fmt: skip
        lines.append(line(cells))
    if {"small", "lamb", "lamb_random", "lamb_gradient"} <= found.keys():
        lines += ["", _of_adversaries(reached)]
    return "\n".join(lines)


def steps_to(best: Best, target: Best | None) -> dict[float, float]:
    """Return, by seed, the first step with the dev accuracy that the target ends with."""
    wanted = {} if target is None else target.values["dev_accuracy"]
    found = {}
    for seed in best.looks.keys() & wanted.keys():
        seen = zip(best.looks[seed]["step"], best.looks[seed]["dev_accuracy"], strict=True)
        found[seed] = next((step for step, value in seen if value >= wanted[seed]), _NEVER)
    return found


def _of_adversaries(reached: Mapping[str, Mapping[float, float]]) -> str:
    uphill, others = reached["lamb_gradient"], (reached["lamb"], reached["lamb_random"])
    seeds = sorted(uphill.keys() & others[0].keys() & others[1].keys())
    fewer = sum(all(uphill[seed] < other[seed] for other in others) for seed in seeds)
    more = sum(any(uphill[seed] > other[seed] for other in others) for seed in seeds)
    word = NO_GAIN
    if seeds and fewer == len(seeds):
        word = "works"
    elif seeds and more == len(seeds):
        word = "worse"
    return (
        f"- Moving embeddings uphill: **{word}**. It reaches the dev accuracy of small batches in "
        f"fewer steps than LAMB, and than random moves, in {fewer} of {len(seeds)} seeds."
    )


def _arms(rows: Sequence[Row], names: Iterable[str]) -> dict[str, Best]:
    of = {name: [r for r in rows if (r["benchmark"], r["mode"]) == ("large_batch", name)]
          for name in names}  # fmt: skip
    return {name: Best(found) for name, found in of.items() if found}


def _shown(steps: float) -> str:
    return "never" if math.isinf(steps) else f"{steps:.0f}"
