"""Which examples are trained on, chosen by, and tested: as the field's own scripts draw them.

Both draw with NumPy's legacy generator, whose numbers never change.
"""

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np


class Split(NamedTuple):
    """Numbers of examples: of the training split for the first two, of the test split for the last.

    Attributes:
        train: to train on.
        dev: to choose the best checkpoint by.
        test: to report.
    """

    train: list[int]
    dev: list[int]
    test: list[int]


def sampled_split(
    seed: int, available: int, tested: int, *, train: int, dev: int, test: int
) -> Split:
    """Draw as MeZO's large models do (2305.17333, ``sample_subset`` of large_models/tasks.py).

    The first ``train + dev`` of a permutation of the training split, of which the last ``dev`` are
    for development; and the first ``test`` of a permutation of the validation split by the same
    seed. Where there are fewer, development keeps its number, so that CB trains on 150 and WSC on
    54 examples.

    Raises:
        ValueError: nothing is left to train on.
    """
    order = np.random.RandomState(seed).permutation(available).tolist()[: train + dev]
    if len(order) <= dev:
        raise ValueError(
            f"{available} training examples, of which {dev} are for development: none is left"
        )
    evaluated = np.random.RandomState(seed).permutation(tested).tolist()[:test]
    return Split(order[: len(order) - dev], order[len(order) - dev :], evaluated)


def kshot_split(
    seed: int,
    labels: Sequence[Hashable],
    tested: int,
    *,
    k: int,
    test: int,
    test_seed: int,
) -> Split:
    """Draw K examples of each class as LM-BFF does (2012.15723, tools/generate_k_shot_data.py).

    The training split is shuffled; of each class the first K are trained on and the next K are for
    development, class after class in the order in which the classes turn up.

    Args:
        seed: of the shuffle.
        labels: of the training split.
        tested: examples of the test split.
        k: examples of a class.
        test: most examples to test on.
        test_seed: of their choice where there are more.

    Raises:
        ValueError: a class has no more than K examples, so that none is left for development.
    """
    order = list(range(len(labels)))
    np.random.RandomState(seed).shuffle(order)
    classes: dict[Hashable, list[int]] = {}
    for index in order:
        classes.setdefault(labels[index], []).append(index)
    few = [label for label, found in classes.items() if len(found) <= k]
    if few:
        raise ValueError(
            f"the class {few[0]!r} has {len(classes[few[0]])} training examples, and k={k} needs "
            "that many to train on and some more for development; set a smaller k"
        )
    chosen = range(tested)
    if tested > test:
        chosen = np.random.RandomState(test_seed).permutation(tested).tolist()[:test]
    return Split(
        [index for found in classes.values() for index in found[:k]],
        [index for found in classes.values() for index in found[k : 2 * k]],
        list(chosen),
    )
