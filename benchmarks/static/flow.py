"""Control flow of a disassembled kernel: basic blocks, loops, and the ways through them."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Instruction:
    """One machine instruction.

    Args:
        opcode: with its modifiers, such as ``LDG.E.128`` or ``global_load_dwordx4``.
        target: label that a branch goes to; None for anything else.
        leaves: execution does not go on to the next instruction (an unconditional branch, exit
            or return).
        call: a call; it is taken to come back, and its target is not followed.
        ends: the kernel may end here.
        skips: a branch that is taken where no lane is active: around masked accesses, on AMD.
        operands: as the listing of NVIDIA's code has them.
        guard: predicate under which it runs; empty if always.
    """

    opcode: str
    target: str | None = None
    leaves: bool = False
    call: bool = False
    ends: bool = False
    skips: bool = False
    operands: str = ""
    guard: str = ""


@dataclass
class Block:
    """Instructions that run one after another, and the blocks that may run next."""

    instructions: list[Instruction] = field(default_factory=list)
    successors: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Loop:
    """One natural loop.

    Args:
        blocks: indices of its blocks, inner loops included.
        counts: opcodes of one iteration without rare cases, inner loops excluded; of two branches
            the shorter one counts.
        inner: the loops directly inside it.
    """

    blocks: frozenset[int]
    counts: Counter[str]
    inner: tuple["Loop", ...]


def blocks_of(listing: Sequence[tuple[str | None, Instruction]]) -> list[Block]:
    """Cut a listing of (label or None, instruction) into basic blocks; the first is the entry.

    Raises:
        ValueError: if a branch goes to a label that the listing does not have.
    """
    blocks: list[Block] = []
    labels: dict[str, int] = {}
    targets = {line.target for _, line in listing if line.target and not line.call}
    fresh = True
    for label, line in listing:
        if fresh or label in targets:
            blocks.append(Block())
        if label is not None:
            labels[label] = len(blocks) - 1
        blocks[-1].instructions.append(line)
        fresh = line.leaves or line.ends or (line.target is not None and not line.call)
    for index, block in enumerate(blocks):
        last = block.instructions[-1]
        if last.target is not None and not last.call:
            if last.target not in labels:
                raise ValueError(f"branch to {last.target!r}, which the listing does not have")
            block.successors.append(labels[last.target])
        if not last.leaves and index + 1 < len(blocks):
            block.successors.append(index + 1)
    return blocks


def reachable(blocks: Sequence[Block]) -> list[int]:
    """Indices of the blocks that the entry leads to, in order; bodies of calls are not followed."""
    seen: set[int] = set()
    stack = [0]
    while stack:
        index = stack.pop()
        if index not in seen:
            seen.add(index)
            stack += blocks[index].successors
    return sorted(seen)


def static_counts(blocks: Sequence[Block]) -> Counter[str]:
    """Opcodes of all reachable blocks, each instruction once."""
    return _counts(blocks, reachable(blocks))


def _counts(blocks: Sequence[Block], chosen: Iterable[int]) -> Counter[str]:
    return Counter(line.opcode for index in chosen for line in blocks[index].instructions)


def _dominators(blocks: Sequence[Block], alive: Sequence[int]) -> dict[int, set[int]]:
    before: dict[int, list[int]] = {index: [] for index in alive}
    for index in alive:
        for successor in blocks[index].successors:
            before[successor].append(index)
    found = {index: set(alive) for index in alive}
    found[0] = {0}
    changed = True
    while changed:
        changed = False
        for index in alive:
            if index == 0:
                continue
            new = set.intersection(*(found[other] for other in before[index])) | {index}
            if new != found[index]:
                found[index], changed = new, True
    return found


def _bodies(blocks: Sequence[Block]) -> dict[int, set[int]]:
    """Natural loops by header: all blocks that reach a back edge without passing the header."""
    alive = reachable(blocks)
    dominators = _dominators(blocks, alive)
    bodies: dict[int, set[int]] = {}
    before: dict[int, list[int]] = {index: [] for index in alive}
    for index in alive:
        for successor in blocks[index].successors:
            before[successor].append(index)
    for index in alive:
        for header in blocks[index].successors:
            if header in dominators[index]:
                body = bodies.setdefault(header, {header})
                stack = [index]
                while stack:
                    block = stack.pop()
                    if block not in body:
                        body.add(block)
                        stack += before[block]
    return bodies


# Preferences among ways, as weights of one sum: rarely called code last (subnormal or infinite
# operands of a root or quotient), then a way through a loop that is asked for, then as many loops
# as possible, then as few or as many instructions as possible.
RARE, ASKED, LOOPS = 10.0**12, 10.0**9, 10.0**6
# A branch over what no lane does is one that a whole block of elements does not take.
SKIP = 10.0**5


class _Search:
    """The best way from ``entry`` through ``region``; loops inside it are passed in one step.

    A way ends on an edge back to ``entry`` (one iteration of a loop), or, of a whole kernel, where
    nothing follows.
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        region: set[int],
        entry: int,
        inner: dict[int, set[int]],
        *,
        whole: bool,
        sign: int,
        whole_blocks: bool = False,
        through: int | None = None,
    ):
        self.blocks, self.region, self.entry, self.inner = blocks, region, entry, inner
        self.whole, self.sign, self.through = whole, sign, through
        self.whole_blocks = whole_blocks
        self.owner = {block: header for header, body in inner.items() for block in body}
        self.best: dict[int, tuple[float, list[int]] | None] = {}

    def way(self) -> tuple[Counter[str], frozenset[int]]:
        """Return the opcodes of the best way outside loops, and the headers of loops on it."""
        found = self._visit(self.owner.get(self.entry, self.entry))
        if found is None:
            raise ValueError(f"no way leads from block {self.entry} to an end")
        nodes = found[1]
        return (
            _counts(self.blocks, (node for node in nodes if node not in self.inner)),
            frozenset(node for node in nodes if node in self.inner),
        )

    def _visit(self, node: int) -> tuple[float, list[int]] | None:
        if node in self.best:
            return self.best[node]
        self.best[node] = None  # a cycle that is no natural loop leads nowhere
        loop = node in self.inner
        members = self.inner.get(node, {node})
        lines = [line for block in members for line in self.blocks[block].instructions]
        weight = LOOPS if loop else float(self.sign * len(lines))
        weight += ASKED * (node == self.through)
        weight -= RARE * (not loop and any(line.call for line in lines))
        # The target of a branch is the first successor of its block.
        following = {
            successor: SKIP * (place == 0 and self.blocks[block].instructions[-1].skips)
            for block in sorted(members)
            for place, successor in enumerate(self.blocks[block].successors)
        }
        # Some loops are left only by ending the kernel, and what has been stored may have been all;
        # other guarded ends are early ones.
        stored = any(line.opcode.startswith("STG") for line in lines)
        ends = (
            self.entry in following
            if not self.whole
            else not following
            or ((loop or (self.whole_blocks and stored)) and any(line.ends for line in lines))
        )
        options: list[tuple[float, list[int]]] = [(0.0, [])] if ends else []
        for successor, cost in following.items():
            target = self.owner.get(successor, successor)
            if successor in self.region and successor not in members and target != self.entry:
                onward = self._visit(target)
                if onward is not None:
                    options.append((onward[0] - cost, onward[1]))
        if options:
            score, rest = max(options, key=lambda option: option[0])
            self.best[node] = (weight + score, [node, *rest])
        return self.best[node]


