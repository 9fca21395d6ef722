"""Read the listings of NVIDIA's and AMD's disassemblers, and sort instructions into classes."""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import replace

from benchmarks.static.flow import Block, Instruction, blocks_of

CLASSES = (
    "fp32 add",
    "fp32 mul",
    "fma",
    "integer multiply",
    "integer",
    "special",
    "conversion",
    "move",
    "tensor",
    "global memory",
    "shared memory",
    "local memory",
    "control",
    "other",
)

_SASS_LINE = re.compile(
    r"^\s+/\*(?P<address>[0-9a-f]{4,})\*/\s+(?P<guard>@!?U?P\w+\s+)?(?P<opcode>[A-Z][\w.]*)"
    r"(?P<operands>[^;]*);",
    re.M,
)
_SASS_TARGET = re.compile(r"\b0x([0-9a-f]+)\s*$")


def sass_blocks(listing: str) -> list[Block]:
    """Basic blocks of one kernel as ``cuobjdump -sass`` prints it."""
    lines = []
    guarded = set()
    for match in _SASS_LINE.finditer(listing):
        opcode, operands = match["opcode"], match["operands"].strip()
        base = opcode.split(".")[0]
        target, call = None, base == "CALL"
        if base in ("BRA", "CALL"):
            found = _SASS_TARGET.search(operands)
            target = f"{int(found[1], 16):x}" if found else None
        # `BRA P1, x` and `BRA.DIV UR4, x` may fall through; a guard makes anything conditional.
        if base == "HFMA2" and re.match(r"\w+, -RZ, RZ,", operands):
            opcode = "HFMA2.CONST"  # 0 * 0 + constant: a move on a pipe that was free
        conditional = match["guard"] is not None or (
            base == "BRA" and ("," in operands or ".DIV" in opcode or "!" in operands)
        )
        leaves = base in ("BRA", "EXIT", "RET", "BRX", "KILL") and not conditional
        address = f"{int(match['address'], 16):x}"
        line = Instruction(
            opcode,
            target,
            leaves,
            call,
            ends=base == "EXIT",
            operands=operands,
            guard=(match["guard"] or "").strip(),
        )
        lines.append((address, line))
        if conditional:
            guarded.add(address)
    if not lines:
        raise ValueError("no instructions found in the listing; its format is unknown")
    return blocks_of(_jumps(lines, guarded))


def _jumps(
    lines: list[tuple[str, Instruction]], guarded: set[str]
) -> list[tuple[str | None, Instruction]]:
    """Turn calls of code that ends the kernel into the branches that they are.

    The assembler leaves loops by such calls on some targets. Subroutines only return, so calls can
    be followed in the search for an end.
    """
    place = {address: index for index, (address, _) in enumerate(lines)}

    def ends(address: str) -> bool:
        seen: set[int] = set()
        stack = [place[address]]
        while stack:
            index = stack.pop()
            if index in seen or index >= len(lines):
                continue
            seen.add(index)
            line = lines[index][1]
            if line.ends:
                return True
            if line.target is not None:
                stack.append(place[line.target])
            if not line.leaves:
                stack.append(index + 1)
        return False

    found: list[tuple[str | None, Instruction]] = []
    for address, line in lines:
        if line.call and line.target is not None and ends(line.target):
            line = Instruction(line.opcode, line.target, leaves=address not in guarded)
        found.append((address, line))
    return found


_GCN_LABEL = re.compile(r"^([.\w$]+):")
_GCN_LINE = re.compile(r"^\s+([a-z]\w+)\s*([^;]*)")


