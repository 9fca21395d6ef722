"""The header that a run writes, and the fingerprints in it that tell two runs apart."""

import hashlib
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from adazeta.estimation.queries import QuerySchedule
from adazeta.optim.optimizer import ZerothOrderOptimizer
from adazeta.optim.rate import AUTO
from adazeta.parameters.space import ParameterSpace
from adazeta.recording.header import NOISE, Layout, LogHeader, OptimizerSettings, Parameter
from adazeta.recording.model_description import description_of
from adazeta.recording.snapshot import optimizer_state
from adazeta.recording.state_files import flatten_state
from adazeta.recording.step_record import LogError
from adazeta.support.checksum import add_tensors, plain_parts
from adazeta.support.settings import dtype_name
from adazeta.version import __version__

_SAMPLE = 1024  # elements of a frozen tensor that enter its fingerprint


def describe(
    model: nn.Module, optimizer: ZerothOrderOptimizer, first_global_step: int
) -> LogHeader:
    """Return the header of a log that begins with the present state.

    Args:
        model: the model.
        optimizer: its optimizer.
        first_global_step: steps that the trainer has done.
    """
    return replace(
        identity(model, optimizer),
        initial=fingerprint_of_state(optimizer),
        first_global_step=first_global_step,
    )


def identity(model: nn.Module, optimizer: ZerothOrderOptimizer) -> LogHeader:
    """Return what of a header can be told of a run at any step."""
    space = optimizer.space
    return LogHeader(
        seed=optimizer.estimator.seed,
        first_step=optimizer.steps,
        version=__version__,
        noise=NOISE,
        layout=Layout(
            space.distribution,
            space.direction,
            tuple(
                Parameter(name, list(p.shape), dtype_name(p.dtype), offset)
                for name, p, offset in zip(
                    space.names, space.parameters, space.offsets, strict=True
                )
            ),
        ),
        base=replace(
            description_of(model),
            fingerprint=fingerprint_of_base(model, space.kept.values()),
            dtype=_dtype_of(model, space),
        ),
        optimizer=_optimizer_settings(optimizer),
        estimator=_estimator_settings(optimizer),
    )


def _optimizer_settings(optimizer: ZerothOrderOptimizer) -> OptimizerSettings:
    place = {id(p): index for index, p in enumerate(optimizer.space.parameters)}
    groups = [
        {
            "parameters": [place[id(p)] for p in group["params"]],
            **settings_of(optimizer, group),
        }
        for group in optimizer.param_groups
    ]
    return OptimizerSettings(optimizer.rule, optimizer.rounding, groups)


def _estimator_settings(optimizer: ZerothOrderOptimizer) -> dict[str, Any]:
    estimator, queries = optimizer.estimator, optimizer.estimator.queries
    drops = sorted({module.drop for module in optimizer.space.droppable})
    return {
        "queries": vars(queries) if isinstance(queries, QuerySchedule) else queries,
        "eps": estimator.eps,
        "probes": estimator.probes,
        "one_sided": estimator.one_sided,
        **({} if optimizer.auto_rate is None else {"rate": AUTO}),
        **({"data_shards": estimator.ranks.shards} if estimator.ranks.shards > 1 else {}),
        **({} if not drops else {"drop": drops}),
        **({} if estimator.shaping is None else {"shaping": estimator.shaping.name}),
    }


def settings_of(optimizer: ZerothOrderOptimizer, group: dict[str, Any]) -> dict[str, Any]:
    """Return a parameter group's settings as JSON has them."""
    left_out = ("params", "initial_lr", *optimizer.group_state)
    return {
        key: list(value) if isinstance(value, tuple) else _number(value)
        for key, value in group.items()
        if key not in left_out and value is not None
    }


def _number(value: Any) -> Any:
    return value.item() if isinstance(value, Tensor) else value


