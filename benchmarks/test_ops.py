"""The fused ops under pytest-benchmark: ``pytest benchmarks/test_ops.py``.

Not part of the normal test run. Every function checks its op before the clock starts.
"""

from typing import Any

import pytest
import torch

from adazeta.adapter_config import TTAdapterConfig
from adazeta.kernels import add_noise_, gaussian, perturbed_copies, tt_linear
from adazeta.tt_layers import TTAdapter
from benchmarks import reference_path

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
