"""The list of variants is what the launchers ask for: nothing is left out and nothing made up.

Every public op runs on the Triton path over all settings that change what is compiled, with
recorders in the place of the kernels. A new kernel needs a call here.
"""

import pkgutil
from importlib import import_module
from itertools import product

import pytest
import torch

from adazeta.kernels import (
    FactorLayer,
    FactorPlan,
    Factors,
    adam_update_,
    add_noise_,
    momentum_update_,
    perturbed_copies,
    stacked_factors,
    use_backend,
)
from adazeta.kernels.reference.adapter import ACTIVATIONS

pytest.importorskip("triton")

from adazeta.kernels import gpu  # noqa: E402
from adazeta.kernels.gpu import adapter, low_rank_add  # noqa: E402
from adazeta.kernels.gpu import layers as tt_layers  # noqa: E402
from adazeta.kernels.gpu.variants import Variant, all_variants  # noqa: E402

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
DISTRIBUTIONS, ROUNDINGS = ("gaussian", "rademacher", "pairs"), ("nearest", "stochastic")
WIDTHS = (256, 251)
RANKS = (3, 16, 17, 64)
TYPES = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.int16: "*i16",
    torch.int32: "*i32",
    torch.int64: "*i64",
}


def compiled_of(kernel, values, *options):
    """What sets one compiled kernel apart: its constants, the types of its pointers, options."""
    constants = sorted((name, value) for name, value in values.items() if name.isupper())
    pointers = [
        (name, values[name])
        for name in kernel.arg_names
        if isinstance(values.get(name), str) and values[name].startswith("*")
    ]
    return kernel.__name__, tuple(constants), tuple(pointers), options


def of_variant(variant: Variant):
    return compiled_of(
        variant.kernel,
        {**variant.signature, **variant.constants},
        variant.num_warps,
        variant.fusion,
        variant.maxnreg,
    )


@pytest.fixture
def seen(monkeypatch):
    """What is launched while the test runs; nothing is computed."""
    found = set()

    class Recorder:
        def __init__(self, kernel):
            self.__name__, self.arg_names = kernel.__name__, kernel.arg_names

        def __getitem__(self, grid):
            def launch(*arguments, num_warps=4, enable_fp_fusion=True, maxnreg=None, **constants):
                values = dict(zip(self.arg_names, arguments, strict=False)) | constants
                for name, value in values.items():
                    if isinstance(value, torch.Tensor):
                        values[name] = TYPES[value.dtype]
                found.add(compiled_of(self, values, num_warps, enable_fp_fusion, maxnreg))

            return launch

    for module in pkgutil.iter_modules(gpu.__path__):
        names = vars(import_module(f"adazeta.kernels.gpu.{module.name}"))
        for name in [
            name
            for name, value in names.items()
            if name.endswith("_kernel") and hasattr(value, "arg_names")
        ]:
            monkeypatch.setitem(names, name, Recorder(names[name]))
    return found


def noise_and_updates():
    for dtype, distribution, rounding, shift in product(DTYPES, DISTRIBUTIONS, ROUNDINGS, (0, 1)):
        theta, m, v = (
            torch.zeros(41, dtype=kind)[shift:] for kind in (dtype, torch.float32, torch.float32)
        )
        options = {"distribution": distribution, "rounding": rounding}
        add_noise_(theta, [1], [1.0], **options)
        momentum_update_(theta, m, [1], [1.0], momentum=0.9, lr=0.1, **options)
        for second, root in ((v, None), (None, 1.0)):
            adam_update_(
                theta,
                m,
                second,
                [1],
                [1.0],
                beta1=0.9,
                beta2=0.9,
                lr=0.1,
                epsilon=1e-8,
                correction1=1.0,
                correction2=1.0,
                inverse_root=root,
                **options,
            )
        perturbed_copies(theta[: 32 + shift], [1], [1.0], distribution=distribution)


def factors_of_plans():
    for rank, distribution in product(RANKS, (None, *DISTRIBUTIONS)):
        shapes = ((1, 4, rank), (rank, 4, 1))
        plan = FactorPlan((FactorLayer((0, 4 * rank), shapes, 1, 4, 4, None),))
        theta, seeds, scales = torch.zeros(8 * rank), torch.tensor([1]), torch.ones(1)
        if distribution is None:
            stacked_factors(theta, plan)
        else:
            stacked_factors(theta, plan, seeds, scales, distribution=distribution)


def layers():
    for dtype, width, rank, bias in product(DTYPES, WIDTHS, RANKS, (True, False)):
        x, a, b = (
            torch.zeros(1, width, dtype=dtype),
            torch.zeros(width, rank),
            torch.zeros(rank, width),
        )
        shift = torch.zeros(width) if bias else None
        tt_layers.tt_apply(x, a, b, shift)
        tt_layers.tt_apply_backward(x, x, a, b, shift)
        low_rank_add.low_rank_add(x[None], x[None], a[None], b[None], 1.0)


def adapters():
    for dtype, width, rank, down_bias, up_bias in product(
        DTYPES, WIDTHS, RANKS, (True, False), (True, False)
    ):
        x = torch.zeros(1, width, dtype=dtype)
        down = Factors(
            torch.zeros(width, rank), torch.zeros(rank, 8), torch.zeros(8) if down_bias else None
        )
        up = Factors(
            torch.zeros(8, rank), torch.zeros(rank, width), torch.zeros(width) if up_bias else None
        )
        for activation in ACTIVATIONS:
            for share in (0, 1):
                adapter.prepare(x, down, up, activation, share)(x, down, up, 1.0)
            if up_bias:
                adapter.tt_adapter_backward(x, x, down, up, activation, 1.0)


def test_the_variants_are_what_the_launchers_ask_for(seen, device):
    listed = {of_variant(variant): variant.name for variant in all_variants()}
    with torch.device(device), use_backend("triton"):
        for calls in (noise_and_updates, factors_of_plans, layers, adapters):
            calls()
    assert not seen - set(listed), "launched, but no variant"
    assert not set(listed) - seen, [listed[key] for key in set(listed) - seen]