def gcn_blocks(assembly: str) -> list[Block]:
    """Basic blocks of one kernel of AMD assembly as LLVM writes it."""
    lines: list[tuple[str | None, Instruction]] = []
    label: str | None = None
    names: dict[str, str] = {}
    for text in assembly.splitlines():
        if text.lstrip().startswith(".section") and lines:
            break
        if found := _GCN_LABEL.match(text):
            # Several labels can name one place; the first of them stands for all.
            label = label or found[1]
            names[found[1]] = label
        elif found := _GCN_LINE.match(text):
            opcode, operands = found[1], found[2].strip()
            branch = opcode.startswith(("s_branch", "s_cbranch"))
            if opcode == "v_fma_mix_f32" and ", 1.0," in operands:
                opcode = "v_add_f32_mix"  # float16 times one, exactly, plus float32
            elif opcode == "v_fma_mix_f32" and ", neg(0)" in operands:
                opcode = "v_mul_f32_mix"  # float16 times float32, less zero: rounded once
            leaves = opcode in ("s_branch", "s_endpgm", "s_setpc_b64")
            lines.append(
                (
                    label,
                    Instruction(
                        opcode,
                        operands if branch else None,
                        leaves,
                        ends=opcode == "s_endpgm",
                        skips=opcode == "s_cbranch_execz",
                    ),
                )
            )
            label = None
    if not lines:
        raise ValueError("no instructions found in the assembly; its format is unknown")
    return blocks_of(
        [
            (name, replace(line, target=names.get(line.target or "", line.target)))
            for name, line in lines
        ]
    )


_SASS_CLASSES: Mapping[str, str] = {
    **dict.fromkeys(("FADD", "FADD2"), "fp32 add"),
    **dict.fromkeys(("FMUL", "FMUL2"), "fp32 mul"),
    **dict.fromkeys(("FFMA", "FFMA2", "HFMA2", "DFMA"), "fma"),
    "MUFU": "special",
    **dict.fromkeys(("IMAD", "UIMAD", "IDP", "XMAD"), "integer multiply"),
    **dict.fromkeys(
        ("I2F", "F2I", "F2F", "I2I", "FRND", "I2FP", "F2FP", "F2IP", "I2IP"), "conversion"
    ),
    **dict.fromkeys(
        (
            "HMMA",
            "QMMA",
            "IMMA",
            "DMMA",
            "HGMMA",
            "QGMMA",
            "IGMMA",
            "UTCHMMA",
            "UTCQMMA",
            "WARPGROUP",
            "UTCBAR",
            "UTCATOMSWS",
            "LDTM",
            "STTM",
        ),
        "tensor",
    ),
    **dict.fromkeys(
        (
            "MOV",
            "UMOV",
            "CS2R",
            "CS2UR",
            "S2R",
            "S2UR",
            "R2UR",
            "MOV32I",
            "LDC",
            "LDCU",
            "ULDC",
            "R2P",
            "P2R",
            "SHFL",
            "REDUX",
            "VOTE",
            "VOTEU",
            "MOVM",
        ),
        "move",
    ),
    **dict.fromkeys(
        (
            "LDG",
            "STG",
            "LDGSTS",
            "RED",
            "REDG",
            "ATOM",
            "ATOMG",
            "UBLKCP",
            "UTMALDG",
            "LD",
            "ST",
            "CCTL",
        ),
        "global memory",
    ),
    **dict.fromkeys(
        ("LDS", "STS", "LDSM", "STSM", "ATOMS", "SYNCS", "LDGDEPBAR", "DEPBAR", "ARRIVES"),
        "shared memory",
    ),
    **dict.fromkeys(("LDL", "STL"), "local memory"),
    **dict.fromkeys(
        (
            "BRA",
            "BRX",
            "BSSY",
            "BSYNC",
            "EXIT",
            "CALL",
            "RET",
            "NOP",
            "BAR",
            "WARPSYNC",
            "BREAK",
            "YIELD",
            "MEMBAR",
            "FENCE",
            "ERRBAR",
            "BPT",
            "BMOV",
            "ELECT",
            "NANOSLEEP",
            "PREEXIT",
            "ACQBULK",
        ),
        "control",
    ),
}
_SASS_INTEGER = re.compile(
    r"U?(IADD|LOP|SHF|SHL|SHR|LEA|ISETP|SEL|PRMT|PLOP|IABS|IMNMX|VIMNMX|VIADD|FLO|POPC|BREV|SGXT|"
    r"BMSK|FSETP|FSEL|FMNMX|FSET|FCHK|HADD|HMUL|HSETP|HMNMX|DADD|DMUL|DSETP|VIADDMNMX)"
)


