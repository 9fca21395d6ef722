import math
import random

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from adazeta.support.answers import normalised
from adazeta.tasks.intervals import bootstrap, wilson
from adazeta.tasks.metrics import of_answers, of_classes


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("seed", range(3))
def test_metrics_of_classes_agree_with_scikit_learn(classes, seed):
    draws = np.random.default_rng(seed)
    labels, predicted = draws.integers(0, classes, (2, 40))
    found = of_classes(["accuracy", "macro_f1", "matthews"], predicted, labels)
    assert found["accuracy"] == pytest.approx(accuracy_score(labels, predicted))
    assert found["macro_f1"] == pytest.approx(f1_score(labels, predicted, average="macro"))
    assert found["matthews"] == pytest.approx(matthews_corrcoef(labels, predicted))
    if classes == 2:
        f1 = of_classes(["f1"], predicted, labels)["f1"]
        assert f1 == pytest.approx(f1_score(labels, predicted))


def test_metrics_of_a_constant_prediction_are_numbers():
    labels, predicted = np.array([0, 1, 1]), np.array([0, 0, 0])
    found = of_classes(["f1", "macro_f1", "matthews"], predicted, labels)
    assert found == {"f1": 0.0, "macro_f1": 0.25, "matthews": 0.0}
    assert matthews_corrcoef(labels, predicted) == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Cat.", "cat"),
        ("an apple, a day", "apple day"),
        ("theatre", "theatre"),
        ("U.S.A.", "usa"),
        ("", ""),
    ],
)
def test_answers_are_normalised_by_the_rules_of_squad(text, expected):
    assert normalised(text) == expected


@pytest.mark.parametrize(
    ("answer", "references", "exact", "f1"),
    [
        ("the Broncos", ["Denver Broncos", "Broncos!"], 1.0, 1.0),
        ("Denver Broncos team", ["Denver Broncos"], 0.0, 0.8),
        ("a b b", ["b b c"], 0.0, 0.8),  # "a" is an article; two of the two and three words
        ("nothing", ["else"], 0.0, 0.0),
        ("", ["the"], 1.0, 1.0),
        ("", ["cat"], 0.0, 0.0),
        ("cat dog", ["red", "dog", "cat bird tree"], 0.0, 2 / 3),
    ],
)
def test_the_best_reference_counts(answer, references, exact, f1):
    found = of_answers(["exact_match", "f1"], [answer], [references])
    assert found["exact_match"].tolist() == [exact]
    assert found["f1"][0] == pytest.approx(f1)


def test_rouge_is_that_of_the_rouge_score_package():
    answers, references = ["the dogs ran fast"], [["a cat", "the dog ran very fast"]]
    found = of_answers(["rouge"], answers, references)["rouge"][0]
    # Stemmed, the longest common subsequence has four words, of four and of five.
    assert found == pytest.approx(2 * 1.0 * 0.8 / 1.8)


@pytest.mark.parametrize(
    ("share", "count", "low", "high"),
    [  # Newcombe (1998), table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29
        (81 / 263, 263, 0.2553, 0.3662),
        (15 / 148, 148, 0.0624, 0.1605),
        (0.0, 20, 0.0, 0.1611),
        (1 / 29, 29, 0.0061, 0.1718),
    ],
)
def test_intervals_of_shares_are_those_of_newcombes_table(share, count, low, high):
    assert wilson(share, count) == pytest.approx((low, high), abs=5e-5)


def test_an_interval_of_a_share_never_leaves_zero_to_one():
    assert wilson(1.0, 5)[1] == 1.0 and wilson(0.0, 5)[0] == 0.0
    with pytest.raises(ValueError, match="one trial or more"):
        wilson(0.5, 0)


def test_a_bootstrap_interval_is_near_the_normal_one_and_repeats():
    values = np.array([random.Random(index).random() for index in range(400)])
    low, high = bootstrap(values)
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=4e-3)
    assert bootstrap(values) == (low, high)
    with pytest.raises(ValueError, match="no value"):
        bootstrap(np.array([]))
