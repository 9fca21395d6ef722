"""Launches over many tensors: how many there are, what each program works on, and addresses."""

import os
import subprocess
import sys

import pytest
import torch

from adazeta.kernels import add_noise_, momentum_update_, use_backend
from tests.helpers.paths import ROOT

pytest.importorskip("triton")

from adazeta.kernels.gpu import noise, tensor_lists, updates  # noqa: E402

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


class Recorder:
    """Stands in for a kernel: records the launches and runs none of them."""

    def __init__(self):
        self.grids, self.tables, self.owners = [], [], []

    def __getitem__(self, grid):
        self.grids.append(grid)

        def launch(origin, table, owners, *arguments, **options):
            self.tables.append(table)
            self.owners.append(owners)

        return launch


def thousand():
    generator = torch.Generator().manual_seed(2)
    sizes = torch.randint(0, 60, (1000,), generator=generator).tolist()
    sizes[3], sizes[500], sizes[999] = 5003, 4099, 131
    return [
        torch.randn(size, generator=generator).to(DTYPES[index % 3])
        for index, size in enumerate(sizes)
    ]


@pytest.mark.parametrize("offsets", [range(0, 64_000, 64), range(3, 7003, 7)])
@pytest.mark.parametrize("distribution", ["gaussian", "rademacher"])
def test_the_programs_tile_every_tensor(device, monkeypatch, distribution, offsets):
    recorder = Recorder()
    monkeypatch.setattr(noise, "add_noise_kernel", recorder)
    tensors = [tensor.to(device) for tensor in thousand()]
    with use_backend("triton"):
        add_noise_(tensors, [1], [1.0], offsets=offsets, distribution=distribution)
    (table,), (owners,) = recorder.tables, recorder.owners
    assert len(table) == sum(tensor.numel() > 0 for tensor in tensors)
    grain = tensor_lists.GRAINS[distribution]
    half_block = noise.BLOCK if offsets[0] else noise.HALF_BLOCK
    first = 0
    for row, programs in zip(table.tolist(), owners.bincount().tolist(), strict=True):
        offset, size, dtype, start = row[4:]
        block = half_block if dtype else noise.BLOCK
        assert start == first
        assert (programs - 1) * block < offset % grain + size <= programs * block
        first += programs
    assert owners.dtype == torch.int32 and torch.equal(owners, owners.sort()[0])
    assert recorder.grids == [(first,)]


def test_an_epilogue_over_a_list_is_one_launch(device, monkeypatch):
    recorder = Recorder()
    monkeypatch.setattr(updates, "momentum_kernel", recorder)
    tensors = [tensor.to(device) for tensor in thousand()]
    momenta = [torch.zeros(tensor.shape, device=device) for tensor in tensors]
    with use_backend("triton"):
        momentum_update_(tensors, momenta, [1, 2], [1.0, 1.0], momentum=0.9, lr=0.1)
    assert len(recorder.grids) == 1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("distribution", ["gaussian", "rademacher"])
def test_blocks_beyond_2_31_elements_of_a_tensor(device, dtype, distribution):
    """One program far inside a tensor of 2^33 elements, whose other elements do not exist."""
    block = noise.BLOCK if dtype == torch.float32 else noise.HALF_BLOCK
    ahead = (1 << 33) // block
    theta = torch.randn(block).to(dtype)
    offset = (1 << 40) + 128
    with use_backend("reference"):
        expected = add_noise_(
            theta.clone(), [5], [0.5], offsets=offset + ahead * block, distribution=distribution
        )
    theta = theta.to(device)
    launch = tensor_lists.prepare([theta], [theta], (), [offset], distribution)
    table = launch.table.clone()
    # The program that is run is number 0, so that the tensor's first one lies before it.
    table[0, tensor_lists.START.value] = -ahead
    for column in (tensor_lists.INPUT.value, tensor_lists.OUTPUT.value):
        table[0, column] -= ahead * block
    table[0, tensor_lists.SIZE.value] = (ahead + 1) * block
    seeds, coefficients = (torch.tensor([value], device=device) for value in (5, 0.5))
    noise.add_noise_kernel[(1,)](
        launch.origin,
        table,
        launch.owners,
        seeds,
        coefficients,
        1,
        1.0,
        seeds,
        STOCHASTIC=False,
        **launch.options,
    )
    assert torch.equal(theta.cpu(), expected)


def test_alignment_is_that_of_sixteen_bytes():
    def aligned(tensor, offset, distribution="gaussian", states=()):
        launch = tensor_lists.prepare([tensor], [tensor], states, [offset], distribution)
        return launch.options["ALIGNED"]

    full, half = torch.zeros(100), torch.zeros(100).half()
    assert aligned(full, 4) and aligned(full[4:], 4) and aligned(half, 4) and aligned(half[8:], 4)
    assert not aligned(full[1:], 4) and not aligned(full, 2) and not aligned(half[4:], 4)
    assert aligned(full, 4, "rademacher") and aligned(half, 8, "rademacher")
    assert not aligned(half, 4, "rademacher")
    assert aligned(half[:8], 4, states=[[full[4:12]]])
    assert not aligned(half[:8], 4, states=[[full[:8]], [full[1:9]]])


def test_a_list_elsewhere_shares_the_list_of_owners():
    lists = [[torch.zeros(size) for size in (5000, 3, 2048)] for _ in range(2)]
    first, second = (
        tensor_lists.prepare(tensors, tensors, (), [0, 5000, 5004], "gaussian") for tensors in lists
    )
    assert first.owners is second.owners and not torch.equal(first.table, second.table)
    assert first.owners.tolist() == [0] * 3 + [1] + [2]


COMPILES = """
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction
from adazeta.kernels.gpu import noise, updates
from adazeta.kernels.reference.updates import AdamScalars

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
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("TRITON_INTERPRET", "ADAZETA_BACKEND")
    }
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    environment["PYTHONPATH"] = str(ROOT)
    script = tmp_path / "compiles.py"
    script.write_text(COMPILES)
    run = subprocess.run(
        [sys.executable, script], env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr[-3000:]
