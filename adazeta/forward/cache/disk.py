"""A cache of tensors on disk: few files, safe against crashes and several processes at once.

Layout: ``<folder>/<fingerprint>/<process>-<random>.states``. A process appends records to a file of
its own and reads those of all others, so writers never meet. A record is a header (magic, digest of
the key, sizes, checksum), a description in JSON and the raw bytes of the tensors. A record that is
torn by a crash lies at the end of its file and is passed over; one whose bytes were lost fails its
checksum and counts as absent. There is no index to corrupt: opening reads the headers.
"""

import fcntl
import hashlib
import json
import logging
import os
import secrets
import shutil
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from adazeta.forward.cache.base import Entry, StateCache
from adazeta.support.files import cache_folder
from adazeta.support.settings import dtype_name

logger = logging.getLogger(__name__)

_MAGIC = b"AZSTATE1"
_HEADER = struct.Struct("<8s32sIQI")  # magic, digest, bytes of description, of data, checksum
_ALIGNMENT = 16
_LOCK = "lock"
_SUFFIX = ".states"


class _Place(NamedTuple):
    """Where a record's description begins, and what its header says."""

    path: Path
    offset: int
    described: int
    size: int
    checksum: int


class DiskCache(StateCache):
    """A cache in a folder that processes and runs share.

    Args:
        fingerprint: names the sub-folder; entries of other ones are never found.
        limit: bytes of the whole folder; sub-folders that no process uses and that were opened
            the longest ago are deleted when room is needed.
        folder: by default ``states`` in :func:`adazeta.support.files.cache_folder`.

    Raises:
        OSError: the folder cannot be written.
    """

    def __init__(self, fingerprint: str, limit: int, folder: str | Path | None = None) -> None:
        super().__init__(limit)
        self._root = Path(folder) if folder is not None else cache_folder() / "states"
        self._own = self._root / fingerprint
        try:
            self._lock = _lock_shared(self._own)
        except OSError as error:
            raise OSError(
                f"the cache cannot be kept in {self._own} ({error.strerror}); give another folder "
                "or keep it in memory"
            ) from error
        self._places: dict[bytes, _Place] = {}
        self._read_until: dict[Path, int] = {}
        self._files: dict[Path, int] = {}
        self._writer: tuple[int, int, Path] | None = None  # process, descriptor, path
        self._total = _bytes_below(self._root)
        self._unchecked = 0
        self._refresh()

    def __str__(self) -> str:
        """Name the cache in messages."""
        return f"in {self._root}"

    def __len__(self) -> int:
        """Return the number of keys that are known of."""
        return len(self._places)

    def close(self) -> None:
        """Close the files."""
        for descriptor in self._files.values():
            os.close(descriptor)
        if self._writer is not None:
            os.close(self._writer[1])
        os.close(self._lock)
        self._files, self._writer, self._places = {}, None, {}

    def _find(self, key: bytes) -> Entry | None:
        digest = hashlib.sha256(key).digest()
        if digest not in self._places:
            self._refresh()  # another process may have added it
        place = self._places.get(digest)
        if place is None:
            return None
        data = bytearray(place.described + place.size)
        complete = os.preadv(self._open(place.path), [data], place.offset) == len(data)
        if not complete or zlib.crc32(data, zlib.crc32(digest)) != place.checksum:
            del self._places[digest]
            return None
        return dict(_unpack(data, place.described))

    def _add(self, key: bytes, tensors: Entry) -> bool:
        digest = hashlib.sha256(key).digest()
        if digest in self._places:
            return True
        description, parts = _pack(tensors)
        size = sum(map(len, parts))
        checksum = zlib.crc32(description, zlib.crc32(digest))
        for part in parts:
            checksum = zlib.crc32(part, checksum)
        header = _HEADER.pack(_MAGIC, digest, len(description), size, checksum)
        length = len(header) + len(description) + size
        if not self._room_for(length):
            return False
        try:
            start, path = self._append(b"".join([header, description, *parts]))
        except OSError as error:
            logger.warning("writing to %s failed: %s", self._own, error.strerror)
            return False
        self._places[digest] = _Place(path, start + len(header), len(description), size, checksum)
        self._total += length
        self._unchecked += length
        return True

    def _append(self, record: bytes) -> tuple[int, Path]:
        """Write a record to the end of this process's file; return where it begins."""
        if self._writer is None or self._writer[0] != os.getpid():  # a fork has its own file
            path = self._own / f"{os.getpid()}-{secrets.token_hex(8)}{_SUFFIX}"
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
            self._writer = os.getpid(), os.open(path, flags, 0o600), path
        _, descriptor, path = self._writer
        start = os.fstat(descriptor).st_size
        rest = memoryview(record)
        try:
            while rest:
                rest = rest[os.write(descriptor, rest) :]
        except OSError:
            os.ftruncate(descriptor, start)
            raise
        self._read_until[path] = start + len(record)
        return start, path

    def _room_for(self, length: int) -> bool:
        """Tell whether a record fits, after making room if that is possible."""
        if self._unchecked > self.limit // 64:  # others write too
            self._total, self._unchecked = _bytes_below(self._root), 0
        if self._total + length <= self.limit:
            return True
        for folder in self._others():
            _delete_unused(folder)
            self._total = _bytes_below(self._root)
            if self._total + length <= self.limit:
                return True
        return False

    def _others(self) -> list[Path]:
        """Folders of other computations, the one that was opened the longest ago first."""
        found = []
        for folder in self._root.iterdir():
            if folder != self._own and (folder / _LOCK).exists():
                try:
                    found.append(((folder / _LOCK).stat().st_mtime, folder))
                except FileNotFoundError:
                    continue
        return [folder for _, folder in sorted(found)]

    def _refresh(self) -> None:
        """Learn what records there are beyond those that are known."""
        for entry in os.scandir(self._own):
            path = Path(entry.path)
            if path.suffix != _SUFFIX:
                continue
            size = entry.stat().st_size
            if size > self._read_until.get(path, 0):
                self._read_headers(path, size)

    def _read_headers(self, path: Path, size: int) -> None:
        descriptor = self._open(path)
        offset = self._read_until.get(path, 0)
        while offset + _HEADER.size <= size:
            head = os.pread(descriptor, _HEADER.size, offset)
            magic, digest, described, data, checksum = _HEADER.unpack(head)
            begin = offset + _HEADER.size
            # A record that is being written ends beyond the file for now; a torn one for ever.
            if magic != _MAGIC or begin + described + data > size:
                break
            self._places.setdefault(digest, _Place(path, begin, described, data, checksum))
            offset = begin + described + data
        self._read_until[path] = offset

    def _open(self, path: Path) -> int:
        if path not in self._files:
            self._files[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        return self._files[path]


def _pack(tensors: Entry) -> tuple[bytes, list[bytes]]:
    """Return the description, padded to the alignment, and the padded bytes of each tensor."""
    rows, parts = [], []
    for name, tensor in tensors.items():
        rows.append([name, dtype_name(tensor.dtype), list(tensor.shape)])
        flat = tensor.cpu().contiguous().reshape(-1).view(torch.uint8)
        parts.append(_padded(flat.numpy().tobytes(), b"\0"))
    return _padded(json.dumps(rows).encode(), b" "), parts


def _unpack(data: bytearray, described: int) -> Iterator[tuple[str, Tensor]]:
    """Read back what :func:`_pack` gave; the tensors share the memory of ``data``."""
    offset = described
    for name, kind, shape in json.loads(data[:described]):
        dtype: torch.dtype = getattr(torch, kind)
        empty = torch.empty(shape, dtype=dtype, device="meta")
        if empty.numel() == 0:
            yield name, torch.empty(shape, dtype=dtype)
            continue
        count = empty.numel()
        yield name, torch.frombuffer(data, dtype=dtype, count=count, offset=offset).view(shape)
        offset += -(-count * empty.element_size() // _ALIGNMENT) * _ALIGNMENT


def _padded(data: bytes, filler: bytes) -> bytes:
    return data + filler * (-len(data) % _ALIGNMENT)


def _lock_shared(folder: Path) -> int:
    """Make a folder and hold it against deletion; return the descriptor that holds it."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:  # deleted just now by another process
            continue
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        try:
            same = os.fstat(descriptor).st_ino == (folder / _LOCK).stat().st_ino
        except FileNotFoundError:
            same = False
        if same:
            os.utime(descriptor)
            return descriptor
        os.close(descriptor)  # it was deleted while we waited


def _delete_unused(folder: Path) -> None:
    """Delete a computation's folder unless a process has it open."""
    try:
        descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    except BlockingIOError:
        pass
    finally:
        os.close(descriptor)


def _bytes_below(folder: Path) -> int:
    """Size of the files of all caches in a folder."""
    total = 0
    for path in folder.glob(f"*/*{_SUFFIX}"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:
            continue
    return total
