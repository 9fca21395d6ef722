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
        self.grids, self.launches = [], []

    def __getitem__(self, grid):
        self.grids.append(grid)

        def launch(origin, records, *arguments, **options):
            self.launches.append((origin.data_ptr(), records.tolist(), options))

        return launch


def thousand():
    generator = torch.Generator().manual_seed(2)
    sizes = torch.randint(0, 60, (1000,), generator=generator).tolist()
    sizes[3], sizes[500], sizes[999] = 5003, 4099, 131
    return [
        torch.randn(size, generator=generator).to(DTYPES[index % 3])
        for index, size in enumerate(sizes)
    ]


def covered(recorder, grain):
    """(dtype, address, index in the space of the noise) of every element that programs work on."""
    for (programs, *_), (origin, records, options) in zip(
        recorder.grids, recorder.launches, strict=True
    ):
        size = 4 if options["DTYPE"] == "float32" else 2
        unit = 16 if options["ALIGNED"] else size
        block = options["BLOCK"]
        for program in range(programs):
            source, target, *_, base, limits = records[program // tensor_lists.GROUP]
            assert source == target and base % grain == 0
            start = program % tensor_lists.GROUP * block
            first, stop = limits & 0xFFFFFFFF, limits >> 32
            for lane in range(max(first - start, 0), min(stop - start, block)):
                yield (options["DTYPE"], origin + source * unit + (start + lane) * size,
                       base + start + lane)  # fmt: skip
        assert (programs - 1) // tensor_lists.GROUP + 1 == len(records)


@pytest.mark.parametrize("offsets", [range(0, 64_000_000, 64_000), range(3, 70_000_003, 70_000)])
@pytest.mark.parametrize("distribution", sorted(tensor_lists.GRAINS))
def test_the_programs_tile_every_tensor(device, monkeypatch, distribution, offsets):
    recorder = Recorder()
    monkeypatch.setattr(noise, "add_noise_kernel", recorder)
    tensors = [tensor.to(device) for tensor in thousand()]
    with use_backend("triton"):
        add_noise_(tensors, [1], [1.0], offsets=offsets, distribution=distribution)
    expected = sorted(
        (tensor_lists.DTYPES[tensor.dtype], tensor.data_ptr() + i * tensor.element_size(), at + i)
        for tensor, at in zip(tensors, offsets, strict=True)
        for i in range(tensor.numel())
    )
    assert sorted(covered(recorder, tensor_lists.GRAINS[distribution])) == expected
    assert len(recorder.grids) == len(DTYPES)


def test_an_epilogue_over_a_list_is_a_launch_for_each_dtype(device, monkeypatch):
    recorder = Recorder()
    monkeypatch.setattr(updates, "momentum_kernel", recorder)
    tensors = [tensor.to(device) for tensor in thousand()]
    momenta = [torch.zeros(tensor.shape, device=device) for tensor in tensors]
    with use_backend("triton"):
        momentum_update_(tensors, momenta, [1, 2], [1.0, 1.0], momentum=0.9, lr=0.1)
    assert len(recorder.grids) == len(DTYPES)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("distribution", sorted(tensor_lists.GRAINS))
def test_blocks_beyond_2_31_elements_of_a_tensor(device, dtype, distribution):
    """One program far inside a tensor of 2^33 elements, whose other elements do not exist."""
    block = tensor_lists.BLOCKS[dtype.itemsize]
    ahead = 1 << 33
    theta = torch.randn(block + 64).to(dtype)
    theta = theta[-theta.data_ptr() // theta.element_size() % 8 :][:block].to(device)
    offset = (1 << 40) + 128
    with use_backend("reference"):
        expected = add_noise_(
            theta.cpu().clone(), [5], [0.5], offsets=offset + ahead, distribution=distribution
        )
    far = theta.data_ptr() - ahead * theta.element_size()
    launch = tensor_lists._launch(
        ((far, far, offset, ahead + block),), dtype, distribution, False, block, theta.device, 0
    )
    assert launch.options["ALIGNED"] and launch.programs == ahead // block + 1
    # The program that is run is number 0 of the records from there on.
    records = launch.records[ahead // block // tensor_lists.GROUP :].clone()
    seeds, coefficients = (torch.tensor([value], device=device) for value in (5, 0.5))
    noise.add_noise_kernel[(1,)](
        launch.origin, records, seeds, coefficients, 1, 1.0, 1.0, seeds, **launch.options
    )
    assert torch.equal(theta.cpu(), expected)


def test_alignment_is_that_of_sixteen_bytes():
    def aligned(tensor, offset, distribution="gaussian", states=()):
        (launch,) = tensor_lists.prepare([tensor], [tensor], states, [offset], distribution, False)
        return launch.options["ALIGNED"]

    full, half = torch.zeros(100), torch.zeros(100).half()
    assert aligned(full, 4) and aligned(full[4:], 4) and aligned(half, 4) and aligned(half[8:], 4)
    assert not aligned(full[1:], 4) and not aligned(full, 2) and not aligned(half[4:], 4)
    assert aligned(full, 4, "rademacher") and aligned(half, 8, "rademacher")
    assert not aligned(half, 4, "rademacher")
    assert aligned(full, 4, "pairs") and aligned(half, 8, "pairs") and not aligned(half, 4, "pairs")
    assert aligned(half[:8], 4, states=[[full[4:12]]])
    assert not aligned(half[:8], 4, states=[[full[:8]], [full[1:9]]])


COMPILES = """
import torch
from adazeta.kernels.gpu import noise, updates
from adazeta.kernels.reference.updates import AdamScalars
from benchmarks.measure import stubbed

stubbed.stub(lambda *launch: None)
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