def fingerprint_of_state(optimizer: ZerothOrderOptimizer) -> str:
    """Digest every bit of the trainable parameters and, after a step, of the optimizer's state."""
    digest = hashlib.sha256(fingerprint_of_parameters(optimizer).encode())
    if optimizer.steps:
        state: dict[str, Tensor] = {}
        rest = optimizer_state(optimizer)
        digest.update(repr(flatten_state(rest, state)).encode())
        add_tensors(digest, state.items())
    return digest.hexdigest()


def fingerprint_of_parameters(optimizer: ZerothOrderOptimizer) -> str:
    """Digest every bit of the trainable parameters, and of what else steps change."""
    digest = hashlib.sha256()
    space = optimizer.space
    add_tensors(digest, space.kept.items())
    return digest.hexdigest()


def fingerprint_of_base(model: nn.Module, trained: Iterable[Tensor]) -> str:
    """Digest a sample of every frozen tensor that is saved with the model, without those trained.

    Up to 1,024 evenly spaced elements of each, in float32: another model, or one fine-tuned from
    it, differs in them; the same checkpoint in a wider type does not.
    """
    digest = hashlib.sha256()
    state = model.state_dict(keep_vars=True)
    kept = {id(tensor) for tensor in trained}
    frozen = {
        name: t
        for name, t in state.items()
        if not getattr(t, "requires_grad", False) and id(t) not in kept
    }
    tensors = [
        part for n, t in frozen.items() if isinstance(t, Tensor) for part in plain_parts(n, t)
    ]
    add_tensors(digest, ((name, _sample(tensor)) for name, tensor in tensors))
    return digest.hexdigest()


def _sample(tensor: Tensor) -> Tensor:
    if tensor.is_meta:
        return torch.empty(0)
    flat = tensor.detach().reshape(-1)
    part = flat[:: max(1, flat.numel() // _SAMPLE)][:_SAMPLE]
    return part.float() if part.is_floating_point() else part


def _dtype_of(model: nn.Module, space: ParameterSpace) -> str:
    trained = {id(p) for p in space.parameters}
    kinds = [p.dtype for p in model.parameters() if p.is_floating_point() and id(p) not in trained]
    return dtype_name(kinds[0] if kinds else space.parameters[0].dtype)


def check_initial(log: LogHeader, optimizer: ZerothOrderOptimizer, what: str) -> None:
    """Refuse parameters, or a state of the optimizer, that are not those that a log begins with.

    Raises:
        LogError: they are not.
    """
    if log.first_step != optimizer.steps or log.initial != fingerprint_of_state(optimizer):
        raise LogError(
            f"{what} begins with other values of the trainable parameters (or with another state "
            f"of the optimizer, after {log.first_step} steps) than this model has: make the "
            "model as that run did, with the same adapters and seed, before any training"
        )


def changed_settings(log: LogHeader, optimizer: ZerothOrderOptimizer) -> list[str]:
    """List the settings that differ from those that a log began with.

    The learning rate, which a schedule changes, and an ``eps`` that was measured are left out.
    """
    there = log.to_json()
    here = {
        "optimizer": _optimizer_settings(optimizer).to_json(),
        "estimator": _estimator_settings(optimizer),
    }
    return [
        f"{place} was {old!r} and is {new!r}"
        for part, settings in here.items()
        for place, old, new in _compare(there.get(part), settings, part)
        if not place.endswith(".lr") and (place, old) != ("estimator.eps", None)
    ]


def _compare(there: Any, here: Any, place: str) -> Iterable[tuple[str, Any, Any]]:
    if isinstance(there, dict) and isinstance(here, dict):
        for key in sorted(there.keys() | here.keys()):
            yield from _compare(there.get(key), here.get(key), f"{place}.{key}")
    elif isinstance(there, list) and isinstance(here, list) and len(there) == len(here):
        for index, pair in enumerate(zip(there, here, strict=True)):
            yield from _compare(*pair, f"{place}.{index}")
    elif there != here:
        yield place, there, here
