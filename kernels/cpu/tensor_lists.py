"""Noise and updates of lists of tensors in C: the twins of ``reference/``'s functions."""

from array import array
from collections.abc import Sequence

import torch
from torch import Tensor

from ..reference.updates import AdamScalars
from .library import run
from .structures import DTYPES, CCopies, CTensor, CUpdate, probes_of

ADD_NOISE, MOMENTUM, ADAM, ADAM_GROUP = range(4)


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
        probes_of(seeds, coefficients, distribution),
        kind,
        int(rounding_seed is not None),
        key,
        **scalars,
    )
    run("adazeta_update", job)


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
            probes_of(seeds, coefficients, distribution),
            stream,
        )
        run("adazeta_copies", job)
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
