"""The global random generators at the start of an epoch, as JSON.

Directions and rounding never draw from them, but samplers may: the one that groups examples by
length orders an epoch by torch's. So a resumed run needs them as they were.
"""

import json
import random
from collections.abc import Container
from pathlib import Path
from typing import Any

import numpy as np
import torch

from adazeta.durable import write_whole


def save_generators(path: Path, epoch: int) -> None:
    """Write the states of Python's, NumPy's and torch's generators (of the CPU) to a file."""
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
        numbers = (kind, np.array(key, dtype=np.uint32), *rest)
        data = bytearray.fromhex(state["torch"])
        torch.Generator().set_state(torch.frombuffer(data, dtype=torch.uint8))  # a check
        random.Random().setstate((version, tuple(words), gauss))
        np.random.RandomState().set_state(numbers)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, RecursionError):
        return None
    if epoch not in epochs:
        return None
    torch.set_rng_state(torch.frombuffer(data, dtype=torch.uint8))
    random.setstate((version, tuple(words), gauss))
    np.random.set_state(numbers)
    return epoch
