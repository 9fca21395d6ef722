"""The C backend of the CPU: loading the library, and its ops.

The library is plain C, called through ctypes on data pointers: it knows neither torch nor
Python, one build serves every version of both, and the calls release the interpreter's lock.
Every op has its twin in ``reference/`` and gives the same bits.
"""

import ctypes
import os
from array import array
from collections.abc import Sequence
from functools import cache, lru_cache
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from ..plan import MAX_CORES, FactorLayer, FactorPlan
from ..reference.noise import GAP
from ..reference.updates import AdamScalars

# Raised with `ABI` of jobs.h, so that a library left over from older sources is refused.
ABI = 4
FILE = Path(__file__).resolve().parent / "libadazeta_cpu.so"
# Of the instruction set; the compiler's own vectors for the machine (SSE2, NEON) are "generic".
LEVELS = ("generic", "avx2", "avx512")

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
DISTRIBUTIONS = {"gaussian": 0, "rademacher": 1, "pairs": 2}
ADD_NOISE, MOMENTUM, ADAM, ADAM_GROUP = range(4)


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


@cache
def load() -> ctypes.CDLL | str:
    """Return the library, or in words why there is none."""
    if not FILE.is_file():
        return (
            "the C library was not built (pip install adazeta from its sources with a C "
            "compiler builds it)"
        )
    try:
        library = ctypes.CDLL(str(FILE))
        found = library.adazeta_abi()
    except (OSError, AttributeError) as error:
        return f"the C library does not load: {error}"
    if found != ABI:
        return (
            f"the C library {FILE} has version {found} and version {ABI} is needed; "
            "install adazeta again to rebuild it"
        )
    for name in ("adazeta_update", "adazeta_copies", "adazeta_factors", "adazeta_unpack"):
        function = getattr(library, name)
        function.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64]
        function.restype = ctypes.c_int64
    library.adazeta_best_level.restype = ctypes.c_int64
    library.adazeta_use_team.argtypes = [ctypes.c_void_p]
    library.adazeta_use_team.restype = None
    library.adazeta_use_team(torch_team())
    return library


def torch_team() -> int | None:
    """Return the address of ``GOMP_parallel`` of the OpenMP runtime that torch uses, if it has one.

    A look-up through torch's own library finds the runtime it is linked with, and no second one
    that the process may have loaded.
    """
    try:
        torch_cpu = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        return ctypes.cast(torch_cpu.GOMP_parallel, ctypes.c_void_p).value
    except (OSError, AttributeError):
        return None


def problem() -> str | None:
    """Say why the C backend cannot serve, or None where it can."""
    library = load()
    return library if isinstance(library, str) else None


def _library() -> ctypes.CDLL:
    library = load()
    if isinstance(library, str):
        raise RuntimeError(library)
    return library


def best_level() -> str:
    """Name the widest instruction set that the processor and the build offer."""
    return LEVELS[_library().adazeta_best_level()]


def level() -> str:
    """Name the instruction set in use: the best one here, or what ADAZETA_ISA asks for.

    Raises:
        ValueError: if ADAZETA_ISA is unknown or beyond this processor.
        RuntimeError: if the library does not load.
    """
    return LEVELS[_level_number(os.environ.get("ADAZETA_ISA"))]


@cache
def _level_number(name: str | None) -> int:
    usable = LEVELS[: LEVELS.index(best_level()) + 1]
    if name is None:
        return len(usable) - 1
    if name not in usable:
        raise ValueError(
            f"ADAZETA_ISA is {name!r}; this processor and build offer {', '.join(usable)}"
        )
    return usable.index(name)


def _run(function: str, job: ctypes.Structure) -> None:
    status = getattr(_library(), function)(
        ctypes.addressof(job), _level_number(os.environ.get("ADAZETA_ISA")), torch.get_num_threads()
    )
    if status:
        raise MemoryError("no memory for the table of a job of the C backend")


