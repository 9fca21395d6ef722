"""The factors of all tensor-train layers of a model: set and taken away in one place."""

import copy
import pickle

import pytest
import torch
from torch import nn

from adazeta import ParameterSpace, TTAdapterConfig, add_tt_adapters
from tests.helpers import tiny_models
from tests.helpers.bits import same_bits
from tests.helpers.streaming_models import logits_of

CONFIG = TTAdapterConfig(rank=2, bottleneck=8, init="paper")


@pytest.fixture
def model():
    return add_tt_adapters(tiny_models.tiny_llama(), CONFIG)


def at(space, model, seed, scale):
    with torch.no_grad(), space.perturbed(seed, scale):
        return logits_of(model)


def test_an_evaluation_assigns_no_attribute_and_writes_to_the_same_memory(model, monkeypatch):
    space = ParameterSpace(model)
    at(space, model, 1, 0.1)
    layer = next(module for module in model.modules() if hasattr(module, "current_factors"))
    assigned, places = [], set()
    monkeypatch.setattr(nn.Module, "__setattr__", lambda self, name, value: assigned.append(name))
    for seed in (2, 3):
        with torch.no_grad(), space.perturbed(seed, 0.1):
            places.add(layer.factors.a.data_ptr())
        assert layer.factors is None
    assert not assigned and len(places) == 1


def test_the_bits_are_those_of_a_space_that_was_never_used(model):
    space = ParameterSpace(model)
    # A stack, a context that keeps no graph and one of inference have been there before.
    with torch.no_grad(), space.stacked(torch.tensor([8, 9]), torch.tensor([0.1, 0.2])):
        space.keep_groups(torch.tensor([1]))
        logits_of(model)
    with torch.inference_mode():
        at(space, model, 4, 0.3)
    for seed in (5, 6):
        fresh = copy.deepcopy(model)
        assert same_bits(at(space, model, seed, 0.1), at(ParameterSpace(fresh), fresh, seed, 0.1))


def test_spaces_of_one_model_take_turns(model):
    every = ParameterSpace(model)
    expected = at(every, model, 5, 0.1)
    names = [name for name in every.names if ".0." in name]
    assert 0 < len(names) < len(every.names)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)
    some = ParameterSpace(model)
    wanted = at(some, model, 5, 0.1)
    assert not same_bits(wanted, expected)
    for _ in range(2):
        assert same_bits(at(every, model, 5, 0.1), expected)
        assert same_bits(at(some, model, 5, 0.1), wanted)


def test_a_graph_over_overwritten_factors_is_refused(model):
    space = ParameterSpace(model)
    layer = next(module for module in model.modules() if hasattr(module, "current_factors"))
    x = torch.randn(3, layer.shape.in_features, requires_grad=True)
    with torch.no_grad(), space.perturbed(5, 0.1):
        with torch.enable_grad():
            y = layer(x).sum()
    at(space, model, 6, 0.1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


@pytest.mark.parametrize("take", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_model_copied_within_an_evaluation_computes_from_its_own_cores(model, take):
    space = ParameterSpace(model)
    with torch.no_grad():
        with space.perturbed(1, 0.5):
            inside, twin = logits_of(model), take(model)
        # Chains of cores instead of factors: the sums are in another order.
        torch.testing.assert_close(logits_of(twin), inside, atol=1e-5, rtol=1e-5)
        twin.load_state_dict(model.state_dict())
        assert same_bits(logits_of(twin), logits_of(model))
        before = logits_of(twin)
        for parameter in twin.parameters():
            if parameter.requires_grad:
                parameter.mul_(3)
        assert not same_bits(logits_of(twin), before)
