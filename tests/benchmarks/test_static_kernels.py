"""What the machine code of the kernels says, compiled for GPUs that are not here.

A few variants that dispatch chooses often; ``python -m benchmarks kernels`` compiles the others.
"""

import pkgutil
from importlib import import_module

import pytest
import torch

pytest.importorskip("triton")

from adazeta.kernels import gpu  # noqa: E402
from adazeta.kernels.gpu.tensor_lists import _origin  # noqa: E402
from adazeta.kernels.gpu.variants import all_variants  # noqa: E402
from benchmarks.static import suite  # noqa: E402
from benchmarks.static.summary import WIDE, narrow  # noqa: E402

NAMES = (
    "add_noise/float32/gaussian/aligned/nearest",
    "add_noise/bfloat16/rademacher/aligned/stochastic",
    "perturbed_copies/bfloat16/gaussian/aligned",
    "adam_update/element/float32/pairs/aligned/nearest",
    "stacked_factors/gaussian/rank 8",
    "tt_apply/bfloat16/width 1024/rank 8/bias/even",
    "tt_adapter/bfloat16/width 1024/rank 8/relu/both biases/even",
)
TARGETS = ("sm_90", "gfx942")


@pytest.fixture(scope="module")
def report():
    return suite.rows(NAMES, TARGETS)


def test_every_launched_kernel_has_variants_with_different_names():
    launched = set()
    for found in pkgutil.iter_modules(gpu.__path__):
        module = import_module(f"adazeta.kernels.gpu.{found.name}")
        launched |= {
            value.__name__
            for name, value in vars(module).items()
            if name.endswith("_kernel") and hasattr(value, "arg_names")
        }
    variants = list(all_variants())
    covered = {variant.kernel.__name__ for variant in variants}
    assert launched and covered == launched
    assert len({variant.name for variant in variants}) == len(variants)


def test_every_argument_of_every_variant_has_a_type():
    for variant in all_variants():
        arguments = set(variant.kernel.arg_names)
        assert set(variant.signature) | set(variant.constants) == arguments, variant.name
        assert not set(variant.signature) & set(variant.constants), variant.name
        assert set(variant.divisible) <= set(variant.signature), variant.name


def test_nothing_spills(report):
    assert {row["target"] for row in report} == set(TARGETS)
    for row in report:
        assert row["spills"] == 0 and row["stack_bytes"] == 0, (row["variant"], row["target"])


def test_the_noise_is_never_fused(report):
    noisy = [row for row in report if "fused" in row]
    assert {row["kernel"] for row in noisy} >= {"add_noise_kernel", "adam_kernel"}
    for row in noisy:
        assert row["fused"] == 0, (row["variant"], row["target"])
        assert "flushing" not in row, (row["variant"], row["target"])


def test_the_noise_kernels_move_16_bytes_at_once(report):
    for row in report:
        if row["kernel"] in WIDE:
            assert not narrow(row), row
            assert narrow({**row, "global_accesses": {"load 16": 9, "store 4": 9}})


def test_a_pass_of_add_noise_is_predicted_near_the_memory_roof(report):
    row = next(row for row in report if row["variant"] == NAMES[0] and row["target"] == "sm_90")
    assert row["paths"]["float32"]["h100"]["memory_fraction"] > 0.6


def test_offsets_from_the_origin_are_never_taken_for_32_bits():
    assert _origin(torch.device("cpu")).ptr_range() > 1 << 31
