"""How a ParameterSpace chooses and carries out its perturbation."""

import copy
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from adazeta import (
    ZOSGD,
    ParameterSpace,
    RandomizedGradientEstimator,
    TTAdapterConfig,
    add_tt_adapters,
)
from adazeta.kernels import add_noise_
from adazeta.parameters import buffered
from adazeta.parameters import space as space_module
from adazeta.parameters.in_place import InPlacePerturbation
from tests.helpers import tiny_models
from tests.helpers.bits import assert_same_bits, bits, same_bits
from tests.helpers.streaming_models import logits_of
from tests.helpers.toy import Regression


def regression() -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 1))


def test_auto_streams_what_is_large(monkeypatch):
    model = tiny_models.tiny_llama()
    assert ParameterSpace(copy.deepcopy(model)).perturbation == "buffer"
    size = sum(parameter.numel() for parameter in model.parameters())
    monkeypatch.setattr(space_module, "_SMALL", size - 1)
    homes = [parameter.data_ptr() for parameter in model.parameters()]
    assert ParameterSpace(model).perturbation == "streamed"
    assert [parameter.data_ptr() for parameter in model.parameters()] == homes
    assert ParameterSpace(copy.deepcopy(model).named_parameters()).perturbation == "buffer"
    compiled = copy.deepcopy(model)
    compiled._compiled_call_impl = compiled._call_impl
    assert ParameterSpace(compiled).perturbation == "buffer"


def test_auto_keeps_adapters_in_a_buffer(monkeypatch):
    model = tiny_models.tiny_llama()
    add_tt_adapters(model, TTAdapterConfig(rank=2))
    monkeypatch.setattr(space_module, "_SMALL", 0)
    space = ParameterSpace(model)
    assert space.perturbation == "buffer" and space.stackable
    streamed = ParameterSpace(model, perturbation="streamed")
    assert not streamed.stackable
    with pytest.raises(ValueError, match="several parameter vectors"):
        RandomizedGradientEstimator(streamed, probes="example")


def test_tensor_train_layers_stream_too():
    model = tiny_models.tiny_llama()
    add_tt_adapters(model, TTAdapterConfig(rank=2))
    space = ParameterSpace(model, perturbation="streamed")
    with torch.no_grad():
        twin = copy.deepcopy(model)
        for name, offset in zip(space.names, space.offsets, strict=True):
            add_noise_([twin.get_parameter(name).data], [5], [0.1], offsets=[offset])
        with space.perturbed(5, 0.1):
            assert same_bits(logits_of(model), logits_of(twin))


@pytest.mark.parametrize("perturbation", ["streamed", "in_place"])
def test_the_estimates_are_the_same_numbers(perturbation):
    x = torch.linspace(-1, 1, 15).view(3, 5)
    model = regression()
    estimates = []
    for how in ("buffer", perturbation):
        twin = copy.deepcopy(model)
        space = ParameterSpace(twin, perturbation=how)
        estimator = RandomizedGradientEstimator(space, eps=1e-2, check_eps=False, queries=3)
        estimates.append(estimator(lambda net=twin: net(x).square().mean()).coefficients)
    if perturbation == "in_place":
        torch.testing.assert_close(*estimates, atol=1e-4, rtol=1e-4)
    else:
        assert torch.equal(*estimates)


def test_in_place_makes_the_sequence_of_the_field():
    model = nn.Linear(40, 25, dtype=torch.bfloat16)
    space = ParameterSpace(model, perturbation="in_place")
    before, seen = bits(model), []
    expected = [tensor.clone() for tensor in before]
    with space.sequence():
        for seed in (3, 4):
            for scale in (0.01, -0.01):
                with space.perturbed(seed, scale):
                    seen.append(bits(model))
    for seed in (3, 4):
        for scale in (0.01, -0.02, 0.01):
            add_noise_(expected, [seed], [scale], offsets=space.offsets)
    assert_same_bits(model, expected)
    changed = sum((a != b).sum().item() for a, b in zip(expected, before, strict=True))
    assert changed > 100  # what the sequence loses
    first = [tensor.clone() for tensor in before]
    add_noise_(first, [3], [0.01], offsets=space.offsets)
    assert all(torch.equal(a, b) for a, b in zip(seen[0], first, strict=True))
    add_noise_(first, [3], [-0.02], offsets=space.offsets)
    assert all(torch.equal(a, b) for a, b in zip(seen[1], first, strict=True))


def test_in_place_restores_after_each_evaluation_and_after_an_exception():
    model = nn.Linear(40, 25)
    space = ParameterSpace(model, perturbation="in_place")
    assert isinstance(space.strategy, InPlacePerturbation)
    before = bits(model)
    with space.perturbed(3, 0.5):
        assert not torch.equal(model.weight, before[0])
    torch.testing.assert_close(model.weight.data, before[0])
    with pytest.raises(ZeroDivisionError), space.sequence():
        with space.perturbed(3, 0.5):
            raise ZeroDivisionError
    torch.testing.assert_close(model.weight.data, before[0])
    with space.sequence():
        with space.perturbed(3, 0.5):
            pass
        with space.perturbed(3, 0.0):
            torch.testing.assert_close(model.weight.data, before[0])


