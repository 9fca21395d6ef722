"""What a probe log says about the run it belongs to, and how two runs differ."""

import hashlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from adazeta.estimation.queries import QuerySchedule
from adazeta.optim.optimizer import ZerothOrderOptimizer
from adazeta.parameters.space import ParameterSpace
from adazeta.recording.model_description import description_of
from adazeta.recording.probe_log import FORMAT
from adazeta.recording.snapshot import flatten_state, optimizer_state
from adazeta.recording.step_record import LogError
from adazeta.support.checksum import add_tensors
from adazeta.version import __version__

NOISE = 1
"""Version of the noise (design: counter-based Gaussian and Rademacher noise)."""

_SAMPLE = 1024  # elements of a frozen tensor that enter its fingerprint


def describe(model: nn.Module, optimizer: ZerothOrderOptimizer) -> dict[str, Any]:
    """Return the header of a log that begins with the present state.

    Args:
        model: the model.
        optimizer: its optimizer.
    """
    return {**identity(model, optimizer), "initial": fingerprint_of_state(optimizer)}


def identity(model: nn.Module, optimizer: ZerothOrderOptimizer) -> dict[str, Any]:
    """Return the part of a header that stays the same while training goes on."""
    space = optimizer.space
    return {
        "format": FORMAT,
        "adazeta": __version__,
        "noise": NOISE,
        "seed": optimizer.estimator.seed,
        "first_step": optimizer.steps,
        "layout": {
            "distribution": space.distribution,
            "direction": space.direction,
            "parameters": [
                [name, list(p.shape), str(p.dtype).removeprefix("torch."), offset]
                for name, p, offset in zip(
                    space.names, space.parameters, space.offsets, strict=True
                )
            ],
        },
        "base": {
            "fingerprint": fingerprint_of_base(model, space),
            "dtype": _dtype_of(model, space),
            **description_of(model),
        },
        **settings(optimizer),
    }


