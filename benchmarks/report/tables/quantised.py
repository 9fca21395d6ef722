"""The tables of bases in few bits: the suite ``quantised``, and arithmetic."""

from collections.abc import Sequence

from benchmarks.measure.harness import Row
from benchmarks.report.tables.markdown import head, line

# What docs/quantised.md calls the providers of benchmarks.suites.quantised.
BASES = {
    "float32": "float32",
    "bfloat16": "bfloat16",
    "gguf_kept": "`keep`, Q4_1, computed in float32",
    "gguf_kept_bfloat16": "`keep`, Q4_1, computed in bfloat16",
    "bnb_int8": "`bnb-int8`",
    "bnb_nf4": "`bnb-nf4`",
    "torchao_int8": "`torchao-int8`",
    "torchao_int8_dynamic": "`torchao-int8-dynamic`",
    "torchao_int4": "`torchao-int4`",
    "qlora": "QLoRA: `bnb-nf4`, LoRA of rank 8 by AdamW",
}
# Models, in billions of parameters; bits of a weight with its scales, and why; devices, in GB.
SIZES = (1, 3, 7, 13, 70)
BITS = {
    "float32": (32.0, "32"),
    "bfloat16": (16.0, "16"),
    "Q8_0": (8.5, "34 bytes of 32 weights: 8.5"),
    "Q4_1": (5.0, "20 bytes of 32 weights: 5"),
    "Q4_K, Q4_0, NF4": (4.5, "18 bytes of 32 weights: 4.5"),
}
DEVICES = (8, 16, 24, 80)
NOT_HELD = "No rows yet: `python -m benchmarks quantised --json FILE` makes them."


def quantised_table(rows: Sequence[Row]) -> str:
    """Return the means over the seeds of ``quantised``, a way to hold the base a line."""
    found = {
        (row["op"], row["metric"]): row["config"] for row in rows if row["benchmark"] == "quantised"
    }
    if not found:
        return NOT_HELD
    titles = (
        "base", "base, MiB", "of float32's", "peak, MiB", "a step, s", "of float32's",
        "test accuracy", "test loss", "seeds",
    )  # fmt: skip
    lines = head(titles)

    def mean(name: str, metric: str) -> float:
        values = found[name, metric]["values"]
        return float(sum(values) / len(values))

    def times(name: str, metric: str) -> str:
        if ("float32", metric) not in found:
            return "-"
        return f"{mean(name, metric) / mean('float32', metric):.2f}"

    for name, label in BASES.items():
        if (name, "fails") in found:
            reason = found[name, "fails"]["reason"]
            lines.append(line((label, f"does not run here: {reason}", *[""] * 7)))
        elif (name, "base") in found:
            lines.append(line((
                label, f"{mean(name, 'base'):,.0f}", times(name, "base"),
                f"{mean(name, 'peak'):,.0f}", f"{mean(name, 'time'):.2f}", times(name, "time"),
                f"{100 * mean(name, 'test_accuracy'):.1f}%", f"{mean(name, 'test_loss'):.3f}",
                len(found[name, "base"]["values"]),
            )))  # fmt: skip
    return "\n".join(lines)


def arithmetic_table() -> str:
    """Return what weights take, and what they leave of devices, by the formula in each row."""
    titles = ("parameters", "weights", "GB = parameters x bits / 8", *(f"{d} GB" for d in DEVICES))
    lines = head(titles)
    for size in SIZES:
        for name, (bits, why) in BITS.items():
            taken = size * bits / 8
            left = [device - taken for device in DEVICES]
            lines.append(line((
                f"{size}B", f"{name} ({why})", f"{size} x {bits:g} / 8 = {taken:.1f}",
                *(f"{rest:.1f} left" if rest > 0 else "no" for rest in left),
            )))  # fmt: skip
    return "\n".join(lines)
