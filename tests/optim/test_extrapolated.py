"""zo-extrapolated: one buffer for what the equations write with two."""

import pytest
import torch

from adazeta import Probes, make_optimizer
from adazeta.kernels import gaussian
from adazeta.optim.extrapolated import ZOExtrapolated
from tests.helpers.bits import assert_same_bits, bits
from tests.helpers.toy import Regression, regression_batch


def vector(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("ahead", [1.0, 0.25, -0.5])
def test_equals_the_form_with_two_buffers(ahead):
    model, batch = Regression(), regression_batch()
    optimizer = ZOExtrapolated(
        model, lr=0.0, extrapolation=ahead, queries=2, eps=1e-2, check_eps=False
    )
    space = optimizer.space
    parts = list(zip(space.offsets, space.parameters, strict=True))
    w = vector(model).double()
    for step in range(50):
        rate = 0.02 * (1 - step / 100)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step(model.losses, batch)
        g = torch.zeros(space.size)
        for seed, c in zip(optimizer.last.seeds, optimizer.last.coefficients, strict=True):
            g += c * gaussian(int(seed), 0, space.size)
        g = torch.cat([g[o : o + p.numel()] for o, p in parts]).double()
        w = w - rate * g
        h = w - ahead * rate * g  # where the next estimate is made
        torch.testing.assert_close(vector(model).double(), h, rtol=1e-5, atol=1e-6)


def test_no_extrapolation_is_mezo_bit_for_bit():
    ours, theirs, batch = Regression(), Regression(), regression_batch()
    for model, name, settings in (
        (ours, "zo-extrapolated", {"extrapolation": 0.0}), (theirs, "mezo", {})
    ):  # fmt: skip
        optimizer = make_optimizer(
            model, name, lr=0.02, method_settings=settings, eps=1e-2, check_eps=False,
            weight_decay=0.1,
        )  # fmt: skip
        for _ in range(20):
            optimizer.step(model.losses, batch)
    assert_same_bits(ours, bits(theirs))


def test_a_refresh_forgets_the_step_before():
    model = Regression()
    optimizer = ZOExtrapolated(model, lr=0.1)
    one = torch.ones(1)
    probes = Probes(torch.tensor([5]), one, one, loss=1.0, evaluations=2, queries=1)
    optimizer.apply(probes)
    assert optimizer.param_groups[0]["past"]
    optimizer.on_refresh()
    before, space = vector(model), optimizer.space
    optimizer.apply(probes)
    z = gaussian(5, 0, space.size)
    z = torch.cat([z[o : o + p.numel()] for o, p in zip(space.offsets, space.parameters,
                                                        strict=True)])  # fmt: skip
    torch.testing.assert_close(vector(model), before - 0.1 * 2 * z)
