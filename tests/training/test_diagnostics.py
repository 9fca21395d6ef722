import copy

import pytest
import torch
from torch import nn

from adazeta import ZOSGD, ParameterSpace
from adazeta.support.checksum import checksum
from adazeta.training.diagnostics import Diagnostics, sample
from tests.helpers.toy import Regression, regression_batch

X = torch.linspace(-1, 1, 60).view(12, 5)


def net(dtype: torch.dtype = torch.float32, width: int = 40) -> nn.Module:
    model = nn.Sequential(nn.Linear(5, width), nn.Tanh(), nn.Linear(width, 1)).eval()
    return model.to(dtype)


def loss_of(model: nn.Module):
    dtype = model[0].weight.dtype
    return lambda: model(X.to(dtype)).float().add(3).square().mean()


def optimizer_of(model: nn.Module, perturbation: str = "streamed", **options) -> ZOSGD:
    space = ParameterSpace(model, perturbation=perturbation)
    settings = {"lr": 0.05, "eps": 0.1, "check_eps": False, **options}
    return ZOSGD(space.parameters, space=space, **settings)


@pytest.mark.parametrize("perturbation", ["streamed", "buffer"])
def test_a_sound_run_is_silent_and_counted(perturbation):
    model = net()
    optimizer = optimizer_of(model, perturbation)
    watch = Diagnostics(optimizer, every=2)
    seen = []
    for _ in range(3):
        optimizer.step(loss_of(model))
        seen.append(dict(watch.values))
    assert seen[0] == seen[1] != seen[2]  # the second step is not looked at
    assert seen[2]["restored"] == 1.0 and seen[2]["drift_share"] == seen[2]["drift_rms"] == 0.0
    assert seen[2]["moved_share"] > 0.99 and seen[2]["loss_resolution"] > 1000
    assert seen[2]["update_rms"] > 0


def test_drift_of_perturbing_in_place_is_reported_once():
    model = net(torch.bfloat16)
    optimizer = optimizer_of(model, "in_place", lr=0.5)
    watch = Diagnostics(optimizer, every=1)
    with pytest.warns(UserWarning, match=r"changed \d.*'streamed' and 'buffer' are exact"):
        optimizer.step(loss_of(model))
    assert watch.values["restored"] == 0.0
    assert watch.values["drift_share"] > 0.1 and watch.values["drift_rms"] > 0
    optimizer.step(loss_of(model))  # silent now


def test_a_loss_function_that_writes_to_parameters_is_noticed():
    model = net(width=800)  # parameters that are not tiny
    optimizer = optimizer_of(model, "buffer")
    Diagnostics(optimizer)

    def loss():
        optimizer.space.strategy.tensors[0][3] += 1e-3
        return loss_of(model)()

    with pytest.warns(UserWarning, match="the loss function writes to them"):
        optimizer.step(loss)


def test_what_a_loss_function_writes_to_tiny_parameters_is_undone():
    model = net()
    optimizer = optimizer_of(model, "buffer")
    watch = Diagnostics(optimizer)

    def loss():
        optimizer.space.strategy.tensors[0][3] += 1e-3
        return loss_of(model)()

    optimizer.step(loss)
    assert watch.values["restored"] == 1.0 and watch.values["drift_share"] == 0.0


def test_an_update_that_rounding_swallows():
    model = net(torch.bfloat16)
    optimizer = optimizer_of(model, lr=1e-5, rounding="nearest")
    watch = Diagnostics(optimizer)
    with pytest.warns(UserWarning, match=r"bfloat16 swallows the rest; use rounding='stochastic'"):
        optimizer.step(loss_of(model))
    assert watch.values["moved_share"] < 0.5
    # A rate of zero moves nothing on purpose, and stochastic rounding few, but the right ones.
    for quiet in ({"lr": 0.0, "rounding": "nearest"}, {"lr": 1e-5, "rounding": "stochastic"}):
        model = net(torch.bfloat16)
        optimizer = optimizer_of(model, **quiet)
        watch = Diagnostics(optimizer)
        optimizer.step(loss_of(model))
        assert watch.values["moved_share"] < 0.5


