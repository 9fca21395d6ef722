"""The global random generators: kept for a run that resumes, and out of the way of its batches.

Directions and rounding never draw from them, but samplers may: the one that groups examples by
length orders an epoch by torch's. So a resumed run needs them as they were when the epoch began.
Whatever draws at other times (data sets, collators, evaluations) gets them seeded for itself and
leaves them as they were, or it would decide the next epoch's order.
"""

import json
import random
from collections.abc import Container, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from adazeta.support.files import write_whole


@contextmanager
def seeded_generators(seed: int) -> Iterator[None]:
    """Seed Python's, NumPy's and torch's generators (of the CPU), and put them back in the end.

    Args:
        seed: in [0, 2**64).
    """
    before = random.getstate(), np.random.get_state(legacy=True), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed % (1 << 32))
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        _set(*before)


def _set(python: Any, numpy: Any, words: torch.Tensor) -> None:
    random.setstate(python)
    np.random.set_state(numpy)
    torch.set_rng_state(words)


def save_generators(path: Path, epoch: int) -> None:
    """Write the states of the generators to a file, as JSON."""
    kind, words, *rest = np.random.get_state(legacy=True)
    state = {
        "epoch": epoch,
        "python": random.getstate(),
        "numpy": [kind, np.asarray(words).tolist(), *rest],
        "torch": torch.get_rng_state().numpy().tobytes().hex(),
    }
    write_whole(path, f"{json.dumps(state)}\n".encode())


def restore_generators(path: Path, epochs: Container[int]) -> int | None:
    """Restore the generators from a file.

    Args:
        path: the file.
        epochs: those whose start will do.

    Returns:
        The epoch at whose start they were so; None, with nothing changed, if the file is missing,
        damaged or of another epoch.
    """
    try:
        state: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        epoch = int(state["epoch"])
        version, words, gauss = state["python"]
        kind, key, *rest = state["numpy"]
        python = (version, tuple(words), gauss)
        numpy = (kind, np.array(key, dtype=np.uint32), *rest)
        data = bytearray.fromhex(state["torch"])
        torch.Generator().set_state(torch.frombuffer(data, dtype=torch.uint8))  # a check
        random.Random().setstate(python)
        np.random.RandomState().set_state(numpy)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, RecursionError):
        return None
    if epoch not in epochs:
        return None
    _set(python, numpy, torch.frombuffer(data, dtype=torch.uint8))
    return epoch
