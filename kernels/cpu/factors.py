"""Factors of stacked adapters in C: the twin of ``reference/factors.py``."""

import ctypes
from functools import lru_cache
from math import prod

from torch import Tensor

from ..plan import FactorLayer, FactorPlan
from ..reference.noise import GAP
from .library import run
from .structures import CCore, CFactors, CLayer, CProbes, CRun, probes_of


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
            for k, part in enumerate(runs):
                table[index].run[k] = part
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
        probes = probes_of(seeds, scales, distribution)
    layers = _layers(plan)
    job = CFactors(
        theta.data_ptr(),
        out.data_ptr(),
        plan.size,
        ctypes.addressof(layers),
        len(layers),
        probes,
    )
    run("adazeta_factors", job)
