"""Gradients taken ahead of the parameters: closed forms, and what is left as it was."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from adazeta.training.extrapolation import KINDS, Extrapolation
from tests.helpers.bits import assert_same_bits, bits

RATE = 0.1


def matrix():
    root = torch.randn(4, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return root @ root.T / 4


class Quadratic:
    """``w^T A w / 2`` of float64 parameters in two pieces."""

    def __init__(self):
        self.a = matrix()
        start = torch.randn(4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        self.parts = [nn.Parameter(start[:3].clone()), nn.Parameter(start[3:].clone())]

    @property
    def w(self):
        return torch.cat([p.detach() for p in self.parts])

    @property
    def gradient(self):
        return torch.cat([p.grad for p in self.parts])

    def backward(self, share=1.0):
        w = torch.cat(list(self.parts))
        loss = share * 0.5 * w @ self.a @ w
        loss.backward()
        return loss.detach()

    def step(self):
        for part in self.parts:
            part.data.sub_(RATE * part.grad)
            part.grad = None


def ahead(kind, scale=0.3, until=1000):
    return Extrapolation(kind, scale, until, seed=7)


@pytest.mark.parametrize("micro_batches", [1, 2, 5])
def test_a_local_step_is_its_closed_form(micro_batches):
    problem, extrapolation = Quadratic(), ahead("local")
    w, identity = problem.w, torch.eye(4, dtype=torch.float64)
    for micro in range(micro_batches):
        loss = extrapolation.evaluate(
            lambda: problem.backward(1 / micro_batches), problem.parts, place=(0, micro),
            count=micro_batches, last=micro == micro_batches - 1,
        )  # fmt: skip
        assert torch.equal(problem.w, w)
    torch.testing.assert_close(loss * micro_batches, 0.5 * w @ problem.a @ w)
    problem.step()
    expected = (identity - RATE * problem.a @ (identity - 0.3 * problem.a)) @ w
    torch.testing.assert_close(problem.w, expected, rtol=1e-12, atol=1e-12)


def test_a_game_is_contracted_as_it_should_be():
    """min_x max_y x y, where plain steps go outwards: each step has sqrt(1 - r^2 + r^4)."""
    x, y = (nn.Parameter(torch.tensor([v], dtype=torch.float64)) for v in (0.6, 0.8))

    def backward():
        x.grad, y.grad = y.detach().clone(), -x.detach()
        return x.detach() * y.detach()

    extrapolation = ahead("local", scale=RATE)
    for step in range(200):
        extrapolation.evaluate(backward, [x, y], place=(step, 0))
        for each in (x, y):
            each.data.sub_(RATE * each.grad)
            each.grad = None
    found = torch.cat([x, y]).norm().item()
    assert found == pytest.approx((1 - RATE**2 + RATE**4) ** 100, rel=1e-10)


@pytest.mark.parametrize("micro_batches", [1, 3])
def test_the_past_is_the_gradient_of_the_step_before(micro_batches):
    problem, extrapolation = Quadratic(), ahead("past")
    w, past = problem.w, torch.zeros(4, dtype=torch.float64)
    for step in range(6):
        for micro in range(micro_batches):
            extrapolation.evaluate(
                lambda: problem.backward(1 / micro_batches), problem.parts, place=(step, micro),
                count=micro_batches, last=micro == micro_batches - 1,
            )  # fmt: skip
        past = problem.a @ (w - 0.3 * past)
        w = w - RATE * past
        problem.step()
        torch.testing.assert_close(problem.w, w, rtol=1e-12, atol=1e-12)


def test_ascent_is_sam():
    problem = Quadratic()
    w = problem.w
    ahead("ascent", scale=0.05).evaluate(problem.backward, problem.parts, place=(0, 0))
    uphill = problem.a @ w / (problem.a @ w).norm()
    torch.testing.assert_close(problem.gradient, problem.a @ (w + 0.05 * uphill))


def test_noise_is_right_in_the_mean_and_adds_its_variance():
    a = torch.tensor([2.0, 0.5])
    w = nn.Parameter(torch.tensor([0.3, -0.7]))

    def backward():
        loss = 0.5 * (a * w.square()).sum()
        loss.backward()
        return loss.detach()

    extrapolation = ahead("gaussian", scale=0.2, until=5000)
    found = []
    for step in range(4000):
        w.grad = None
        extrapolation.evaluate(backward, [w], place=(step, 0))
        found.append(w.grad.clone())
    found = torch.stack(found)
    error = 0.2 * a / 4000**0.5
    assert ((found.mean(0) - a * w.detach()).abs() < 4 * error).all()
    torch.testing.assert_close(found.std(0), 0.2 * a, rtol=0.05, atol=0)


def test_noise_of_filters_is_in_units_of_their_rows():
    seen = {}
    generator = torch.Generator().manual_seed(1)
    weights = [
        nn.Parameter(torch.randn(3, 4, 5, generator=generator)), nn.Parameter(torch.ones(6))
    ]  # fmt: skip
    weights[0].data[1] = 0
    before = [w.detach().clone() for w in weights]
    for kind in ("gaussian", "filter"):

        def backward(kind=kind):
            seen[kind] = [w.detach() - old for w, old in zip(weights, before, strict=True)]
            return torch.zeros(())

        ahead(kind).evaluate(backward, weights, place=(4, 0))
    norms = before[0].flatten(1).norm(dim=1).view(3, 1, 1)
    torch.testing.assert_close(seen["filter"][0], seen["gaussian"][0] * norms, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(seen["filter"][1], seen["gaussian"][1] * 6**0.5)
    assert (seen["filter"][0][1] == 0).all() and (seen["gaussian"][0][1] != 0).all()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parameters_are_what_they_were_also_after_an_exception(kind, dtype):
    model = nn.Linear(5, 7).to(dtype)
    x = torch.ones(2, 5, dtype=dtype)
    extrapolation = ahead(kind)

    def backward():
        loss = model(x).square().sum()
        loss.backward()
        return loss.detach()

    extrapolation.evaluate(backward, list(model.parameters()), place=(0, 0))
    before, moved = bits(model), []
    kept = [p.grad for p in model.parameters()]

    def fails():
        moved.append(any(not torch.equal(a, b) for a, b in zip(bits(model), before, strict=True)))
        if moved[-1]:
            raise KeyboardInterrupt
        return backward()

    with pytest.raises(KeyboardInterrupt):
        extrapolation.evaluate(fails, list(model.parameters()), place=(1, 0))
    assert_same_bits(model, before)
    assert moved == [False] * (kind in ("local", "ascent")) + [True]
    assert all(p.grad is g for p, g in zip(model.parameters(), kept, strict=True))


@pytest.mark.parametrize("kind", ["local", "ascent"])
def test_both_evaluations_draw_the_same(kind):
    w = nn.Parameter(torch.ones(50))
    masks = []

    def backward():
        masks.append(functional.dropout(torch.ones(50), 0.5))
        loss = (masks[-1] * w).square().sum()
        loss.backward()
        return loss.detach()

    extrapolation = ahead(kind)
    for step in range(2):
        extrapolation.evaluate(backward, [w], place=(step, 0))
    assert torch.equal(masks[0], masks[1]) and torch.equal(masks[2], masks[3])
    assert not torch.equal(masks[0], masks[2])


@pytest.mark.parametrize("off", [{"scale": 0.0}, {"until": 3}])
def test_off_is_one_plain_evaluation(off):
    problem, calls = Quadratic(), []
    extrapolation = ahead("local", **off)

    def backward():
        calls.append(problem.w)
        return problem.backward()

    extrapolation.evaluate(backward, problem.parts, place=(3, 0))
    assert len(calls) == 1
    plain = Quadratic()
    plain.backward()
    assert torch.equal(problem.gradient, plain.gradient)
