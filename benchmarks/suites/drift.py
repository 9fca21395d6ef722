"""What perturbing parameters in place and back costs them: the drift of +eps, -2 eps, +eps.

The official sequence of the field rounds to the parameter's dtype after each of its three moves;
the sum of these errors stays in the parameters. Perturbing into another buffer (``out=``) leaves
them as they were. Providers:

- ``reference``: as MeZO and its descendants do it, the noise and every product rounded too;
- ``adazeta_in_place``: the same three moves by ``add_noise_``, one rounding each;
- ``adazeta``: both perturbed copies elsewhere.

No time is measured, and the figures depend on the seeds alone (``reference``: and on torch's
generator).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from adazeta.kernels import add_noise_
from adazeta.support.settings import dtype_name
from benchmarks.measure.harness import Cell, Options, Row
from benchmarks.subjects.reference_path import TorchNoise

EPS = 1e-3
STD = 0.02  # of the parameters, as in language models
STEPS = (1, 200)
MOVES = (1, -2, 1)


def rows(options: Options) -> list[Row]:
    """Measure the drift after one step and after 200, by dtype."""
    found: list[Row] = []
    size = 4_099 if options.small else 100_003
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for steps in STEPS[:1] if options.small else STEPS:
            name = dtype_name(dtype)
            op = f"perturb_{name}"
            cell = Cell("drift", op, "inference", "steps", steps, options.device, name)
            if options.wants(cell.benchmark, cell.op, cell.mode):
                providers = {"reference": official, "adazeta_in_place": in_place, "adazeta": exact}
                for provider, sequence in providers.items():
                    for metric, (value, unit) in drift(
                        sequence, size, dtype, steps, options.device
                    ).items():
                        config = {"elements": size, "eps": EPS, "std": STD}
                        found.append(cell.row(provider, metric, unit, [value], config))
    return found


def official(theta: Tensor, seed: int) -> None:
    """Perturb, flip and restore as the field does: all in the dtype of the parameters."""
    noise = TorchNoise()
    for move in MOVES:
        noise.reset(seed)
        theta.add_(move * noise.normal(theta) * EPS)


def in_place(theta: Tensor, seed: int) -> None:
    """Perturb, flip and restore the parameters themselves."""
    for move in MOVES:
        add_noise_(theta, [seed], [move * EPS])


def exact(theta: Tensor, seed: int) -> None:
    """Write both perturbed copies elsewhere."""
    out = torch.empty_like(theta)
    for coefficient in (EPS, -EPS):
        add_noise_(theta, [seed], [coefficient], out=out)


def drift(
    sequence: Callable[[Tensor, int], None],
    size: int,
    dtype: torch.dtype,
    steps: int,
    device: str,
) -> dict[str, tuple[float, str]]:
    """Run a sequence for some steps on normal parameters that it ought to leave alone.

    Returns:
        By metric the value and its unit: the share of the elements that changed, and the root
        mean square of the change over all elements, in units of the parameters and of eps.
    """
    generator = torch.Generator().manual_seed(0)
    theta = (torch.randn(size, generator=generator) * STD).to(device, dtype)
    before = theta.clone()
    for step in range(steps):
        sequence(theta, step)
    error = (theta.double() - before.double()).square().mean().sqrt().item()
    changed = (theta != before).double().mean().item()
    return {
        "changed": (changed, "fraction"),
        "rms_error": (error, "1"),
        "rms_error_over_eps": (error / EPS, "1"),
    }
