"""One perturbed evaluation as it is and as a graph, where the host is what takes the time.

The model is small, so launches come slower than the device works: what a graph saves shows whole.
"""

from collections.abc import Callable
from typing import Any

import torch

from adazeta import ZOSGD
from adazeta.estimation.perturbed_losses import Evaluation, plain_losses
from benchmarks.measure.graphs import with_graphs
from benchmarks.measure.harness import Cell, Options, Row
from benchmarks.subjects.workload import small_workload

Measure = Callable[[dict[str, Callable[[], Any]], Options], dict[str, list[float]]]


@torch.no_grad()
def evaluations(options: Options, measure: Measure) -> list[Row]:
    """Time an evaluation of a model with adapters beside its forward without perturbation.

    Args:
        options: of the suite.
        measure: times providers in turn, in seconds.
    """
    work = small_workload(options.device)
    model, batch = work.model("adapters_last10"), work.batch(4)

    def losses(given: Any) -> torch.Tensor:
        return work.losses(model, given)[0]

    optimizer = ZOSGD(model, lr=1e-6, eps=1e-2, check_eps=False)
    space = optimizer.space
    graphs = with_graphs(optimizer, model, options.device)
    for _ in range(2):  # records, and compares with plain evaluations
        optimizer.step(losses, batch)
    jobs = [Evaluation([5], 1e-2)]
    providers: dict[str, Callable[[], Any]] = {
        "floor": lambda: losses(batch),
        "adazeta": lambda: plain_losses(space, losses, batch, jobs),
    }
    if graphs.problem is None:
        providers["adazeta_graphs"] = lambda: graphs(space, losses, batch, jobs)
    with space.sequence():
        times = measure(providers, options)
    cell = Cell("gpu", "evaluation", "adapters", "rows", 4, options.device)
    found = [
        cell.row(name, "time", "ms", [1e3 * s for s in seconds], {})
        for name, seconds in times.items()
    ]
    for name in [name for name in times if name != "floor"]:
        ratios = [ours / bare for ours, bare in zip(times[name], times["floor"], strict=True)]
        found.append(cell.row(name, "times_the_forward", "times", ratios, {}))
    return found
