"""What the Triton launchers can ask the compiler for, written down so that it can be checked.

Each module with ``@triton.jit`` kernels that are launched (by convention named ``*_kernel``) has a
generator ``variants()`` of :class:`Variant`: one for every configuration that its launchers can
choose, up to sizes of the model that are compiled in, for which it takes typical values. The
report ``python -m benchmarks kernels`` and the tests compile them ahead of time without a GPU.
"""

import pkgutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class Variant:
    """One configuration of one kernel.

    Args:
        name: ``kernel/what/sets/it/apart``, unique.
        kernel: the ``@triton.jit`` function.
        signature: triton type of every argument that is no constant, such as ``"*fp32"``,
            ``"*bf16"``, ``"i32"``, ``"i64"``, ``"fp32"``; any order.
        constants: values of the ``tl.constexpr`` arguments.
        divisible: arguments that the launcher knows to be multiples of 16 (of 16 bytes, for
            pointers), which is what triton's own specialisation would find.
        num_warps: warps (of 32 threads) per program.
        wavefronts: wavefronts (of 64 threads) per program on AMD, if not ``num_warps``.
        num_stages: stages of software pipelining.
        maxnreg: registers per thread that NVIDIA's assembler may use, None if that is not stated.
        fusion: whether the compiler may contract a * b + c; the noise must not.
        elements: elements of the result that one program computes (per probe, for kernels whose
            programs serve one probe).
        traffic: bytes that any algorithm must move per element, reads and writes of device
            memory, by dtype of the parameters: ``{"float32": 8.0}`` for one read and one write.
        loops: iterations that each loop of the kernel makes in one program of a typical call, in
            the order of the source, all outermost loops first; loops that the compiler unrolls
            fully (``tl.static_range``) are left out.
        noise: a float32 Gaussian or Rademacher path is inside: it must be free of fused
            multiply-add and load and store 16 bytes at a time.
    """

    name: str
    kernel: Any
    signature: Mapping[str, str]
    constants: Mapping[str, Any]
    elements: int
    traffic: Mapping[str, float]
    divisible: tuple[str, ...] = ()
    num_warps: int = 4
    wavefronts: int = 0
    num_stages: int = 3
    maxnreg: int | None = None
    fusion: bool = False
    loops: tuple[int, ...] = ()
    noise: bool = False


def all_variants() -> Iterator[Variant]:
    """Collect the variants of every module beside this one."""
    package = import_module(__package__)
    for module in sorted(found.name for found in pkgutil.iter_modules(package.__path__)):
        generator = getattr(import_module(f"{__package__}.{module}"), "variants", None)
        if callable(generator):
            yield from generator()
