"""The fine-tuning methods that ``accuracy`` compares."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from adazeta import ZOSGD, QuerySchedule, ZOAdam
from adazeta.adapter_config import TTAdapterConfig
from adazeta.adapters import add_tt_adapters, has_adapters, remove_adapters
from adazeta.methods import METHODS, make_optimizer
from benchmarks.trainers import lora_model
from benchmarks.workload import Workload

# Evaluations of a batch that a first-order step counts as: a forward, and a backward of about two.
FIRST_ORDER_COST = 3


# Rates of the registered methods among which the pilot runs choose.
_RATES_TT = (1e-2, 1e-1, 1.0)
_RATES_FULL = (1e-7, 1e-6, 1e-5)
_RATES = {
    "zo-adam": (5e-3, 2e-2, 5e-2),
    "zo-sign": (1e-3, 5e-3, 2e-2),
    "helene": (1e-3, 1e-2, 1e-1),
    "subzero": (1e-4, 1e-3, 1e-2),
    "lozo": (1e-7, 1e-6, 1e-5),
}


@dataclass(frozen=True)
class Method:
    """What is trained and how.

    Attributes:
        trains: ``"tt"`` (tensor-train adapters), ``"lora"`` or ``"full"``.
        rates: learning rates among which a short pilot run chooses.
        build: makes the optimizer from the model, the rate and the seed.
        settings: for the reader.
    """

    trains: str
    rates: tuple[float, ...]
    build: Callable[[nn.Module, float, int], torch.optim.Optimizer]
    settings: dict[str, Any] = field(default_factory=dict)


def _zeroth_order(
    trains: str, kind: type[ZOAdam] | type[ZOSGD], rates: tuple[float, ...], **options: Any
) -> Method:
    def build(model: nn.Module, rate: float, seed: int) -> torch.optim.Optimizer:
        return kind(model, lr=rate, seed=seed, check_eps=False, **options)

    shown = {name: str(value) for name, value in options.items()}
    return Method(trains, rates, build, settings={"rule": kind.__name__, **shown})


def _adamw(trains: str, rates: tuple[float, ...]) -> Method:
    def build(model: nn.Module, rate: float, seed: int) -> torch.optim.Optimizer:
        trainable = [p for p in model.parameters() if p.requires_grad]
        return torch.optim.AdamW(trainable, lr=rate, weight_decay=0.0)

    return Method(trains, rates, build, settings={"rule": "AdamW"})


def methods(batch: int) -> dict[str, Method]:
    """Return the methods for batches of a size.

    The query schedule is the paper's; eps of the baselines is MeZO's (1e-3, with LoRA 1e-2).
    """
    adam = (5e-3, 2e-2, 5e-2)
    schedule = QuerySchedule(0.85, 0.45, 20)
    pairs = max(batch // 2, 1)
    return {
        "adazeta_shared": _zeroth_order("tt", ZOAdam, adam, queries=schedule, eps=1e-2),
        "adazeta_shared_auto": _zeroth_order("tt", ZOAdam, adam, queries=schedule, eps="auto"),
        "adazeta_pairs": _zeroth_order("tt", ZOAdam, adam, probes=pairs, eps=1e-2),
        "adazeta_example": _zeroth_order("tt", ZOAdam, adam, probes="example", eps=1e-2),
        "adazeta_example_auto": _zeroth_order("tt", ZOAdam, adam, probes="example", eps="auto"),
        "zo_sgd_tt": _zeroth_order("tt", ZOSGD, (1e-2, 1e-1, 1.0), eps=1e-2),
        "mezo_lora": _zeroth_order("lora", ZOSGD, (1e-4, 1e-3, 1e-2), eps=1e-2),
        "mezo_full": _zeroth_order("full", ZOSGD, (1e-7, 1e-6, 1e-5), eps=1e-3),
        "tt_adamw": _adamw("tt", (1e-3, 5e-3, 2e-2)),
        "lora_adamw": _adamw("lora", (1e-4, 5e-4, 2e-3)),
    }


def registered(batch: int) -> dict[str, Method]:
    """Return a comparison of every method of :mod:`adazeta.methods` with its default settings.

    The rules train tensor-train adapters, with a direction for each pair of examples; methods with
    directions of their own train the matrices of the model.
    """
    found = {}
    for name, method in METHODS.items():
        own = method.direction != "full"
        rates = _RATES.get(name, _RATES_FULL if own else _RATES_TT)
        options: dict[str, Any] = {"eps": 1e-3} if own else {"eps": 1e-2}
        if not own:
            options["probes"] = max(batch // 2, 1)

        def build(
            model: nn.Module, rate: float, seed: int, name: str = name,
            options: dict[str, Any] = options,
        ) -> torch.optim.Optimizer:  # fmt: skip
            return make_optimizer(model, name, lr=rate, seed=seed, check_eps=False, **options)

        shown = {key: str(value) for key, value in options.items()}
        found[name] = Method("full" if own else "tt", rates, build, {"method": name, **shown})
    return found


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


class Models:
    """Gives each run its model; adapters of different runs share one model and what is kept for it.

    Args:
        work: the workload whose base is trained.
        adapters: the tensor-train adapters.
        prepare: called with the shared model once it has its first adapters.
    """

    def __init__(
        self,
        work: Workload,
        adapters: TTAdapterConfig,
        prepare: Callable[[nn.Module], None] | None = None,
    ) -> None:
        self._work = work
        self._adapters = adapters
        self._adapted = work.model("bare")
        self._prepare = prepare

    def fresh(self, trains: str, seed: int) -> nn.Module:
        """Return a model as it is before training."""
        if trains == "lora":
            return lora_model(self._work, seed=seed)
        if trains == "full":
            return self._work.model("full")
        if has_adapters(self._adapted):
            remove_adapters(self._adapted)
        add_tt_adapters(self._adapted, copy.deepcopy(self._adapters), seed=seed)
        if self._prepare is not None:
            self._prepare(self._adapted)
            self._prepare = None
        return self._adapted
