"""Compile kernels ahead of time for GPUs that need not be there, and read the machine code.

Triton decides at import between compiler and interpreter, and a process can hold only one triton,
so :func:`survey` runs this module as a process of its own: ``python -m benchmarks.static.compile``.
"""

import argparse
import fnmatch
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from benchmarks.measure.process import ROOT, compiling
from benchmarks.static.disassemble import gcn_blocks, sass_blocks
from benchmarks.static.flow import Loop, static_counts, ways_of
from benchmarks.static.values import repeated

TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")
Facts = dict[str, Any]


def survey(
    names: Sequence[str] = ("*",),
    targets: Sequence[str] = TARGETS,
    *,
    triton_path: Path | None = None,
    jobs: int = 1,
) -> list[Facts]:
    """Compile variants and return what their machine code says.

    Args:
        names: patterns (``fnmatch``) of variant names.
        targets: from :data:`TARGETS`.
        triton_path: folder with another triton (``pip install --target``), else the installed one.
        jobs: processes.

    Returns:
        One dict per variant and target: ``variant``, ``target``, ``triton``, ``registers``,
        ``spills`` (instructions or registers), ``stack_bytes``, ``shared_bytes``, ``fusible``
        (fused or fusible operations in the code before the assembler), ``planned`` (those that are
        meant), ``roots`` and ``quotients`` of the same code, and opcode counts:
        ``static`` of all code, ``ways`` as :class:`~benchmarks.static.flow.Way`.

    Raises:
        RuntimeError: if a kernel does not compile.
    """
    environment = compiling(triton_path)
    with tempfile.TemporaryDirectory() as folder:
        environment.setdefault("TRITON_CACHE_DIR", folder)
        running = []
        for job in range(jobs):
            out = Path(folder) / f"{job}.json"
            command = [
                sys.executable,
                "-m",
                "benchmarks.static.compile",
                "--out",
                str(out),
                "--share",
                str(job),
                str(jobs),
                "--targets",
                *targets,
                "--names",
                *names,
            ]
            running.append(
                (
                    out,
                    subprocess.Popen(
                        command,
                        env=environment,
                        cwd=ROOT,
                        text=True,
                        stdout=subprocess.PIPE,
                        stderr=subprocess.STDOUT,
                    ),
                )
            )
        found: list[Facts] = []
        for out, process in running:
            output = process.communicate()[0]
            if process.returncode:
                raise RuntimeError(f"the compiler process failed:\n{output[-3000:]}")
            found += json.loads(out.read_text())
    order = {target: index for index, target in enumerate(targets)}
    return sorted(found, key=lambda facts: (facts["index"], order[facts["target"]]))


