import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from adazeta.tasks.calibration import accuracy_with_bias, fit_bias


def drawn(seed: int, examples: int, classes: int) -> tuple[Tensor, Tensor]:
    """Logits that know the label but prefer some classes."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (examples,), generator=generator)
    logits = torch.randn(examples, classes, generator=generator)
    logits[torch.arange(examples), labels] += 1.5
    return logits + 3 * torch.randn(classes, generator=generator), labels


def best_of_all(logits: Tensor, labels: Tensor) -> float:
    """Try every order of three classes: biases between all points where a prediction changes."""
    scores = logits.double()
    first, second, third = ((scores[:, a] - scores[:, b]) for a, b in ((0, 1), (0, 2), (1, 2)))

    def between(points: Tensor) -> Tensor:
        points = points.unique()
        middles = (points[1:] + points[:-1]) / 2
        return torch.cat([points[:1] - 1, middles, points[-1:] + 1])

    best = 0.0
    # Where the second bias changes a prediction depends on the first one's.
    for one in between(torch.cat([first, (second[:, None] - third[None]).flatten()])).tolist():
        for two in between(torch.cat([second, third + one])).tolist():
            bias = torch.tensor([0.0, one, two], dtype=torch.float64)
            best = max(best, accuracy_with_bias(logits, labels, bias))
    return best


def test_two_classes_are_cut_half_way_between_two_examples():
    logits = torch.tensor([[0.0, 3.0], [0.0, 5.0], [0.0, 6.0], [0.0, 4.5]])
    labels = torch.tensor([0, 1, 1, 0])
    bias = fit_bias(logits, labels)
    assert torch.equal(bias, torch.tensor([0.0, -4.75], dtype=torch.float64))
    assert accuracy_with_bias(logits, labels, bias) == 1.0
    assert accuracy_with_bias(logits, labels, torch.zeros(2)) == 0.5


@given(st.lists(st.tuples(st.integers(-4, 4), st.integers(0, 1)), min_size=1, max_size=12))
def test_no_threshold_beats_the_fitted_one(pairs):
    differences = torch.tensor([float(difference) for difference, _ in pairs])
    logits = torch.stack([torch.zeros_like(differences), differences], dim=1)
    labels = torch.tensor([label for _, label in pairs])
    points = sorted(set(differences.tolist()))
    cuts = [points[0] - 1, *((a + b) / 2 for a, b in itertools.pairwise(points)), points[-1] + 1]

    def right(cut: float) -> float:
        return accuracy_with_bias(logits, labels, torch.tensor([0.0, -cut]))

    found = -float(fit_bias(logits, labels)[1])
    best = max(right(step / 2) for step in range(-12, 13))
    assert right(found) == best
    assert abs(found) == min(abs(cut) for cut in cuts if right(cut) == best)


@pytest.mark.parametrize("seed", range(12))
def test_three_classes_are_as_good_as_every_pair_of_biases(seed):
    logits, labels = drawn(seed, 14, 3)
    found = accuracy_with_bias(logits, labels, fit_bias(logits, labels))
    # The search moves one bias at a time, which may miss one example of fourteen.
    assert found >= best_of_all(logits, labels) - 1 / 14 - 1e-9


def test_three_classes_apart_but_for_their_biases_are_all_right():
    logits, labels = drawn(0, 60, 3)
    logits[torch.arange(60), labels] += 20
    logits += torch.tensor([0.0, 40.0, -35.0])
    assert accuracy_with_bias(logits, labels, torch.zeros(3)) < 0.7
    assert accuracy_with_bias(logits, labels, fit_bias(logits, labels)) == 1.0


VALUES = st.integers(-3, 3).map(float)


@settings(max_examples=60)
@given(
    st.integers(3, 5).flatmap(
        lambda c: st.lists(
            st.tuples(st.lists(VALUES, min_size=c, max_size=c), st.integers(0, c - 1)),
            min_size=1,
            max_size=10,
        )
    )
)
def test_no_other_value_of_a_single_bias_is_better(rows):
    # Integers make ties; few examples leave classes out.
    logits = torch.tensor([row for row, _ in rows])
    labels = torch.tensor([label for _, label in rows])
    bias = fit_bias(logits, labels)
    assert bias[0] == 0 and bias.isfinite().all() and torch.equal(bias, fit_bias(logits, labels))
    found = accuracy_with_bias(logits, labels, bias)
    assert found >= accuracy_with_bias(logits, labels, torch.zeros(len(bias)))
    for index, step in itertools.product(range(len(bias)), range(-40, 41)):
        other = bias.clone()
        other[index] = step / 4 + 0.01
        assert accuracy_with_bias(logits, labels, other) <= found


@pytest.mark.parametrize("classes", [2, 3, 7])
@pytest.mark.parametrize("label", [0, 1])
def test_data_of_one_class_are_all_right(classes, label):
    logits, _ = drawn(3, 9, classes)
    labels = torch.full((9,), label)
    assert accuracy_with_bias(logits, labels, fit_bias(logits, labels)) == 1.0


def test_large_logits_of_many_classes_are_fitted():
    logits, labels = drawn(5, 400, 77)
    logits = 1e4 * logits + 1e6 * torch.arange(77)
    found = accuracy_with_bias(logits, labels, fit_bias(logits, labels))
    assert accuracy_with_bias(logits, labels, torch.zeros(77)) < 0.1 < found


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_logits_that_are_not_finite_are_refused(value):
    logits = torch.zeros(3, 4)
    logits[1, 2] = value
    with pytest.raises(ValueError, match="logits of example 1 are not finite"):
        fit_bias(logits, torch.zeros(3))


@pytest.mark.parametrize("shape", [(3, 1), (0, 2), (3,)])
def test_biases_need_examples_of_two_classes(shape):
    with pytest.raises(ValueError, match="two or more classes"):
        fit_bias(torch.zeros(shape), torch.zeros(shape[0]))


def test_labels_that_are_no_classes_are_refused():
    with pytest.raises(ValueError, match="label 3 is none of 3 classes"):
        fit_bias(torch.zeros(2, 3), torch.tensor([0, 3]))
    with pytest.raises(ValueError, match="2 rows of logits, but labels"):
        fit_bias(torch.zeros(2, 3), torch.tensor([0, 1, 2]))
