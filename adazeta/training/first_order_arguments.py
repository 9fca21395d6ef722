"""The settings of :class:`~adazeta.training.first_order.FOTrainer`."""

import dataclasses
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from transformers import TrainingArguments

from adazeta.optim.adalomo import AdaLomo
from adazeta.support.settings import nearest
from adazeta.training.arguments import ZOTrainingArguments
from adazeta.training.common_arguments import check_common, settle_common
from adazeta.training.settings import FIRST_ORDER, check_settings


class Rule(NamedTuple):
    """A rule by which gradients become updates.

    Attributes:
        make: makes the optimizer from groups of parameters.
        learning_rate: the default.
        settings: what ``rule_settings`` may hold, with the defaults.
        adam: whether it takes the ``adam_*`` settings of the base class.
        fused: whether it updates inside of the backward pass; it then also rounds by the run's
            seed.
    """

    make: Callable[..., torch.optim.Optimizer]
    learning_rate: float
    settings: dict[str, Any]
    adam: bool = False
    fused: bool = False


RULES: dict[str, Rule] = {
    "adamw": Rule(torch.optim.AdamW, 1e-2, {"amsgrad": False}, adam=True),
    "sgd": Rule(torch.optim.SGD, 0.1, {"momentum": 0.0, "dampening": 0.0, "nesterov": False}),
    "adalomo": Rule(
        AdaLomo, 1e-3,
        {"decay_rate": -0.8, "beta": None, "clip": 1.0, "floor": 1e-3, "epsilon": 1e-30},
        fused=True,
    ),
}  # fmt: skip
"""By name. The rate of AdamW is the best of most of our tensor-train adapters
(``benchmarks/results/learning.json``); the others are our choice."""


def _as_zeroth(name: str) -> Any:
    """Make the field that zeroth-order training has under the same name."""
    (found,) = (f for f in dataclasses.fields(ZOTrainingArguments) if f.name == name)
    return field(default=found.default, metadata=found.metadata)


@dataclass
class FOTrainingArguments(TrainingArguments):
    """``transformers.TrainingArguments`` plus the settings of first-order training.

    What becomes of every setting of the base class stands in
    :data:`adazeta.training.settings.FIRST_ORDER`.

    Raises:
        ValueError: a setting is given that would be ignored, or a value is out of range.
    """

    rule: str = field(
        default="adamw",
        metadata={
            "help": "With order='first': how gradients become updates, by 'adamw', 'sgd' or "
            "'adalomo', which updates each tensor inside of the backward pass and keeps a row and "
            "a column of each matrix: for training all of a model; with adapters it saves nothing. "
            "The default of 'learning_rate' is 0.01 for 'adamw', 0.1 for 'sgd' and 0.001 for "
            "'adalomo'."
        },
    )
    rule_settings: dict[str, Any] | None = field(
        default=None,
        metadata={
            "help": "Settings of the 'rule', e.g. {momentum: 0.9} of 'sgd'; AdamW has adam_beta1, "
            "adam_beta2 and adam_epsilon."
        },
    )
    learning_rate: float | str | None = field(  # type: ignore[assignment]
        default=None, metadata={"help": "Initial learning rate; by default that of the 'rule'."}
    )
    remove_unused_columns: bool = _as_zeroth("remove_unused_columns")
    data_seed: int | None = _as_zeroth("data_seed")
    share_trunk: bool = _as_zeroth("share_trunk")
    cache_trunk: str = _as_zeroth("cache_trunk")
    cache_trunk_limit: float = _as_zeroth("cache_trunk_limit")
    cache_trunk_folder: str | None = _as_zeroth("cache_trunk_folder")
    average: float = _as_zeroth("average")
    average_warmup: bool = _as_zeroth("average_warmup")

    def __post_init__(self) -> None:
        """Check what the base class does not know."""
        if self.rule not in RULES:
            hint = nearest(self.rule, RULES)
            raise ValueError(
                f"rule must be one of {', '.join(map(repr, RULES))}, got {self.rule!r}"
                f"{hint and '; '}{hint}"
            )
        self._check_rule()
        check_common(self)
        check_settings(self, FIRST_ORDER)
        settle_common(self)
        if RULES[self.rule].fused:
            self.max_grad_norm = 0.0  # no moment has all gradients, whose norm it would be
        super().__post_init__()
        self.make_optimizer([torch.zeros(1, requires_grad=True)])  # it refuses bad values
        launched = int(os.environ.get("WORLD_SIZE") or 1) if "LOCAL_RANK" in os.environ else 1
        if max(self.world_size, launched) > 1:
            raise ValueError(
                f"{max(self.world_size, launched)} processes were started, and first-order "
                "training here is for one: start one, or set order='zeroth' (ZOTrainer)"
            )

    def _check_rule(self) -> None:
        """Check the settings of the rule, and make the learning rate a number."""
        rule = RULES[self.rule]
        for name in self.rule_settings or {}:
            if name not in rule.settings:
                there = ", ".join(rule.settings) or "none"
                raise ValueError(
                    f"rule_settings: {self.rule!r} has no setting {name!r}; there are {there}"
                )
        if self.learning_rate is None:
            self.learning_rate = rule.learning_rate
        try:
            self.learning_rate = float(self.learning_rate)
        except ValueError:
            raise ValueError(
                f"learning_rate={self.learning_rate!r}: it is measured for order='zeroth' alone; "
                "set a number, or leave it out for the default of the rule"
            ) from None

    def needing_examples(self) -> list[str]:
        """Name the settings whose values need the losses of single examples."""
        return [] if self.cache_trunk == "none" else ["cache_trunk"]

    def make_optimizer(self, groups: Iterable[Any]) -> torch.optim.Optimizer:
        """Make the optimizer of the rule.

        Args:
            groups: parameters, or groups of them.

        Raises:
            ValueError: the rule refuses its settings.
        """
        rule = RULES[self.rule]
        options = {**rule.settings, **(self.rule_settings or {})}
        if rule.adam:
            options |= {"betas": (self.adam_beta1, self.adam_beta2), "eps": self.adam_epsilon}
        if rule.fused:
            options["seed"] = self.seed
        return rule.make(groups, lr=self.learning_rate, weight_decay=self.weight_decay, **options)