def compiled(variant: Any, target: str) -> Any:
    """Compile what :func:`for_target` returns, in the process whose triton is to be used."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from adazeta.kernels.gpu.arithmetic import EXACT

    if target.startswith("sm_"):
        gpu = GPUTarget("cuda", int(target.removeprefix("sm_")), 32)
    else:
        gpu = GPUTarget("hip", target, 64)
        _link_without_rocm()
    names = variant.kernel.arg_names
    missing = set(names) - set(variant.signature) - set(variant.constants)
    if missing:
        raise ValueError(f"variant {variant.name} gives no type for {sorted(missing)}")
    constants = dict(variant.constants)
    types = {name: "constexpr" if name in constants else variant.signature[name] for name in names}
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in variant.divisible}
    source = ASTSource(variant.kernel, types, constants, attributes)
    warps = variant.num_warps if target.startswith("sm_") else threads_of(variant, target) // 64
    options = {"num_warps": warps, "num_stages": variant.num_stages}
    options |= {"enable_fp_fusion": True} if variant.fusion else EXACT
    if variant.maxnreg is not None and target.startswith("sm_"):
        options["maxnreg"] = variant.maxnreg
    # Kernels may ask the active driver what they are compiled for.
    triton.runtime.driver.set_active(SimpleNamespace(get_current_target=lambda: gpu))
    return triton.compile(source, target=gpu, options=options)


def for_target(variant: Any, target: str) -> Any:
    """The variant with what the launchers choose otherwise on AMD; runs as :func:`compiled`."""
    from adazeta.kernels.gpu.tensor_lists import NARROW_BLOCK_OF_AMD

    if not target.startswith("gfx"):
        return variant
    constants, elements = dict(variant.constants), variant.elements
    if "PRECISION" in constants:
        constants["PRECISION"] = "ieee"  # as low_rank.PRECISION
    if constants.get("ALIGNED") is False:
        constants["BLOCK"] = elements = min(constants["BLOCK"], NARROW_BLOCK_OF_AMD)
    return replace(variant, constants=constants, elements=elements)


def threads_of(variant: Any, target: str) -> int:
    """Threads of one program."""
    if target.startswith("sm_"):
        return 32 * variant.num_warps
    return 64 * (variant.wavefronts or variant.num_warps)


def _link_without_rocm() -> None:
    """Let triton before 3.5, which ships no linker for AMD, end with the assembly.

    A linker that does nothing leaves an empty binary; only the assembly is read here.
    """
    from triton.backends.amd.compiler import HIPBackend

    if not hasattr(HIPBackend, "path_to_rocm_lld"):
        return
    try:
        HIPBackend.path_to_rocm_lld()
    except Exception:
        HIPBackend.path_to_rocm_lld = staticmethod(lambda: shutil.which("true"))


def facts_of(variant: Any, target: str) -> Facts:
    """Compile one variant and read its machine code; runs inside the compiler process."""
    import triton

    variant = for_target(variant, target)
    kernel = compiled(variant, target)
    code = kernel.asm["llir"]
    facts: Facts = {
        "variant": variant.name,
        "target": target,
        "triton": triton.__version__,
        "kernel": variant.kernel.__name__,
        "noise": variant.noise,
        "fusion": variant.fusion,
        "threads": threads_of(variant, target),
        "elements": variant.elements,
        "traffic": dict(variant.traffic),
        "trips": list(variant.loops),
        "shared_bytes": kernel.metadata.shared,
        "fusible": len(re.findall(r"\bcontract\b|fmuladd|\breassoc\b|\bafn\b|\bfast\b", code)),
    }
    if target.startswith("sm_"):
        # What is written out as assembly is meant: products that are exact, roots and quotients.
        written = re.compile(r"// begin inline asm.*?// end inline asm", re.S)
        meant = "".join(written.findall(kernel.asm["ptx"]))
        ptx = written.sub("", kernel.asm["ptx"])
        facts["planned"] = len(re.findall(r"\bfma[.]rn[.]f32", meant))
        facts["roots"] = len(re.findall(r"\bsqrt[.]rn[.]f32", kernel.asm["ptx"]))
        facts["quotients"] = len(re.findall(r"\bdiv[.]rn[.]f32", kernel.asm["ptx"]))
        # What flushes subnormal numbers, beside what is written out for normal ones.
        facts["flushing"] = len(re.findall(r"\b(?:sqrt|div)[.]rn[.]ftz", ptx))
        facts["fusible"] += len(
            re.findall(
                r"\bfma[.]|\bmad[.]rn|[.]approx|"
                r"\b(?:mul|add|sub)[.]\S*ftz",
                ptx,
            )
        )
        listing = _cuobjdump(kernel.asm["cubin"])
        numbers = dict(re.findall(r"\b(REG|STACK|LOCAL):(\d+)", listing))
        blocks = sass_blocks(listing)
        facts["registers"] = int(numbers["REG"])
        facts["stack_bytes"] = int(numbers["STACK"]) + int(numbers["LOCAL"])
        facts["repeated"] = repeated(blocks)
        local = [opcode for opcode in static_counts(blocks) if opcode.startswith(("LDL", "STL"))]
        facts["spills"] = sum(static_counts(blocks)[opcode] for opcode in local)
    else:
        assembly = kernel.asm["amdgcn"]
        facts["planned"] = _lanes(r"call .*@llvm[.]fma[.](?:v(\d+))?f32", code)
        facts["roots"] = _lanes(r"call .*@llvm[.]sqrt[.](?:v(\d+))?f32", code)
        facts["quotients"] = _lanes(r"= fdiv (?:<(\d+) x )?float", code)
        numbers = dict(
            re.findall(r"^\s*[.](\w+_count|private_segment_fixed_size):\s+(\d+)", assembly, re.M)
        )
        blocks = gcn_blocks(assembly)
        facts["registers"] = int(numbers["vgpr_count"])
        facts["scalar_registers"] = int(numbers["sgpr_count"])
        facts["stack_bytes"] = int(numbers["private_segment_fixed_size"])
        # Stores of vector registers that did not fit: to memory (stack_bytes) or, on this target,
        # to accumulation registers.
        facts["spills"] = int(numbers["vgpr_spill_count"])
        # Scalar registers that did not fit are parked in lanes of a vector register, by one
        # instruction each and without memory; where lanes run out too, stack_bytes shows it.
        facts["scalar_spills"] = int(numbers["sgpr_spill_count"])
    facts["static"] = static_counts(blocks)
    facts["ways"] = [
        {"least": way.least, "most": way.most, "loops": list(map(_plain, way.loops))}
        for way in ways_of(blocks, whole_blocks=variant.noise)
    ]
    return facts


def _lanes(pattern: str, code: str) -> int:
    """Operations of LLVM's code that a pattern finds, whose group tells how many are in one."""
    return sum(int(lanes or 1) for lanes in re.findall(pattern, code))


def _plain(loop: Loop) -> dict[str, Any]:
    return {"counts": loop.counts, "inner": [_plain(inner) for inner in loop.inner]}


def _cuobjdump(cubin: bytes) -> str:
    """Registers and stacks that a kernel uses, and its instructions."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run(
            [tool, "-res-usage", "-sass", file.name], capture_output=True, text=True, check=True
        ).stdout


def chosen(names: Iterable[str]) -> Iterator[Any]:
    """Variants whose name fits one of the patterns, the expansions of roots.py among them."""
    from adazeta.kernels.gpu.variants import all_variants
    from benchmarks.static import roots

    patterns = list(names)
    for variant in (*all_variants(), *roots.variants()):
        if any(fnmatch.fnmatchcase(variant.name, pattern) for pattern in patterns):
            yield variant


def main() -> int:
    """Compile this process's share and write the facts as JSON."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--names", nargs="+", required=True)
    parser.add_argument("--targets", nargs="+", required=True, choices=TARGETS)
    parser.add_argument("--share", nargs=2, type=int, default=(0, 1))
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    share, shares = options.share
    found = []
    for index, variant in enumerate(chosen(options.names)):
        if index % shares == share:
            for target in options.targets:
                try:
                    found.append({"index": index, **facts_of(variant, target)})
                except Exception as error:
                    raise RuntimeError(f"{variant.name} for {target}") from error
    options.out.write_text(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
