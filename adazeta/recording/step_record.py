"""One optimizer step in a few dozen bytes.

Seeds are a pure function of run seed, step, query and group
(:func:`adazeta.support.seeds.derive_seed`), so a record names its grid of queries and groups and
which probes of it were kept; only seeds that are not on the grid are written out.
"""

import json
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch

from adazeta.estimation.probes import Probes
from adazeta.support.seeds import MASK64, derive_seed

_FIXED = struct.Struct("<BQdddIIIIBI")
_SORTED, _EXPLICIT, _MASKED, _CHANGES = 1, 2, 4, 8

MEASURED = "estimator"
"""Key, among the changes of a record, of what the estimator measured (but eps)."""

SMALLEST = _FIXED.size
"""Bytes of the shortest record."""


class LogError(ValueError):
    """A probe log cannot be read, or does not belong to this run."""


@dataclass(frozen=True)
class StepRecord:
    """One optimizer step.

    Attributes:
        step: index of the step in the optimizer, from 0.
        epoch: epochs done once the step is.
        loss: mean loss, NaN if none was finite.
        eps: perturbation scale.
        evaluations: losses of a whole batch that the step computed.
        queries: directions per example.
        dropped: probes left out because a loss was not finite.
        rates: learning rate of each parameter group.
        seeds: of the probes, in [0, 2**64), in the order in which their noise is added.
        coefficients: float32 values, one per seed. No probe: the step changed nothing.
        changes: other settings of parameter groups that differ from the step before (in the first
            record: from the header), by index of the group; under ``"estimator"``, what the
            estimator measured for itself.
    """

    step: int
    epoch: float
    loss: float
    eps: float
    evaluations: int
    queries: int
    dropped: int
    rates: tuple[float, ...]
    seeds: tuple[int, ...]
    coefficients: tuple[float, ...]
    changes: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        probes: Probes,
        *,
        step: int,
        epoch: float,
        eps: float,
        rates: Iterable[float],
        changes: dict[str, dict[str, Any]],
    ) -> "StepRecord":
        """Return the record of a step that applies some probes; the rest are attributes of it."""
        return cls(
            step=step,
            epoch=epoch,
            loss=probes.loss,
            eps=eps,
            evaluations=probes.evaluations,
            queries=probes.queries,
            dropped=probes.dropped,
            rates=tuple(rates),
            # int64 has seeds of 2**63 or more as negative numbers.
            seeds=tuple(seed & MASK64 for seed in probes.seeds.tolist()),
            coefficients=tuple(probes.coefficients.tolist()),
            changes=changes,
        )

    def probes(self, device: torch.device) -> Probes:
        """Return the probes of the step on a device; ``projected`` holds the coefficients."""
        seeds = [seed - MASK64 - 1 if seed >> 63 else seed for seed in self.seeds]
        coefficients = torch.tensor(self.coefficients, dtype=torch.float32)
        return Probes(
            seeds=torch.tensor(seeds, dtype=torch.int64, device=device),
            coefficients=coefficients.to(device),
            projected=coefficients,
            loss=self.loss,
            evaluations=self.evaluations,
            queries=self.queries,
            dropped=self.dropped,
        )


def encode(record: StepRecord, run_seed: int) -> bytes:
    """Return the payload of a record.

    Args:
        record: the record.
        run_seed: of the header.
    """
    flags, columns, mask = _locate(record, run_seed)
    parts = [b"".join(struct.pack("<d", rate) for rate in record.rates), mask]
    if flags & _EXPLICIT:
        parts.append(struct.pack(f"<{len(record.seeds)}Q", *record.seeds))
    parts.append(struct.pack(f"<{len(record.coefficients)}f", *record.coefficients))
    if record.changes:
        flags |= _CHANGES
        parts.append(json.dumps(record.changes, sort_keys=True, separators=(",", ":")).encode())
    fixed = _FIXED.pack(
        flags,
        record.step,
        record.epoch,
        record.loss,
        record.eps,
        record.evaluations,
        record.queries,
        columns,
        record.dropped,
        len(record.rates),
        len(record.seeds),
    )
    return fixed + b"".join(parts)