def _probes(seeds: Tensor, coefficients: Tensor, distribution: str) -> CProbes:
    return CProbes(
        seeds.data_ptr(), coefficients.data_ptr(), len(seeds), DISTRIBUTIONS[distribution]
    )


def _update(
    kind: int,
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    moments: Sequence[Sequence[Tensor]],
    offsets: Sequence[int],
    seeds: Tensor,
    coefficients: Tensor,
    distribution: str,
    rounding_seed: Tensor | None,
    **scalars: float,
) -> None:
    table = array("q")
    for index, (theta, out) in enumerate(zip(inputs, outputs, strict=True)):
        states = [state[index].data_ptr() for state in moments]
        table.extend(
            (
                theta.data_ptr(),
                out.data_ptr(),
                *states,
                *([0] * (2 - len(states))),
                offsets[index],
                theta.numel(),
                DTYPES[theta.dtype],
            )
        )
    if not table:
        return
    seeds, coefficients = seeds.contiguous(), coefficients.contiguous()
    key = 0 if rounding_seed is None else int(rounding_seed) & 0xFFFFFFFFFFFFFFFF
    job = CUpdate(
        table.buffer_info()[0],
        len(inputs),
        _probes(seeds, coefficients, distribution),
        kind,
        int(rounding_seed is not None),
        key,
        **scalars,
    )
    _run("adazeta_update", job)


def add_noise_(
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    offsets: Sequence[int],
    seeds: Tensor,
    coefficients: Tensor,
    decay: float,
    distribution: str,
    rounding_seed: Tensor | None,
) -> None:
    """Run the twin of ``reference.noise.add_noise_``, with the same arguments."""
    _update(
        ADD_NOISE,
        inputs,
        outputs,
        (),
        offsets,
        seeds,
        coefficients,
        distribution,
        rounding_seed,
        decay=decay,
    )


def momentum_update_(
    tensors: Sequence[Tensor],
    momenta: Sequence[Tensor],
    offsets: Sequence[int],
    seeds: Tensor,
    coefficients: Tensor,
    momentum: float,
    lr: float,
    decay: float,
    distribution: str,
    rounding_seed: Tensor | None,
) -> None:
    """Run the twin of ``reference.updates.momentum_update_``, with the same arguments."""
    _update(
        MOMENTUM,
        tensors,
        tensors,
        (momenta,),
        offsets,
        seeds,
        coefficients,
        distribution,
        rounding_seed,
        decay=decay,
        lr=lr,
        beta1=momentum,
    )


def adam_update_(
    tensors: Sequence[Tensor],
    first: Sequence[Tensor],
    second: Sequence[Tensor],
    offsets: Sequence[int],
    seeds: Tensor,
    coefficients: Tensor,
    scalars: AdamScalars,
    inverse_root: Tensor | None,
    distribution: str,
    rounding_seed: Tensor | None,
) -> None:
    """Run the twin of ``reference.updates.adam_update_``, with the same arguments."""
    rule = {
        "decay": scalars.decay,
        "lr": scalars.lr,
        "beta1": scalars.beta1,
        "rest1": scalars.rest1,
        "beta2": scalars.beta2,
        "rest2": scalars.rest2,
        "epsilon": scalars.epsilon,
        "inverse1": scalars.scale1,
        "inverse2": scalars.scale2,
    }
    if inverse_root is None:
        _update(
            ADAM,
            tensors,
            tensors,
            (first, second),
            offsets,
            seeds,
            coefficients,
            distribution,
            rounding_seed,
            **rule,
        )
    else:
        _update(
            ADAM_GROUP,
            tensors,
            tensors,
            (first,),
            offsets,
            seeds,
            coefficients,
            distribution,
            rounding_seed,
            inverse_root=inverse_root.item(),
            **rule,
        )


