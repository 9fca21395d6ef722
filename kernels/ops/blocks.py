"""The public op of quantised blocks: check the arguments, then choose the backend."""

import torch
from torch import Tensor

from ..cpu import blocks as native
from ..dispatch import backend_name, needs_op
from ..reference import blocks as reference
from ..reference.blocks import FORMATS
from .checks import DTYPES


def _unpack(packed: Tensor, kind: str, rows: Tensor | None, out: Tensor) -> Tensor:
    backend = native if backend_name(packed) == "native" else reference
    return backend.unpack_blocks(packed, kind, rows, out)


def _empty(packed: Tensor, kind: str, rows: Tensor | None, dtype: torch.dtype) -> Tensor:
    size = len(packed) if rows is None else len(rows)
    return torch.empty((size, _width(packed, kind)), dtype=dtype, device=packed.device)


@torch.library.custom_op("adazeta::unpack_blocks", mutates_args=())
def unpack_blocks_op(packed: Tensor, kind: str, rows: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Return the values of rows of blocks, as in ``reference.blocks.unpack_blocks``."""
    return _unpack(packed, kind, rows, _empty(packed, kind, rows, dtype))


@unpack_blocks_op.register_fake
def _(packed: Tensor, kind: str, rows: Tensor | None, dtype: torch.dtype) -> Tensor:
    return _empty(packed, kind, rows, dtype)


def unpack_blocks(
    packed: Tensor,
    kind: str,
    rows: Tensor | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    out: Tensor | None = None,
) -> Tensor:
    """Return the values of rows of quantised blocks, as GGUF files hold them.

    Float32 arithmetic in the order of the ``gguf`` package's ``dequantize``, so float32 values have
    the same bits as that gives, on every backend; other dtypes are rounded once, to nearest.

    Args:
        packed: uint8 (N, bytes), contiguous, each row whole blocks.
        kind: ``"Q4_0"``, ``"Q4_1"``, ``"Q5_0"``, ``"Q5_1"``, ``"Q8_0"``, ``"Q4_K"``, ``"Q5_K"`` or
            ``"Q6_K"``.
        rows: int64 (M,), which rows, in any order and also repeatedly; by default all N.
        dtype: float32, bfloat16 or float16.
        out: memory for the result: contiguous, of its dtype and shape; by default new memory.

    Returns:
        (M, values of a row).

    Raises:
        TypeError: ``packed``, ``rows`` or the dtype are of other types.
        ValueError: the format is unknown, a row is not whole blocks, or ``out`` does not fit.
        IndexError: there is no such row.

    Example:
        >>> packed = torch.zeros(3, 2 * 20, dtype=torch.uint8)  # 3 rows of 2 blocks
        >>> unpack_blocks(packed, "Q4_1").shape
        torch.Size([3, 64])
    """
    if kind not in FORMATS:
        raise ValueError(f"kind is {kind!r}; choose one of {', '.join(FORMATS)}")
    if packed.dtype != torch.uint8 or packed.dim() != 2:
        raise TypeError(
            f"packed is {packed.dtype} of shape {tuple(packed.shape)}; pass uint8 (rows, bytes)"
        )
    if packed.shape[1] % FORMATS[kind].bytes or not packed.is_contiguous():
        raise ValueError(
            f"packed of shape {tuple(packed.shape)} and strides {packed.stride()} is no contiguous "
            f"rows of {kind} blocks, which have {FORMATS[kind].bytes} bytes"
        )
    if dtype not in DTYPES:
        raise TypeError(f"dtype is {dtype}; blocks unpack to float32, bfloat16 or float16")
    if rows is not None and (rows.dtype != torch.int64 or rows.dim() != 1):
        raise TypeError(f"rows is {rows.dtype} of shape {tuple(rows.shape)}; pass int64 (M,)")
    if needs_op(packed, rows):
        found: Tensor = unpack_blocks_op(packed, kind, rows, dtype)
        return found if out is None else out.copy_(found)
    if rows is not None and len(rows):
        low, high = rows.aminmax()
        if int(low) < 0 or int(high) >= len(packed):
            raise IndexError(f"rows {int(low)} to {int(high)} of {len(packed)}")
        rows = rows.contiguous()
    wanted = _empty(packed, kind, rows, dtype) if out is None else out
    if out is not None:
        shape = (len(packed) if rows is None else len(rows), _width(packed, kind))
        if (tuple(out.shape), out.dtype, out.device) != (shape, dtype, packed.device) or (
            not out.is_contiguous()
        ):
            raise ValueError(
                f"out is {out.dtype} {tuple(out.shape)} on {out.device}; it must be contiguous, "
                f"{dtype} {shape} on {packed.device}"
            )
    return _unpack(packed, kind, rows, wanted)


def _width(packed: Tensor, kind: str) -> int:
    return packed.shape[1] // FORMATS[kind].bytes * FORMATS[kind].values