@dataclass(frozen=True)
class Way:
    """One execution of a kernel without rare cases.

    Args:
        loops: the outermost loops that it passes, by address.
        least: opcodes outside loops if every branch is the shorter one.
        most: opcodes outside loops if every branch is the longer one.
    """

    loops: tuple[Loop, ...]
    least: Counter[str]
    most: Counter[str]


def ways_of(blocks: Sequence[Block], *, whole_blocks: bool = False) -> list[Way]:
    """Take a kernel apart into the ways that differ in the loops they pass.

    Ways that pass a subset of the loops of another one are left out.

    Args:
        blocks: of the kernel.
        whole_blocks: the kernel has a path of its own for blocks inside a tensor, which may end by
            a guarded exit behind its last store, with the other path's stores after it.
    """
    bodies = _bodies(blocks)

    def children(region: set[int], but: int | None) -> dict[int, set[int]]:
        inside = {
            header: body for header, body in bodies.items() if header != but and body <= region
        }
        return {
            header: body
            for header, body in inside.items()
            if not any(body < other for other in inside.values())
        }

    def build(header: int, body: set[int]) -> Loop:
        inner = children(body, header)
        search = _Search(blocks, body, header, inner, whole=False, sign=-1)
        return Loop(
            frozenset(body), search.way()[0], tuple(build(*item) for item in sorted(inner.items()))
        )

    region = set(reachable(blocks))
    outer = children(region, None)
    found: dict[frozenset[int], Way] = {}
    for through in [*sorted(outer), None]:
        least, passed = _Search(
            blocks,
            region,
            0,
            outer,
            whole=True,
            sign=-1,
            whole_blocks=whole_blocks,
            through=through,
        ).way()
        most, _ = _Search(
            blocks,
            region,
            0,
            outer,
            whole=True,
            sign=1,
            whole_blocks=whole_blocks,
            through=through,
        ).way()
        if passed not in found:
            found[passed] = Way(
                tuple(build(header, outer[header]) for header in sorted(passed)), least, most
            )
    return [way for passed, way in found.items() if not any(passed < other for other in found)]
