"""Launches over many tensors: how many there are, what each program works on, and addresses.

The interpreter takes some 30 ms per probe and program, so of a long list only some programs are
run here, by shifting the table under one program; `tests/test_gpu_*.py` run whole lists.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from adazeta.kernels import add_noise_, momentum_update_, use_backend

pytest.importorskip("triton")

from adazeta.kernels import multi_tensor, noise, updates  # noqa: E402

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
END = multi_tensor.END.value


class Recorder:
    """Stands in for a kernel: counts the launches, and runs some programs of them."""

    def __init__(self, kernel, programs=()):
        self.kernel, self.programs, self.grids, self.tables = kernel, programs, [], []

    def __getitem__(self, grid):
        self.grids.append(grid)

        def launch(origin, table, *arguments, **options):
            self.tables.append(table)
            for program in self.programs:
                # Behind a row that ends at -program, program 0 of the table is this program.
                head = torch.zeros(1, table.shape[1], dtype=torch.int64)
                shifted = torch.cat([head, table])
                shifted[:, END] -= program % grid[0]
                self.kernel[(1,)](origin, shifted, len(shifted), *arguments[1:], **options)

        return launch


def thousand():
    generator = torch.Generator().manual_seed(2)
    sizes = torch.randint(0, 60, (1000,), generator=generator).tolist()
    sizes[3], sizes[500], sizes[999] = 5003, 4099, 131
    return [torch.randn(size, generator=generator).to(DTYPES[index % 3])
            for index, size in enumerate(sizes)]


@pytest.mark.parametrize(("probes", "count"), [(1, 12), (2, 8), (7, 3), (40, 1)])
def test_a_thousand_tensors_are_one_launch_equal_to_the_reference(monkeypatch, probes, count):
    tensors, seeds = thousand(), torch.arange(probes) * 77
    coefficients = torch.linspace(-1, 1, probes)
    expected = [tensor.clone() for tensor in tensors]
    with use_backend("reference"):
        add_noise_(expected, seeds, coefficients, decay=0.9)
    programs = [-1, 0, 5, 6, 3, 500, 501, 502, 503, 504, 33, 997][:count]
    recorder = Recorder(noise.add_noise_kernel, programs)
    monkeypatch.setattr(noise, "add_noise_kernel", recorder)
    before = [tensor.clone() for tensor in tensors]
    with use_backend("triton"):
        add_noise_(tensors, seeds, coefficients, decay=0.9)
    assert len(recorder.grids) == 1
    (table,) = recorder.tables
    owners = torch.searchsorted(table[:, END].contiguous(),
                                torch.tensor(programs) % recorder.grids[0][0], right=True)
    held = [index for index, tensor in enumerate(tensors) if tensor.numel()]
    assert len(table) == len(held)
    changed = {held[owner] for owner in owners.tolist()}
    for index, (got, old, new) in enumerate(zip(tensors, before, expected, strict=True)):
        assert index in changed or torch.equal(got, old)
        if index in changed:
            # Only the programs that ran have written; what they wrote is right.
            wrote = got != old
            assert wrote.any() and torch.equal(got[wrote], new[wrote])
            if got.numel() <= 1024:
                assert torch.equal(got, new)


@pytest.mark.parametrize("distribution", ["gaussian", "rademacher"])
def test_the_programs_tile_every_tensor(monkeypatch, distribution):
    recorder = Recorder(noise.add_noise_kernel)
    monkeypatch.setattr(noise, "add_noise_kernel", recorder)
    tensors = thousand()
    with use_backend("triton"):
        add_noise_(tensors, [1], [1.0], distribution=distribution)
    (table,) = recorder.tables
    grain = multi_tensor.GRAINS[distribution]
    previous = 0
    for row in table.tolist():
        offset, size, dtype, end = row[4:]
        block = noise.HALF_BLOCK if dtype else noise.BLOCK
        assert (end - previous - 1) * block < offset % grain + size <= (end - previous) * block
        previous = end
    assert recorder.grids == [(previous,)]


def test_an_epilogue_over_a_list_is_one_launch(monkeypatch):
    recorder = Recorder(updates.momentum_kernel)
    monkeypatch.setattr(updates, "momentum_kernel", recorder)
    tensors = thousand()
    momenta = [torch.zeros(tensor.shape) for tensor in tensors]
    with use_backend("triton"):
        momentum_update_(tensors, momenta, [1, 2], [1.0, 1.0], momentum=0.9, lr=0.1)
    assert len(recorder.grids) == 1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("distribution", ["gaussian", "rademacher"])
def test_blocks_beyond_2_31_elements_of_a_tensor(dtype, distribution):
    """One program far inside a tensor of 2^33 elements, whose other elements do not exist."""
    block = noise.BLOCK if dtype == torch.float32 else noise.HALF_BLOCK
    ahead = (1 << 33) // block
    theta = torch.randn(block).to(dtype)
    offset = (1 << 40) + 128
    with use_backend("reference"):
        expected = add_noise_(theta.clone(), [5], [0.5], offsets=offset + ahead * block,
                              distribution=distribution)
    launch = multi_tensor.prepare([theta], [theta], (), [offset], distribution,
                                  (noise.BLOCK, noise.HALF_BLOCK), noise.VECTORS)
    table = torch.cat([torch.zeros(1, 8, dtype=torch.int64), launch.table])
    table[0, END] = -ahead
    table[1, END] = 1
    for column in (multi_tensor.INPUT.value, multi_tensor.OUTPUT.value):
        table[1, column] -= ahead * block
    table[1, multi_tensor.SIZE.value] = (ahead + 1) * block
    seeds, coefficients = torch.tensor([5]), torch.tensor([0.5])
    noise.add_noise_kernel[(1,)](
        launch.origin, table, 2, seeds, coefficients, 1, 1.0, seeds, ALIGNED=launch.aligned,
        RADEMACHER=distribution == "rademacher", STOCHASTIC=False, BLOCK=noise.BLOCK,
        HALF_BLOCK=noise.HALF_BLOCK)
    assert torch.equal(theta, expected)


def test_alignment_is_that_of_sixteen_bytes():
    def aligned(tensor, offset, distribution="gaussian"):
        return multi_tensor.prepare([tensor], [tensor], (), [offset], distribution,
                                    (noise.BLOCK, noise.HALF_BLOCK), noise.VECTORS).aligned

    full, half = torch.zeros(100), torch.zeros(100).half()
    assert aligned(full, 4) and aligned(full[4:], 4) and aligned(half, 4) and aligned(half[8:], 4)
    assert not aligned(full[1:], 4) and not aligned(full, 2) and not aligned(half[4:], 4)
    assert aligned(full, 4, "rademacher") and aligned(half, 8, "rademacher")
    assert not aligned(half, 4, "rademacher")


COMPILES = """
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction
from adazeta.kernels import noise, updates
from adazeta.kernels.reference import AdamScalars

