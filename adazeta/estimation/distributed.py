"""Several processes on one gradient estimate: only scalars travel.

Each process holds all parameters. The processes are a grid: the data are divided into shards, and
the perturbed evaluations of a shard's batch are divided among the processes that have this shard.
The losses, a few numbers a step, are collected by everyone in the order of the ranks, so every
process forms the same coefficients from the same numbers and makes the same update, bit for bit.

Everything that travels goes through :meth:`Ranks.exchange`, which also carries bad news: a process
that fails says why, one that dies closes its connections, and one that has gone another way (other
data, another number of steps) is at another place than the rest. Each of these ends all processes.
"""

import hashlib
import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from adazeta.support.checksum import add_tensors

_HEAD = struct.Struct("<?I")  # whether all is well, bytes of the message
_SLOT = 1024  # bytes that every exchange sends; longer messages take a second round
_ROOM = _SLOT - _HEAD.size
_PATIENCE = timedelta(seconds=10)  # of a process that fails, for the others to come and hear why


class RankError(ConnectionError):
    """Another process has failed, died, or gone another way; training ends."""


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together.

    Attributes:
        rank: index of this process, from 0.
        size: number of processes.
        shards: parts of the data, a divisor of ``size``. 1: all processes see the same batches and
            divide the evaluations; ``size``: each has its own batches and makes all evaluations.
        group: process group of the backend gloo that messages go through.

    Raises:
        ValueError: ``shards`` does not divide ``size``.
    """

    rank: int = 0
    size: int = 1
    shards: int = 1
    group: Any = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.shards < 1 or self.size % self.shards:
            raise ValueError(
                f"{self.shards} data shards do not divide {self.size} processes; start a multiple "
                f"of {self.shards}, or choose a number of shards that divides {self.size}"
            )

    @property
    def shard(self) -> int:
        """Which part of the data this process has; the first ranks have one each, in order."""
        return self.rank % self.shards

    @property
    def sharers(self) -> int:
        """Number of processes that divide the evaluations of one batch."""
        return self.size // self.shards

    def share(self, count: int, most: int) -> range:
        """Return which of a batch's evaluations are this process's: whole forwards, in a row.

        They are the forwards of a process by itself, unless these are too few to keep everyone
        busy; then they are made smaller.

        Args:
            count: evaluations of the batch.
            most: evaluations that share a forward, at the most.
        """
        forwards = -(-count // min(most, -(-count // self.sharers)))
        size, larger = divmod(count, forwards)  # the first ones are larger by one
        place = self.rank // self.shards
        first, last = (at * forwards // self.sharers for at in (place, place + 1))
        return range(first * size + min(first, larger), last * size + min(last, larger))

    def collect(self, losses: Tensor, place: str) -> list[Tensor]:
        """Collect the losses of a step.

        Args:
            losses: float64 ``(evaluations, groups)``, of those that :meth:`share` named; there may
                be none.
            place: names the step, in messages.

        Returns:
            For each data shard float64 ``(evaluations, groups of the shard)``.
        """
        if self.size == 1:
            return [losses]
        found = self.exchange(f"the losses of {place}", (losses.shape[1], losses.tolist()))
        tables = []
        for shard in range(self.shards):
            parts = found[shard :: self.shards]  # in the order of the evaluations
            rows = [row for _, some in parts for row in some]
            table = torch.tensor(rows, dtype=torch.float64, device=losses.device)
            tables.append(table.view(-1, parts[0][0]))
        return tables

    def average(self, losses: Sequence[float], rows: int, place: str) -> list[float]:
        """Average losses of a batch over the data shards, by their numbers of examples.

        Args:
            losses: of this process's batch, as many as every process has.
            rows: examples in it.
            place: names the moment, in messages.
        """
        found = self.exchange(place, (rows, list(losses)))[: self.shards]
        if len(found) == 1:
            return found[0][1]
        total = sum(count for count, _ in found)
        return [
            sum(count * some[index] for count, some in found) / total
            for index in range(len(losses))
        ]

    def exchange(self, place: str, value: Any) -> list[Any]:
        """Give a value to all processes, and get theirs.

        Args:
            place: what this is about; the same on every process.
            value: anything that JSON holds; floats keep their bits.

        Returns:
            The values in the order of the ranks.

        Raises:
            RankError: a process has failed, has died, does not answer within the time limit of
                the process group, or is at another place.
        """
        if self.size == 1:
            return [value]
        data = json.dumps([place, value]).encode()
        slots = self._gather(_HEAD.pack(True, len(data)) + data[:_ROOM], _SLOT)
        heads = [_HEAD.unpack_from(slot) for slot in slots]
        for rank, (well, length) in enumerate(heads):
            if not well:
                reason = slots[rank][_HEAD.size : _HEAD.size + length].decode(errors="replace")
                raise RankError(
                    f"rank {self.rank} of {self.size} stops at {place}, since rank {rank} has "
                    f"failed: {reason}"
                )
        more = max(length for _, length in heads) - _ROOM
        rest = self._gather(data[_ROOM:], more) if more > 0 else [b""] * self.size
        values = []
        for rank, (_, length) in enumerate(heads):
            theirs, found = json.loads((slots[rank][_HEAD.size :] + rest[rank])[:length])
            if theirs != place:
                raise RankError(
                    f"the processes have parted: rank {self.rank} is at {place}, rank {rank} at "
                    f"{theirs}; all must have the same settings and the same number of batches"
                )
            values.append(found)
        return values

    def _gather(self, data: bytes, size: int) -> list[bytes]:
        sent = torch.frombuffer(bytearray(data.ljust(size, b"\0")), dtype=torch.uint8)
        received = [torch.empty_like(sent) for _ in range(self.size)]
        try:
            dist.all_gather(received, sent, group=self.group)
        except RuntimeError as error:
            cause = str(error).splitlines()[0].split(". ")[0]
            raise RankError(
                f"rank {self.rank} of {self.size} lost the others: one of them has died or hangs "
                f"({cause}). Every step that was done is in the log: start all of them again, with "
                "resume_from_checkpoint=true"
            ) from error
        return [part.numpy().tobytes() for part in received]

    @contextmanager
    def announcing(self) -> Iterator[None]:
        """Tell the other processes of an exception that leaves the block; it goes on after that."""
        try:
            yield
        except Exception as error:
            if self.size > 1 and not isinstance(error, RankError):
                self._announce(f"{type(error).__name__}: {error}")
            raise

    def _announce(self, reason: str) -> None:
        data = reason.encode()[:_ROOM]
        slot = (_HEAD.pack(False, len(data)) + data).ljust(_SLOT, b"\0")
        sent = torch.frombuffer(bytearray(slot), dtype=torch.uint8)
        received = [torch.empty_like(sent) for _ in range(self.size)]
        try:
            dist.all_gather(received, sent, group=self.group, async_op=True).wait(_PATIENCE)
        except RuntimeError:
            pass  # they are elsewhere, and will notice that this process is gone


def ranks(shards: int | None = None, timeout: timedelta | None = None) -> Ranks:
    """Return this process's place; a process by itself is rank 0 of 1.

    All processes call this together: it makes a process group, on the CPU whatever the backend of
    the others, so that an exchange waits for no accelerator and notices a process that has died.

    Args:
        shards: parts of the data, by default one a process.
        timeout: how long to wait for a process that hangs, by default torch's 30 minutes.

    Raises:
        ValueError: ``shards`` does not divide the number of processes.
    """
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return Ranks(shards=1 if shards is None else shards)
    size = dist.get_world_size()
    place = Ranks(dist.get_rank(), size, size if shards is None else shards)
    group = dist.new_group(backend="gloo", timeout=timeout)
    return Ranks(place.rank, place.size, place.shards, group)


def check_same(found: Sequence[Mapping[str, Any]], where: str) -> None:
    """Refuse processes that differ in what must be the same.

    Args:
        found: what each process has, by name, in the order of the ranks.
        where: the moment, for the message.

    Raises:
        RankError: two differ; the message names the ranks and what differs.
    """
    for rank, theirs in enumerate(found):
        for name, value in found[0].items():
            if theirs[name] != value:
                raise RankError(
                    f"the processes differ {where} in {name}: rank 0 has {value}, rank {rank} has "
                    f"{theirs[name]}. They must begin with the same weights (set the seed before "
                    "the model is made), the same data and the same settings, and use one version "
                    "and one backend of the package"
                )


def digest_of(batch: Mapping[str, Any]) -> int:
    """Fold the tensors of a batch into 32 bits."""
    digest = hashlib.sha256()
    tensors = ((name, batch[name]) for name in sorted(batch) if isinstance(batch[name], Tensor))
    add_tensors(digest, tensors)
    return int.from_bytes(digest.digest()[:4], "little")