def sass_class(opcode: str) -> str:
    """Class of an NVIDIA instruction; "integer" holds all that the ALU pipe runs, see model.py."""
    base, *modifiers = opcode.split(".")
    if base in ("IMAD", "HFMA2") and modifiers[:1] in (["MOV"], ["CONST"]):
        return "move"
    if base in _SASS_CLASSES:
        return _SASS_CLASSES[base]
    return "integer" if _SASS_INTEGER.match(base) else "other"


_GCN_CLASSES = (
    (r"v_(pk_)?(add|sub|subrev)_f32", "fp32 add"),
    (r"v_(pk_)?mul_f32|v_ldexp_f32", "fp32 mul"),
    (r"v_(pk_)?(fma|mac|fmac|mad|fmaak|fmamk|fmaac)_?\w*f(16|32)|v_div_(fmas|fixup|scale)", "fma"),
    (r"v_(mfma|smfmac)|v_accvgpr", "tensor"),
    (r"v_(rcp|rsq|sqrt|exp|log|sin|cos)_", "special"),
    (r"v_(mul_lo|mul_hi|mad_[ui]64|mad_[ui]32|mul_[ui]32|mad_[ui]24)|s_mul", "integer multiply"),
    (r"v_cvt", "conversion"),
    (r"[vs]_mov|v_(read|write)(first)?lane|v_swap|s_load|s_[gs]etreg|v_perm|ds_bpermute", "move"),
    (r"(global|buffer|flat)_", "global memory"),
    (r"scratch_", "local memory"),
    (r"ds_", "shared memory"),
    (r"s_(c?branch|endpgm|barrier|waitcnt|nop|setprio|sleep|sched|wait)", "control"),
    (r"[vs]_", "integer"),
)


def gcn_class(opcode: str) -> str:
    """Class of an AMD instruction; "integer" holds all other vector and scalar arithmetic."""
    return next((name for pattern, name in _GCN_CLASSES if re.match(pattern, opcode)), "other")


def access(opcode: str) -> tuple[str, int] | None:
    """("load" or "store", bytes a thread) of a global memory instruction, or None."""
    base, *modifiers = opcode.split(".")
    if base in ("LDG", "STG", "LDGSTS", "LD", "ST"):
        bits = [int(part) for part in modifiers if part in ("64", "128", "256")]
        narrow = [
            {"U8": 1, "S8": 1, "U16": 2, "S16": 2}[part]
            for part in modifiers
            if part in ("U8", "S8", "U16", "S16")
        ]
        width = bits[0] // 8 if bits else narrow[0] if narrow else 4
        return ("store" if base in ("STG", "ST") else "load"), width
    found = re.match(r"(?:global|buffer|flat)_(load|store)_(\w+)", opcode)
    if found:
        kind, what = found[1], found[2]
        wide = re.search(r"dwordx(\d)|b(128|96|64|32)", what)
        if wide:
            return kind, 4 * int(wide[1]) if wide[1] else int(wide[2]) // 8
        return kind, 4 if "dword" in what else 2 if "short" in what or "16" in what else 1
    return None


def by_width(counts: Counter[str]) -> dict[str, int]:
    """Global loads and stores by width: ``{"load 16": 2, "store 16": 2}``."""
    found: Counter[str] = Counter()
    for opcode, count in counts.items():
        if kind := access(opcode):
            found[f"{kind[0]} {kind[1]}"] += count
    return dict(sorted(found.items()))


def by_class(counts: Mapping[str, float], target: str) -> dict[str, float]:
    """Number of instructions of each class that occurs."""
    classify = gcn_class if target.startswith("gfx") else sass_class
    found: defaultdict[str, float] = defaultdict(int)
    for opcode, count in counts.items():
        found[classify(opcode)] += count
    return {name: found[name] for name in CLASSES if found[name]}
