"""Quantised blocks in C: the twin of ``reference/blocks.py``."""

import ctypes

from torch import Tensor

from ..reference.blocks import FORMATS
from .library import run
from .structures import DTYPES


class CUnpack(ctypes.Structure):
    """``struct unpack`` of blocks.h."""

    _fields_ = [
        (name, ctypes.c_int64)
        for name in ("packed", "output", "rows", "count", "blocks", "format", "dtype")
    ]


def unpack_blocks(packed: Tensor, kind: str, rows: Tensor | None, out: Tensor) -> Tensor:
    """Run the twin of ``reference.blocks.unpack_blocks``, with the same arguments."""
    if out.numel():
        job = CUnpack(
            packed.data_ptr(),
            out.data_ptr(),
            0 if rows is None else rows.data_ptr(),
            len(out),
            packed.shape[1] // FORMATS[kind].bytes,
            list(FORMATS).index(kind),
            DTYPES[out.dtype],
        )
        run("adazeta_unpack", job)
    return out
