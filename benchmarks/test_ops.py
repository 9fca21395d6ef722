"""The fused ops under pytest-benchmark: ``pytest benchmarks/test_ops.py``.

Not part of the normal test run. Every function checks its op before the clock starts.
"""

from typing import Any

import pytest
import torch

from adazeta.adapters.config import TTAdapterConfig
from adazeta.adapters.layers import TTAdapter
from adazeta.kernels import (
    FactorLayer,
    FactorPlan,
    add_noise_,
    aligned_offsets,
    gaussian,
    perturbed_copies,
    stacked_factors,
    tt_linear,
)
from adazeta.kernels.reference import factors as reference
from benchmarks.subjects import reference_path

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def run(benchmark: Any, function: Any) -> None:
    """Time a function, work on the device included."""

    def synchronised() -> None:
        function()
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    benchmark(synchronised)


@pytest.mark.parametrize("count", [4_960, 610_560, 10_000_000])
@pytest.mark.parametrize("distribution", ["gaussian", "rademacher"])
def test_add_noise(benchmark: Any, count: int, distribution: str) -> None:
    theta = torch.randn(count, device=DEVICE)
    out = [torch.empty_like(theta)]
    add_noise_([theta], [7], [0.0], out=out, distribution=distribution)
    assert torch.equal(out[0], theta)
    run(benchmark, lambda: add_noise_([theta], [7], [1e-3], distribution=distribution))


@pytest.mark.parametrize("probes", [2, 32])
def test_perturbed_copies(benchmark: Any, probes: int) -> None:
    theta = torch.randn(41_000, device=DEVICE)
    seeds = torch.arange(probes, device=DEVICE)
    scales = torch.full((probes,), 1e-3, device=DEVICE)
    noise = gaussian(1, 0, len(theta), device=DEVICE)
    assert torch.equal(perturbed_copies(theta, seeds, scales)[1], theta + scales[1] * noise)
    run(benchmark, lambda: perturbed_copies(theta, seeds, scales))


@pytest.mark.parametrize("probes", [1, 8, 32])
def test_stacked_factors(benchmark: Any, probes: int) -> None:
    plan = smollm2_plan()
    theta = torch.randn(plan.extent, device=DEVICE)
    seeds = torch.arange(probes, device=DEVICE) // 2
    scales = torch.full((probes,), 1e-3, device=DEVICE)
    found = plan.views(stacked_factors(theta, plan, seeds, scales))
    expected = plan.views(reference.stacked_factors(theta, plan, seeds, scales, "gaussian"))
    assert torch.equal(found[-1].a, expected[-1].a) and torch.equal(found[0].b, expected[0].b)
    run(benchmark, lambda: stacked_factors(theta, plan, seeds, scales))


def smollm2_plan() -> FactorPlan:
    """Adapters after both halves of the 30 blocks of SmolLM2-135M."""
    layers, end = [], 0
    for _ in range(60):
        adapter = TTAdapter(576, TTAdapterConfig())
        for layer in (adapter.down, adapter.up):
            shapes = tuple((core.shape[0], core.shape[1], core.shape[2]) for core in layer.cores)
            sizes = [core.numel() for core in layer.cores] + [layer.shape.out_features]
            *offsets, bias = aligned_offsets(sizes, end)
            end = bias + layer.shape.out_features
            layers.append(
                FactorLayer(
                    tuple(offsets),
                    shapes,
                    layer.shape.cut,
                    layer.shape.in_features,
                    layer.shape.out_features,
                    bias,
                )
            )
    return FactorPlan(tuple(layers))


@pytest.mark.parametrize("tokens", [64, 512])
def test_tt_linear(benchmark: Any, tokens: int) -> None:
    layer = TTAdapter(576, TTAdapterConfig(init="paper"), device=DEVICE).down
    x = torch.randn(tokens, 576, device=DEVICE)
    cores, shape = [core.detach() for core in layer.cores], layer.shape
    settings: dict[str, Any] = {"cut": shape.cut, "out_features": shape.out_features}
    expected = reference_path.tt_linear(x, cores, None, **settings)
    torch.testing.assert_close(tt_linear(x, cores, **settings), expected, atol=1e-5, rtol=1e-4)
    run(benchmark, lambda: tt_linear(x, cores, **settings))


@pytest.mark.parametrize("tokens", [64, 512])
@torch.no_grad()
def test_tt_adapter(benchmark: Any, tokens: int) -> None:
    adapter = TTAdapter(576, TTAdapterConfig(init="paper"), device=DEVICE)
    x = torch.randn(tokens, 576, device=DEVICE)
    expected = reference_path.tt_adapter(adapter, x)
    torch.testing.assert_close(adapter(x), expected, atol=1e-5, rtol=1e-4)
    run(benchmark, lambda: adapter(x))
