"""The row of one variant on one target: what its machine code holds, per element of the result."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.static.disassemble import access, by_class, by_width
from benchmarks.static.model import predict, residents

Row = dict[str, Any]


def report(facts: Row, expansions: Sequence[Row]) -> Row:
    """Make the row of one variant and target.

    Args:
        facts: of the variant, from ``static.compile.survey``.
        expansions: facts of the root and the quotient on the same target.
    """
    target = facts["target"]
    row = {
        key: facts[key]
        for key in (
            "variant",
            "kernel",
            "target",
            "triton",
            "registers",
            "spills",
            "stack_bytes",
            "shared_bytes",
        )
    }
    if "scalar_spills" in facts:
        row["scalar_spills"] = facts["scalar_spills"]
    row["global_accesses"] = by_width(Counter(facts["static"]))
    if facts["noise"]:
        row["fused"] = fused(facts, expansions)
        if facts.get("flushing"):
            row["flushing"] = facts["flushing"]
    row["paths"] = {}
    way = min(facts["ways"], key=lambda way: sum(executed(way, facts["trips"]).values()))
    for dtype, least_bytes in facts["traffic"].items():
        share = facts["elements"] / facts["threads"]
        counts = {opcode: count / share for opcode, count in executed(way, facts["trips"]).items()}
        path: Row = {
            "instructions": round(sum(counts.values()), 1),
            "by_class": {name: round(count, 2) for name, count in by_class(counts, target).items()},
            "least_bytes": least_bytes,
            "moved_bytes": round(moved(counts), 2),
        }
        row["paths"][dtype] = path
    return with_occupancy(row, facts["threads"])


def with_occupancy(row: Row, threads: int) -> Row:
    """Add to a row how many programs share an SM, and what an element would take on an H100.

    Args:
        row: with all else.
        threads: of a program.
    """
    programs, warps = residents(row["target"], row["registers"], threads, row["shared_bytes"])
    row["occupancy"] = {"programs": programs, "warps": warps}
    if row["target"] == "sm_90":
        for path in row["paths"].values():
            found = predict(path["by_class"], path["least_bytes"], programs)
            path["h100"] = {
                "ps": round(found.time_ps, 2),
                "limit": found.limit,
                "memory_fraction": round(found.memory_fraction, 2),
            }
    return row


def executed(way: Mapping[str, Any], trips: Sequence[int]) -> Counter[str]:
    """Instructions of one thread in one execution, by opcode.

    Loops of the machine code and stated iterations are matched level by level in order. The
    compiler removes loops that it knows to run once, so ones are dropped until the numbers fit; a
    loop that is left without a number counts once.
    """
    total = Counter(way["least"])
    level = [(loop, 1) for loop in way["loops"]]
    order = []
    while level:
        order += level
        level = [
            (inner, index)
            for index, (loop, _) in enumerate(order)
            if any(loop is other for other, _ in level)
            for inner in loop["inner"]
        ]
    count = len(order)
    left = list(trips)
    while len(left) > count and 1 in left:
        left.remove(1)
    left += [1] * (count - len(left))
    factors: list[int] = []
    for index, (loop, parent) in enumerate(order):
        outer = any(loop is other for other in way["loops"])
        factors.append(left[index] * (1 if outer else factors[parent]))
        for opcode, number in loop["counts"].items():
            total[opcode] += number * factors[index]
    return total


def moved(counts: Mapping[str, float]) -> float:
    """Bytes of global memory accesses per element, those of the caches included."""
    widths = {opcode: access(opcode) for opcode in counts}
    return sum(width[1] * counts[opcode] for opcode, width in widths.items() if width)


def fused(facts: Row, expansions: Sequence[Row]) -> int:
    """Fused operations beside those that are written out and those of correct rounding.

    Written out are products that are exact and the roots and quotients of
    ``kernels/gpu/arithmetic.py``; the others belong to ``sqrt.rn`` and ``div.rn``, or on AMD to
    ``llvm.sqrt`` and ``fdiv``. An assembler may repeat one of these on the same values, which gives
    the same bits (``static/values.py``). What the source itself asks to fuse counts as written out,
    on NVIDIA where it is assembly and on AMD wherever it is; that such a product is exact is for
    the tests of the bits.

    Operations that the compiler was still free to fuse count too. The noise is the same bits
    everywhere only if there are none.
    """
    allowed = facts["planned"] + facts.get("repeated", 0)
    for uses, expansion in zip(("roots", "quotients"), expansions, strict=True):
        allowed += facts[uses] * (_fma(expansion) - expansion["planned"])
    return int(facts["fusible"] + max(0, _fma(facts) - allowed))


def _fma(facts: Row) -> int:
    """Fused multiply-adds in the code of a kernel; an instruction can hold two."""
    return sum(
        int(by_class({opcode: count}, facts["target"]).get("fma", 0))
        * (2 if opcode.startswith(("v_pk_", "FFMA2")) else 1)
        for opcode, count in facts["static"].items()
    )
