"""What a kernel would take on an H100, predicted from its machine code.

The model. A streaming multiprocessor (SM) has 4 warp schedulers, each of which issues one
instruction of one warp (32 threads) per cycle, so 128 thread instructions per cycle. Each
instruction also occupies a pipe, which takes a number of thread instructions per cycle (``PIPES``).
The time of the work of an element is the largest of

    instructions / (128 SMs clock)                       issue
    instructions of a pipe / (rate SMs clock)            each pipe

and beside it stands that of its memory, least bytes / bandwidth. How far the two overlap depends on
the **programs that share an SM**: registers, threads and shared memory allow P of them
(``residents``). A program computes or waits for its memory, so of one alone the times add up, and
of P one in P waits while the others compute:

    time = max(work, memory) + min(work, memory) / P

``memory_fraction``, the predicted fraction of a device copy, is the time of the memory over that.
The rule has no number that was fitted; ``static/measured.py`` sets it against what an H100 took.
Tails, launches and clocks below the boost are left out.

Where the numbers come from:

- 132 SMs, boost clock 1.98 GHz outside the tensor cores: H100 SXM5 in "NVIDIA H100 Tensor Core GPU
  Architecture" v1.04, table 3, as quoted by OpenXLA (xla/stream_executor/cuda/
  cuda_core_info_table.cc). A loaded card clocks lower; the fraction then falls in proportion
  where the issue rate limits.
- 2.97 TB/s: what a device copy reached (``benchmarks/results/h100.json``, rows "floor"; the data
  sheet says 3.35).
- Registers, threads, programs and shared memory of an SM: CUDA C++ Programming Guide, technical
  specifications per compute capability; registers are given to warps in lots of 256, and a program
  takes 1 KB of shared memory for the system. Of a compute unit of gfx942: LLVM's AMDGPUUsage.
- 128 FP32 and 64 INT32 cores, 16 special function units, 4 schedulers with one instruction per
  cycle each: CUDA C++ Programming Guide, compute capability 10.0; 128 and 64 for Hopper in the
  OpenXLA table.
- IMAD runs on the heavier half of the FP32 pipe, so at most 64 per cycle and within the 128:
  answer by NVIDIA about GH100 on forums.developer.nvidia.com, "separate CUDA core pipeline for
  FP16 and FP32" (302018).
- Taken, not found: IMAD.WIDE and IMAD.HI, and so all integer products here, at half of that rate;
  conversions at the rate of the special function units; 32 lanes of loads and stores; one HMMA of
  16x8x16 per cycle and SM, which is what 989 TFLOPS come to.
"""

from collections.abc import Mapping
from dataclasses import dataclass

SMS = 132
CLOCK = 1.98e9
BANDWIDTH = 2.97e12
# Thread instructions per cycle and SM.
ISSUE = 128.0
# The same of each pipe, and the passes through it that an instruction of a class takes.
PIPES: Mapping[str, tuple[float, Mapping[str, int]]] = {
    "fp32": (128.0, {"fp32 add": 1, "fp32 mul": 1, "fma": 1, "integer multiply": 1}),
    "integer multiply": (64.0, {"integer multiply": 2}),
    "integer": (64.0, {"integer": 1}),
    "special": (16.0, {"special": 1, "conversion": 1}),
    "memory": (32.0, {"global memory": 1, "shared memory": 1}),
    "tensor": (32.0, {"tensor": 1}),
}


@dataclass(frozen=True)
class Processor:
    """What programs share on one SM, or on one SIMD of a compute unit of AMD.

    Args:
        registers: of 32 bits a lane (AMD) or in all (NVIDIA).
        lot: registers are given to a warp in multiples of this.
        lanes: threads of a warp.
        warps: that can be resident.
        programs: that can be resident.
        shared: bytes of shared memory.
        reserved: bytes of it that each program takes beside its own.
    """

    registers: int
    lot: int
    lanes: int
    warps: int
    programs: int
    shared: int
    reserved: int


PROCESSORS: Mapping[str, Processor] = {
    "sm_80": Processor(1 << 16, 256, 32, 64, 32, 164 << 10, 1 << 10),
    "sm_90": Processor(1 << 16, 256, 32, 64, 32, 228 << 10, 1 << 10),
    "sm_100": Processor(1 << 16, 256, 32, 64, 32, 228 << 10, 1 << 10),
    # Four SIMDs with 512 registers a lane and 8 wavefronts each.
    "gfx942": Processor(4 * 512 * 64, 8 * 64, 64, 32, 32, 64 << 10, 0),
}


def residents(target: str, registers: int, threads: int, shared: int) -> tuple[int, int]:
    """Return how many programs share an SM or compute unit, and how many warps these are.

    Args:
        target: a key of :data:`PROCESSORS`.
        registers: of a thread.
        threads: of a program.
        shared: bytes of shared memory of a program.
    """
    found = PROCESSORS[target]
    warps = -(-threads // found.lanes)
    lot = -(-registers * found.lanes // found.lot) * found.lot
    programs = min(
        found.programs,
        found.warps // warps,
        found.registers // lot // warps,
        found.shared // max(1, shared + found.reserved),
    )
    return programs, programs * warps


@dataclass(frozen=True)
class Prediction:
    """Predicted cost of one element on an H100.

    Args:
        time_ps: picoseconds per element, all SMs together.
        limit: what takes most of that: ``"memory"``, ``"issue"`` or a pipe.
        memory_fraction: predicted fraction of a device copy, at most 1.
    """

    time_ps: float
    limit: str
    memory_fraction: float


def predict(classes: Mapping[str, float], traffic: float, programs: int) -> Prediction:
    """Predict the time of an element.

    Args:
        classes: instructions of a thread per element, by class (fractions allowed).
        traffic: bytes of device memory that an element has to move.
        programs: that share an SM.
    """
    cycle = 1e12 / (SMS * CLOCK)
    work = {"issue": cycle * sum(classes.values()) / ISSUE}
    for pipe, (rate, passes) in PIPES.items():
        load = sum(classes.get(name, 0.0) * count for name, count in passes.items())
        work[f"{pipe} pipe"] = cycle * load / rate
    memory = 1e12 * traffic / BANDWIDTH
    limit = max(work, key=lambda name: work[name])
    time = max(work[limit], memory) + min(work[limit], memory) / programs
    return Prediction(time, "memory" if memory > work[limit] else limit, memory / time)
