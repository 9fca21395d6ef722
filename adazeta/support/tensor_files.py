"""Files of tensors whose bytes are a function of what they hold."""

import json
import struct
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

_SIZE = struct.Struct("<Q")  # of the header, which comes first


def save_tensors(
    tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file; the same tensors and metadata give the same bytes.

    safetensors itself orders the metadata as its hash table happens to, another way in each
    process. Here they are sorted; the tensors are in its own order, which is fixed.

    Args:
        tensors: by name; they share no memory.
        path: the file, which is replaced.
        metadata: of the file.

    Raises:
        OSError, SafetensorError: the file cannot be written.
    """
    save_file(dict(tensors), path, None if metadata is None else dict(metadata))
    with open(path, "r+b") as file:
        (size,) = _SIZE.unpack(file.read(_SIZE.size))
        header = json.loads(file.read(size))
        if "__metadata__" in header:
            header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        if len(text) > size:
            raise OSError(f"the header of {path} does not fit in its {size} bytes when sorted")
        file.seek(_SIZE.size)
        file.write(text.ljust(size))
