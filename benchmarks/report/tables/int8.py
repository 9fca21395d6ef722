"""The table of projected gradients by 8-bit integers, and what it says: the suite ``int8``."""

from collections.abc import Sequence

from benchmarks.measure.harness import Row
from benchmarks.report.tables.markdown import cells_of, head, line

NO_INT8 = "No rows yet: `python -m benchmarks int8 --json FILE` makes them."
FLOAT = "float32"
WAYS = {"int8": "in integers, all blocks", "int8_last10": "in integers, last ten blocks"}
_ENOUGH = 0.98


def int8_table(rows: Sequence[Row]) -> str:
    """Return the correlations by scale, the means over the seeds, and what they are worth."""
    found: dict[tuple[str, float], list[float]] = {}
    for row in rows:
        if (row["benchmark"], row["op"]) == ("int8", "gradients"):
            found.setdefault((row["provider"], row["x_value"]), []).append(row["median"])
    scales = sorted({scale for _, scale in found})
    if not scales:
        return NO_INT8
    mean = {key: sum(values) / len(values) for key, values in found.items()}
    lines = head(["eps", FLOAT, *WAYS.values()])
    for scale in scales:
        lines.append(line([f"{scale:.2g}", *(f"{mean[way, scale]:.3f}" for way in (FLOAT, *WAYS))]))
    said = [f"{len(found[FLOAT, scales[0]])} seeds."]
    times = cells_of(rows, "int8", "op", op="evaluation").get(("evaluation",), {})
    for way, name in WAYS.items():
        speed = times.get((way, f"speedup_over_{FLOAT}"))
        if speed is None:
            continue
        eps, best = max(((s, mean[way, s]) for s in scales), key=lambda pair: pair[1])
        word = "do" if best >= _ENOUGH and speed > 1 else "do not do"
        said.append(
            f"{name.capitalize()}, they **{word}**: an evaluation is {speed:.2f} times as fast, "
            f"and at the best scale, {eps:.2g}, the correlation is {best:.3f}, which is worth "
            f"{speed * best**2:.2f} of what float32 learns in the same time."
        )
    return "\n".join([*lines, "", *(f"- {text}" for text in said)])
