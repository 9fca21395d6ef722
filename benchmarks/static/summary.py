"""What the rows of static reports say in short: the tables of the README, and what is amiss."""

from collections import defaultdict
from collections.abc import Sequence

from benchmarks.static.report import Row

# Settings that make a line of the table; the others are ranges in it.
APART = ("gaussian", "rademacher", "pairs", "none", "element", "scalar")
# Kernels whose hot path moves 16 bytes at once.
WIDE = ("add_noise_kernel", "momentum_kernel", "adam_kernel", "perturbed_copies_kernel")


def faults(rows: Sequence[Row]) -> list[str]:
    """Say what is amiss, a line each: spills, stacks, fused or flushed noise, narrow accesses."""
    found = []
    for row in rows:
        where = f"{row['variant']} for {row['target']} by triton {row['triton']}"
        if row["spills"] or row["stack_bytes"]:
            found.append(f"{where}: {row['spills']} spills, {row['stack_bytes']} bytes of stack")
        if row.get("fused"):
            found.append(f"{where}: {row['fused']} fused operations in the noise")
        if row.get("flushing"):
            found.append(f"{where}: {row['flushing']} roots and quotients flush subnormal numbers")
        if narrow(row):
            found.append(f"{where}: not every path loads and stores 16 bytes at once")
    return found


def narrow(row: Row) -> bool:
    """Say whether a noise kernel on aligned tensors lacks a 16-byte load or store."""
    least = int(row["kernel"] in WIDE and "unaligned" not in row["variant"])
    widths = row["global_accesses"]
    return min(widths.get("load 16", 0), widths.get("store 16", 0)) < least


def summary(reports: Sequence[Sequence[Row]]) -> str:
    """Draw the tables of the README.

    Args:
        reports: rows of one triton each; the predictions are those of the last one.
    """
    lines = [
        "| triton | variants | compiled | spill | fuse | narrow | scalars in lanes (AMD) |",
        "|---|---|---|---|---|---|---|",
    ]
    for rows in reports:
        held = {row["variant"] for row in rows}
        counts = [
            sum(bool(row["spills"] or row["stack_bytes"]) for row in rows),
            sum(bool(row.get("fused")) for row in rows),
            sum(map(narrow, rows)),
            sum(bool(row.get("scalar_spills")) for row in rows),
        ]
        versions = ", ".join(sorted({row["triton"] for row in rows}))
        lines.append(f"| {versions} | {len(held)} | {len(rows)} | {' | '.join(map(str, counts))} |")
    lines += [
        "",
        "| kernel | variants | registers | programs an SM | instructions an element | bytes, least "
        "| H100, of a device copy: float32 | bfloat16 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    groups: defaultdict[str, list[Row]] = defaultdict(list)
    for row in reports[-1] if reports else []:
        if row["target"] == "sm_90":
            groups[family(row["variant"])].append(row)
    for name, rows in groups.items():
        paths = [path for row in rows for path in row["paths"].values()]
        shares = [
            span(
                [
                    row["paths"][dtype]["h100"]["memory_fraction"]
                    for row in rows
                    if dtype in row["paths"]
                ],
                "{:.0%}",
            )
            for dtype in ("float32", "bfloat16")
        ]
        lines.append(
            f"| {name} | {len(rows)} | {span([row['registers'] for row in rows], '{}')} | "
            f"{span([row['occupancy']['programs'] for row in rows], '{}')} | "
            f"{span([path['instructions'] for path in paths], '{:.0f}')} | "
            f"{span([path['least_bytes'] for path in paths], '{:g}')} | "
            f"{' | '.join(shares)} |"
        )
    return "\n".join(lines)


def family(name: str) -> str:
    """Name the line of the table that a variant belongs to."""
    kernel, *settings = name.split("/")
    return " ".join([kernel, *(setting for setting in settings if setting in APART)])


def span(values: Sequence[float], form: str) -> str:
    """Write the least and the largest value."""
    ends = [form.format(end) for end in sorted({min(values), max(values)})] if values else ["-"]
    return " to ".join(dict.fromkeys(ends))
