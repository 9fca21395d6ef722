"""``noise``: perturbing parameters, per pass and for a whole full-parameter step.

The parameters of a pass or a step are tensors of a million elements, as large as the weights of a
small language model, so that the tensor-by-tensor reference stays in the caches as it does there.
"""

from typing import Any

import torch
from torch import Tensor

from adazeta.kernels import add_noise_, aligned_offsets, gaussian
from benchmarks.measure.harness import Cell, Options, Provider, Row, compare, require
from benchmarks.subjects.reference_path import TorchNoise

SEED, EPS, LR, C = 7, 1e-3, 1e-6, 0.5
PIECE = 1_000_000


def rows(options: Options) -> list[Row]:
    """Time single passes and whole steps."""
    check(options.device)
    found: list[Row] = []
    for count, dtype in _sizes(options):
        for name, measure in (("pass", one_pass), ("step", whole_step)):
            cell = _cell(name, count, dtype, options)
            if options.wants(cell.benchmark, cell.op, cell.mode, cell.dtype, str(count)):
                found += measure(cell, options)
    return found


def _sizes(options: Options) -> list[tuple[int, torch.dtype]]:
    if options.small:
        return [(10_000, torch.float32)]
    quick = [(610_560, torch.float32), (10_000_000, torch.float32)]
    if options.quick:
        return quick
    return [*quick, (100_000_000, torch.float32), (10_000_000, torch.bfloat16)]


def _cell(op: str, count: int, dtype: torch.dtype, options: Options) -> Cell:
    return Cell(
        "noise", op, "in_place" if op == "pass" else "full_step", "elements", count,
        options.device, str(dtype).removeprefix("torch."),
    )  # fmt: skip


def check(device: str) -> None:
    """Require that a pass is what it is defined to be, and that a step is the reference's.

    Raises:
        Refused: it is not.
    """
    tensors = [torch.randn(n, device=device) for n in (1, 1013, 4096)]
    offsets = aligned_offsets([t.numel() for t in tensors])
    expected = [
        t + EPS * gaussian(SEED, o, t.numel(), device=device)
        for t, o in zip(tensors, offsets, strict=True)
    ]
    found = [t.clone() for t in tensors]
    add_noise_(found, [SEED], [EPS])
    require(
        all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)),
        "add_noise_ does not equal its definition; no time of 'noise' is reported",
    )
    # Restore and update in one pass: theta + eps z -> theta - lr c z.
    add_noise_(found, [SEED], [-EPS - LR * C])
    for after, before, offset in zip(found, tensors, offsets, strict=True):
        step = -LR * C * gaussian(SEED, offset, before.numel(), device=device)
        require(
            torch.allclose(after, before + step, atol=1e-6, rtol=0),
            "the in-place step does not end at the updated parameters; no time is reported",
        )


def parameters(cell: Cell) -> list[Tensor]:
    """Return the tensors of a cell: views into one buffer, as a parameter space has them."""
    flat = torch.randn(int(cell.x_value), device=cell.device).to(getattr(torch, cell.dtype))
    return list(flat.split(PIECE))


def one_pass(cell: Cell, options: Options) -> list[Row]:
    """Compare ``theta += eps z`` in place."""
    # The reference rebinds its tensors, so it has its own.
    tensors, rebound = parameters(cell), parameters(cell)
    count, size = cell.x_value, tensors[0].element_size()

    def of(distribution: str) -> Provider:
        return lambda: add_noise_(tensors, [SEED], [EPS], distribution=distribution)

    providers: dict[str, Provider] = {
        "reference": lambda: official_pass(rebound, 1),
        "torch": lambda: normal_and_add(tensors),
        "adazeta": of("gaussian"),
        "adazeta_pairs": of("pairs"),
        "adazeta_rademacher": of("rademacher"),
        "floor": lambda: _scale(tensors),
    }
    rates = {
        "per_element": ("ns", 1e-9 * count),
        # Read and written once, whatever a provider moves besides.
        "bandwidth": ("GB/s", 2e-9 * size * count),
    }
    return compare(cell, providers, options, config=_config(tensors), rates=rates)


def whole_step(cell: Cell, options: Options) -> list[Row]:
    """Compare the noise work of one full-parameter step with one query.

    The reference perturbs by +1, -2, +1 and updates, all in place. Ours writes two perturbed copies
    to a scratch buffer, so that the parameters are never touched, and updates in place; the variant
    ``adazeta_in_place`` perturbs, flips, and restores with the update, and ``adazeta_pairs`` draws
    the noise of new runs that train all parameters.
    """
    tensors, rebound = parameters(cell), parameters(cell)
    scratch = [torch.empty_like(t) for t in tensors]
    count, size = cell.x_value, tensors[0].element_size()

    def ours(distribution: str) -> None:
        add_noise_(tensors, [SEED], [EPS], out=scratch, distribution=distribution)
        add_noise_(tensors, [SEED], [-EPS], out=scratch, distribution=distribution)
        add_noise_(tensors, [SEED], [-LR * C], distribution=distribution)

    def in_place() -> None:
        add_noise_(tensors, [SEED], [EPS])
        add_noise_(tensors, [SEED], [-2 * EPS])
        add_noise_(tensors, [SEED], [EPS - LR * C])

    def official() -> None:
        for scale in (1, -2, 1):
            official_pass(rebound, scale)
        noise = TorchNoise()
        noise.reset(SEED)
        for index, theta in enumerate(rebound):
            rebound[index] = theta - LR * (C * noise.normal(theta))

    providers: dict[str, Provider] = {
        "reference": official,
        "adazeta": lambda: ours("gaussian"),
        "adazeta_pairs": lambda: ours("pairs"),
        "adazeta_in_place": in_place,
        "floor": lambda: _scale(tensors, passes=3),
    }
    rates = {
        "per_element": ("ns", 1e-9 * count),
        "bandwidth": ("GB/s", 6e-9 * size * count),
    }
    return compare(cell, providers, options, config=_config(tensors), rates=rates)


def official_pass(tensors: list[Tensor], scale: int) -> None:
    """Perturb as the official code does: normal, mul, mul, add, and the result rebound."""
    noise = TorchNoise()
    noise.reset(SEED)
    for index, theta in enumerate(tensors):
        tensors[index] = theta + scale * noise.normal(theta) * EPS


def normal_and_add(tensors: list[Tensor]) -> None:
    """Perturb with the fewest operations that plain PyTorch needs."""
    noise = TorchNoise()
    noise.reset(SEED)
    for theta in tensors:
        theta.add_(noise.normal(theta), alpha=EPS)


def _scale(tensors: list[Tensor], passes: int = 1) -> None:
    for _ in range(passes):
        for theta in tensors:
            theta.mul_(1.0)


def _config(tensors: list[Tensor]) -> dict[str, Any]:
    return {"tensors": len(tensors), "probes": 1}
