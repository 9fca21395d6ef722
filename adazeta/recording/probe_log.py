"""The probe log: everything that training did to the parameters, in a few dozen bytes a step.

A file is a magic word and then frames, ``length (u32), crc32 (u32), payload``, little-endian; the
checksum covers length and payload. The first payload is a JSON header that says to which run the
log belongs (:mod:`adazeta.recording.header`), the others are step records. A record is on disk
before its update is applied, so a process killed at any instant loses at most the step in flight: a
record that was not finished is cut off, and every finished one is applied by replay.
"""

import errno
import json
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from adazeta.recording.header import LogHeader
from adazeta.recording.step_record import SMALLEST, LogError, StepRecord, decode, encode, step_of
from adazeta.support.files import write_whole

MAGIC = b"AZPROBES"

_FRAME = struct.Struct("<II")  # length of the payload, checksum
_LARGEST = 1 << 26  # no payload is longer; a length above this is damage


def frame(payload: bytes) -> bytes:
    """Return a payload with its length and checksum in front."""
    length = struct.pack("<I", len(payload))
    return length + struct.pack("<I", zlib.crc32(length + payload)) + payload


def _payload_at(data: bytes, offset: int) -> bytes | None:
    """Return the payload of the frame at an offset, None if there is no whole and sound one."""
    if offset + _FRAME.size > len(data):
        return None
    length, checksum = _FRAME.unpack_from(data, offset)
    end = offset + _FRAME.size + length
    if length > _LARGEST or end > len(data):
        return None
    payload = data[offset + _FRAME.size : end]
    return payload if zlib.crc32(data[offset : offset + 4] + payload) == checksum else None


class ProbeLog:
    """A log that was read: its header, and its records in order.

    Args:
        data: content of the file.
        path: named in messages.

    Attributes:
        path: where it came from.
        header: the header.
        size: bytes up to the end of the last finished record.
        torn: bytes after that, of a record that was never finished.

    Raises:
        LogError: this is no probe log, it is of another format, or it is damaged before its end;
            the message has the byte and the last step before it.
    """

    def __init__(self, data: bytes, path: str | Path = "log") -> None:
        self.path = Path(path)
        if not data.startswith(MAGIC):
            raise LogError(f"{path} is not a probe log")
        payload = _payload_at(data, len(MAGIC))
        if payload is None:
            raise LogError(f"{path} has a damaged header (byte {len(MAGIC)})")
        self.header = _header(payload, path)
        self.first_step = self.header.first_step
        self._data = data
        self._ends = [len(MAGIC) + _FRAME.size + len(payload)]
        while self.size < len(data):
            record = _payload_at(data, self.size)
            if record is None:
                break
            step = step_of(record)
            if step != self.next_step:
                raise LogError(
                    f"{path} is damaged at byte {self.size}: step {step} follows step "
                    f"{self.next_step - 1}"
                )
            self._ends.append(self.size + _FRAME.size + len(record))
        self.torn = len(data) - self.size
        if self.torn and self._goes_on():
            last = f"the last good step is {self.next_step - 1}" if len(self) else "no step before"
            raise LogError(
                f"{path} is damaged at byte {self.size} and goes on after that; {last}. To go on "
                "from a checkpoint that is older, give its folder as resume_from_checkpoint"
            )

    @property
    def size(self) -> int:
        """Bytes up to the end of the last finished record."""
        return self._ends[-1]

    @property
    def next_step(self) -> int:
        """Index of the step after the last record."""
        return self.first_step + len(self._ends) - 1

    def _goes_on(self) -> bool:
        """Whether a sound frame follows the first unsound one: then it is not just the end."""
        return any(
            found is not None and len(found) >= SMALLEST
            for found in (
                _payload_at(self._data, at) for at in range(self.size + 1, len(self._data))
            )
        )

    def __len__(self) -> int:
        """Return the number of steps."""
        return len(self._ends) - 1

    def __iter__(self) -> Iterator[StepRecord]:
        """Iterate over the records."""
        return self.records()

    def records(self, start: int = 0, end: int | None = None) -> Iterator[StepRecord]:
        """Iterate over records by their place in the file.

        Raises:
            LogError: a record is not one, although its checksum is right.
        """
        seed = self.header.seed
        ends = self._ends[start : None if end is None else end + 1]
        for begin, stop in zip(ends, ends[1:], strict=False):
            yield decode(self._data[begin + _FRAME.size : stop], seed)

    def checksum(self, records: int | None = None) -> int:
        """CRC-32 of the file up to the end of a number of records (default: all)."""
        return zlib.crc32(self._data[: self.end_of(records)])

    def end_of(self, records: int | None = None) -> int:
        """Byte at which a number of records ends."""
        return self._ends[-1 if records is None else records]

    @property
    def place(self) -> tuple[int, int, int]:
        """Where the log ends: ``(records, size, checksum)``."""
        return len(self), self.size, self.checksum()

    def prefix(self, records: int) -> bytes:
        """Content of the file up to the end of a number of records."""
        return self._data[: self.end_of(records)]