def test_losses_below_the_resolution():
    model = net()
    optimizer = optimizer_of(model, eps=1e-9)
    Diagnostics(optimizer)
    with pytest.warns(UserWarning, match="float32 resolves .* eps='auto' or more than eps=1e-09"):
        optimizer.step(loss_of(model))
    optimizer = optimizer_of(model, eps=1e-4, one_sided=True)
    watch = Diagnostics(optimizer, dtype=torch.bfloat16)
    with pytest.warns(UserWarning, match="bfloat16 resolves"):
        optimizer.step(loss_of(model))
    assert watch.values["loss_resolution"] < 1


def test_a_loss_that_does_not_depend_on_the_parameters():
    optimizer = optimizer_of(net())
    watch = Diagnostics(optimizer)
    with pytest.warns(UserWarning, match="does not depend on the trainable .* labels other than"):
        optimizer.step(lambda: torch.tensor(2.5))
    assert watch.values["loss_resolution"] == 0


def test_the_spread_of_the_projected_gradients():
    model = Regression()
    batch = regression_batch(32)
    options = {"eps": 1e-3, "check_eps": False, "probes": "example"}
    watch = Diagnostics(optimizer := ZOSGD(model, lr=1e-4, **options))
    optimizer.step(model.losses, batch)
    projected = optimizer.last.projected
    assert watch.values["projected_spread"] == projected.std().item() > 0
    squares = projected.double().square()
    assert watch.values["largest_probe_share"] == (squares.max() / squares.sum()).item() < 0.9

    batch["y"][7] = 1e4  # one wild example
    Diagnostics(optimizer := ZOSGD(model, lr=1e-9, **options))
    with pytest.warns(UserWarning) as caught:
        optimizer.step(model.losses, batch)
    (message,) = {str(w.message) for w in caught if "directions" in str(w.message)}
    assert "one of 32 directions makes 100% of the estimate" in message
    assert "smaller eps or learning rate" in message


def test_micro_batches_are_looked_at_too():
    model = net()
    optimizer = optimizer_of(model)
    watch = Diagnostics(optimizer)
    optimizer.accumulate(loss_of(model))
    optimizer.accumulate(loss_of(model))
    optimizer.step()
    assert watch.values["moved_share"] > 0.99


def test_a_step_without_a_finite_loss():
    model = net()
    optimizer = optimizer_of(model)
    watch = Diagnostics(optimizer)
    optimizer.step(lambda: torch.tensor(float("nan")))
    assert "moved_share" not in watch.values


def test_every_must_be_positive():
    with pytest.raises(ValueError, match="got 0"):
        Diagnostics(optimizer_of(net()), every=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_checksum_sees_every_bit_and_the_order(dtype):
    generator = torch.Generator().manual_seed(2)
    tensors = [torch.randn(n, generator=generator).to(dtype) for n in (1, 7, 8, 0, 131)]
    whole = checksum(tensors)
    assert 0 <= whole < 1 << 64 and checksum([t.clone() for t in tensors]) == whole
    for index, tensor in enumerate(tensors):
        for place in range(tensor.numel()):
            changed = copy.deepcopy(tensors)
            word = changed[index].view(torch.int16 if dtype.itemsize == 2 else torch.int32)
            word[place] ^= 1 << (place % 15)
            assert checksum(changed) != whole
    assert checksum(tensors[::-1]) != whole
    assert checksum([torch.zeros(3, dtype=dtype)]) != checksum([torch.zeros(3, dtype=dtype)] * 2)


def test_the_checksum_does_not_depend_on_where_tensors_lie():
    flat = torch.randn(101).bfloat16()
    for start in range(5):
        moved = flat[start : start + 90]
        assert checksum([moved]) == checksum([moved.clone()])


def test_a_sample_is_spread_and_exact():
    model = net(torch.bfloat16)
    space = ParameterSpace(model)
    every = torch.cat([p.detach().flatten() for p in model.parameters()]).float()
    assert torch.equal(sample(space), every)
    few = sample(space, 20)
    assert 20 <= len(few) <= 40 and torch.isin(few, every).all()


def test_two_watches_of_one_optimizer_both_see_its_steps():
    model = net()
    optimizer = optimizer_of(model)
    one, two = Diagnostics(optimizer, every=1), Diagnostics(optimizer, every=1)
    optimizer.step(loss_of(model))
    assert one.values == two.values and one.values["restored"] == 1.0