@pytest.mark.parametrize("perturbation", ["streamed", "in_place"])
def test_what_does_not_flatten_leaves_the_parameters_where_they_are(perturbation):
    model = regression()
    homes = [parameter.data_ptr() for parameter in model.parameters()]
    space = ParameterSpace(model, perturbation=perturbation)
    tensors, offsets = space.pieces(space.parameters)
    assert [tensor.data_ptr() for tensor in tensors] == homes and offsets == space.offsets
    some = space.parameters[1:3]
    tensors, offsets = space.pieces(some)
    assert [t.data_ptr() for t in tensors] == homes[1:3] and offsets == space.offsets[1:3]
    assert space.view_of(space.new_buffer(), some[1]).shape == some[1].shape


def test_parameters_with_strides_become_contiguous():
    model = nn.Linear(3, 4)
    values = torch.randn(3, 4)
    model.weight.data = values.t()
    space = ParameterSpace(model, perturbation="streamed")
    assert model.weight.is_contiguous() and torch.equal(model.weight, values.t())
    model.weight.data = values.t()
    space.synchronize()
    assert model.weight.is_contiguous()


@pytest.mark.parametrize("perturbation", ["auto", "buffer", "streamed", "in_place"])
def test_two_parameters_in_one_memory_are_refused(perturbation):
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight.data = model[0].weight.data
    with pytest.raises(ValueError, match=r"'0.weight' and '1.weight' share memory"):
        ParameterSpace(model, perturbation=perturbation)


def test_bad_arguments():
    with pytest.raises(ValueError, match="auto, buffer, streamed, in_place, got 'mirror'"):
        ParameterSpace(regression(), perturbation="mirror")
    with pytest.raises(ValueError, match="device 'meta'"):
        ParameterSpace(nn.Linear(2, 2, device="meta"))


@pytest.mark.parametrize("perturbation", ["buffer", "streamed", "in_place"])
def test_each_way_follows_parameters_that_were_rebound(perturbation):
    model = nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 2))
    space = ParameterSpace(model, perturbation=perturbation)
    tensors, starts = space.pieces(space.parameters)
    assert not space.strategy.moved and len(tensors) == len(starts)
    assert sum(tensor.numel() for tensor in tensors) >= sum(p.numel() for p in model.parameters())
    part = space.pieces([model[1].weight])
    assert torch.equal(part[0][0], model[1].weight) and part[1] == [space.offsets[2]]
    model[0].weight.data = torch.full((3, 5), 2.0)
    assert space.strategy.moved
    tensors, _ = space.pieces(space.parameters)
    assert not space.strategy.moved
    assert torch.equal(tensors[0].view(-1)[:15], torch.full((15,), 2.0))
    assert not space.strategy.stackable
    with (
        pytest.raises(ValueError, match="cannot be stacked"),
        space.stacked(torch.ones(2, dtype=torch.int64), torch.ones(2)),
    ):
        pass


def places(model):
    return [parameter.data_ptr() for parameter in model.parameters()]


def test_tiny_parameters_are_exchanged_where_they_lie():
    model = regression()
    space = ParameterSpace(model, perturbation="buffer")
    before, home = bits(model), places(model)
    twin = copy.deepcopy(model)
    pointed = ParameterSpace(twin, perturbation="buffer")
    with torch.no_grad(), space.perturbed(5, 0.1):
        assert places(model) == home and not same_bits(model[0].weight, before[0])
        with torch.enable_grad(), pointed.perturbed(5, 0.1):  # for graphs that outlive it
            assert places(twin) != [value.data_ptr() for value in pointed.strategy.values]
            assert_same_bits(model, bits(twin))
    assert_same_bits(model, before)
    with torch.no_grad(), pytest.raises(KeyboardInterrupt), space.perturbed(5, 0.1):
        raise KeyboardInterrupt
    assert_same_bits(model, before)


def test_large_parameters_are_pointed_to_the_scratch():
    model = nn.Linear(64, 64)
    space = ParameterSpace(model, perturbation="buffer")
    before, home = bits(model), places(model)
    with torch.no_grad(), space.perturbed(5, 0.1):
        assert places(model) != home
        assert same_bits(space.strategy.values[0], before[0])
    assert places(model) == home


def inside(space, what):
    """Do what needs the parameters' own values."""
    if what == "strategy":
        return space.strategy.perturbed(6, 0.1)
    if what == "perturbed":
        return space.perturbed(6, 0.1)
    if what == "showing":
        return space.showing(space.new_buffer())
    if what == "stacked":
        return space.stacked(torch.tensor([1]), torch.tensor([0.1]))
    return nullcontext(space.pieces(space.parameters))


