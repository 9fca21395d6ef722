"""What a kernel would take on an H100, predicted from its machine code.

The model. A streaming multiprocessor (SM) has 4 warp schedulers, each of which issues one
instruction of one warp (32 threads) per cycle, so 128 thread instructions per cycle. Each
instruction also occupies a pipe, which takes a number of thread instructions per cycle (``PIPES``).
All pipes, and the memory, are taken to work at the same time, at full occupancy and without
latency, so the time of one element is the largest of

    instructions / (128 SMs clock)                       issue
    instructions of a pipe / (rate SMs clock)            each pipe
    least bytes / bandwidth                              memory

and ``memory_fraction``, the predicted fraction of the memory roof, is the last over the largest.
It is an upper bound: stalls, tails and the launch are left out.

Where the numbers come from:

- 132 SMs, boost clock 1.98 GHz outside the tensor cores: H100 SXM5 in "NVIDIA H100 Tensor Core GPU
  Architecture" v1.04, table 3, as quoted by OpenXLA (xla/stream_executor/cuda/
  cuda_core_info_table.cc). A loaded card clocks lower; the fraction then falls in proportion
  where the issue rate limits.
- 3.35 TB/s: NVIDIA's data sheet of H100 SXM5 (as quoted on glennklockwood.com/garden/
  processors/h100).
- 128 FP32 and 64 INT32 cores, 16 special function units, 4 schedulers with one instruction per
  cycle each: CUDA C++ Programming Guide, compute capability 10.0; 128 and 64 for Hopper in the
  OpenXLA table.
- IMAD runs on the heavier half of the FP32 pipe, so at most 64 per cycle and within the 128:
  answer by NVIDIA about GH100 on forums.developer.nvidia.com, "separate CUDA core pipeline for
  FP16 and FP32" (302018).
- Taken, not found: IMAD.WIDE and IMAD.HI at half of that rate; conversions (I2F, F2I, F2F) at the
  rate of the special function units and I2FP at that of the integer cores; 32 lanes of loads and
  stores; one HMMA of 16x8x16 per cycle and SM, which is what 989 TFLOPS come to.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.static.disassemble import sass_class

SMS = 132
CLOCK = 1.98e9
BANDWIDTH = 3.35e12
# Thread instructions per cycle and SM.
ISSUE = 128.0
PIPES: Mapping[str, float] = {
    "fp32": 128.0,
    "integer multiply": 64.0,
    "integer": 64.0,
    "special": 16.0,
    "memory": 32.0,
    "tensor": 32.0,
}


@dataclass(frozen=True)
class Prediction:
    """Predicted cost of one element on an H100.

    Args:
        time_ps: picoseconds per element, all SMs together.
        limit: what takes that long: ``"memory"``, ``"issue"`` or a pipe.
        memory_fraction: predicted fraction of the memory roof, at most 1.
    """

    time_ps: float
    limit: str
    memory_fraction: float


def pipe_load(counts: Mapping[str, float]) -> dict[str, float]:
    """Passes through each pipe that instructions of one thread need, by opcode counts."""
    load: defaultdict[str, float] = defaultdict(float)
    for opcode, count in counts.items():
        base, *modifiers = opcode.split(".")
        kind = sass_class(opcode)
        if base == "IMAD":
            passes = 2 if "WIDE" in modifiers or "HI" in modifiers else 1
            load["integer multiply"] += count * passes
            load["fp32"] += count
        elif kind in ("fp32 add", "fp32 mul", "fma"):
            load["fp32"] += count
        elif kind == "integer" or base in ("I2FP", "F2FP", "MOV"):
            load["integer"] += count * (not base.startswith("U"))
        elif kind in ("special", "conversion"):
            load["special"] += count
        elif kind.endswith("memory") and base not in ("LDGDEPBAR", "DEPBAR"):
            load["memory"] += count
        elif kind == "tensor":
            load["tensor"] += count
    return load


def predict(counts: Mapping[str, float], traffic: float) -> Prediction:
    """Predict the time of an element.

    Args:
        counts: instructions of a thread per element, by opcode (fractions allowed).
        traffic: bytes of device memory that an element has to move.
    """
    cycle = 1e12 / (SMS * CLOCK)
    times = {"memory": 1e12 * traffic / BANDWIDTH, "issue": cycle * sum(counts.values()) / ISSUE}
    for pipe, passes in pipe_load(counts).items():
        times[f"{pipe} pipe"] = cycle * passes / PIPES[pipe]
    limit = max(times, key=lambda name: times[name])
    return Prediction(times[limit], limit, times["memory"] / times[limit])
