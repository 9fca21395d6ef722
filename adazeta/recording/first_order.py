"""What a first-order run leaves in its folder and in each checkpoint.

Gradients have no log of a few bytes a step: such a run goes on from its newest checkpoint.
"""

import json
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from adazeta.recording.folder import FIRST_ORDER_NAME, FIRST_ORDER_TENSORS_NAME, GENERATORS_NAME
from adazeta.recording.state_files import (
    SavedState,
    SnapshotError,
    StateNames,
    read_state,
    write_state,
)
from adazeta.support.files import read_object, write_whole

_NAMES = StateNames(FIRST_ORDER_NAME, FIRST_ORDER_TENSORS_NAME)


class RunMark(NamedTuple):
    """What tells a first-order run from others.

    Attributes:
        run: a name of its own.
        settings: those that a run which goes on must have again.
    """

    run: str
    settings: dict[str, Any]

    def check(self, settings: Mapping[str, Any], place: str) -> None:
        """Refuse to go on with other settings.

        Raises:
            ValueError: one differs.
        """
        # As JSON gives them back.
        for name, value in json.loads(json.dumps(dict(settings))).items():
            if name in self.settings and self.settings[name] != value:
                raise ValueError(
                    f"{place} was begun with {name}={self.settings[name]!r}, and this run has "
                    f"{value!r}: set it as it was, or begin a new run"
                )


def is_first_order(folder: str | Path) -> bool:
    """Tell whether a folder is that of a first-order run, or a checkpoint of one."""
    return (Path(folder) / FIRST_ORDER_NAME).is_file()


def begin_run(folder: Path, settings: Mapping[str, Any]) -> RunMark:
    """Mark a folder as that of a new first-order run."""
    mark = RunMark(uuid.uuid4().hex, dict(settings))
    write_whole(folder / FIRST_ORDER_NAME, f"{json.dumps(mark._asdict())}\n".encode())
    return mark


def read_mark(folder: Path) -> RunMark:
    """Read the mark of a run's folder.

    Raises:
        FileNotFoundError: it has none.
        ValueError: it is damaged.
    """
    if not is_first_order(folder):
        raise FileNotFoundError(
            f"resume_from_checkpoint: {folder} has no first-order run to go on with"
        )
    found = read_object(folder / FIRST_ORDER_NAME)
    try:
        return RunMark(str(found["run"]), dict(found["settings"]))
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{folder / FIRST_ORDER_NAME} is damaged; begin a new run") from None


def write_checkpoint(
    folder: Path, mark: RunMark, step: int, parameters: Mapping[str, Tensor], state: Any
) -> None:
    """Make a folder that holds a model into a checkpoint.

    Args:
        folder: inside that of the run.
        mark: of the run.
        step: optimizer steps done.
        parameters: those that are trained, by name.
        state: of optimizer and schedule.

    Raises:
        OSError, SafetensorError: the disk is full or failed; the folder is then no checkpoint.
        TypeError: the schedule holds something that JSON cannot.
    """
    generators = folder.parent / GENERATORS_NAME
    if generators.is_file():  # how they were when the epoch of this step began
        shutil.copyfile(generators, folder / GENERATORS_NAME)
    write_state(folder, _NAMES, parameters, state, step=step, **mark._asdict())


def read_checkpoint(folder: Path) -> tuple[RunMark, SavedState]:
    """Read a checkpoint and check that it is whole.

    Raises:
        SnapshotError: it is not.
    """
    found = read_state(folder, _NAMES)
    try:
        return RunMark(str(found.marker["run"]), dict(found.marker["settings"])), found
    except (KeyError, TypeError, ValueError) as error:
        raise SnapshotError(f"{folder} is not a whole checkpoint: {error!r}") from None
