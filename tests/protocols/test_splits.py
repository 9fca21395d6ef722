import numpy as np
import pytest

from adazeta.protocols.splits import kshot_split, sampled_split


def test_a_sampled_split_is_one_permutation_of_the_training_split():
    split = sampled_split(0, 2000, 872, train=1000, dev=500, test=1000)
    np.random.seed(0)
    order = np.random.permutation(2000).tolist()
    assert split.train == order[:1000] and split.dev == order[1000:1500]
    np.random.seed(0)
    assert split.test == np.random.permutation(872).tolist()
    assert len(sampled_split(0, 2000, 5000, train=1000, dev=500, test=1000).test) == 1000


@pytest.mark.parametrize(
    ("available", "dev", "left"), [(250, 100, 150), (400, 100, 300), (554, 500, 54)]
)
def test_small_data_sets_keep_their_development_examples(available, dev, left):
    split = sampled_split(0, available, 100, train=1000, dev=dev, test=1000)
    assert (len(split.train), len(split.dev)) == (left, dev)
    assert not set(split.train) & set(split.dev)


def test_a_data_set_without_training_examples_is_refused():
    with pytest.raises(ValueError, match="none is left"):
        sampled_split(0, 300, 100, train=1000, dev=500, test=1000)


@pytest.mark.parametrize("seed", [13, 21, 42, 87, 100])
def test_k_examples_of_each_class_are_those_of_the_fields_script(seed):
    labels = [str(n % 3) for n in range(90)]
    split = kshot_split(seed, labels, 40, k=4, test=1000, test_seed=42)
    # The script shuffles the lines themselves and goes through them class by class.
    lines = [[label, number] for number, label in enumerate(labels)]
    np.random.seed(seed)
    np.random.shuffle(lines)
    classes: dict[str, list[int]] = {}
    for label, number in lines:
        classes.setdefault(label, []).append(number)
    assert split.train == [n for found in classes.values() for n in found[:4]]
    assert split.dev == [n for found in classes.values() for n in found[4:8]]
    assert split.test == list(range(40))


def test_many_test_examples_are_drawn_by_their_own_seed():
    labels = ["a", "b"] * 20
    first, second = (
        kshot_split(seed, labels, 3000, k=2, test=1000, test_seed=42) for seed in (13, 21)
    )
    assert first.test == second.test and len(set(first.test)) == 1000
    assert first.train != second.train


def test_too_few_examples_of_a_class_are_refused():
    with pytest.raises(ValueError, match="class 'b' has 2 training examples, and k=2"):
        kshot_split(0, ["a", "a", "a", "b", "b"], 3, k=2, test=10, test_seed=42)
