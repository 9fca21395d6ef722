"""A set of variants small enough to compile in which every two settings of a kernel meet.

The thousands of configurations that dispatch can choose are products of a few settings (dtype,
tile, rank, activation, biases, ...). What goes wrong in the compiler, such as a spilled register,
comes from one setting or from two that meet, so kernels with many configurations are represented
by a pairwise covering set (the usual way to test many options: Cohen et al., "The AETG system",
IEEE Trans. Software Eng. 23(7), 1997). Kernels with few are compiled whole.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import combinations
from typing import Any

# Kernels with up to this many configurations are taken whole.
WHOLE = 16
# Kernels made of device functions whose settings meet in another kernel: tt_adapter's. Of these
# each setting is there once.
COMPOSED = ("few_rows_low", "few_rows_high")

Pair = tuple[int, str, int, str]


def pairs(name: str) -> frozenset[Pair]:
    """Every two settings that meet in a name ``kernel/setting/setting/...``, with their places."""
    settings = list(enumerate(name.split("/")[1:]))
    return frozenset((i, a, j, b) for (i, a), (j, b) in combinations(settings, 2))


def covered(name: str) -> frozenset[Any]:
    """Return what of a name the covering set must have: pairs of settings, or settings alone."""
    kernel, *settings = name.split("/")
    return frozenset(enumerate(settings)) if kernel in COMPOSED else pairs(name)


def covering(names: Iterable[str]) -> Iterator[str]:
    """Choose names such that every two settings that meet in one of a kernel's names still do.

    Of :data:`COMPOSED` kernels each setting is in one of the names.

    Greedy, so that the result is a function of the names and their order: the name with the most
    pairs that are not covered yet is next, the first one of these.

    Args:
        names: ``kernel/setting/setting/...``.
    """
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for name in names:
        groups[name.split("/")[0]].append(name)
    for group in groups.values():
        if len(group) <= WHOLE:
            yield from group
            continue
        held = {name: covered(name) for name in group}
        missing = frozenset[Any]().union(*held.values())
        while missing:
            best = max(group, key=lambda name: len(held[name] & missing))
            missing -= held[best]
            yield best
