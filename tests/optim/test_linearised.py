import pytest
import torch
from torch.nn import functional

from adazeta.optim.linearised import Responses, fit_core


def responses(examples=60, features=10, directions=2, classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=generator)

    labels = torch.randint(classes, (examples,), generator=generator)
    slopes = draw(examples, directions, classes)
    return Responses(draw(examples, classes), labels, draw(examples, features), slopes)


def linear(found, core, start):
    moved = found.features @ (core - start)
    return found.logits + torch.einsum("nr,nrc->nc", moved, found.slopes)


def objective(found, core, start, ridge):
    curvature = torch.einsum(
        "n,nc->nc", found.features.square().sum(-1), found.slopes.square().sum(-2)
    ).mean()
    loss = functional.cross_entropy(linear(found, core, start), found.labels)
    return loss + ridge * curvature * core.square().sum() / 2


@pytest.mark.parametrize("start", [0.0, 0.3])
def test_the_core_are_where_torch_finds_no_slope(start):
    found, begin = responses(), torch.full((10, 2), start)
    fit = fit_core(found, begin)
    core = fit.core.double().requires_grad_()
    known = Responses(*(x.double() if x.is_floating_point() else x for x in vars(found).values()))
    (slope,) = torch.autograd.grad(objective(known, core, begin.double(), fit.ridge), core)
    at_start = begin.double().requires_grad_()
    (before,) = torch.autograd.grad(objective(known, at_start, begin.double(), fit.ridge), at_start)
    # The search ends where a step gains less than 1e-6 of the loss.
    assert slope.norm() < 0.02 * before.norm()


def test_the_same_arguments_give_the_same_bits():
    one, two = (fit_core(responses(), torch.zeros(10, 2), seed=3) for _ in range(2))
    assert torch.equal(one.core, two.core)
    assert (one.ridge, one.expected) == (two.ridge, two.expected)


def test_noise_gets_a_strong_ridge_and_a_clear_signal_a_weak_one():
    noise = fit_core(responses(seed=1), torch.zeros(10, 2))
    found = responses(examples=400, seed=1)
    truth = torch.randn(10, 2, generator=torch.Generator().manual_seed(9))
    labels = linear(found, truth, torch.zeros_like(truth)).argmax(-1)
    clear = Responses(found.logits, labels, found.features, found.slopes)
    fit = fit_core(clear, torch.zeros(10, 2))
    assert fit.ridge < noise.ridge
    predicted = linear(clear, fit.core, torch.zeros_like(truth)).argmax(-1)
    assert (predicted == labels).float().mean() > 0.9


def test_examples_that_are_not_finite_are_left_out():
    found = responses(examples=4)
    found.logits[0, 0], found.features[1, 0] = float("nan"), float("inf")
    assert torch.equal(found.part(found.is_finite()).labels, found.labels[2:])
    with pytest.raises(ValueError, match="two examples or more, got 1"):
        fit_core(found.part(torch.tensor([3])), torch.zeros(10, 2))
