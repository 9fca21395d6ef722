"""Files of nested state: tensors as safetensors, the rest as JSON with checksums, nothing pickled.

A folder is made into one that holds a state by a marker, which is written last with the checksums
of the other files: without it, or where they do not match it, there is no state.
"""

import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers.utils import SAFE_WEIGHTS_NAME

from adazeta.recording.folder import PARAMETERS_NAME
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


class StateNames(NamedTuple):
    """What the files of a state are called.

    Attributes:
        marker: JSON, written last.
        tensors: safetensors, the tensors of the state.
    """

    marker: str
    tensors: str


class SavedState(NamedTuple):
    """What a folder holds.

    Attributes:
        marker: the marker's content.
        parameters: by name.
        state: the nested state.
    """

    marker: dict[str, Any]
    parameters: dict[str, Tensor]
    state: Any


def write_state(
    folder: Path,
    names: StateNames,
    parameters: Mapping[str, Tensor],
    state: Any,
    **facts: Any,
) -> None:
    """Make a folder that holds a model into one that holds a state.

    Args:
        folder: holds ``model.safetensors``, which is used if it has all parameters; else they go
            into a file of their own.
        names: of the files.
        parameters: by name.
        state: see :func:`flatten_state`.
        **facts: what else the marker says.

    Raises:
        OSError, SafetensorError: the disk is full or failed; the folder then holds no state.
        TypeError: see :func:`flatten_state`.
    """
    source = SAFE_WEIGHTS_NAME
    if not _covers(folder / source, parameters):
        source = PARAMETERS_NAME
        save_tensors({n: p.data.clone() for n, p in parameters.items()}, folder / source)
    tensors: dict[str, Tensor] = {}
    tree = flatten_state(state, tensors)
    # Views into one buffer share memory, which safetensors refuses.
    save_tensors(
        {name: t.detach().cpu().clone() for name, t in tensors.items()}, folder / names.tensors
    )
    marker = {
        "format": _FORMAT,
        **facts,
        "parameters": source,
        "optimizer": tree,
        "files": {name: _checksum(folder / name, sync=True) for name in {source, names.tensors}},
    }
    write_whole(folder / names.marker, f"{json.dumps(marker, sort_keys=True)}\n".encode())
    sync_folder(folder.parent)


def read_state(folder: Path, names: StateNames) -> SavedState:
    """Read a state and check that it is whole.

    Raises:
        SnapshotError: it is not; the message says why.
    """
    try:
        marker = json.loads((folder / names.marker).read_text(encoding="utf-8"))
        if marker["format"] != _FORMAT:
            raise SnapshotError(f"{folder} has snapshot format {marker['format']!r}, not {_FORMAT}")
        for name, checksum in marker["files"].items():
            if Path(name).name != name or _checksum(folder / name) != checksum:
                raise SnapshotError(f"{folder / name} is damaged: its checksum is another")
        tensors = load_file(folder / names.tensors)
        parameters = load_file(folder / Path(marker["parameters"]).name)
        return SavedState(marker, parameters, restore_state(marker["optimizer"], tensors))
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


def check_parameters(
    folder: Path, found: Mapping[str, Tensor], parameters: Mapping[str, Tensor]
) -> None:
    """Refuse a model that a folder's parameters are not of.

    Raises:
        SnapshotError: a parameter is missing or of another shape or dtype.
    """
    for name, parameter in parameters.items():
        value = found.get(name)
        if value is None:
            raise SnapshotError(f"{folder} lacks the parameter {name}")
        if (value.shape, value.dtype) != (parameter.shape, parameter.dtype):
            raise SnapshotError(
                f"{name} is {value.dtype} {tuple(value.shape)} in {folder} and "
                f"{parameter.dtype} {tuple(parameter.shape)} in this model"
            )


def _covers(path: Path, parameters: Mapping[str, Tensor]) -> bool:
    """Whether a file has every parameter under its name."""
    if not path.is_file():
        return False
    with safe_open(path, framework="pt") as file:
        names = set(file.keys())
        kinds = {n: file.get_slice(n) for n in parameters if n in names}
        return all(
            n in kinds
            and kinds[n].get_shape() == list(p.shape)
            and kinds[n].get_dtype() == _DTYPES[p.dtype]
            for n, p in parameters.items()
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
