"""Quantised blocks: every backend and level has the bits of the format's own reference."""

import ctypes

import pytest
import torch

from adazeta.kernels import unpack_blocks, use_backend
from adazeta.kernels.cpu import blocks, library
from adazeta.kernels.reference.blocks import FORMATS
from tests.helpers.gguf_files import random_blocks

NATIVE = library.problem() is None
BACKENDS = ["reference", *(["native"] if NATIVE else [])]
LEVELS = library.LEVELS[: library.LEVELS.index(library.best_level()) + 1] if NATIVE else ()


def expected(packed, kind):
    gguf = pytest.importorskip("gguf")
    values = gguf.quants.dequantize(packed.numpy(), gguf.GGMLQuantizationType[kind])
    return torch.from_numpy(values)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_values_are_those_of_the_gguf_package(kind, backend):
    packed = random_blocks(kind, 37, 3 * 256)
    with use_backend(backend):
        found = unpack_blocks(packed, kind)
    assert torch.equal(found.view(torch.int32), expected(packed, kind).view(torch.int32))


@pytest.mark.skipif(not NATIVE, reason="the C library is not built")
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_level_and_dtype_has_the_same_bits(monkeypatch, kind, level, dtype):
    packed = random_blocks(kind, 300, 256)  # enough for several threads
    monkeypatch.setenv("ADAZETA_ISA", level)
    found = unpack_blocks(packed, kind, dtype=dtype)
    with use_backend("reference"):
        plain = unpack_blocks(packed, kind, dtype=dtype)
    assert torch.equal(found, plain)
    assert torch.equal(plain, expected(packed, kind).to(dtype))


@pytest.mark.parametrize("backend", BACKENDS)
def test_extreme_scales(backend):
    packed = random_blocks("Q4_1", 4, 32)
    scales = torch.tensor([6e-8, 65504.0, -1e-5, float("inf")]).half()
    packed[:, 0:2] = scales.view(torch.uint8).view(4, 2)
    packed[:, 4:] = packed[:, 4:] | 0x11  # infinity times zero is no number
    with use_backend(backend):
        assert torch.equal(unpack_blocks(packed, "Q4_1"), expected(packed, "Q4_1"))


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_are_chosen(backend, poisoned_empty):
    packed = random_blocks("Q5_0", 9, 64)
    whole = unpack_blocks(packed, "Q5_0")
    rows = torch.tensor([8, 0, 3, 3])
    out = torch.full((4, 64), torch.nan)
    with use_backend(backend):
        assert torch.equal(unpack_blocks(packed, "Q5_0", rows), whole[rows])
        assert unpack_blocks(packed, "Q5_0", rows, out=out) is out
        assert torch.equal(out, whole[rows])
        assert unpack_blocks(packed, "Q5_0", rows[:0]).shape == (0, 64)
        assert unpack_blocks(packed[:0], "Q5_0").shape == (0, 64)


def test_wrong_arguments_are_refused():
    packed = random_blocks("Q4_0", 4, 64)
    with pytest.raises(ValueError, match=r"'Q3_K'.*choose one of Q4_0"):
        unpack_blocks(packed, "Q3_K")
    with pytest.raises(ValueError, match="Q8_0 blocks, which have 34 bytes"):
        unpack_blocks(packed, "Q8_0")
    with pytest.raises(ValueError, match="contiguous"):
        unpack_blocks(packed[:, :18], "Q4_0")
    with pytest.raises(TypeError, match=r"uint8 \(rows, bytes\)"):
        unpack_blocks(packed.int(), "Q4_0")
    with pytest.raises(TypeError, match="float64"):
        unpack_blocks(packed, "Q4_0", dtype=torch.float64)
    with pytest.raises(TypeError, match=r"int64 \(M,\)"):
        unpack_blocks(packed, "Q4_0", torch.tensor([1], dtype=torch.int32))
    for row in (-1, 4):
        with pytest.raises(IndexError, match="of 4"):
            unpack_blocks(packed, "Q4_0", torch.tensor([row]))
    with pytest.raises(ValueError, match="out is"):
        unpack_blocks(packed, "Q4_0", out=torch.empty(3, 64))


def test_the_op_that_torch_sees():
    packed, rows = random_blocks("Q4_K", 5, 256), torch.tensor([4, 1])
    op = torch.ops.adazeta.unpack_blocks.default
    torch.library.opcheck(op, (packed, "Q4_K", rows, torch.bfloat16))
    torch.library.opcheck(op, (packed, "Q4_K", None, torch.float32))


@pytest.mark.skipif(not NATIVE, reason="the C library is not built")
def test_the_structure_is_the_one_of_c():
    assert library.load().adazeta_unpack_size() == ctypes.sizeof(blocks.CUnpack)
