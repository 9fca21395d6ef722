"""The Triton noise kernels against the reference, bit by bit.

Without a GPU the kernels run in Triton's interpreter (the environment is set in conftest.py).
"""

import math
from collections.abc import Callable

import pytest
import torch

from adazeta.kernels import (
    add_noise_,
    gaussian,
    pairs,
    perturbed_copies,
    rademacher,
    use_backend,
)

pytest.importorskip("triton")
pytestmark = pytest.mark.usefixtures("poisoned_empty")

SEEDS = [3, 1 << 40, 3, 12345, 0, (1 << 63) - 1, 8]
COEFFICIENTS = [0.1, -0.01, 1e-3, 2.5, -1.0, 0.3, 1e-8]
DISTRIBUTIONS = ["gaussian", "rademacher", "pairs"]


def by_backend(function: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """What the function returns on the reference and on the Triton path."""
    with use_backend("reference"):
        expected = function()
    with use_backend("triton"):
        return expected, function()


@pytest.mark.parametrize("function", [gaussian, rademacher, pairs])
@pytest.mark.parametrize(
    ("start", "count"), [(0, 1), (0, 1031), (3, 127), ((1 << 40) + 1, 129), ((1 << 62) - 8, 64)]
)
def test_draws_are_the_same_bits(device, function, start, count):
    expected, got = by_backend(lambda: function(SEEDS[1], start, count, stream=2, device=device))
    assert torch.equal(expected, got)


def test_draws_of_many_seeds_are_the_same_bits(device):
    seeds = torch.tensor(SEEDS[:3], device=device)
    expected, got = by_backend(lambda: gaussian(seeds, 7, 300))
    assert got.shape == (3, 300) and torch.equal(expected, got)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("size", "offset", "probes", "decay"),
    [
        (1, 0, 1, 1.0),
        (127, 3, 2, 0.9),
        (1021, 1, 1, 0.5),
        (2048, (1 << 32) + 4, 2, 1.0),
        (64, 0, 7, 0.99),
        (97, 128, 0, 0.25),
    ],
)
def test_add_noise_is_the_same_bits(device, dtype, size, offset, probes, decay):
    theta = torch.randn(size).to(device, dtype)
    expected, got = by_backend(
        lambda: add_noise_(
            theta.clone(), SEEDS[:probes], COEFFICIENTS[:probes], offsets=offset, decay=decay
        )
    )
    assert torch.equal(expected, got)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_a_list_of_mixed_dtypes_is_the_same_bits(device, distribution):
    kinds = [
        (7, torch.float32),
        (0, torch.bfloat16),
        (301, torch.bfloat16),
        (0, torch.float32),
        (130, torch.float16),
        (1100, torch.float32),
    ]
    tensors = [torch.randn(size).to(device, dtype) for size, dtype in kinds]
    # Slices one element into their storage: contiguous, but not aligned.
    tensors.append(torch.randn(68).to(device)[1:])
    tensors.append(torch.randn(34).to(device, torch.bfloat16)[1:])
    before = [tensor.clone() for tensor in tensors]
    results = []
    for backend in ("reference", "triton"):
        out = [torch.full_like(tensor, math.nan) for tensor in tensors]
        with use_backend(backend):
            add_noise_(
                tensors, SEEDS[:2], COEFFICIENTS[:2], decay=0.97, out=out, distribution=distribution
            )
        results.append(out)
    for expected, got, tensor, copy in zip(*results, tensors, before, strict=True):
        assert got.dtype == tensor.dtype and torch.equal(expected, got)
        assert torch.equal(tensor, copy)


def test_only_the_elements_of_the_tensors_are_written(device):
    storage = torch.zeros(256, device=device)
    with use_backend("triton"):
        add_noise_([storage[5:70], storage[101:160]], [1], [1.0], offsets=[2, 1001])
    assert torch.equal(storage[5:70], gaussian(1, 2, 65, device=device))
    assert torch.equal(storage[101:160], gaussian(1, 1001, 59, device=device))
    assert not storage[:5].any() and not storage[70:101].any() and not storage[160:].any()


def test_rounding_to_bfloat16_is_that_of_torch(device):
    # Ties, carries into the exponent, subnormals, infinities and NaN (of any payload).
    values = torch.tensor(
        [
            1.00390625,
            1.01171875,
            1.99609375,
            3.4e38,
            1e-40,
            -0.0,
            math.inf,
            -math.inf,
            math.nan,
            6.1e-39,
        ],
        device=device,
    ).bfloat16()
    coefficients = [2.0**-9, -(2.0**-9), 2.0**-133]
    for expected, got in (
        by_backend(
            lambda: perturbed_copies(values, SEEDS[:3], coefficients, distribution="rademacher")
        ),
        by_backend(lambda: add_noise_(values.clone(), [], [], decay=1 + 2.0**-8)),
    ):
        assert torch.equal(expected.isnan(), got.isnan())
        number = ~expected.isnan()
        assert torch.equal(expected[number].view(torch.int16), got[number].view(torch.int16))


def test_versions_of_written_parameters_move_on(device):
    parameter = torch.nn.Parameter(torch.zeros(8, device=device))
    version = parameter._version
    with use_backend("triton"):
        add_noise_(parameter, [1], [1.0])
    assert parameter._version > version
    assert torch.equal(parameter.detach(), gaussian(1, 0, 8, device=device))


@pytest.mark.parametrize(
    ("dtype", "offset", "distribution"),
    [
        (torch.float32, 0, "gaussian"),
        (torch.bfloat16, 5, "gaussian"),
        (torch.float16, 4, "rademacher"),
    ],
)
def test_perturbed_copies_are_the_same_bits(device, dtype, offset, distribution):
    theta = torch.randn(4, 41).to(device, dtype)
    before = theta.clone()
    expected, got = by_backend(
        lambda: perturbed_copies(
            theta, SEEDS[:4], COEFFICIENTS[:4], offset=offset, distribution=distribution
        )
    )
    assert got.shape == (4, 4, 41) and got.dtype == dtype
    assert torch.equal(expected, got) and torch.equal(theta, before)


def test_empty_tensors_launch_nothing(device):
    empty = torch.zeros(0, 3, device=device)
    with use_backend("triton"):
        assert add_noise_([empty], [1], [1.0]) == [empty]
        assert perturbed_copies(empty, [1, 2], [1.0, 1.0]).shape == (2, 0, 3)
        assert gaussian(1, 5, 0, device=device).shape == (0,)