def decode(payload: bytes, run_seed: int) -> StepRecord:
    """Return the record of a payload.

    Args:
        payload: what :func:`encode` returned.
        run_seed: of the header.

    Raises:
        LogError: the payload is no record.
    """
    try:
        return _decode(payload, run_seed)
    except (struct.error, ValueError, RecursionError) as error:
        raise LogError(f"not a step record: {error}") from None


def _decode(payload: bytes, run_seed: int) -> StepRecord:
    flags, step, epoch, loss, eps, evaluations, queries, columns, dropped, groups, count = (
        _FIXED.unpack_from(payload)
    )
    place = _FIXED.size
    rates = struct.unpack_from(f"<{groups}d", payload, place)
    place += 8 * groups
    if 4 * count > len(payload) - place:  # before anything of that length is made
        raise ValueError(f"{count} probes in {len(payload)} bytes")
    if flags & _EXPLICIT:
        seeds = struct.unpack_from(f"<{count}Q", payload, place)
        place += 8 * count
    else:
        cells = queries * columns
        if flags & _MASKED:
            size = -(-cells // 8)
            bits = int.from_bytes(payload[place : place + size], "little")
            place += size
            if place > len(payload) or bits >> cells:
                raise ValueError(f"a mask of {cells} probes in {len(payload)} bytes")
            kept = [cell for cell in range(cells) if bits >> cell & 1]
        else:
            kept = list(range(cells)) if cells == count else []
        if len(kept) != count:
            raise ValueError(f"{count} probes on a grid of {queries} x {columns}")
        drawn = (derive_seed(run_seed, step, cell // columns, cell % columns) for cell in kept)
        seeds = tuple(sorted(drawn) if flags & _SORTED else drawn)
    coefficients = struct.unpack_from(f"<{count}f", payload, place)
    place += 4 * count
    changes: dict[str, dict[str, Any]] = {}
    if flags & _CHANGES:
        changes = json.loads(payload[place:].decode())
        place = len(payload)
        if not isinstance(changes, dict) or not all(isinstance(c, dict) for c in changes.values()):
            raise ValueError("changed settings are not a mapping")
    if place != len(payload):
        raise ValueError(f"{len(payload) - place} bytes too many")
    return StepRecord(
        step, epoch, loss, eps, evaluations, queries, dropped, rates, seeds, coefficients, changes
    )


def _locate(record: StepRecord, run_seed: int) -> tuple[int, int, bytes]:
    """Find the probes on a grid: ``(flags, columns, mask)``; seeds off it are explicit."""
    total = len(record.seeds) + record.dropped
    for columns in sorted({1, -(-total // max(record.queries, 1))}):
        cells = record.queries * columns
        if not len(record.seeds) <= cells <= 8 * (total + 64):
            continue
        place = {
            derive_seed(run_seed, record.step, cell // columns, cell % columns): cell
            for cell in range(cells)
        }
        kept = [place.get(seed, -1) for seed in record.seeds]
        if -1 in kept or len(set(kept)) != len(kept):
            continue
        if kept == sorted(kept):
            flags = 0
        elif list(record.seeds) == sorted(record.seeds):
            flags = _SORTED
        else:
            continue
        if len(kept) == cells:
            return flags, columns, b""
        bits = sum(1 << cell for cell in kept)
        return flags | _MASKED, columns, bits.to_bytes(-(-cells // 8), "little")
    return _EXPLICIT, 0, b""


def step_of(payload: bytes) -> int:
    """Return the step of an encoded record, -1 if it is too short to be one."""
    return struct.unpack_from("<Q", payload, 1)[0] if len(payload) >= SMALLEST else -1
