"""On the card: every op against the CPU reference. ``pytest -m gpu`` where there is a device.

The last tests run the GPU benchmark's code end to end without one, on tiny sizes.
"""

import pytest
import torch

from adazeta.kernels import (
    Factors,
    adam_update_,
    add_noise_,
    gaussian,
    momentum_update_,
    perturbed_copies,
    rademacher,
    tt_adapter,
    tt_apply,
    use_backend,
)
from benchmarks import gpu
from benchmarks.harness import KEYS, Options

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SEEDS = [3, 1 << 40, 12345, 0, (1 << 63) - 1, 8, 77]
COEFFICIENTS = [0.1, -0.01, 1e-3, 2.5, -1.0, 0.3, 1e-8]
SIZES = (1, 127, 0, 1021, 4096, 65_537)


@pytest.mark.gpu
@pytest.mark.parametrize("draw", [gaussian, rademacher])
def test_draws_have_the_bits_of_the_cpu(draw):
    for start in (0, 5, (1 << 40) + 1):
        assert torch.equal(draw(SEEDS[1], start, 100_003, device="cuda").cpu(),
                           draw(SEEDS[1], start, 100_003))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("distribution", ["gaussian", "rademacher"])
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_add_noise_has_the_bits_of_the_cpu(dtype, distribution, rounding):
    tensors = [torch.randn(size).to(dtype) for size in SIZES]
    for probes in (1, 2, 7):
        arguments = (SEEDS[:probes], COEFFICIENTS[:probes])
        options = {"decay": 0.97, "distribution": distribution, "rounding": rounding}
        got = [tensor.cuda() for tensor in tensors]
        add_noise_(got, *arguments, **options)
        with use_backend("reference"):
            expected = add_noise_([tensor.clone() for tensor in tensors], *arguments, **options)
        assert all(torch.equal(a.cpu(), b) for a, b in zip(got, expected, strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_copies_and_updates_have_the_bits_of_the_cpu(dtype):
    theta = torch.randn(10_007).to(dtype)
    state = [torch.rand(10_007) for _ in range(2)]
    results = []
    for device in ("cpu", "cuda"):
        with use_backend("reference" if device == "cpu" else "triton"):
            copies = perturbed_copies(theta.to(device), SEEDS[:3], COEFFICIENTS[:3])
            values, first, second = (t.to(device, copy=True) for t in (theta, *state))
            momentum_update_([values], [first], SEEDS[:3], COEFFICIENTS[:3], momentum=0.9, lr=0.1,
                             decay=0.99)
            adam_update_([values], [first], [second], SEEDS[:3], COEFFICIENTS[:3], beta1=0.9,
                         beta2=0.99, lr=0.01, epsilon=1e-8, correction1=0.3, correction2=0.2,
                         decay=0.99)
        results.append([t.cpu() for t in (copies, values, first, second)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "width", "rank"), [(0, 64, 5), (1, 61, 3), (37, 576, 5),
                                                     (130, 4096, 64)])
def test_layers_are_within_rounding_of_float64(dtype, rows, width, rank):
    down, up = (Factors(torch.randn(n, rank) / n ** 0.5, torch.randn(rank, m) / rank ** 0.5,
                        torch.randn(m)) for n, m in ((width, 64), (64, width)))
    x = torch.randn(rows, width).to(dtype)
    cuda = [Factors(*(part.cuda() for part in side)) for side in (down, up)]
    exact = [Factors(*(part.double() for part in side)) for side in (down, up)]
    tolerance = {torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 4e-2}[dtype]
    torch.testing.assert_close(tt_adapter(x.cuda(), *cuda).cpu().double(),
                               tt_adapter(x.double(), *exact), atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(tt_apply(x.cuda(), *cuda[0]).cpu().double(),
                               tt_apply(x.double(), *exact[0]), atol=tolerance, rtol=tolerance)


@pytest.mark.gpu
def test_a_thousand_tensors_are_one_launch():
    assert gpu.launches(Options(device="cuda"))[0]["median"] == 1


def test_the_suite_runs_without_a_card(device):
    options = Options(device=device.type, small=True, rounds=2)
    rows = gpu.rows(options)
    assert {row["op"] for row in rows} == {"add_noise_", "tt_adapter", "launches"}
    assert all(set(KEYS) <= set(row) and row["median"] > 0 for row in rows)
    (count,) = [row for row in rows if row["op"] == "launches"]
    assert count["median"] == 1


def test_the_suite_runs_through_the_interpreter(device):
    options = Options(device=device.type, small=True, rounds=2)
    with use_backend("triton"):
        rows = gpu.noise(options, torch.bfloat16, 1) + gpu.adapter(options, torch.float32)
    assert {row["provider"] for row in rows} >= {"floor", "adazeta", "eager"}
