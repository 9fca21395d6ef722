"""Fused operations that an assembler repeats, computing a value twice rather than keeping it.

Value numbering within basic blocks (Cooper and Torczon, "Engineering a Compiler", section 8.4): an
instruction repeats an earlier one if it has the same opcode and its operands hold the same values.
Where it is not known what an instruction writes, all values are taken to be new, so that an
operation is at worst not seen to be repeated.
"""

import re
from collections.abc import Sequence

from benchmarks.static.disassemble import sass_class
from benchmarks.static.flow import Block, Instruction, reachable

_REGISTER = re.compile(r"\bU?R\d+\b")
_PREDICATE = re.compile(r"\bU?P\d\b")
_LEADING = re.compile(r"(?:U?P[T\d], )*(U?R)(\d+)\b")
# Classes whose instructions write to one place, and whose width their opcode tells.
_ONE_RESULT = ("fp32 add", "fp32 mul", "fma", "integer multiply", "integer", "special",
               "conversion", "move", "global memory")  # fmt: skip
_REPEATABLE = ("FADD", "FMUL", "FFMA", "I2FP", "LOP3", "MOV", "PRMT", "SGXT", "SHF")


def repeated(blocks: Sequence[Block]) -> int:
    """Fused multiply-adds of NVIDIA's code that compute what one before in the block did."""
    return sum(_in_block(blocks[index].instructions) for index in reachable(blocks))


def _in_block(lines: Sequence[Instruction]) -> int:
    values: dict[str, int] = {}  # of registers
    results: dict[str, int] = {}  # of operations
    count = made = 0

    def value_of(name: str) -> int:
        nonlocal made
        if name not in values:
            made += 1
            values[name] = made
        return values[name]

    for line in lines:
        base = line.opcode.split(".")[0]
        operands = line.operands.replace(".reuse", "")
        if sass_class(line.opcode) not in _ONE_RESULT:
            values.clear()
            continue
        written = _LEADING.match(operands)
        if written is None:
            continue  # a store, or a comparison with a constant
        made += 1
        value = made
        plain = not line.guard and not _PREDICATE.search(operands)
        if plain and base in _REPEATABLE:
            inputs = operands[written.end() :]
            key = line.opcode + _REGISTER.sub(lambda name: f"v{value_of(name[0])}", inputs)
            count += base == "FFMA" and key in results
            value = results.setdefault(key, value)
        kind, first = written[1], int(written[2])
        for register in range(first + 1, first + _width(line.opcode)):
            values.pop(f"{kind}{register}", None)
        values[f"{kind}{first}"] = value
    return count


def _width(opcode: str) -> int:
    base, *modifiers = opcode.split(".")
    if "128" in modifiers or "256" in modifiers:
        return 8
    wide = "64" in modifiers or "WIDE" in modifiers
    return 2 if wide or base[-1] == "2" or base[0] == "D" or base == "CS2R" else 1
