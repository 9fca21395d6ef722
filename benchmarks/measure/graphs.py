"""Graphs of evaluations for suites: CUDA graphs on a card, and their own code everywhere."""

from collections.abc import Callable

from torch import nn

from adazeta.estimation.graphs import EvaluationGraphs
from adazeta.optim.optimizer import ZerothOrderOptimizer


def run_again(run: Callable[[], None]) -> Callable[[], None]:
    """Stand in for a recording where there is no card: a replay runs the function again."""
    return run


def with_graphs(optimizer: ZerothOrderOptimizer, model: nn.Module, device: str) -> EvaluationGraphs:
    """Let an optimizer's evaluations be replays of graphs.

    Args:
        optimizer: whose loss function reads nothing but its batch.
        model: that it runs.
        device: ``"cuda"``, or one without graphs.

    Returns:
        The graphs. They say in the log, and in ``problem``, where there are none after two steps.
    """
    record = None if device == "cuda" else run_again
    graphs = EvaluationGraphs(optimizer.space, model, any_loss=True, record=record)
    optimizer.estimator.evaluator = graphs
    return graphs