@pytest.mark.parametrize("scale", [0.1, 0.0])
@pytest.mark.parametrize("what", ["strategy", "perturbed", "showing", "stacked", "pieces"])
@pytest.mark.parametrize(("width", "recorded"), [(3, True), (3, False), (64, False)])
def test_a_buffered_evaluation_cannot_contain_what_needs_theta(width, recorded, what, scale):
    model = nn.Linear(width, width)  # 64: parameters that are not tiny
    space = ParameterSpace(model, perturbation="buffer")
    before = bits(model)
    with (
        torch.set_grad_enabled(recorded),
        pytest.raises(RuntimeError, match="cannot contain another"),
        space.perturbed(5, scale),
        inside(space, what),
    ):
        pass
    assert_same_bits(model, before)
    with torch.no_grad(), space.perturbed(5, 0.1):
        pass
    assert_same_bits(model, before)


def test_a_stack_is_refused_inside_of_an_evaluation():
    model = Regression()
    space = ParameterSpace(model)
    with torch.no_grad(), space.perturbed(5, 0.1):
        with pytest.raises(RuntimeError, match="cannot contain another"):
            with space.stacked(torch.tensor([1]), torch.tensor([0.1])):
                pass
    with (
        torch.no_grad(),
        pytest.raises(RuntimeError, match="cannot contain another"),
        space.stacked(torch.tensor([1]), torch.tensor([0.1])),
        space.perturbed(5, 0.1),
    ):
        pass
    with torch.no_grad(), space.perturbed(5, 0.1):
        pass


@pytest.mark.parametrize("first", [0, 1])
def test_a_model_that_a_forward_moves_keeps_its_parameters(first):
    model = regression()
    space = ParameterSpace(model, perturbation="buffer")
    before = bits(model)
    with torch.no_grad(), space.perturbed(5, 0.1):
        for parameter in list(model.parameters())[first:]:
            parameter.data = parameter.data.clone()
    assert_same_bits(model, before)


@pytest.mark.parametrize("width", [3, 64])
def test_an_interrupt_of_the_restoring_leaves_nothing_perturbed(width, monkeypatch):
    model = nn.Sequential(nn.Linear(width, width), nn.Linear(width, width, dtype=torch.bfloat16))
    space = ParameterSpace(model, perturbation="buffer")
    before = bits(model)
    real, calls = buffered.BufferedPerturbation._put_back, []

    def interrupted(self, *given):
        calls.append(1)
        if len(calls) == 1:
            raise KeyboardInterrupt
        real(self, *given)

    monkeypatch.setattr(buffered.BufferedPerturbation, "_put_back", interrupted)
    with pytest.raises(KeyboardInterrupt), torch.no_grad(), space.perturbed(1, 0.1):
        pass
    assert_same_bits(model, before)
    with torch.no_grad(), space.perturbed(1, 0.1):
        pass
    assert_same_bits(model, before)


def test_what_a_forward_writes_to_tiny_parameters_is_undone_at_any_scale():
    model = nn.Linear(3, 3)
    space = ParameterSpace(model, perturbation="buffer")
    before = bits(model)
    for scale in (0.1, 0.0):
        with torch.no_grad(), space.perturbed(1, scale):
            model.weight.clamp_(min=0)
        assert_same_bits(model, before)


@pytest.mark.parametrize("perturbation", ["buffer", "streamed", "in_place"])
@pytest.mark.parametrize("width", [8, 64])
def test_autocast_around_evaluations_casts_each_time(perturbation, width):
    torch.manual_seed(0)
    model, x = nn.Linear(width, width), torch.randn(8, width)

    def loss():
        return model(x).float().square().mean()

    def cast():
        with torch.autocast("cpu", torch.bfloat16):
            return loss()

    def found(closure):
        optimizer = ZOSGD(model, lr=0.0, eps=0.1, check_eps=False, perturbation=perturbation)
        return optimizer.estimator(closure).projected

    with torch.no_grad():
        expected = found(cast)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(found(loss), expected)
    assert (expected != 0).all()


@pytest.mark.parametrize("count", [1, 2048])
def test_a_loss_may_be_a_parameter(count):
    parameter = nn.Parameter(torch.full((count,), 3.0))
    optimizer = ZOSGD([parameter], lr=0.0, eps=1e-2, check_eps=False)
    expected = optimizer.estimator(lambda: parameter[0] * 1).projected
    assert torch.equal(optimizer.estimator(lambda: parameter[0]).projected, expected)
    assert (expected != 0).all()


@pytest.mark.parametrize("what", ["strategy", "perturbed", "showing", "pieces"])
def test_a_streamed_forward_cannot_contain_what_needs_theta(what):
    model = regression()
    space = ParameterSpace(model, perturbation="streamed")
    before = bits(model)

    def hook(*_):
        with inside(space, what):
            pass

    handle = model[0].register_forward_hook(hook)
    with (
        torch.no_grad(),
        pytest.raises(RuntimeError, match="cannot contain another"),
        space.perturbed(5, 0.1),
    ):
        model(torch.ones(2, 5))
    handle.remove()
    assert_same_bits(model, before)
    with torch.no_grad(), space.perturbed(5, 0.1):
        model(torch.ones(2, 5))
    assert_same_bits(model, before)
