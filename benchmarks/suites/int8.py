"""``int8``: would forwards in 8-bit integers do for projected gradients?

The frozen linears of SmolLM2-135M multiply in integers, weights rounded by channel and activations
by token, in all blocks (``int8``) or in the last ten alone (``int8_last10``), where the adapters
are. Of a batch of film reviews for each seed, each review a direction's own loss, the projected
gradients at the scales that ``eps="auto"`` tries are held against those of float32 (``float32``)
at the scale that is best for it. Directions are the same for all.

What would count, written down before the first run: integers do if, at some scale, their projected
gradients correlate 0.98 or more with those of float32, and an evaluation takes less time. A
correlation r leaves r^2 of what an evaluation tells, so ``worth`` is r^2 times the speed: below 1,
float32 learns more in the same time.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from adazeta.estimation.eps import EPS_GRID, profile_eps
from benchmarks.measure.harness import Cell, Options, Row, compare
from benchmarks.subjects.integers import multiply_in_integers
from benchmarks.subjects.workload import Batch, Workload, workload

BATCH = 8
DIRECTIONS = 8
LAST = 10
FLOAT = "float32"


def rows(options: Options) -> list[Row]:
    """Measure correlations for each seed, and the time of an evaluation in turn."""
    work = workload(options)
    models = {
        FLOAT: work.model("adapters_last10"),
        "int8": in_integers(work.model("adapters_last10")),
        "int8_last10": in_integers(work.model("adapters_last10"), LAST),
    }
    found: list[Row] = []
    if options.wants("int8", "gradients"):
        for seed in options.seeds[:1] if options.quick else options.seeds:
            found += gradients(work, models, seed, options)
    if options.wants("int8", "evaluation"):
        cell = Cell("int8", "evaluation", "inference", "batch", BATCH, options.device)
        batch = work.batch(BATCH)
        runs: dict[str, Callable[[], object]] = {
            name: partial(losses, work, model, batch) for name, model in models.items()
        }
        found += compare(cell, runs, options, bases=(FLOAT,), config={"model": work.name})
    return found


def in_integers(model: nn.Module, last: int | None = None) -> nn.Module:
    """Have the frozen linears of a model, or of its last blocks, multiply in integers."""
    blocks = list(model.get_submodule("model.layers").children())
    for block in blocks if last is None else blocks[-last:]:
        multiply_in_integers(block)
    return model


@torch.no_grad()
def losses(work: Workload, model: nn.Module, batch: Batch) -> Tensor:
    """Return the losses of the examples, float64 ``(B,)``."""
    return work.losses(model, batch)[0].double()


def gradients(
    work: Workload, models: dict[str, nn.Module], seed: int, options: Options
) -> list[Row]:
    """Hold the projected gradients of each model at each scale against the best of float32."""
    batch = work.batch(BATCH, first=BATCH * seed)
    found = {name: projected(work, model, batch, seed) for name, model in models.items()}
    best = profile_eps(found[FLOAT], EPS_GRID).eps
    nearest = min(range(len(EPS_GRID)), key=lambda k: abs(EPS_GRID[k] / best - 1))
    truth = found[FLOAT][nearest]
    config = {"model": work.name, "seed": seed, "eps": best, "directions": DIRECTIONS * BATCH}
    made = []
    for name, values in found.items():
        for eps, of_scale in zip(EPS_GRID, values, strict=True):
            cell = Cell("int8", "gradients", f"seed {seed}", "eps", eps, options.device)
            correlation = torch.corrcoef(torch.stack([of_scale, truth]))[0, 1].nan_to_num(0.0)
            made.append(cell.row(name, "correlation", "1", [correlation.item()], config))
    return made


def projected(work: Workload, model: nn.Module, batch: Batch, seed: int) -> Tensor:
    """Return projected gradients, ``(scales, directions x examples)``; the parameters come back."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    before = [parameter.detach().clone() for parameter in trained]
    found = []
    for eps in EPS_GRID:
        of_scale = []
        for direction in range(DIRECTIONS):
            generator = torch.Generator().manual_seed(1_000 * seed + direction)
            noise = [torch.randn(p.shape, generator=generator).to(p.device) for p in before]
            sides = []
            for side in (eps, -eps):
                for parameter, start, z in zip(trained, before, noise, strict=True):
                    parameter.data.copy_(start + side * z)
                sides.append(losses(work, model, batch))
            of_scale.append((sides[0] - sides[1]) / (2 * eps))
        found.append(torch.cat(of_scale))
    for parameter, start in zip(trained, before, strict=True):
        parameter.data.copy_(start)
    return torch.stack(found)
