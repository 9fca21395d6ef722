"""An adapter on few rows, whose columns are split over programs: the bits of whole rows."""

import pytest
import torch

pytest.importorskip("triton")

from adazeta.kernels import Factors, tt_adapter, use_backend  # noqa: E402
from adazeta.kernels.gpu import adapter, few_rows, tiles  # noqa: E402
from adazeta.kernels.reference.adapter import ACTIVATIONS  # noqa: E402
from tests.helpers.bits import same_bits  # noqa: E402

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# (probes, rows, width, bottleneck, rank down, rank up, activation, bias dims of both layers), and
# tiles of a program: one row, a prime of rows, more than a block; widths that no tile divides, and
# primes; a last program that has fewer tiles.
CASES = [
    (None, 1, 251, 8, 2, 2, "relu", 1, 1),
    (3, 5, 263, 17, 1, 1, "gelu", 2, 4),
    (2, 33, 256, 20, 5, 3, "gelu_tanh", 0, 2),
    (None, 37, 208, 16, 17, 20, "silu", 1, 3),
    (2, 3, 199, 9, 3, 64, "tanh", 2, 5),
    (1, 2, 1040, 1, 8, 8, "identity", 1, 12),
]


def layer(probes: int | None, n: int, m: int, rank: int, bias_dims: int) -> Factors:
    lead = () if probes is None else (probes,)
    bias = [None, torch.randn(m), torch.randn(*lead, m)][bias_dims]
    return Factors(
        torch.randn(*lead, n, rank) / n**0.5, torch.randn(*lead, rank, m) / rank**0.5, bias
    )


def make(case: tuple, dtype: torch.dtype, device: torch.device) -> tuple:
    probes, rows, width, bottleneck, low, high, phi, bias = case
    x = torch.randn(*(() if probes is None else (probes,)), rows, width).to(device, dtype)
    down, up = (
        layer(probes, width, bottleneck, low, bias),
        layer(probes, bottleneck, width, high, bias),
    )
    down, up = (Factors(*(v if v is None else v.to(device) for v in f)) for f in (down, up))
    return x, down, up, phi


@pytest.fixture
def launched(monkeypatch):
    """How many launches split columns."""
    seen = []
    split = adapter._split
    monkeypatch.setattr(adapter, "_split", lambda *given: seen.append(given[2]) or split(*given))
    return seen


@pytest.mark.usefixtures("poisoned_empty")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_the_bits_are_those_of_whole_rows(device, launched, dtype, case):
    *case, share = case
    x, down, up, phi = make(case, dtype, device)
    got = adapter.prepare(x, down, up, phi, share)(x, down, up, -0.7)
    assert launched == [share]
    whole = adapter.prepare(x, down, up, phi, 0)(x, down, up, -0.7)
    assert same_bits(got, whole)
    with use_backend("reference"):
        expected = tt_adapter(x, down, up, activation=phi, scale=-0.7)
    # How near whole rows come is what test_adapter.py holds.
    torch.testing.assert_close(
        got, expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-4 if dtype.itemsize == 4 else 1e-2
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_few_rows_are_split_and_many_are_not(device, launched, dtype):
    x, down, up, phi = make((None, 3, 1024, 8, 2, 2, "relu", 1), dtype, device)
    with use_backend("triton"):
        once, again = (tt_adapter(x, down, up, activation=phi) for _ in range(2))
        assert same_bits(once, again)
        part = tt_adapter(x[1:2], down, up, activation=phi)
        assert same_bits(part, once[1:2])
        assert launched
        before = len(launched)
        narrow = make((None, 3, 64, 8, 2, 2, "relu", 1), dtype, device)
        tt_adapter(*narrow[:3])
        assert len(launched) == before


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_zero_delta_keeps_every_bit(device, launched, dtype):
    x, down, up, _ = make((2, 3, 1024, 8, 2, 2, "relu", 0), dtype, device)
    x[:, 0], x[:, 1] = 0.0, -0.0
    up = up._replace(b=torch.zeros_like(up.b))
    with use_backend("triton"):
        for scale in (0.5, -2.0):
            assert same_bits(tt_adapter(x, down, up, scale=scale), x)
    assert launched


def test_gradients_go_through(device, launched):
    x, down, up, phi = make((2, 3, 512, 8, 2, 2, "silu", 2), torch.float32, device)
    leaves = [value.requires_grad_() for value in (x, *down, *up)]
    found = []
    for backend in ("triton", "reference"):
        with use_backend(backend):
            y = tt_adapter(x, down, up, activation=phi)
            found.append((y.detach(), *torch.autograd.grad(y.square().sum(), leaves)))
    assert launched
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("rows", "probes", "width", "size", "share"),
    [
        (256, 1, 4096, 4, 2),  # 8 blocks of rows in 32 parts
        (256, 1, 4096, 2, 4),
        (1, 1, 4096, 2, 4),
        (1, 1, 11_008, 2, 4),
        (32, 16, 4096, 2, 4),
        (2048, 1, 4096, 4, 16),
        (2049, 1, 4096, 4, 0),  # 65 blocks fill half of the SMs by themselves
        (16_384, 1, 4096, 2, 0),
        (1, 1, 448, 4, 0),  # 7 tiles
        (1, 1, 512, 4, 2),
        (1, 1, 512, 2, 0),
        (1, 1, 1024, 2, 4),
    ],
)
def test_programs_are_as_many_as_the_gpu_has_room_for(rows, probes, width, size, share):
    tile = tiles.tile_for(16, width)
    blocks, columns = -(-rows // tile.rows) * probes, -(-width // tile.columns)
    assert few_rows.tiles_of_program(blocks, columns, size) == share
    if share:
        parts = -(-columns // share)
        assert few_rows.LEAST_PARTS <= parts and blocks * parts <= few_rows.PROGRAMS


def test_every_activation_has_a_variant_of_both_kernels():
    names = {variant.name.split("/")[0] for variant in few_rows.variants()}
    assert names == {"few_rows_low", "few_rows_high"}
    for phi in ACTIVATIONS:
        assert any(f"/{phi}/" in variant.name for variant in few_rows.variants())