def _header(payload: bytes, path: str | Path) -> LogHeader:
    try:
        values = json.loads(payload.decode())
    except (ValueError, RecursionError):
        raise LogError(f"{path} has a header that is not JSON") from None
    return LogHeader.from_json(values, path)


def read_log(path: str | Path) -> ProbeLog:
    """Read a probe log, which may still be growing.

    Raises:
        FileNotFoundError: there is no such file.
        LogError: see :class:`ProbeLog`.
    """
    return ProbeLog(Path(path).read_bytes(), path)


class LogWriter:
    """Appends records to a log; each is on disk when :meth:`append` returns.

    Costs one ``write`` and one ``fsync`` a step: about 4 ms on a disk, less on an SSD.

    Attributes:
        records: number of records in the file.
        size: bytes of the file.
        checksum: CRC-32 of the file.
    """

    def __init__(self, log: ProbeLog) -> None:
        self.path = log.path
        self.header = log.header
        self.records, self.size, self.checksum = len(log), log.size, log.checksum()
        self._file = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        if log.torn:
            os.ftruncate(self._file, self.size)
            os.fsync(self._file)

    @classmethod
    def create(cls, path: Path, header: LogHeader, records: bytes = b"") -> "LogWriter":
        """Begin a log; the file appears whole or not at all.

        Args:
            path: of the file, which is replaced.
            header: see :func:`adazeta.recording.identity.describe`.
            records: frames to begin with.
        """
        text = json.dumps(header.to_json(), sort_keys=True, separators=(",", ":"))
        data = MAGIC + frame(text.encode()) + records
        write_whole(path, data)
        return cls(ProbeLog(data, path))

    def append(self, record: StepRecord) -> None:
        """Write a record through to the disk.

        Raises:
            OSError: the disk is full or failed; the log is as it was before.
        """
        data = frame(encode(record, self.header.seed))
        try:
            done = 0
            while done < len(data):
                done += os.pwrite(self._file, data[done:], self.size + done)
            os.fsync(self._file)
        except OSError as error:
            self._cut()
            space = "; free some space" if error.errno == errno.ENOSPC else ""
            raise OSError(
                error.errno,
                f"step {record.step} could not be logged ({error.strerror}) and was not applied: "
                f"parameters and log are those after {record.step} steps{space}, then resume",
                str(self.path),
            ) from error
        self.records += 1
        self.size += len(data)
        self.checksum = zlib.crc32(data, self.checksum)

    @property
    def place(self) -> tuple[int, int, int]:
        """Where the log ends: ``(records, size, checksum)``."""
        return self.records, self.size, self.checksum

    def _cut(self) -> None:
        try:
            os.ftruncate(self._file, self.size)
        except OSError:
            pass  # whoever opens the log next cuts off what is not a whole record

    def close(self) -> None:
        """Close the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
