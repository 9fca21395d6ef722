"""The C library on an ARM processor, cross-compiled and emulated: the bits of the reference.

Needs ``gcc-aarch64-linux-gnu`` and ``qemu-user-static`` (Debian's names).
"""

import shutil
import subprocess

import pytest
import torch

from adazeta.kernels.reference.philox import draw
from tests.helpers.paths import ROOT

# Those of setup.py that bear on arithmetic.
FLAGS = ("-std=gnu11", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math")
COMPILER, EMULATOR = "aarch64-linux-gnu-gcc", "qemu-aarch64-static"
STARTS = (0, 3, (1 << 34) - 501, (1 << 35) - 501, (1 << 62) - 8)


@pytest.mark.skipif(
    not (shutil.which(COMPILER) and shutil.which(EMULATOR)),
    reason=f"{COMPILER} and {EMULATOR} are not installed",
)
def test_neon_draws_the_bits_of_the_reference(tmp_path):
    folder, program = ROOT / "kernels" / "cpu", tmp_path / "draw"
    sources = [folder / name for name in ("tiles.c", "library.c", "pool.c")]
    subprocess.run(
        [COMPILER, "-static", "-pthread", *FLAGS, f"-I{folder}", ROOT / "tests/data/draw.c",
         *sources, "-lm", "-o", program],
        check=True,
    )  # fmt: skip
    written = subprocess.run([EMULATOR, program], capture_output=True, check=True).stdout
    found = torch.frombuffer(bytearray(written), dtype=torch.int32).view(3, len(STARTS), 1031)
    seeds = torch.tensor([7 | 5 << 32])
    for numbers, distribution in zip(found, ("gaussian", "rademacher", "pairs"), strict=True):
        for row, start in zip(numbers, STARTS, strict=True):
            assert torch.equal(draw(seeds, start, 1031, 2, distribution)[0].view(torch.int32), row)
