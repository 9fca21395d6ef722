"""Snapshots: the state of a run at one step, as safetensors and JSON, whole or not at all.

A snapshot lies in a folder ``checkpoint-N`` beside what transformers puts there. It bounds how much
of the probe log a resumed run has to replay. ``zeroth_order.json`` is written last, with the
checksums of the other files and the place in the log that the state belongs to: a folder without
it, or whose files do not match it, is no snapshot, and the one before serves.
"""

import json
import os
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers.utils import SAFE_WEIGHTS_NAME

from adazeta.optim.optimizer import ZerothOrderOptimizer
from adazeta.parameters.space import ParameterSpace
from adazeta.recording.folder import PARAMETERS_NAME, STATE_NAME, TENSORS_NAME
from adazeta.recording.probe_log import ProbeLog
from adazeta.support.files import sync_folder, write_whole
from adazeta.support.tensor_files import save_tensors

_FORMAT = 1
_DTYPES = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
}

_TENSOR, _TUPLE, _ITEMS = "tensor", "tuple", "items"


class SnapshotError(ValueError):
    """A folder holds no whole snapshot."""


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
        for name, parameter in space.kept.items():
            found = self.parameters.get(name)
            if found is None:
                raise SnapshotError(f"{self.folder} lacks the parameter {name}")
            if (found.shape, found.dtype) != (parameter.shape, parameter.dtype):
                raise SnapshotError(
                    f"{name} is {found.dtype} {tuple(found.shape)} in {self.folder} and "
                    f"{parameter.dtype} {tuple(parameter.shape)} in this model"
                )

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
    space = optimizer.space
    source = SAFE_WEIGHTS_NAME
    if not _covers(folder / source, space):
        source = PARAMETERS_NAME
        save_tensors({n: p.data.clone() for n, p in space.kept.items()}, folder / source)
    tensors: dict[str, Tensor] = {}
    tree = flatten_state(optimizer_state(optimizer), tensors)
    # Views into one buffer share memory, which safetensors refuses.
    save_tensors(
        {name: t.detach().cpu().clone() for name, t in tensors.items()}, folder / TENSORS_NAME
    )
    marker = {
        "format": _FORMAT,
        "step": optimizer.steps,
        "parameters": source,
        "optimizer": tree,
        "files": {name: _checksum(folder / name, sync=True) for name in {source, TENSORS_NAME}},
        "log": None if log is None else dict(zip(("records", "size", "crc32"), log, strict=True)),
    }
    write_whole(folder / STATE_NAME, f"{json.dumps(marker, sort_keys=True)}\n".encode())
    sync_folder(folder.parent)


def read_snapshot(folder: str | Path) -> Snapshot:
    """Read a snapshot and check that it is whole.

    Raises:
        SnapshotError: it is not; the message says why.
    """
    folder = Path(folder)
    try:
        marker = json.loads((folder / STATE_NAME).read_text(encoding="utf-8"))
        if marker["format"] != _FORMAT:
            raise SnapshotError(f"{folder} has snapshot format {marker['format']!r}, not {_FORMAT}")
        for name, checksum in marker["files"].items():
            if Path(name).name != name or _checksum(folder / name) != checksum:
                raise SnapshotError(f"{folder / name} is damaged: its checksum is another")
        tensors = load_file(folder / TENSORS_NAME)
        log = marker["log"]
        return Snapshot(
            folder=folder,
            step=int(marker["step"]),
            parameters=load_file(folder / Path(marker["parameters"]).name),
            optimizer=restore_state(marker["optimizer"], tensors),
            records=None if log is None else int(log["records"]),
        )
    except SnapshotError:
        raise
    except FileNotFoundError as error:
        raise SnapshotError(
            f"{folder} is not a whole checkpoint: it lacks {error.filename}"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise SnapshotError(f"{folder} is not a whole checkpoint: {error!r}") from None
    except SafetensorError as error:
        raise SnapshotError(f"{folder} holds damaged tensors: {error}") from None


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


def _covers(path: Path, space: ParameterSpace) -> bool:
    """Whether a file has every trainable parameter under its name."""
    if not path.is_file():
        return False
    with safe_open(path, framework="pt") as file:
        names = set(file.keys())
        kept = space.kept
        kinds = {n: file.get_slice(n) for n in kept if n in names}
        return all(
            n in kinds
            and kinds[n].get_shape() == list(p.shape)
            and kinds[n].get_dtype() == _DTYPES[p.dtype]
            for n, p in kept.items()
        )


def _checksum(path: Path, *, sync: bool = False) -> int:
    """CRC-32 of a file, which is first made durable if asked."""
    value = 0
    with open(path, "r+b" if sync else "rb") as file:
        if sync:
            os.fsync(file.fileno())
        while chunk := file.read(1 << 20):
            value = zlib.crc32(chunk, value)
    return value


def flatten_state(value: Any, tensors: dict[str, Tensor], name: str = "") -> Any:
    """Return what JSON can hold of a nested state; its tensors are put in a dictionary.

    Args:
        value: None, bool, int, float, str, tensor, or a dict, list or tuple of these.
        tensors: gets the tensors, by their place in the state.
        name: place of ``value``.

    Raises:
        TypeError: a value is of another type; the message names its place.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        tensors[name] = value
        return {_TENSOR: name}
    if isinstance(value, list):
        return [flatten_state(v, tensors, f"{name}/{i}") for i, v in enumerate(value)]
    if isinstance(value, tuple):
        return {_TUPLE: [flatten_state(v, tensors, f"{name}/{i}") for i, v in enumerate(value)]}
    if isinstance(value, dict):
        # Keys may be numbers, which JSON would turn into text.
        return {_ITEMS: [[k, flatten_state(v, tensors, f"{name}/{k}")] for k, v in value.items()]}
    raise TypeError(f"the state {name or 'itself'} is a {type(value).__name__}, which is not saved")


def restore_state(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Return the state that :func:`flatten_state` took apart.

    Raises:
        ValueError: the description is not one, or a tensor is missing.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list):
        return [restore_state(v, tensors) for v in value]
    if isinstance(value, dict) and len(value) == 1:
        ((kind, content),) = value.items()
        if kind == _TENSOR and content in tensors:
            return tensors[content]
        if kind == _TUPLE:
            return tuple(restore_state(v, tensors) for v in content)
        if kind == _ITEMS:
            return {k: restore_state(v, tensors) for k, v in content}
    raise ValueError(f"not a saved state: {str(value)[:60]}")