class Driver:  # of a GPU that is not there: enough to compile, and nothing is launched
    def get_current_device(self): return 0
    def get_current_stream(self, device): return 0
    def get_current_target(self): return GPUTarget("cuda", 90, 32)

triton.runtime.driver.set_active(Driver())
run = JITFunction.run
JITFunction.run = lambda self, *a, grid, warmup, **k: run(self, *a, grid=grid, warmup=True, **k)
storage = torch.zeros(1 << 16)
seeds, values = torch.arange(64), torch.rand(64)
for count, size, first, scalar, offset in ((1, 64, 0, 1.0, 0), (2, 999, 3, 0.5, 1 << 40),
                                           (16, 1, 16, 0.0, 128), (40, 4096, 1, 3.7, 4)):
    some = slice(first, first + count)
    tensors = [storage[1024 * k:1024 * k + min(size, 1024)] for k in range(count)]
    offsets = [offset + 1024 * k for k in range(count)]
    probes = seeds[some], values[some]
    noise.add_noise_(tensors, tensors, offsets, *probes, scalar, "gaussian", None)
    noise.perturbed_copies(storage[:4 * size], *probes, offset, 0, "gaussian")
    updates.momentum_update_(tensors, tensors, offsets, *probes, scalar, scalar, scalar,
                             "gaussian", seeds[first:first + 1])
    updates.adam_update_(tensors, tensors, [], offsets, *probes, AdamScalars(*[scalar] * 9),
                         values[first:first + 1], "gaussian", seeds[first:first + 1])
for kernel in (noise.add_noise_kernel, noise.perturbed_copies_kernel, updates.momentum_kernel,
               updates.adam_kernel):
    found = sum(len(cache[0]) for cache in kernel.device_caches.values())
    assert found == 1, (kernel, found)
"""


def test_values_and_counts_never_recompile(tmp_path):
    environment = {name: value for name, value in os.environ.items()
                   if name not in ("TRITON_INTERPRET", "ADAZETA_BACKEND")}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    environment["PYTHONPATH"] = str(Path(__file__).resolve().parents[1])
    script = tmp_path / "compiles.py"
    script.write_text(COMPILES)
    run = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True,
                         check=False)
    assert run.returncode == 0, run.stderr[-3000:]
