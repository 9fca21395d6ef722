"""The structures that jobs of the C library are described by: those of its headers.

They hold addresses of data, so what they describe must live as long as the call.
"""

import ctypes

import torch
from torch import Tensor

from ..plan import MAX_CORES

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
DISTRIBUTIONS = {"gaussian": 0, "rademacher": 1, "pairs": 2}


class CTensor(ctypes.Structure):
    """``struct tensor`` of jobs.h."""

    _fields_ = [
        (name, ctypes.c_int64)
        for name in ("input", "output", "first", "second", "offset", "size", "dtype")
    ]


class CProbes(ctypes.Structure):
    """``struct probes`` of jobs.h."""

    _fields_ = [
        (name, ctypes.c_int64) for name in ("seeds", "coefficients", "count", "distribution")
    ]


class CRows(ctypes.Structure):
    """``struct rows`` of jobs.h; the library fills it in."""

    _fields_ = [(name, ctypes.c_int64) for name in ("next", "head", "heads")]


class CUpdate(ctypes.Structure):
    """``struct update`` of jobs.h."""

    _fields_ = [
        ("tensors", ctypes.c_int64),
        ("count", ctypes.c_int64),
        ("probes", CProbes),
        ("kind", ctypes.c_int64),
        ("rounding", ctypes.c_int64),
        ("rounding_seed", ctypes.c_uint64),
        *(
            (name, ctypes.c_float)
            for name in (
                "decay",
                "lr",
                "beta1",
                "rest1",
                "beta2",
                "rest2",
                "epsilon",
                "inverse1",
                "inverse2",
                "inverse_root",
            )
        ),
    ]


class CCopies(ctypes.Structure):
    """``struct copies`` of jobs.h."""

    _fields_ = [
        ("tensor", CTensor),
        ("probes", CProbes),
        ("stream", ctypes.c_int64),
        ("rows", CRows),
    ]


class CCore(ctypes.Structure):
    """``struct core`` of jobs.h."""

    _fields_ = [(name, ctypes.c_int64) for name in ("left", "mode", "right", "place")]


class CRun(ctypes.Structure):
    """``struct run`` of jobs.h."""

    _fields_ = [(name, ctypes.c_int64) for name in ("offset", "size", "place")]


class CLayer(ctypes.Structure):
    """``struct layer`` of jobs.h."""

    _fields_ = [
        *(
            (name, ctypes.c_int64)
            for name in (
                "count",
                "cut",
                "in_features",
                "out_features",
                "a",
                "b",
                "bias_out",
                "bias",
                "size",
                "chain",
                "runs",
            )
        ),
        ("cores", CCore * MAX_CORES),
        ("run", CRun * (MAX_CORES + 1)),
    ]


class CFactors(ctypes.Structure):
    """``struct factors`` of jobs.h."""

    _fields_ = [
        ("theta", ctypes.c_int64),
        ("out", ctypes.c_int64),
        ("size", ctypes.c_int64),
        ("layers", ctypes.c_void_p),
        ("count", ctypes.c_int64),
        ("probes", CProbes),
        ("rows", CRows),
    ]


def probes_of(seeds: Tensor, coefficients: Tensor, distribution: str) -> CProbes:
    """Describe probes; the tensors must live as long as the structure."""
    return CProbes(
        seeds.data_ptr(), coefficients.data_ptr(), len(seeds), DISTRIBUTIONS[distribution]
    )
