"""Snapshots: the state of a run at one step, as safetensors and JSON, whole or not at all.

A snapshot lies in a folder ``checkpoint-N`` beside what transformers puts there. It bounds how much
of the probe log a resumed run has to replay. ``zeroth_order.json`` is written last, with the
checksums of the other files and the place in the log that the state belongs to: a folder without
it, or whose files do not match it, is no snapshot, and the one before serves.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from adazeta.optim.optimizer import ZerothOrderOptimizer
from adazeta.parameters.space import ParameterSpace
from adazeta.recording.folder import STATE_NAME, TENSORS_NAME
from adazeta.recording.probe_log import ProbeLog
from adazeta.recording.state_files import (
    SnapshotError,
    StateNames,
    check_parameters,
    read_state,
    write_state,
)

_NAMES = StateNames(STATE_NAME, TENSORS_NAME)


@dataclass(frozen=True)
class Snapshot:
    """The state of a run after some steps.

    Attributes:
        folder: where it lies.
        step: steps the optimizer had done.
        parameters: the trainable parameters by name, and what else steps change
            (:attr:`ParameterSpace.kept`).
        optimizer: state of the optimizer, see :func:`optimizer_state`.
        records: number of records of the log that the state is the result of; None without a log.
    """

    folder: Path
    step: int
    parameters: dict[str, Tensor]
    optimizer: dict[str, Any]
    records: int | None

    def check(self, space: ParameterSpace) -> None:
        """Refuse a model that this is not the state of.

        Raises:
            SnapshotError: a parameter is missing or of another shape or dtype.
        """
        check_parameters(self.folder, self.parameters, space.kept)

    def load_parameters(self, space: ParameterSpace) -> None:
        """Give the parameters their values.

        Raises:
            SnapshotError: see :meth:`check`; nothing was changed then.
        """
        self.check(space)
        for name, parameter in space.kept.items():
            parameter.data.copy_(self.parameters[name])
        space.follow_snapshot()

    def restore(self, optimizer: ZerothOrderOptimizer) -> None:
        """Give parameters and optimizer this state; the settings of groups stay as they are.

        Raises:
            SnapshotError: see :meth:`check`; nothing was changed then.
        """
        self.load_parameters(optimizer.space)
        state = {k: v for k, v in self.optimizer.items() if k != "group_state"}
        groups = optimizer.state_dict()["param_groups"]
        kept = self.optimizer["group_state"]
        if len(kept) != len(groups):
            raise SnapshotError(
                f"{self.folder} is of an optimizer with {len(kept)} parameter groups, this one has "
                f"{len(groups)}"
            )
        merged = [{**group, **values} for group, values in zip(groups, kept, strict=True)]
        optimizer.load_state_dict({**state, "param_groups": merged})


def optimizer_state(optimizer: ZerothOrderOptimizer) -> dict[str, Any]:
    """Return an optimizer's state without the settings of its parameter groups."""
    state = {k: v for k, v in optimizer.state_dict().items() if k != "param_groups"}
    groups = [
        {k: group[k] for k in optimizer.group_state if k in group}
        for group in optimizer.param_groups
    ]
    return {**state, "group_state": groups}


def write_snapshot(
    folder: Path, optimizer: ZerothOrderOptimizer, log: tuple[int, int, int] | None
) -> None:
    """Make a folder that holds a model into a snapshot.

    Args:
        folder: holds ``model.safetensors``, which is used if it has every trainable parameter;
            else the parameters go into a file of their own.
        optimizer: the optimizer.
        log: ``(records, size, checksum)`` of the log, if there is one.

    Raises:
        OSError, SafetensorError: the disk is full or failed; the folder is then no snapshot.
    """
    place = None if log is None else dict(zip(("records", "size", "crc32"), log, strict=True))
    state, kept = optimizer_state(optimizer), optimizer.space.kept
    write_state(folder, _NAMES, kept, state, step=optimizer.steps, log=place)


def read_snapshot(folder: str | Path) -> Snapshot:
    """Read a snapshot and check that it is whole.

    Raises:
        SnapshotError: it is not; the message says why.
    """
    folder = Path(folder)
    marker, parameters, state = read_state(folder, _NAMES)
    try:
        log = marker["log"]
        return Snapshot(
            folder=folder,
            step=int(marker["step"]),
            parameters=parameters,
            optimizer=state,
            records=None if log is None else int(log["records"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise SnapshotError(f"{folder} is not a whole checkpoint: {error!r}") from None


def belongs_to(folder: str | Path, log: ProbeLog) -> bool:
    """Tell whether a snapshot is the result of the first records of a log."""
    try:
        place = json.loads((Path(folder) / STATE_NAME).read_text(encoding="utf-8"))["log"]
        records, size, checksum = place["records"], place["size"], place["crc32"]
        return (
            0 <= records <= len(log)
            and log.end_of(records) == size
            and log.checksum(records) == checksum
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def checkpoints(folder: Path) -> Iterator[Path]:
    """Iterate over the folders ``checkpoint-N`` of a run, the newest first."""
    found = [
        (int(match[1]), path)
        for path in folder.glob("checkpoint-*")
        if path.is_dir() and (match := re.fullmatch(r"checkpoint-(\d+)", path.name))
    ]
    for _, path in sorted(found, reverse=True):
        yield path
