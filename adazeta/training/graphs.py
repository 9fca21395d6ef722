"""The setting ``cuda_graphs``: whether the evaluations of a run are replays of recorded graphs."""

from typing import Any

import torch
from torch import nn

from adazeta.estimation.graphs import EvaluationGraphs
from adazeta.estimation.perturbed_losses import plain_losses
from adazeta.forward.batch_losses import BatchLosses
from adazeta.optim.optimizer import ZerothOrderOptimizer

CHOICES = ("false", "auto", "true")


def graph_mode(args: Any) -> str:
    """Return ``cuda_graphs`` as ``"false"``, ``"auto"`` or ``"true"``.

    Args:
        args: the settings; as transformers parses them, the value may be a bool.

    Raises:
        ValueError: it is something else, or ``"true"`` beside a setting that allows no graphs.
    """
    mode = str(args.cuda_graphs).lower()
    if mode not in CHOICES:
        raise ValueError(f"cuda_graphs must be 'true', 'false' or 'auto', got {args.cuda_graphs!r}")
    if mode != "true":
        return mode
    if args.perturbation == "in_place":
        problem = "perturbation='in_place', which computes its steps on the host"
    elif args.cache_trunk != "none":
        problem = f"cache_trunk={args.cache_trunk!r}, which looks examples up on the host"
    else:
        return mode
    raise ValueError(
        f"cuda_graphs={args.cuda_graphs!r} does not go with {problem}; use one of the two"
    )


def check_graph_device(args: Any, device: torch.device) -> None:
    """Refuse graphs where there is no device that has them, or its precision allows none.

    Raises:
        ValueError: ``cuda_graphs`` is ``"true"`` and the device is no CUDA (or ROCm) device, or
            weights are cast as they are used.
    """
    if graph_mode(args) != "true":
        return
    if args.mixed_precision not in ("no", None):
        raise ValueError(
            f"cuda_graphs={args.cuda_graphs!r} does not go with mixed precision "
            f"{args.mixed_precision!r}, whose copies of the weights do not stay where they are; "
            "load the model in bfloat16 instead, or set cuda_graphs='auto'"
        )
    if device.type != "cuda":
        raise ValueError(
            f"cuda_graphs={args.cuda_graphs!r} needs a CUDA device, and this run is on {device}; "
            "set cuda_graphs='auto', which uses graphs where they can be had, or 'false'"
        )


def use_graphs(
    args: Any,
    optimizer: ZerothOrderOptimizer,
    model: nn.Module,
    losses: BatchLosses,
    *,
    scored: bool,
) -> None:
    """Let an optimizer's evaluations be replays of graphs, as far as the settings ask for it.

    Args:
        args: the settings.
        optimizer: of the run; one that has graphs keeps them.
        model: that is trained.
        losses: how the losses of a batch are computed.
        scored: whether scores of completions or labels are trained instead of losses.

    Raises:
        ValueError: graphs are insisted on, and there can be none.
    """
    mode, estimator = graph_mode(args), optimizer.estimator
    if mode == "true" and scored:
        raise ValueError(
            f"cuda_graphs={args.cuda_graphs!r} is for losses, and here completions or labels are "
            "scored, on the host; set it to 'auto' or 'false'"
        )
    on_card = optimizer.space.device.type == "cuda"
    if mode == "false" or scored or not on_card or estimator.evaluator is not plain_losses:
        return
    losses.records_any_loss = mode == "true"
    estimator.evaluator = EvaluationGraphs(optimizer.space, model, insist=mode == "true")
