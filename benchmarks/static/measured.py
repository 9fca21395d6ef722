"""The model against what an H100 took: ``python -m benchmarks kernels --measured``.

The rows of ``benchmarks/results/h100.json`` were measured with triton 3.6. What the kernels of that
day held is written down here, since the present ones are others: instructions an element are those
of the static report of that state, and the updates were compiled without a limit of registers,
which left them 128.
"""

import json
from pathlib import Path
from typing import NamedTuple

from benchmarks.static.model import predict, residents

FILE = Path(__file__).resolve().parents[1] / "results" / "h100.json"
THREADS = 256


class Measured(NamedTuple):
    """A kernel as it was measured.

    Attributes:
        op: name of the rows.
        dtype: of the parameters.
        mode: of the rows.
        instructions: of a thread per element (of a copy).
        registers: of a thread.
        traffic: bytes that an element has to move.
    """

    op: str
    dtype: str
    mode: str
    instructions: float
    registers: int
    traffic: float


KERNELS = (
    Measured("add_noise_", "float32", "1 probes", 101.8, 128, 8.0),
    Measured("add_noise_", "bfloat16", "1 probes", 99.4, 128, 4.0),
    Measured("add_noise_", "float16", "1 probes", 99.4, 128, 4.0),
    Measured("perturbed_copies", "float32", "4 probes", 98.0, 62, 5.0),
    Measured("perturbed_copies", "bfloat16", "4 probes", 99.2, 108, 2.5),
    Measured("perturbed_copies", "float16", "4 probes", 93.6, 112, 2.5),
    Measured("momentum_update_", "float32", "1 probes", 110.1, 128, 16.0),
    Measured("momentum_update_", "bfloat16", "1 probes", 108.7, 128, 12.0),
    Measured("momentum_update_", "float16", "1 probes", 108.7, 128, 12.0),
    Measured("adam_update_", "float32", "1 probes", 141.9, 128, 24.0),
    Measured("adam_update_", "bfloat16", "1 probes", 140.9, 128, 20.0),
    Measured("adam_update_", "float16", "1 probes", 140.9, 128, 20.0),
)


def errors() -> list[tuple[Measured, int, float, float]]:
    """Return of each kernel the programs on an SM, and its predicted and measured ps an element."""
    rows = json.loads(FILE.read_text())
    taken = {
        (row["op"], row["dtype"], row["mode"]): row["median"]
        for row in rows
        if row["provider"] == "adazeta" and row["metric"] == "bandwidth"
    }
    found = []
    for kernel in KERNELS:
        programs, _ = residents("sm_90", kernel.registers, THREADS, 0)
        predicted = predict({"all": kernel.instructions}, kernel.traffic, programs).time_ps
        gigabytes = taken[kernel.op, kernel.dtype, kernel.mode]
        found.append((kernel, programs, predicted, 1e3 * kernel.traffic / gigabytes))
    return found


def table() -> str:
    """Write predicted and measured times as a table of Markdown."""
    lines = [
        "| kernel, as it was measured | instructions | programs an SM | predicted, ps | measured | "
        "error |",
        "|---|---|---|---|---|---|",
    ]
    for kernel, programs, predicted, measured in errors():
        lines.append(
            f"| `{kernel.op}` {kernel.dtype} | {kernel.instructions:g} | {programs} | "
            f"{predicted:.2f} | {measured:.2f} | {predicted / measured - 1:+.0%} |"
        )
    return "\n".join(lines)