def _copies(
    theta: Tensor | None,
    out: Tensor,
    seeds: Tensor,
    coefficients: Tensor,
    offset: int,
    stream: int,
    distribution: str,
) -> Tensor:
    if out.numel():
        seeds, coefficients = seeds.contiguous(), coefficients.contiguous()
        source = 0 if theta is None else theta.data_ptr()
        job = CCopies(
            CTensor(source, out.data_ptr(), 0, 0, offset, out[0].numel(), DTYPES[out.dtype]),
            _probes(seeds, coefficients, distribution),
            stream,
        )
        _run("adazeta_copies", job)
    return out


def perturbed_copies(
    theta: Tensor, seeds: Tensor, coefficients: Tensor, offset: int, stream: int, distribution: str
) -> Tensor:
    """Run the twin of ``reference.noise.perturbed_copies``, with the same arguments."""
    out = torch.empty((len(seeds), *theta.shape), dtype=theta.dtype)
    return _copies(theta, out, seeds, coefficients, offset, stream, distribution)


def draw(seeds: Tensor, start: int, count: int, stream: int, distribution: str) -> Tensor:
    """Run the twin of ``philox.draw``, with the same arguments."""
    out = torch.empty((len(seeds), count))
    return _copies(None, out, seeds, torch.empty(len(seeds)), start, stream, distribution)


def _runs(layer: FactorLayer) -> tuple[list[CRun], dict[int, int], int]:
    """Cut the parameters of a layer in runs, and place these one after another.

    Returns:
        The runs, the place of each core's and the bias's first element by its index in the
        parameter vector, and the length of all runs.
    """
    pieces = sorted(
        (offset, prod(shape)) for offset, shape in zip(layer.offsets, layer.shapes, strict=True)
    )
    if layer.bias is not None:
        pieces = sorted([*pieces, (layer.bias, layer.out_features)])
    runs: list[CRun] = []
    places, end, size = {}, -1, 0
    for offset, count in pieces:
        if not runs or not end <= offset <= end + GAP:
            runs.append(CRun(offset, 0, size))
        run, end = runs[-1], offset + count
        places[offset] = run.place + offset - run.offset
        run.size = end - run.offset
        size = run.place + run.size
    return runs, places, size


@lru_cache(maxsize=32)
def _layers(plan: FactorPlan) -> ctypes.Array[CLayer]:
    table = (CLayer * len(plan.layers))()
    for group in plan.groups:
        for number, index in enumerate(group.layers):
            layer = plan.layers[index]
            runs, places, size = _runs(layer)
            n, m, rank = layer.in_features, layer.out_features, layer.rank
            rows, columns = (
                prod(shape[1] for shape in side)
                for side in (layer.shapes[: layer.cut], layer.shapes[layer.cut :])
            )
            widest = max(max(shape[0], shape[2]) for shape in layer.shapes)
            table[index] = CLayer(
                len(layer.shapes),
                layer.cut,
                n,
                m,
                group.a + number * n * rank,
                group.b + number * rank * m,
                group.bias + number * m,
                -1 if layer.bias is None else places[layer.bias],
                size,
                widest * max(rows, columns),
                len(runs),
            )
            for k, (offset, shape) in enumerate(zip(layer.offsets, layer.shapes, strict=True)):
                table[index].cores[k] = CCore(*shape, places[offset])
            for k, run in enumerate(runs):
                table[index].run[k] = run
    return table


def stacked_factors(
    theta: Tensor,
    plan: FactorPlan,
    seeds: Tensor | None,
    scales: Tensor | None,
    distribution: str,
    out: Tensor,
) -> None:
    """Write to ``out``, not empty, what ``reference.factors.stacked_factors`` returns."""
    probes = CProbes()
    if seeds is not None and scales is not None:
        seeds, scales = seeds.contiguous(), scales.contiguous()
        probes = _probes(seeds, scales, distribution)
    layers = _layers(plan)
    job = CFactors(
        theta.data_ptr(),
        out.data_ptr(),
        plan.size,
        ctypes.addressof(layers),
        len(layers),
        probes,
    )
    _run("adazeta_factors", job)
