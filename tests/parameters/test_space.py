import copy

import pytest
import torch
from torch import nn

from adazeta import ParameterSpace
from adazeta.kernels import gaussian
from tests.helpers.bits import assert_same_bits, bits
from tests.helpers.toy import Regression, regression_batch


def test_ranges_follow_the_parameters_and_are_aligned():
    space = ParameterSpace(Regression())
    assert space.names == ["first.weight", "first.bias", "second.weight", "second.bias"]
    assert space.offsets == [0, 16, 20, 24] and space.size == 28


def test_flattening_keeps_values_and_names():
    model = Regression()
    before, keys = bits(model), list(model.state_dict())
    space = ParameterSpace(model)
    assert_same_bits(model, before)
    assert list(model.state_dict()) == keys
    storages = {p.untyped_storage().data_ptr() for p in model.parameters()}
    assert len(storages) == 1 and space.stackable


def test_noise_of_a_parameter_depends_on_its_range_only():
    model = Regression()
    space = ParameterSpace(model)
    before = bits(model)
    with space.perturbed(seed=11, scale=0.5):
        for parameter, start, old in zip(model.parameters(), space.offsets, before, strict=True):
            noise = gaussian(11, start, parameter.numel()).view(parameter.shape)
            assert torch.equal(parameter.data, old + 0.5 * noise)
    assert_same_bits(model, before)


def test_tied_parameters_are_perturbed_once():
    model = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    model["b"].weight = model["a"].weight
    space = ParameterSpace(model)
    assert space.names == ["a.weight", "a.bias", "b.bias"]
    with space.perturbed(1, 0.1):
        assert model["a"].weight is model["b"].weight


def test_frozen_parameters_are_left_out():
    model = Regression()
    model.first.requires_grad_(False)
    frozen = model.first.weight.data_ptr()
    space = ParameterSpace(model)
    assert space.names == ["second.weight", "second.bias"]
    assert model.first.weight.data_ptr() == frozen


@pytest.mark.parametrize("context", ["perturbed", "stacked"])
def test_an_exception_leaves_every_bit_as_it_was(context):
    model = Regression()
    space = ParameterSpace(model)
    before = bits(model)
    with pytest.raises(ZeroDivisionError):
        if context == "perturbed":
            with space.perturbed(3, 1e-3):
                raise ZeroDivisionError
        else:
            with space.stacked(torch.tensor([3, 4]), torch.tensor([1e-3, 1.0])):
                raise ZeroDivisionError
    assert_same_bits(model, before)
    assert model.first.stacked is None and model.second.stacked is None


def test_stacked_equals_one_by_one():
    model, batch = Regression(), regression_batch(4)
    space = ParameterSpace(model)
    seeds, scales = [5, 6, 5], [0.1, 0.2, -0.1]
    with torch.no_grad():
        single = []
        for seed, scale in zip(seeds, scales, strict=True):
            with space.perturbed(seed, scale):
                single.append(model.losses(batch))
        stack = {name: value.repeat(3, *[1] * (value.dim() - 1)) for name, value in batch.items()}
        with space.stacked(torch.tensor(seeds), torch.tensor(scales)):
            together = model.losses(stack)
    # The same sums in another GEMM: some float32 roundings of numbers near 1.
    torch.testing.assert_close(together, torch.cat(single), atol=1e-6, rtol=1e-5)


def test_mixed_precision_parameters():
    model = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 7, dtype=torch.bfloat16), nn.Linear(7, 2))
    space = ParameterSpace(model)
    before = bits(model)
    assert not space.stackable
    with space.perturbed(9, 1.0):
        for parameter, old in zip(model.parameters(), before, strict=True):
            noise = gaussian(9, space.offset_of(parameter), old.numel()).view(old.shape)
            assert torch.equal(parameter.data, (old.float() + noise).to(old.dtype))
    assert_same_bits(model, before)
    with pytest.raises(ValueError, match="cannot be stacked"):
        with space.stacked(torch.tensor([1]), torch.tensor([1.0])):
            pass


def test_follows_a_model_that_was_moved_or_reloaded():
    model = Regression()
    space = ParameterSpace(model)
    model.first.weight.data = torch.ones(5, 3)
    with space.perturbed(2, 1.0):
        noise = gaussian(2, 0, 15).view(5, 3)
        assert torch.equal(model.first.weight.data, 1 + noise)
    assert torch.equal(model.first.weight.data, torch.ones(5, 3))
    model.load_state_dict(Regression().state_dict())
    assert_same_bits(model, bits(Regression()))


def test_a_deep_copy_is_independent():
    model = Regression()
    space = ParameterSpace(model)
    twin = copy.deepcopy(model)
    before = bits(twin)
    with space.perturbed(1, 1.0):
        assert_same_bits(twin, before)


def test_rademacher_directions():
    model = Regression()
    space = ParameterSpace(model, distribution="rademacher")
    before = bits(model)
    with space.perturbed(4, 0.25):
        for parameter, old in zip(model.parameters(), before, strict=True):
            steps = (parameter.data - old).abs()
            torch.testing.assert_close(steps, torch.full_like(steps, 0.25))


@pytest.mark.parametrize(
    "make, error, message",
    [
        (lambda: nn.Linear(2, 2).requires_grad_(False), ValueError, "add_tt_adapters"),
        (lambda: nn.Linear(2, 2, dtype=torch.float64), TypeError, "'weight' is torch.float64"),
    ],
)
def test_bad_models(make, error, message):
    with pytest.raises(error, match=message):
        ParameterSpace(make())


def test_unknown_distribution():
    with pytest.raises(ValueError, match="cauchy"):
        ParameterSpace(nn.Linear(2, 2), distribution="cauchy")
