"""Triton: y = (x A) B + bias, x read once and y written once. Twin: ``reference.tt_apply``."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .bfloat16 import from_bits, kernel_view, to_bits

BLOCK_ROWS = 32
BLOCK_COLUMNS = 64
NUM_WARPS = 4


@triton.jit(do_not_specialize=["rows"])
def tt_apply_kernel(x_ptr, a_ptr, b_ptr, bias_ptr, y_ptr, rows, rank, bias_stride,
                    in_features: tl.constexpr, out_features: tl.constexpr,
                    HAS_BIAS: tl.constexpr, BFLOAT16: tl.constexpr, RANK: tl.constexpr,
                    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr):
    """Compute (x A) B + bias for the rows of each probe.

    One program handles BLOCK_ROWS rows of one probe: it keeps H = x A (BLOCK_ROWS, RANK) in
    float32 registers, then walks over the columns of y.

    Args:
        x_ptr: pointer to (P, rows, in_features), float32, float16 or the int16
            bits of bfloat16.
        a_ptr: pointer to float32 (P, in_features, rank).
        b_ptr: pointer to float32 (P, rank, out_features).
        bias_ptr: pointer to float32 (P, out_features) or (out_features,).
        y_ptr: pointer to (P, rows, out_features), the dtype of x.
        rows: rows of x per probe.
        rank: rank at the cut.
        bias_stride: out_features, or 0 if the probes share a bias.
        in_features: width of x; a model has few widths, so they may be compiled in.
        out_features: width of y.
        HAS_BIAS: whether bias_ptr is read.
        BFLOAT16: x and y are bfloat16.
        RANK: rank padded to a power of two of at least 16, the least that tl.dot takes.
        BLOCK_ROWS: rows of one program.
        BLOCK_COLUMNS: columns of x or y in one step.
    """
    probe = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    rank_index = tl.arange(0, RANK)
    step = tl.arange(0, BLOCK_COLUMNS)
    x_row = x_ptr + (probe * rows + row)[:, None] * in_features
    y_row = y_ptr + (probe * rows + row)[:, None] * out_features
    a_ptr += probe * in_features * rank
    b_ptr += probe * rank * out_features
    hidden = tl.zeros((BLOCK_ROWS, RANK), dtype=tl.float32)
    for start in range(0, in_features, BLOCK_COLUMNS):
        column = start + step
        x = tl.load(x_row + column[None, :],
                    mask=(row[:, None] < rows) & (column[None, :] < in_features), other=0)
        x = from_bits(x) if BFLOAT16 else x.to(tl.float32)
        a = tl.load(a_ptr + column[:, None] * rank + rank_index[None, :],
                    mask=(column[:, None] < in_features) & (rank_index[None, :] < rank),
                    other=0.0)
        # TF32 would round x and A to 11 bits; the perturbations of A can lie below that.
        hidden = tl.dot(x, a, hidden, input_precision="ieee")
    for start in range(0, out_features, BLOCK_COLUMNS):
        column = start + step
        b = tl.load(b_ptr + rank_index[:, None] * out_features + column[None, :],
                    mask=(rank_index[:, None] < rank) & (column[None, :] < out_features),
                    other=0.0)
        y = tl.dot(hidden, b, input_precision="ieee")
        if HAS_BIAS:
            bias = tl.load(bias_ptr + probe * bias_stride + column,
                           mask=column < out_features, other=0.0)
            y += bias[None, :]
        y = to_bits(y) if BFLOAT16 else y.to(y_ptr.dtype.element_ty)
        tl.store(y_row + column[None, :], y,
                 mask=(row[:, None] < rows) & (column[None, :] < out_features))


def tt_apply(x: Tensor, a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    """Launch :func:`tt_apply_kernel`; arguments as in ``reference.tt_apply``."""
    probes = a.shape[0] if a.dim() == 3 else 1
    rows, in_features, out_features, rank = x.shape[-2], x.shape[-1], b.shape[-1], a.shape[-1]
    y = torch.empty((*x.shape[:-1], out_features), dtype=x.dtype, device=x.device)
    bias_stride = out_features if bias is not None and bias.dim() == 2 else 0
    a, b = a.float().contiguous(), b.float().contiguous()
    shift = b if bias is None else bias.float().contiguous()
    with torch.cuda.device_of(x):
        tt_apply_kernel[(triton.cdiv(rows, BLOCK_ROWS), probes)](
            kernel_view(x.contiguous()), a, b, shift, kernel_view(y), rows, rank, bias_stride,
            in_features=in_features, out_features=out_features, HAS_BIAS=bias is not None,
            BFLOAT16=x.dtype == torch.bfloat16, RANK=max(16, triton.next_power_of_2(rank)),
            BLOCK_ROWS=BLOCK_ROWS, BLOCK_COLUMNS=BLOCK_COLUMNS, num_warps=NUM_WARPS,
            enable_fp_fusion=True)
    return y
