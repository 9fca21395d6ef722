"""zo-adalomo: rates in units of each tensor, and estimates that no scale of the loss moves."""

import pytest
import torch
from torch import nn

from adazeta import ParameterSpace, Probes, TTAdapterConfig, ZOTrainer, add_tt_adapters
from adazeta.kernels import gaussian
from adazeta.optim.relative import ZOAdaLomo
from tests.helpers.bits import assert_same_bits, bits
from tests.helpers.runs import CONFIG, arguments, causal_data
from tests.helpers.tiny_models import tiny_llama
from tests.helpers.toy import Regression, regression_batch


class Layers(nn.Module):
    """Tensors of several sizes, one of them all zero."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.small = nn.Parameter(0.01 * torch.randn(6, 7, generator=generator).to(dtype))
        self.large = nn.Parameter(2.0 * torch.randn(9, generator=generator).to(dtype))
        self.zero = nn.Parameter(torch.zeros(5, 3, dtype=dtype))

    def forward(self):
        return self.small.sum() + self.large.sum() + self.zero.sum()


def probes(*coefficients, first=11):
    found = torch.tensor(coefficients)
    seeds = torch.arange(len(found)) + first
    return Probes(seeds, found, found, loss=1.0, evaluations=2, queries=len(found))


def rounded_rms(parameter):
    return parameter.detach().double().square().mean().sqrt().bfloat16().item()


def test_the_scale_of_the_loss_changes_no_bit():
    models = []
    for scale in (1.0, 8.0):
        model, batch = Regression(), regression_batch()
        optimizer = ZOAdaLomo(
            model, lr=0.02, queries=2, weight_decay=0.1, eps=2.0**-6, check_eps=False
        )
        for _ in range(30):
            optimizer.step(lambda rows, model=model, s=scale: s * model.losses(rows), batch)
        models.append(model)
    assert_same_bits(models[0], bits(models[1]))


@pytest.mark.parametrize("c", [3.5, -0.002])
def test_the_first_step_is_the_sign_of_the_slope_by_each_tensors_size(c):
    model = Layers()
    before, sizes = bits(model), [rounded_rms(p) for p in model.parameters()]
    assert sizes[2] == 0
    sizes[2] = (sizes[0] + sizes[1]) / 2
    optimizer = ZOAdaLomo(model, lr=0.1)
    optimizer.apply(probes(c))
    space, sign = optimizer.space, 1 if c > 0 else -1
    z = gaussian(11, 0, space.size)
    for parameter, old, size, offset in zip(
        model.parameters(), before, sizes, space.offsets, strict=True
    ):
        expected = old - 0.1 * size * sign * z[offset : offset + old.numel()].view(old.shape)
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-5, atol=1e-6)


def test_an_estimate_that_stands_out_is_clipped():
    model = Layers()
    optimizer = ZOAdaLomo(model, lr=0.1, clip=0.5)
    for step in range(20):
        optimizer.apply(probes(0.3 if step % 2 else -0.2, first=100 + step))
    before = model.large.detach().clone()
    optimizer.apply(probes(1e6, first=7))
    space = optimizer.space
    offset = space.offset_of(model.large)
    z = gaussian(7, offset, model.large.numel())
    size = optimizer.param_groups[0]["sizes"][1]
    torch.testing.assert_close(model.large.detach(), before - 0.1 * size * 0.5 * z)


def test_sizes_are_those_before_training_and_decay_is_relative_too():
    model = Layers()
    optimizer = ZOAdaLomo(model, lr=0.5, weight_decay=0.1)
    optimizer.apply(probes(1.0))
    sizes = optimizer.param_groups[0]["sizes"]
    expected = (1 - 0.5 * sizes[1] * 0.1) * model.large.detach()
    optimizer.apply(probes(0.0))
    assert optimizer.param_groups[0]["sizes"] == sizes
    torch.testing.assert_close(model.large.detach(), expected)


def test_a_step_without_a_slope_at_first_changes_nothing():
    model = Layers()
    before = bits(model)
    ZOAdaLomo(model, lr=0.5).apply(probes(0.0, 0.0))
    assert_same_bits(model, before)


def test_all_zero_tensors_alone_step_by_the_floor():
    model = nn.Linear(3, 2)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    ZOAdaLomo(model, lr=10.0, floor=0.25).apply(probes(2.0))
    z = gaussian(11, 0, 6).view(2, 3)
    torch.testing.assert_close(model.weight.detach(), -2.5 * z)


def test_bfloat16_weights_and_perturbations_of_every_kind():
    found = []
    for perturbation in ("buffer", "streamed"):
        model = Layers(torch.bfloat16)
        space = ParameterSpace(model, perturbation=perturbation)
        optimizer = ZOAdaLomo(space, lr=0.01)
        for step in range(3):
            optimizer.apply(probes(1.0, -2.0, first=step))
        found.append(bits(model))
        assert not optimizer.buffers
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_new_adapters_learn_at_a_rate_that_is_measured(tmp_path):
    model = add_tt_adapters(tiny_llama(layers=1), TTAdapterConfig(**{**CONFIG, "init": "zero"}))
    options = {
        "method": "zo-adalomo", "learning_rate": "auto", "max_steps": 40, "probes": "example",
        # With fewer directions what is learnt depends on the bits of the machine's sums.
        "queries": 4, "lr_scheduler_type": "linear", "diagnostics_steps": 0,
    }  # fmt: skip
    trainer = ZOTrainer(
        model, arguments(tmp_path, **options), train_dataset=causal_data(4),
        eval_dataset=causal_data(4),
    )  # fmt: skip
    first = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < first - 0.02
    sizes = trainer.zo_optimizer.param_groups[0]["sizes"]
    assert min(sizes) > 0


def test_anchored_decay_is_refused():
    with pytest.raises(ValueError, match="one rate for all tensors"):
        ZOAdaLomo(Layers(), lr=0.1, anchored=True)
