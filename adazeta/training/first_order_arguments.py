"""The settings of :class:`~adazeta.training.first_order.FOTrainer`."""

import dataclasses
import math
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from transformers import TrainingArguments

from adazeta.optim.adalomo import AdaLomo
from adazeta.support.settings import like, nearest
from adazeta.training.adversarial import AUTO
from adazeta.training.adversarial import KINDS as ADVERSARIES
from adazeta.training.arguments import ZOTrainingArguments
from adazeta.training.common_arguments import check_common, settle_common
from adazeta.training.extrapolation import ASCENT, KINDS
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


def _lamb(groups: Iterable[Any], **options: Any) -> torch.optim.Optimizer:
    """Make LAMB, with weight decay inside of the trust ratio, as its paper has it.

    Raises:
        ImportError: it is not installed.
    """
    try:
        from pytorch_optimizer import Lamb
    except ImportError:
        raise ImportError(
            "rule='lamb' needs pytorch-optimizer: pip install 'adazeta[first-order]'"
        ) from None
    # Without adam_debias the first moment alone would be corrected, which no version of it does.
    made: torch.optim.Optimizer = Lamb(groups, weight_decouple=False, adam_debias=True, **options)
    return made


RULES: dict[str, Rule] = {
    "adamw": Rule(torch.optim.AdamW, 1e-2, {"amsgrad": False}, adam=True),
    "sgd": Rule(torch.optim.SGD, 0.1, {"momentum": 0.0, "dampening": 0.0, "nesterov": False}),
    "adalomo": Rule(
        AdaLomo, 1e-3,
        {"decay_rate": -0.8, "beta": None, "clip": 1.0, "floor": 1e-3, "epsilon": 1e-30},
        fused=True,
    ),
    "lamb": Rule(_lamb, 1e-2, {}, adam=True),
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
            "help": "With order='first': how gradients become updates, by 'adamw', 'sgd', "
            "'adalomo' or 'lamb' (of pytorch-optimizer, for large batches). 'adalomo' updates each "
            "tensor inside of the backward pass and keeps a row and a column of each matrix: for "
            "training all of a model; with adapters it saves nothing. The default of "
            "'learning_rate' is 0.01 for 'adamw' and 'lamb', 0.1 for 'sgd' and 0.001 for 'adalomo'."
        },
    )
    rule_settings: dict[str, Any] | None = field(
        default=None,
        metadata={
            "help": "Settings of the 'rule', e.g. {momentum: 0.9} of 'sgd'; AdamW and LAMB have "
            "adam_beta1, adam_beta2 and adam_epsilon."
        },
    )
    learning_rate: float | str | None = field(  # type: ignore[assignment]
        default=None, metadata={"help": "Initial learning rate; by default that of the 'rule'."}
    )
    extrapolation: str = field(
        default="none",
        metadata={
            "help": "With order='first': where each gradient is taken: "
            + ", ".join(f"'{kind}' ({what})" for kind, what in KINDS.items())
            + ". Not with rule='adalomo'."
        },
    )
    extrapolation_scale: float | None = field(
        default=None,
        metadata={
            "help": "How far from the parameters, as a factor on what 'extrapolation' is along. "
            "Our default: the learning rate divided by gradient_accumulation_steps, which is what "
            "linear scaling gives a batch of one micro-batch; for 'past' the learning rate, and "
            "0.05 for 'ascent'."
        },
    )
    extrapolation_until: float = field(
        default=1.0,
        metadata={"help": "Share of the steps that 'extrapolation' is on for, from the first on."},
    )
    adversarial_radius: float | str = field(
        default=0.0,
        metadata={
            "help": "With order='first': train at embeddings that are moved against the model, by "
            "this norm an example, after ScaLA; 0 is off, and 'auto' is a hundredth of the mean "
            "norm of an embedding times the root of the example's tokens, our choice. Nothing is "
            "shared or cached then."
        },
    )
    adversarial_step: float | None = field(
        default=None,
        metadata={
            "help": "Norm of the move before 'adversarial_radius' bounds it; by default the radius."
        },
    )
    adversarial_start: float = field(
        default=0.4,
        metadata={"help": "Share of the steps before the first adversarial one. Our default."},
    )
    adversarial_kind: str = field(
        default="gradient",
        metadata={
            "help": "Where embeddings are moved: 'gradient' (uphill, for a forward and a backward "
            "pass more) or 'random' (a move of the same norm, as a control)."
        },
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
        self._check_extrapolation()
        self._check_adversarial()
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
        if self.rule_settings is not None:
            self.rule_settings = {
                name: like(value, rule.settings[name], f"rule_settings: {name}")
                for name, value in self.rule_settings.items()
            }
        if self.learning_rate is None:
            self.learning_rate = rule.learning_rate
        try:
            self.learning_rate = float(self.learning_rate)
        except ValueError:
            raise ValueError(
                f"learning_rate={self.learning_rate!r}: it is measured for order='zeroth' alone; "
                "set a number, or leave it out for the default of the rule"
            ) from None

    def _check_extrapolation(self) -> None:
        """Check where gradients are taken, and settle how far ahead."""
        if self.extrapolation not in KINDS:
            hint = nearest(self.extrapolation, KINDS) or f"there are: {', '.join(KINDS)}"
            raise ValueError(f"extrapolation is {self.extrapolation!r}; {hint}")
        if self.extrapolation == "none":
            for name, off in (("extrapolation_scale", None), ("extrapolation_until", 1.0)):
                if getattr(self, name) != off:
                    raise ValueError(
                        f"{name}={getattr(self, name)} means nothing with extrapolation='none': "
                        f"choose one of {', '.join(list(KINDS)[1:])}, or leave it out"
                    )
            return
        if RULES[self.rule].fused:
            raise ValueError(
                f"extrapolation={self.extrapolation!r} sets gradients aside, and "
                f"rule={self.rule!r} drops each within the backward pass; choose another rule, or "
                "leave extrapolation out"
            )
        if self.extrapolation_scale is None:
            self.extrapolation_scale = self._usual_scale()
        if not 0 <= self.extrapolation_scale < math.inf:
            raise ValueError(
                f"extrapolation_scale must be 0 or more, got {self.extrapolation_scale}; uphill is "
                "extrapolation='ascent'"
            )
        if not 0 < self.extrapolation_until <= 1:
            raise ValueError(
                f"extrapolation_until must be in (0, 1], got {self.extrapolation_until}"
            )

    def _usual_scale(self) -> float:
        """Return how far ahead a gradient is taken where nothing is said of it."""
        if self.extrapolation == "ascent":
            return ASCENT
        assert isinstance(self.learning_rate, float)
        if self.extrapolation == "past":  # the mean gradient of a whole step
            return self.learning_rate
        return self.learning_rate / self.gradient_accumulation_steps

    def _check_adversarial(self) -> None:
        """Check how embeddings are moved."""
        if self.adversarial_radius != AUTO:
            try:
                self.adversarial_radius = float(self.adversarial_radius)
            except ValueError:
                raise ValueError(
                    f"adversarial_radius must be a number or 'auto', got "
                    f"{self.adversarial_radius!r}"
                ) from None
            if not 0 <= self.adversarial_radius < math.inf:
                raise ValueError(
                    f"adversarial_radius must be 0 or more, got {self.adversarial_radius}"
                )
        if not self.adversarial_radius:
            for each in dataclasses.fields(self):
                value = getattr(self, each.name)
                if each.name.startswith("adversarial_") and value != each.default:
                    raise ValueError(
                        f"{each.name}={value!r} means nothing with adversarial_radius=0: set a "
                        "radius, or leave it out"
                    )
            return
        if self.adversarial_kind not in ADVERSARIES:
            hint = nearest(self.adversarial_kind, ADVERSARIES)
            raise ValueError(
                f"adversarial_kind must be 'gradient' or 'random', got {self.adversarial_kind!r}"
                f"{hint and '; '}{hint}"
            )
        if not 0 <= self.adversarial_start < 1:
            raise ValueError(f"adversarial_start must be in [0, 1), got {self.adversarial_start}")
        if self.adversarial_step is not None and not 0 < self.adversarial_step < math.inf:
            raise ValueError(f"adversarial_step must be above 0, got {self.adversarial_step}")
        if self.cache_trunk != "none":
            raise ValueError(
                f"cache_trunk={self.cache_trunk!r} keeps what frozen blocks make of embeddings, "
                "and adversarial_radius moves these; leave one of them out"
            )

    def needing_examples(self) -> list[str]:
        """Name the settings whose values need the losses of single examples."""
        needs = {"cache_trunk": self.cache_trunk != "none"}
        needs["adversarial_radius"] = self.adversarial_radius != 0
        return [name for name, needed in needs.items() if needed]

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
