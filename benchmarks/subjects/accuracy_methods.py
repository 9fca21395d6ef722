"""The fine-tuning methods that ``accuracy`` compares."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from adazeta import ZOSGD, QuerySchedule, ZOAdam
from adazeta.methods import make_optimizer

# Evaluations of a batch that a first-order step counts as: a forward, and a backward of about two.
FIRST_ORDER_COST = 3


# Rates of the registered methods among which the pilot runs choose, by what is trained.
_RATES: dict[str, dict[str, tuple[float, ...]]] = {
    "tt": {
        "mezo": (1e-2, 1e-1, 1.0),
        "zo-momentum": (1e-3, 1e-2, 1e-1),
        "zo-sign": (1e-3, 5e-3, 2e-2),
        "zo-adam": (5e-3, 1e-2, 2e-2),
        "zo-conservative": (1e-2, 1e-1, 1.0),
        "fzoo": (1e-2, 1e-1, 1.0),
        "helene": (1e-3, 1e-2, 1e-1),
        "zo-adalomo": (1e-2, 3e-2, 1e-1),
        "zo-extrapolated": (1e-2, 1e-1, 1.0),
    },
    "blocks": {
        "mezo": (3e-4, 1e-3, 3e-3),
        "zo-momentum": (1e-4, 3e-4, 1e-3),
        "zo-sign": (1e-3, 3e-3, 1e-2),
        "zo-adam": (1e-3, 3e-3, 1e-2),
        "zo-conservative": (3e-4, 1e-3, 3e-3),
        "fzoo": (3e-3, 1e-2, 3e-2),
        "subzero": (1e-3, 3e-3, 1e-2),
        "lozo": (3e-3, 1e-2, 3e-2),
        "lozo-m": (3e-4, 1e-3, 3e-3),
        "sparse-mezo": (1e-3, 3e-3, 1e-2),
        "helene": (3e-4, 1e-3, 3e-3),
        "zo-adalomo": (3e-2, 1e-1, 3e-1),
        "zo-extrapolated": (3e-4, 1e-3, 3e-3),
    },
    # Whether its rate, relative to a tensor's size, serves whatever is trained.
    "full": {"zo-adalomo": (1e-2, 3e-2, 1e-1)},
}


@dataclass(frozen=True)
class Method:
    """What is trained and how.

    Attributes:
        trains: ``"tt"``, ``"lora"``, ``"blocks"`` or ``"full"``, see
            :meth:`benchmarks.subjects.accuracy_models.Trainees.fresh`.
        rates: learning rates among which pilot runs choose.
        build: makes the optimizer from the model, the rate and the seed.
        settings: for the reader.
    """

    trains: str
    rates: tuple[float, ...]
    build: Callable[[nn.Module, float, int], torch.optim.Optimizer]
    settings: dict[str, Any] = field(default_factory=dict)


def _zeroth_order(
    trains: str, kind: type[ZOAdam] | type[ZOSGD] | str, rates: tuple[float, ...], **options: Any
) -> Method:
    """Describe an optimizer, given as its class or as the name of a registered method."""
    if trains == "tt":
        options["probes_per_forward"] = 2  # of several evaluations the same losses, sooner

    def build(model: nn.Module, rate: float, seed: int) -> torch.optim.Optimizer:
        make = partial(make_optimizer, method=kind) if isinstance(kind, str) else kind
        return make(model, lr=rate, seed=seed, check_eps=False, **options)

    shown = {name: str(value) for name, value in options.items()}
    what = {"method": kind} if isinstance(kind, str) else {"rule": kind.__name__}
    return Method(trains, rates, build, settings={**what, **shown})


def _adamw(trains: str, rates: tuple[float, ...]) -> Method:
    def build(model: nn.Module, rate: float, seed: int) -> torch.optim.Optimizer:
        trainable = [p for p in model.parameters() if p.requires_grad]
        return torch.optim.AdamW(trainable, lr=rate, weight_decay=0.0)

    return Method(trains, rates, build, settings={"rule": "AdamW"})


def methods(batch: int) -> dict[str, Method]:
    """Return the methods for batches of a size.

    The query schedule is the paper's; eps of the baselines is MeZO's (1e-3, with LoRA 1e-2).
    """
    adam = (5e-3, 1e-2, 2e-2)
    schedule = QuerySchedule(0.85, 0.45, 20)
    pairs = max(batch // 2, 1)
    return {
        "adazeta_shared": _zeroth_order("tt", ZOAdam, adam, queries=schedule, eps=1e-2),
        "adazeta_shared_auto": _zeroth_order("tt", ZOAdam, adam, queries=schedule, eps="auto"),
        "adazeta_pairs": _zeroth_order("tt", ZOAdam, adam, probes=pairs, eps=1e-2),
        "adazeta_example": _zeroth_order("tt", ZOAdam, adam, probes="example", eps=1e-2),
        "adazeta_example_auto": _zeroth_order("tt", ZOAdam, adam, probes="example", eps="auto"),
        "zo_sgd_tt": _zeroth_order("tt", ZOSGD, (1e-2, 1e-1, 1.0), eps=1e-2),
        "mezo_lora": _zeroth_order("lora", ZOSGD, (1e-3, 1e-2, 1e-1), eps=1e-2),
        "mezo_full": _zeroth_order("full", ZOSGD, (1e-5, 3e-5, 1e-4), eps=1e-3),
        "tt_adamw": _adamw("tt", (1e-3, 5e-3, 2e-2)),
        "lora_adamw": _adamw("lora", (1e-4, 5e-4, 2e-3)),
    }


def registered(batch: int) -> dict[str, Method]:
    """Return a comparison of every method of :mod:`adazeta.methods` with its default settings.

    ``NAME:tt`` trains tensor-train adapters, with a direction for each pair of examples; only rules
    can. ``NAME:blocks`` trains every weight of a few blocks, with directions for the whole batch;
    ``NAME:full`` every weight of the model likewise.
    """
    options: dict[str, dict[str, Any]] = {
        "tt": {"eps": 1e-2, "probes": max(batch // 2, 1)},
        "blocks": {"eps": 1e-3},
        "full": {"eps": 1e-3},
    }
    return {
        f"{name}:{trains}": _zeroth_order(trains, name, rates, **options[trains])
        for trains, of_method in _RATES.items()
        for name, rates in of_method.items()
    }


def chosen_methods(names: str, batch: int) -> dict[str, Method]:
    """Return methods by name.

    Args:
        names: separated by commas, of :func:`methods` and :func:`registered`; ``"all"`` stands for
            every registered one, and nothing for :func:`methods`.
        batch: examples of a batch.

    Raises:
        ValueError: there is no method of a name.
    """
    known = {**methods(batch), **registered(batch)}
    if names == "all":
        return registered(batch)
    wanted = [name for name in names.split(",") if name]
    for name in wanted:
        if name not in known:
            raise ValueError(f"no method is named {name!r}; there are: {', '.join(known)}")
    return {name: known[name] for name in wanted} if wanted else methods(batch)
