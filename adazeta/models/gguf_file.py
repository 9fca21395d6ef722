"""What a GGUF file says of itself, and its tensors as views of the mapped file.

Read without the ``gguf`` package, which makes an object of each word of the vocabulary.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3.
"""

import struct
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from adazeta.kernels.reference.blocks import FORMATS

_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_TEXT, _ARRAY = 8, 9
_PLAIN = {0: torch.float32, 1: torch.float16, 30: torch.bfloat16}
# Of `enum ggml_type`; names of those that cannot be kept are for messages.
_NAMES = {
    2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K",
    12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS",
    19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16",
    26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip


class Entry(NamedTuple):
    """A tensor of the file.

    Attributes:
        name: in the file.
        shape: with the rows first, as torch has it.
        kind: format of its blocks, or None where it holds plain numbers.
        data: those numbers, or the blocks as uint8 (..., bytes of a row).
    """

    name: str
    shape: tuple[int, ...]
    kind: str | None
    data: Tensor


class GgufFile:
    """A file, mapped into memory: what is not read takes none.

    Attributes:
        path: of the file.
        fields: metadata that is a number or a text; of an array, its length.
        architecture: as GGUF calls it.
        entries: the tensors by name.

    Args:
        path: the file.

    Raises:
        FileNotFoundError: it does not exist.
        ValueError: it is damaged, no GGUF file, or has tensors in a format that cannot be kept.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"there is no file {path}")
        # Private copies of what is written, which nothing is: torch wants memory it may write to.
        self._bytes: Any = np.memmap(self.path, mode="c", dtype=np.uint8)
        self._at = 0
        try:
            self._read()
        except (struct.error, UnicodeDecodeError, OverflowError) as error:
            raise ValueError(f"{path} is damaged, or no GGUF file: {error}") from None

    def _read(self) -> None:
        if bytes(self._bytes[:4]) != b"GGUF":
            raise ValueError(f"{self.path} is no GGUF file: it does not begin with GGUF")
        self._at = 4
        version, tensors, fields = self._take("<IQQ")
        if version not in (2, 3):
            raise ValueError(
                f"{self.path} is a GGUF file of version {version}; versions 2 and 3 can be read: "
                "convert it anew with a current llama.cpp"
            )
        self.fields: dict[str, Any] = {}
        for _ in range(fields):
            name = self._text()
            self.fields[name] = self._value(self._take("<I")[0])
        self.architecture = str(self.fields.get("general.architecture"))
        table = []
        for _ in range(tensors):
            name = self._text()
            (count,) = self._take("<I")
            sizes = self._take(f"<{count}Q")
            table.append((name, tuple(reversed(sizes)), *self._take("<IQ")))
        alignment = int(self.fields.get("general.alignment", 32))
        start = -(-self._at // alignment) * alignment
        self.entries = {
            row[0]: self._entry(row[0], row[1], row[2], start + row[3]) for row in table
        }

    def _entry(self, name: str, shape: tuple[int, ...], number: int, begin: int) -> Entry:
        kind = _NAMES.get(number)
        if number in _PLAIN:
            stored, kind = (*shape[:-1], shape[-1] * _PLAIN[number].itemsize), None
        elif kind not in FORMATS or shape[-1] % FORMATS[kind].values:
            raise ValueError(
                f"{self.path} has {name} in the format {kind or number}, which cannot be kept "
                f"(only {', '.join(FORMATS)} can); set quantise to 'none', which unpacks the "
                "model, or give a file in one of these"
            )
        else:
            layout = FORMATS[kind]
            stored = (*shape[:-1], shape[-1] // layout.values * layout.bytes)
        size = prod(stored)
        if begin + size > len(self._bytes):
            raise ValueError(f"{self.path} is damaged: it ends before {name} does")
        data = torch.from_numpy(self._bytes[begin : begin + size]).view(stored)
        return Entry(name, shape, kind, data.view(_PLAIN[number]) if kind is None else data)

    def _take(self, layout: str) -> tuple[Any, ...]:
        found = struct.unpack_from(layout, self._bytes, self._at)
        self._at += struct.calcsize(layout)
        return found

    def _text(self) -> str:
        (size,) = self._take("<Q")
        self._at += size
        return bytes(self._bytes[self._at - size : self._at]).decode()

    def _value(self, number: int) -> Any:
        if number in _SCALARS:
            return self._take(f"<{_SCALARS[number]}")[0]
        if number == _TEXT:
            return self._text()
        if number != _ARRAY:
            raise ValueError(f"{self.path} is damaged: it has a value of type {number}")
        inner, count = self._take("<IQ")
        if inner in _SCALARS:
            self._at += count * struct.calcsize(f"<{_SCALARS[inner]}")
        else:
            for _ in range(count):
                if inner == _TEXT:
                    self._at += 8 + struct.unpack_from("<Q", self._bytes, self._at)[0]
                else:
                    self._value(inner)
        return count
