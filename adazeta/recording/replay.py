"""From a base model and a probe log back to the trained parameters, bit for bit.

No data and no forward pass are needed: the noise is made again from the seeds, on whatever backend
serves the device.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

from torch import nn

from adazeta.adapters.attached import has_adapters
from adazeta.adapters.files import save_pretrained
from adazeta.directions.reparametrise import merged_state_dict
from adazeta.directions.table import DIRECTIONS, space_for
from adazeta.methods import METHODS
from adazeta.optim.optimizer import ZerothOrderOptimizer
from adazeta.optim.rate import AUTO
from adazeta.recording.header import LogHeader, check_layout, given
from adazeta.recording.identity import check_initial, identity
from adazeta.recording.model_description import model_as_described
from adazeta.recording.probe_log import ProbeLog, read_log
from adazeta.recording.step_record import MEASURED, LogError, StepRecord


def replay(
    log: ProbeLog | str | Path,
    model: nn.Module,
    *,
    to_step: int | None = None,
    optimizer: ZerothOrderOptimizer | None = None,
) -> ZerothOrderOptimizer:
    """Do to a model what a training run did to it.

    Args:
        log: the log, or its path.
        model: the model as it was before that run: the base with its adapters as they were
            initialised. Its trainable parameters are changed.
        to_step: number of optimizer steps to have done in the end, by default all.
        optimizer: over the model's parameters, for update rules that this package does not have;
            by default the one that the log names.

    Returns:
        The optimizer in the state that it had after those steps.

    Raises:
        LogError: the log is damaged, or does not fit the model; nothing was changed then.
        ValueError: the log does not reach ``to_step``.
    """
    if not isinstance(log, ProbeLog):
        log = read_log(log)
    count = len(log) if to_step is None else to_step - log.first_step
    if not 0 <= count <= len(log):
        raise ValueError(
            f"to_step is {to_step}, but {log.path} has steps {log.first_step} to {log.next_step}"
        )
    if optimizer is None:
        optimizer = optimizer_of(log.header, model)
    check_layout(log.header, identity(model, optimizer), str(log.path))
    check_initial(log.header, optimizer, str(log.path))
    apply_log(optimizer, log, end=count)
    return optimizer


def optimizer_of(header: LogHeader, model: nn.Module) -> ZerothOrderOptimizer:
    """Make the optimizer that a log's header names, over a model's trainable parameters.

    Raises:
        LogError: the header names none of this package, or its groups do not fit the model.
    """
    try:
        settings, layout = header.optimizer, header.layout
        groups = given(settings.groups, "groups")
        kind = _rules().get(given(settings.rule, "class"))
        if kind is None:
            raise LogError(
                f"the log was written by the optimizer {settings.rule}; pass it as optimizer="
            )
        # Logs of earlier versions name no direction: they had one.
        direction = layout.direction or {"name": "full", "settings": {}}
        if direction["name"] not in DIRECTIONS:
            raise LogError(f"the log's directions are drawn by {direction['name']!r}: unknown here")
        space = space_for(
            model, direction["name"], direction["settings"],
            distribution=given(layout.distribution, "distribution"), seed=header.seed,
        )  # fmt: skip
        if sum(len(group["parameters"]) for group in groups) != len(space.parameters):
            check_layout(header, identity(model, kind(space)), "the log")
        # Records have the rates themselves; where they were measured, groups have factors on them.
        measured = header.estimator.get("rate") == AUTO
        left_out = ("parameters", "lr") if measured else ("parameters",)
        with_parameters = [
            {
                **as_group({k: v for k, v in group.items() if k not in left_out}),
                "params": [space.parameters[i] for i in group["parameters"]],
            }
            for group in groups
        ]
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise LogError(f"the log's header has no usable optimizer: {error!r}") from None
    # With the run's seed, since the seed of stochastic rounding comes from it too.
    made = kind(
        with_parameters, lr=AUTO if measured else 0.0, space=space, seed=header.seed,
        check_eps=False,
        rounding="nearest" if settings.rounding is None else settings.rounding,
    )  # fmt: skip
    return made


def _rules() -> dict[str, Callable[..., ZerothOrderOptimizer]]:
    """Return the rules of all methods by the name that a log has of them.

    A conservative run is logged as one of SGD, with its choice among the settings of the groups.
    """
    return {method.rule.__name__: method.rule for method in METHODS.values()}


def apply_log(
    optimizer: ZerothOrderOptimizer, log: ProbeLog, start: int = 0, end: int | None = None
) -> None:
    """Apply the updates of a log to the parameters, and leave the optimizer as it was after them.

    The settings of the parameter groups, such as the learning rate, are those of the log meanwhile
    and then again what they were.

    Args:
        optimizer: in the state before the first of the records.
        log: the log.
        start: first record to apply.
        end: record before which to stop, by default all are applied.

    Raises:
        LogError: a record does not follow the state of the optimizer.
    """
    groups = optimizer.param_groups
    state = {"params", *optimizer.group_state}
    before = [{k: v for k, v in group.items() if k not in state} for group in groups]
    measured = optimizer.measured()
    try:
        for place, (record, settings) in enumerate(with_settings(log, end)):
            if place < start:
                continue
            if record.step != optimizer.steps or len(settings) != len(groups):
                raise LogError(
                    f"{log.path} has step {record.step} with {len(settings)} parameter groups "
                    f"where the optimizer is at step {optimizer.steps} with {len(groups)}"
                )
            for group, values in zip(groups, settings, strict=True):
                group.update(as_group(values))
            measured |= record.changes.get(MEASURED, {})
            optimizer.take_measured({**measured, "eps": record.eps})
            optimizer.apply(record.probes(optimizer.space.device))
            optimizer.evaluations += record.evaluations
            optimizer.estimator.check_eps = False
    finally:
        for group, values in zip(groups, before, strict=True):
            group.update(values)


def with_settings(
    log: ProbeLog, end: int | None = None
) -> Iterator[tuple[StepRecord, list[dict[str, Any]]]]:
    """Iterate over the records, each with the settings of the parameter groups at its step.

    Raises:
        LogError: the header or a record has no usable settings.
    """
    settings = group_settings(log.header)
    try:
        for record in log.records(0, end):
            settings = list(settings)  # the one before has been handed out
            for index, changes in record.changes.items():
                if index == MEASURED:
                    continue
                settings[int(index)] = {**settings[int(index)], **changes}
            settings = [
                {**group, "lr": rate} for group, rate in zip(settings, record.rates, strict=True)
            ]
            yield record, settings
    except (IndexError, ValueError) as error:
        if isinstance(error, LogError):
            raise
        raise LogError(f"{log.path} has unusable settings of the optimizer: {error!r}") from None


def group_settings(header: LogHeader) -> list[dict[str, Any]]:
    """Return the settings of the parameter groups at the start of a log.

    Raises:
        LogError: the header has none.
    """
    try:
        groups = given(header.optimizer.groups, "groups")
        return [{k: v for k, v in group.items() if k != "parameters"} for group in groups]
    except (KeyError, TypeError, AttributeError) as error:
        raise LogError(f"the log's header has no usable optimizer: {error!r}") from None


def as_group(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings as a parameter group has them: with tuples where JSON has lists."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}


def rebuild(
    log: ProbeLog, *, to_step: int | None = None, model: str | None = None
) -> tuple[nn.Module, ZerothOrderOptimizer]:
    """Load the base model that a log names, give it its adapters, and replay the log.

    Args:
        log: the log.
        to_step: see :func:`replay`.
        model: base model, if it is no longer where it was.

    Returns:
        The model and the optimizer.

    Raises:
        LogError: the log does not say how the model was made, or see :func:`replay`.
    """
    if log.first_step:
        raise LogError(
            f"{log.path} goes on from step {log.first_step} of another run; replay it in Python "
            "with adazeta.replay(log, model) onto the model and optimizer of that step"
        )
    made = model_as_described(log.header, Path(log.path).parent, model=model)
    return made, replay(log, made, to_step=to_step)


def save_rebuilt(model: nn.Module, folder: str | Path) -> None:
    """Save what :func:`rebuild` made: the adapters, or the whole model if it has none."""
    if has_adapters(model):
        save_pretrained(model, folder)
    else:
        cast(Any, model).save_pretrained(folder, state_dict=merged_state_dict(model))