def settings(optimizer: ZerothOrderOptimizer) -> dict[str, Any]:
    """Return the part of a header that a run may change when it goes on."""
    estimator, queries = optimizer.estimator, optimizer.estimator.queries
    place = {id(p): index for index, p in enumerate(optimizer.space.parameters)}
    return {
        "optimizer": {
            "class": optimizer.rule,
            "rounding": optimizer.rounding,
            "groups": [
                {
                    "parameters": [place[id(p)] for p in group["params"]],
                    **settings_of(optimizer, group),
                }
                for group in optimizer.param_groups
            ],
        },
        "estimator": {
            "queries": vars(queries) if isinstance(queries, QuerySchedule) else queries,
            "eps": estimator.eps,
            "probes": estimator.probes,
            "one_sided": estimator.one_sided,
            **({"data_shards": estimator.ranks.shards} if estimator.ranks.shards > 1 else {}),
        },
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


def fingerprint_of_base(model: nn.Module, space: ParameterSpace) -> str:
    """Digest a sample of every frozen tensor that is saved with the model.

    Up to 1,024 evenly spaced elements of each, in float32: another model, or one fine-tuned from
    it, differs in them; the same checkpoint in a wider type does not.
    """
    digest = hashlib.sha256()
    state = model.state_dict(keep_vars=True)
    kept = {id(tensor) for tensor in space.kept.values()}
    frozen = {
        name: t
        for name, t in state.items()
        if not getattr(t, "requires_grad", False) and id(t) not in kept
    }
    add_tensors(digest, ((name, _sample(t)) for name, t in frozen.items() if isinstance(t, Tensor)))
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
    return str(kinds[0] if kinds else space.parameters[0].dtype).removeprefix("torch.")


def check_same(log: dict[str, Any], run: dict[str, Any], what: str) -> None:
    """Refuse a log that was not written by a run like this one.

    Args:
        log: header of the log.
        run: header that this run would write.
        what: the log, for the message.

    Raises:
        LogError: they differ in what decides the parameters; the message names the difference.
    """
    for found in _differences(log, run):
        raise LogError(
            f"{what} does not belong to this run: {found}. Restore that, or choose another "
            "output_dir"
        )


def check_layout(log: dict[str, Any], run: dict[str, Any], what: str) -> None:
    """Refuse a log whose noise would fall on other elements than it did.

    Raises:
        LogError: naming the first parameter, or the setting, that differs.
    """
    for found in _layout_differences(log, run):
        raise LogError(f"{what} does not fit this model: {found}")


def _layout_differences(log: dict[str, Any], run: dict[str, Any]) -> Iterable[str]:
    if log.get("noise") != run["noise"]:
        yield f"it was written with noise version {log.get('noise')}, this is {run['noise']}"
    there, here = _layout(log), _layout(run)
    if there[0] != here[0]:
        yield f"its directions are {there[0]!r}, here they are {here[0]!r}"
    drawn = _get(log, "layout", "direction")
    if drawn is not None and drawn != run["layout"]["direction"]:
        yield f"its directions are drawn by {drawn}, here by {run['layout']['direction']}"
    for index in range(max(len(there[1]), len(here[1]))):
        ours = here[1][index] if index < len(here[1]) else None
        theirs = there[1][index] if index < len(there[1]) else None
        if ours != theirs:
            yield f"trainable parameter {index} is {_shown(theirs)} there and {_shown(ours)} here"


def _differences(log: dict[str, Any], run: dict[str, Any]) -> Iterable[str]:
    yield from _layout_differences(log, run)
    rounding = _get(log, "optimizer", "rounding")
    if rounding != run["optimizer"]["rounding"]:
        yield f"its rounding is {rounding!r}, here it is {run['optimizer']['rounding']!r}"
    if log["seed"] != run["seed"]:
        yield f"its seed is {log['seed']}, here it is {run['seed']}"
    if _get(log, "optimizer", "class") != run["optimizer"]["class"]:
        yield (
            f"its optimizer is {_get(log, 'optimizer', 'class')}, here it is "
            f"{run['optimizer']['class']}"
        )
    if _get(log, "base", "fingerprint") != run["base"]["fingerprint"]:
        yield (
            f"its base model ({_get(log, 'base', 'base_model_name_or_path')}) has other weights "
            f"than this one ({run['base'].get('base_model_name_or_path')})"
        )


def check_initial(log: dict[str, Any], optimizer: ZerothOrderOptimizer, what: str) -> None:
    """Refuse parameters, or a state of the optimizer, that are not those that a log begins with.

    Raises:
        LogError: they are not.
    """
    if log["first_step"] != optimizer.steps or log.get("initial") != fingerprint_of_state(
        optimizer
    ):
        raise LogError(
            f"{what} begins with other values of the trainable parameters (or with another state "
            f"of the optimizer, after {log['first_step']} steps) than this model has: make the "
            "model as that run did, with the same adapters and seed, before any training"
        )


def changed_settings(log: dict[str, Any], optimizer: ZerothOrderOptimizer) -> list[str]:
    """List the settings that differ from those that a log began with.

    The learning rate, which a schedule changes, and an ``eps`` that was measured are left out.
    """
    return [
        f"{place} was {old!r} and is {new!r}"
        for part, here in settings(optimizer).items()
        for place, old, new in _compare(log.get(part), here, part)
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


def _layout(header: dict[str, Any]) -> tuple[Any, list[Any]]:
    parameters = _get(header, "layout", "parameters")
    return _get(header, "layout", "distribution"), parameters if isinstance(
        parameters, list
    ) else []


def _get(header: dict[str, Any], *keys: str) -> Any:
    value: Any = header
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _shown(parameter: Any) -> str:
    if not isinstance(parameter, list) or len(parameter) != 4:
        return "absent"
    name, shape, dtype, offset = parameter
    return f"{name} {dtype} {shape} at {offset}"
