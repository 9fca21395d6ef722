import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from adazeta.adapters.config import TTAdapterConfig
from adazeta.adapters.layers import TTAdapter, TTLinear
from tests.helpers.bits import same_bits


def bias_of(layer: TTLinear) -> Tensor:
    assert layer.bias is not None
    return layer.bias


# TTLinear


def test_linear_computes_its_matrix() -> None:
    layer = TTLinear(30, 21, rank=3).double()
    x = torch.randn(2, 5, 30, dtype=torch.float64)
    torch.testing.assert_close(layer(x), x @ layer.to_matrix() + bias_of(layer))
    assert layer(x).shape == (2, 5, 21)


def test_linear_initial_values_have_the_papers_variance() -> None:
    matrices = [TTLinear(64, 96, rank=4, seed=seed).to_matrix() for seed in range(60)]
    second_moment = torch.stack([matrix.square().mean() for matrix in matrices])
    expected = 1 / (64 + 96)
    error = second_moment.std() / math.sqrt(len(matrices))
    assert abs(second_moment.mean() - expected) < 4 * error
    biases = torch.stack([bias_of(TTLinear(64, 96, rank=1, seed=seed)) for seed in range(60)])
    bound = 96**-0.5
    assert biases.abs().max() <= bound
    torch.testing.assert_close(biases.std(), torch.tensor(bound / 3**0.5), rtol=0.03, atol=0)


def test_linear_core_deviations_use_the_right_rank() -> None:
    layer = TTLinear(4096, 64, rank=5)
    t = (4096 + 64) ** -0.5
    expected = [t ** (1 / 6) / 5**0.5] * 5 + [t ** (1 / 6)]
    assert abs(expected[0] - 0.2233) < 1e-4
    for core, deviation in zip(layer.cores, expected, strict=True):
        tolerance = 4 / math.sqrt(2 * core.numel())
        assert abs(core.std() / deviation - 1) < tolerance


def test_linear_initial_values_come_from_the_seed_alone() -> None:
    before = torch.get_rng_state()
    layer = TTLinear(16, 12, rank=2, seed=7)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    again, other = TTLinear(16, 12, rank=2, seed=7), TTLinear(16, 12, rank=2, seed=8)
    shifted = TTLinear(16, 12, rank=2, seed=7, start=4)
    for a, b in zip(layer.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(layer.cores[0], other.cores[0])
    scale = layer.cores[0].flatten()[4] / shifted.cores[0].flatten()[0]
    torch.testing.assert_close(scale, torch.tensor(1.0))


def test_linear_zero_start() -> None:
    layer = TTLinear(16, 12, rank=2, init="zero")
    assert not layer.cores[-1].any()
    assert not bias_of(layer).any()
    assert all(core.all() for core in layer.cores[:-1])
    with pytest.raises(ValueError, match="init must be 'normal' or 'zero', got 'ones'"):
        TTLinear(16, 12, rank=2, init="ones")  # type: ignore[arg-type]


@pytest.mark.parametrize("bias", [True, False])
def test_linear_from_a_dense_layer(bias: bool) -> None:
    dense = nn.Linear(12, 20, bias=bias)
    layer = TTLinear.from_linear(dense, 12, in_modes=[3, 4], out_modes=[5, 4])
    x = torch.randn(7, 12)
    torch.testing.assert_close(layer(x), dense(x))
    assert layer.num_parameters == sum(p.numel() for p in layer.parameters())


def test_linear_from_a_transposed_layer() -> None:
    dense = Conv1D(20, 12)
    nn.init.normal_(dense.bias)
    x = torch.randn(7, 12)
    torch.testing.assert_close(TTLinear.from_linear(dense, 20)(x), dense(x))


def test_linear_with_stacked_parameters() -> None:
    layer = TTLinear(10, 6, rank=2)
    copies = [TTLinear(10, 6, rank=2, seed=seed) for seed in (1, 2, 3)]
    x = torch.randn(6, 4, 10)
    layer.stacked = {
        name: torch.stack([one.get_parameter(name) for one in copies])
        for name, _ in layer.named_parameters()
    }
    expected = torch.cat([one(rows) for one, rows in zip(copies, x.split(2), strict=True)])
    torch.testing.assert_close(layer(x), expected)
    layer.stacked = None
    assert layer(x).shape == (6, 4, 6)


def test_linear_describes_itself() -> None:
    text = repr(TTLinear(64, 9, rank=2))
    assert "in_features=64, out_features=9, modes=[4, 4, 4]+[3, 3], ranks=[2, 2, 2, 2]" in text


# TTAdapter


def test_adapter_formula_and_mirrored_shapes() -> None:
    config = TTAdapterConfig(
        rank=3, bottleneck=8, scale=0.5, init="paper", activation="gelu", modes={12: [2, 6]}
    )
    adapter = TTAdapter(12, config)
    assert adapter.down.shape.in_modes == (2, 6)
    assert adapter.up.shape == adapter.down.shape.transposed
    x = torch.randn(4, 12)
    hidden = nn.functional.gelu(adapter.down(x))
    torch.testing.assert_close(adapter(x), x + 0.5 * adapter.up(hidden))


def test_adapter_draws_different_values_for_both_layers() -> None:
    adapter = TTAdapter(8, TTAdapterConfig(rank=2, bottleneck=8, init="paper"))
    assert not torch.equal(adapter.down.cores[0], adapter.up.cores[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("bias", [True, False])
def test_new_adapter_is_the_identity_bit_for_bit(dtype: torch.dtype, bias: bool) -> None:
    adapter = TTAdapter(8, TTAdapterConfig(rank=3, bottleneck=8, bias=bias))
    x = torch.randn(64, 8).to(dtype) * 100
    x[::3] = 0.0
    x[1::3] = -0.0
    x[2] = torch.finfo(dtype).tiny
    assert same_bits(adapter(x), x)


def test_new_adapter_has_gradients_where_it_can() -> None:
    adapter = TTAdapter(8, TTAdapterConfig(rank=2, bottleneck=8))
    adapter(torch.zeros(3, 8)).sum().backward()
    gradient = bias_of(adapter.up).grad
    assert gradient is not None
    assert gradient.all()
    adapter(torch.randn(3, 8)).sum().backward()
    assert adapter.up.cores[-1].grad.any()


def test_adapter_refuses_an_unknown_activation() -> None:
    with pytest.raises(ValueError, match="activation 'rellu' is unknown to transformers"):
        TTAdapter(8, TTAdapterConfig(activation="rellu"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "rank must be an integer of at least 1, got 0"),
        ({"rank": [2, -1]}, "rank must be an integer of at least 1, got -1"),
        ({"bottleneck": 0}, "bottleneck must be an integer of at least 1, got 0"),
        ({"tt_head_rank": 0}, "tt_head_rank must be an integer of at least 1, got 0"),
        ({"scale": math.inf}, "scale must be finite, got inf"),
        ({"init": "random"}, "init must be 'zero' or 'paper', got 'random'"),
        ({"layers": "first:2"}, "'last:N' or null, got 'first:2'"),
        ({"task_type": "CHAT"}, "task_type must be one of CAUSAL_LM.*got 'CHAT'"),
    ],
)
def test_config_refuses_values_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TTAdapterConfig(**settings)


def test_config_refuses_modules_that_are_not_names() -> None:
    with pytest.raises(TypeError, match="modules_to_save must be a list of module names"):
        TTAdapterConfig(modules_to_save="classifier")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="target_modules must be a list of module names"):
        TTAdapterConfig(target_modules=[1])  # type: ignore[list-item]
