"""Mean and second moment of the estimates against theory, with confidence bounds.

For a linear loss the projected gradient of a direction is ``c = grad . z`` exactly. Then, for
directions of independent elements with mean 0 and variance 1:

    E c z = grad                                                      unbiased
    Gaussian:    E c^2 |z|^2 = (d + 2) |grad|^2     (E z_i^4 = 3)
    Rademacher:  E c^2 |z|^2 = d |grad|^2           (|z|^2 = d)

and the mean of Q independent ones has ``E |g|^2 = |grad|^2 (1 - 1/Q) + E c^2 |z|^2 / Q``:
``(d + Q + 1) / Q |grad|^2`` and ``(d + Q - 1) / Q |grad|^2``. Element by element,
``E c^2 z_i^2 = |grad|^2 + 2 grad_i^2`` for Gaussian directions, and ``|grad|^2`` whatever i for
Rademacher ones: what a second moment per element can know.
"""

import math

import pytest
import torch
from torch import nn

from adazeta import ParameterSpace, RandomizedGradientEstimator
from adazeta.kernels import perturbed_copies

COUNT = 12_000
GRADIENT = torch.tensor([0.5, -1.0, 2.0, 0.0, 0.25, -0.75, 1.5, 0.1, -0.3, 0.9, -1.2])
EXTRA = {"gaussian": 1, "rademacher": -1}


@pytest.fixture(scope="module", params=EXTRA)
def draws(request):
    """Directions, and the projected gradients that the estimator found for them, in float64."""
    model = nn.Linear(len(GRADIENT), 1, bias=False)
    space = ParameterSpace(model, distribution=request.param)
    estimator = RandomizedGradientEstimator(space, queries=COUNT, eps=0.5, check_eps=False)
    probes = estimator(lambda: (model.weight.double() * GRADIENT).sum(), step=0)
    zeros = torch.zeros(len(GRADIENT))
    z = perturbed_copies(zeros, probes.seeds, torch.ones(COUNT), distribution=request.param)
    return request.param, z.double(), probes.projected.double()


def assert_mean(samples, expected):
    """The mean is within five standard errors (chance of more: below 1e-6 a number)."""
    error = samples.std(0) / math.sqrt(len(samples))
    assert ((samples.mean(0) - expected).abs() <= 5 * error + 1e-9).all()


def test_the_projected_gradient_of_a_linear_loss_is_exact(draws):
    _, z, c = draws
    torch.testing.assert_close(c, z @ GRADIENT.double(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("queries", [1, 3, 8])
def test_estimates_are_unbiased(draws, queries):
    _, z, c = draws
    assert_mean((c[:, None] * z).view(-1, queries, z.shape[1]).mean(1), GRADIENT.double())


@pytest.mark.parametrize("queries", [1, 3, 8])
def test_second_moment_of_an_estimate(draws, queries):
    distribution, z, c = draws
    g = (c[:, None] * z).view(-1, queries, z.shape[1]).mean(1)
    d = z.shape[1]
    factor = (d + queries + EXTRA[distribution]) / queries
    assert_mean(g.square().sum(1), factor * GRADIENT.double().square().sum())


def test_second_moment_of_an_element(draws):
    distribution, z, c = draws
    squared = GRADIENT.double().square()
    expected = squared.sum() + (2 * squared if distribution == "gaussian" else 0 * squared)
    assert_mean((c[:, None] * z).square(), expected)


def test_groups_of_examples_estimate_the_gradient_of_the_mean():
    """One direction an example: ``(1 / B) sum_i c_i z_i``, by the same forwards."""
    from tests.helpers.toy import Regression, regression_batch

    model, batch = Regression(), regression_batch(6)
    space = ParameterSpace(model)
    estimator = RandomizedGradientEstimator(
        space, queries=700, probes="example", probes_per_forward=200, eps=1e-3, check_eps=False
    )
    probes = estimator(model.losses, batch, step=0)
    z = perturbed_copies(torch.zeros(space.size), probes.seeds, torch.ones(len(probes)))
    parts = [z[:, o : o + p.numel()] for o, p in zip(space.offsets, space.parameters, strict=True)]
    samples = (torch.cat(parts, 1) * probes.projected[:, None]).view(700, 6, -1).mean(1).double()
    error = samples.std(0) / math.sqrt(len(samples))
    # Beside chance there is the rounding of losses near 10, 1e-6 over 2 eps = 2e-3.
    assert ((samples.mean(0) - model.gradient(batch)).abs() <= 5 * error + 1e-3).all()
