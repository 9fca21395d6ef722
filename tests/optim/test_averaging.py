"""The running average of the parameters: its values, and the context that shows them."""

import pytest
import torch

from adazeta import ZOSGD, ParameterSpace, ZOAdam
from adazeta.estimation.probes import Probes
from adazeta.methods import make_optimizer
from adazeta.optim.averaging import follow_, weight_at
from tests.helpers.bits import assert_same_bits, bits, same_bits
from tests.helpers.tiny_models import tiny_llama
from tests.helpers.toy import Regression, regression_batch

NOTHING = Probes(
    seeds=torch.empty(0, dtype=torch.int64), coefficients=torch.empty(0), projected=torch.empty(0),
    loss=1.0, evaluations=2, queries=1,
)  # fmt: skip


def steps(model, count=5, **options):
    optimizer = ZOAdam(model, lr=0.1, eps=1e-2, check_eps=False, **options)
    for _ in range(count):
        optimizer.step(model.losses, regression_batch())
    return optimizer


def shown(optimizer, model):
    with optimizer.averaged():
        return bits(model)


def test_of_a_constant_it_comes_as_near_as_the_formula_says():
    model = Regression()
    optimizer = ZOSGD(model, lr=0.0, average=0.75, average_warmup=False)
    optimizer.apply(NOTHING)
    optimizer.buffers["average"].zero_()
    for _ in range(6):
        optimizer.apply(NOTHING)
    for parameter, average in zip(model.parameters(), shown(optimizer, model), strict=True):
        torch.testing.assert_close(average, parameter.detach() * (1 - 0.75**6))


@pytest.mark.parametrize("warmup", [True, False])
def test_it_is_the_running_mean_of_what_was_trained(warmup):
    model = Regression()
    optimizer = ZOAdam(model, lr=0.1, eps=1e-2, check_eps=False, average=0.5, average_warmup=warmup)
    assert_same_bits(model, shown(optimizer, model))
    expected = bits(model)
    for step in range(6):
        optimizer.step(model.losses, regression_batch())
        m = min(0.5, (1 + step) / (10 + step)) if warmup else 0.5
        for mean, parameter in zip(expected, model.parameters(), strict=True):
            mean.mul_(m)
            mean.add_(parameter.detach().mul(1 - m))
    for mean, average in zip(expected, shown(optimizer, model), strict=True):
        assert same_bits(mean, average)


def test_without_a_past_it_is_the_parameters_bit_for_bit():
    average, value = torch.randn(50), torch.randn(50)
    follow_([average], [value], weight_at({"average": 0.0, "average_warmup": False}, 0))
    assert same_bits(average, value)


def test_training_is_the_same_with_and_without_it():
    with_it, without = Regression(), Regression()
    one, other = steps(with_it, average=0.9), steps(without)
    assert_same_bits(with_it, bits(without))
    assert other.buffers.keys() == one.buffers.keys() - {"average"}
    assert not {"average", "average_warmup"} & other.param_groups[0].keys()
    assert any(
        not torch.equal(a, p.detach())
        for a, p in zip(shown(one, with_it), with_it.parameters(), strict=True)
    )


def test_the_context_leaves_the_parameters_as_they_are():
    model = Regression()
    optimizer = steps(model, average=0.9)
    before, places = bits(model), [p.data_ptr() for p in model.parameters()]
    with optimizer.averaged():
        average = bits(model)
        with optimizer.averaged():
            assert_same_bits(model, average)
        assert_same_bits(model, average)
    with pytest.raises(RuntimeError, match="stop"), optimizer.averaged():
        raise RuntimeError("stop")
    assert_same_bits(model, before)
    assert places == [p.data_ptr() for p in model.parameters()]
    with optimizer.averaged():
        for step in (
            lambda: optimizer.step(model.losses, regression_batch()),
            lambda: optimizer.apply(NOTHING),
        ):
            with pytest.raises(RuntimeError, match=r"leave the context of optimizer.averaged"):
                step()
    assert_same_bits(model, before)
    optimizer.step(model.losses, regression_batch())
    whole = Regression()
    steps(whole, 6, average=0.9)
    assert_same_bits(model, bits(whole))


def test_a_loaded_state_goes_on_with_it():
    whole, parts, again = Regression(), Regression(), Regression()
    optimizer = steps(whole, 7, average=0.9)
    first = steps(parts, 4, average=0.9)
    other = ZOAdam(again, lr=0.1, eps=1e-2, check_eps=False, average=0.9)
    again.load_state_dict(parts.state_dict())
    other.load_state_dict(first.state_dict())
    for _ in range(3):
        other.step(again.losses, regression_batch())
    assert_same_bits(again, bits(whole))
    for a, b in zip(shown(other, again), shown(optimizer, whole), strict=True):
        assert same_bits(a, b)


def test_groups_of_parameters_have_one_average():
    model, plain = Regression(), Regression()
    space = ParameterSpace(model)
    groups = [{"params": space.parameters[:2], "weight_decay": 0.0},
              {"params": space.parameters[2:], "weight_decay": 0.0}]  # fmt: skip
    optimizer = ZOAdam(groups, lr=0.1, space=space, eps=1e-2, check_eps=False, average=0.9)
    for _ in range(5):
        optimizer.step(model.losses, regression_batch())
    for a, b in zip(shown(optimizer, model), shown(steps(plain, average=0.9), plain), strict=True):
        assert same_bits(a, b)


def test_what_has_no_average_is_refused():
    for average in (1.0, -0.1, True, float("nan")):
        with pytest.raises(ValueError, match="average must be 0"):
            ZOAdam(Regression(), average=average)
    with pytest.raises(ValueError, match="average_warmup=False belongs to an average"):
        ZOAdam(Regression(), average_warmup=False)
    with pytest.raises(ValueError, match="no average of the parameters is kept"):
        shown(ZOAdam(Regression()), Regression())
    with pytest.raises(ValueError, match="some are torch.bfloat16"):
        ZOAdam(Regression().to(torch.bfloat16), average=0.9)
    with pytest.raises(ValueError, match="needs perturbation='buffer', got 'streamed'"):
        ZOAdam(Regression(), average=0.9, perturbation="streamed")
    for method in ("subzero", "lozo", "lozo-m"):
        with pytest.raises(ValueError, match="begins at zero again"):
            make_optimizer(tiny_llama(layers=1), method, average=0.9, perturbation="buffer")
    with pytest.raises(ValueError, match="average must be 0.0, got 0.9"):
        make_optimizer(tiny_llama(layers=1), "newton", average=0.9)
