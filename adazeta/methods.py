"""The methods of the field by name: a direction, a rule, and the settings that make them one.

A direction is how z is drawn and applied, a rule how probes become an update. The engine around
them is one, so a method is a row of this table.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from inspect import Parameter, signature
from typing import Any

from torch import nn

from adazeta.adapters.attached import has_adapters
from adazeta.directions.table import DIRECTIONS, Direction, space_for
from adazeta.optim.adam import ZOAdam
from adazeta.optim.conservative import ConservativeSGD
from adazeta.optim.extrapolated import ZOExtrapolated
from adazeta.optim.helene import HELENE
from adazeta.optim.newton import ZONewton
from adazeta.optim.optimizer import Params, ZerothOrderOptimizer
from adazeta.optim.rate import AUTO
from adazeta.optim.relative import ZOAdaLomo
from adazeta.optim.sgd import ZOSGD
from adazeta.optim.sign import ZOSign
from adazeta.parameters.space import ParameterSpace
from adazeta.support.settings import like, nearest

DEFAULT = "zo-adam"
EXAMPLE = 4096
"""Width of the matrix for which the table states the memory of directions."""

_ESTIMATOR = {"queries": 1, "one_sided": False, "distribution": "gaussian"}
_TRAINING = {"learning_rate": AUTO, "lr_scheduler_type": "linear"}

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Method:
    """One method.

    Attributes:
        paper: where it comes from.
        summary: what it does, in a line.
        rule: its optimizer.
        own: settings of the rule, with the defaults.
        fixed: options of the rule that make it this method.
        estimator: of ``queries``, ``one_sided`` and ``distribution``, its own defaults.
        state: bytes of the rule's state per trained number (padded to a multiple of 4 a tensor),
            given the settings.
        training: of ``learning_rate`` and ``lr_scheduler_type``, its own defaults.
        whole_epochs: a step takes all batches of an epoch, unless ``gradient_accumulation_steps``
            says how many.
        perturbs: evaluations are at perturbed weights; else activations are moved.
        takes: settings that come from fields of ``TrainingArguments`` where ``method_settings`` do
            not have them: the names of the fields by the setting, several make a tuple.
        direction: a key of :data:`adazeta.directions.table.DIRECTIONS`.
        more_forwards: evaluations of a batch that a step takes beside those of its queries.
        more_passes: sweeps over the trainable weights beside those of queries and update.
    """

    paper: str
    summary: str
    rule: Callable[..., ZerothOrderOptimizer]
    own: Settings = field(default_factory=dict)
    fixed: Settings = field(default_factory=dict)
    estimator: Settings = field(default_factory=dict)
    state: Callable[[Settings], int] = lambda settings: 0
    training: Settings = field(default_factory=dict)
    whole_epochs: bool = False
    perturbs: bool = True
    takes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    direction: str = "full"
    more_forwards: int = 0
    more_passes: int = 0

    @property
    def drawn(self) -> Direction:
        """The direction itself."""
        return DIRECTIONS[self.direction]

    @property
    def settings(self) -> dict[str, Any]:
        """What ``method_settings`` may hold, with the defaults: of the direction and the rule."""
        return {**self.drawn.settings, **self.own}

    def default(self, name: str) -> Any:
        """Return the method's own value of a setting that other methods have as well.

        Args:
            name: ``queries``, ``one_sided``, ``distribution``, ``learning_rate`` or
                ``lr_scheduler_type``.
        """
        return {**_ESTIMATOR, **_TRAINING, **self.estimator, **self.training}[name]

    def with_settings(self, given: Settings | None) -> dict[str, Any]:
        """Return all settings of the method, those given first.

        Raises:
            ValueError: the method has no such setting, and the message names those that it has; or
                a value is not of its kind.
        """
        for key in given or {}:
            if key not in self.settings:
                known = ", ".join(self.settings) or "none"
                hint = nearest(key, self.settings) or f"there are: {known}"
                raise ValueError(f"the method has no setting {key!r}; {hint}")
        read = {
            key: like(value, self.settings[key], f"the setting {key!r} of the method")
            for key, value in (given or {}).items()
        }
        pairs = {**self.settings, **read}
        return {k: tuple(v) if isinstance(v, list) else v for k, v in pairs.items()}

    def taken(self, arguments: Any, given: Settings | None) -> dict[str, Any]:
        """Return the settings that are not given and come from training arguments.

        Args:
            arguments: has the fields that :attr:`takes` names.
            given: ``method_settings``.
        """
        found = {}
        for name, fields in self.takes.items():
            if name not in (given or {}):
                values = tuple(getattr(arguments, each) for each in fields)
                found[name] = values if len(values) > 1 else values[0]
        return found

    def split(self, given: Settings | None) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the settings of the rule, and those of the direction.

        Raises:
            ValueError: see :meth:`with_settings`.
        """
        every = self.with_settings(given)
        rule = {k: v for k, v in every.items() if k in self.own}
        return rule, {k: v for k, v in every.items() if k not in self.own}

    def state_bytes(self, count: int, given: Settings | None = None) -> int:
        """Return the bytes of the rule's state for a number of trained numbers."""
        return self.state(self.with_settings(given)) * count

    def forwards(self, queries: int | None = None, one_sided: bool | None = None) -> int:
        """Return the evaluations of a batch that a step takes."""
        queries = self.default("queries") if queries is None else queries
        one_sided = self.default("one_sided") if one_sided is None else one_sided
        return (queries + 1 if one_sided else 2 * queries) + self.more_forwards

    def passes(self, queries: int | None = None, one_sided: bool | None = None) -> int:
        """Return the sweeps over the trainable weights that a step takes outside of the forward.

        One for each perturbed evaluation, and one for the update; a conservative step copies the
        weights, and tries two updates, each taken back. Tensor-train adapters need none
        for evaluations, since their factors are contracted with the noise in them. In a subspace
        there is none but the fold at a refresh. Where responses are measured there is the update
        alone. A sparse method copies the matrices for each
        evaluation, and its update touches the chosen elements only.
        """
        queries = self.default("queries") if queries is None else queries
        one_sided = self.default("one_sided") if one_sided is None else one_sided
        evaluations = queries if one_sided else 2 * queries
        perturbed = evaluations if self.perturbs and self.drawn.perturbs_weights else 0
        return perturbed + self.drawn.updates_weights + self.more_passes


def _momentum_state(settings: Settings) -> int:
    return 4 if settings["momentum"] else 0


def _adam_state(settings: Settings) -> int:
    return 8 if settings["second_moment"] == "element" else 4


def _helene_state(settings: Settings) -> int:
    width = {"float32": 4, "bfloat16": 2, "window": 0}[settings["state"]]
    return width * (2 if settings["hessian"] == "element" else 1)


def _settings_of(rule: Callable[..., ZerothOrderOptimizer]) -> dict[str, Any]:
    """Return the settings of its own that a rule's constructor has, with their defaults."""
    return {
        name: parameter.default
        for name, parameter in signature(rule).parameters.items()
        if parameter.kind is Parameter.KEYWORD_ONLY and name != "weight_decay"
    }


METHODS: dict[str, Method] = {
    "mezo": Method(
        "MeZO, arXiv 2305.17333", "gradient descent on the estimate, no state", ZOSGD
    ),
    "zo-momentum": Method(
        "ZO-SGD with momentum, in ZO-Bench, arXiv 2402.11592",
        "gradient descent with momentum",
        ZOSGD, {"momentum": 0.9}, state=_momentum_state,
    ),
    "zo-sign": Method(
        "ZO-signSGD, Liu et al., ICLR 2019; in ZO-Bench, arXiv 2402.11592",
        "the sign of each element of the estimate", ZOSign,
    ),
    "zo-adam": Method(
        "ZO-Adam, in ZO-Bench, arXiv 2402.11592",
        "Adam, by default with one second moment for all elements",
        ZOAdam, _settings_of(ZOAdam), state=_adam_state,
        takes={"betas": ("adam_beta1", "adam_beta2")},
    ),
    "zo-conservative": Method(
        "ZO-SGD-Cons, in ZO-Bench, arXiv 2402.11592",
        "the best of theta, theta - update and theta + update",
        ConservativeSGD, {"momentum": 0.0}, state=_momentum_state, more_forwards=3, more_passes=5,
    ),
    "fzoo": Method(
        "FZOO, arXiv 2506.09034",
        "one-sided Rademacher batch, divided by the deviation of its losses",
        ZOSGD, {"momentum": 0.0}, {"normalize": True},
        {"queries": 8, "one_sided": True, "distribution": "rademacher"}, _momentum_state,
    ),
    "subzero": Method(
        "SubZero, arXiv 2410.08989",
        "gradient descent in a random subspace of each matrix",
        ZOSGD, {"momentum": 0.0}, state=_momentum_state, direction="subzero",
    ),
    "lozo": Method(
        "LOZO, arXiv 2410.07698",
        "gradient descent along low-rank directions that share one factor for some steps",
        ZOSGD, direction="lozo",
    ),
    "lozo-m": Method(
        "LOZO-M, arXiv 2410.07698",
        "LOZO with momentum, carried over to the next factor",
        ZOSGD, {"momentum": 0.9}, state=_momentum_state, direction="lozo",
    ),
    "sparse-mezo": Method(
        "Sparse-MeZO, arXiv 2402.15751",
        "MeZO on the smallest elements of each matrix",
        ZOSGD, direction="sparse",
    ),
    "helene": Method(
        "HELENE, arXiv 2411.10696",
        "annealed momentum over a clipped diagonal curvature",
        HELENE, _settings_of(HELENE), state=_helene_state,
    ),
    "zo-adalomo": Method(
        "after AdaLomo, arXiv 2310.10195",
        "normalised estimates, by a rate in units of each tensor's size; not adaptive",
        ZOAdaLomo, _settings_of(ZOAdaLomo),
    ),
    "zo-extrapolated": Method(
        "after Extrapolation for Large-batch Training, arXiv 2006.05720",
        "gradient descent on estimates made one step ahead, no state",
        ZOExtrapolated, _settings_of(ZOExtrapolated),
    ),
    "newton": Method(
        "this package, docs/methods.md",
        "informed adapters fitted to measured responses of all logits; no rate",
        ZONewton, estimator={"one_sided": True},
        training={"learning_rate": 1.0, "lr_scheduler_type": "constant"}, whole_epochs=True,
        perturbs=False,
    ),
}  # fmt: skip
"""The methods by name."""


def method_named(name: str) -> Method:
    """Return a method.

    Raises:
        ValueError: there is none of that name; the message names the nearest, or all.
    """
    if name not in METHODS:
        hint = nearest(name, METHODS) or f"there are: {', '.join(METHODS)}"
        raise ValueError(f"method is {name!r}; {hint}")
    return METHODS[name]


def make_optimizer(
    params: Params,
    method: str = DEFAULT,
    *,
    lr: float | str = AUTO,
    method_settings: Settings | None = None,
    **options: Any,
) -> ZerothOrderOptimizer:
    """Make the optimizer of a method.

    Args:
        params: see :class:`~adazeta.optim.optimizer.ZerothOrderOptimizer`.
        method: name of the method.
        lr: learning rate, or ``"auto"``: the method's own, measured before the first step
            (:mod:`adazeta.optim.rate`); of a method without a rate it is 1.
        method_settings: of the method; what is not given has the method's default.
        **options: ``weight_decay``, and what the optimizer passes on to the estimator.

    Raises:
        ValueError: there is no such method, or it has no such setting, or a value is out of range.
    """
    found = method_named(method)
    if found.drawn.folds and options.get("weight_decay"):
        raise ValueError(
            f"weight_decay must be 0 with method={method!r}, got {options['weight_decay']}: it "
            "would shrink what was added to the weights since the last fold, not the weights"
        )
    rule, _ = found.split(method_settings)
    lr = found.default("learning_rate") if lr == AUTO else lr
    options = {**found.fixed, **found.estimator, **rule, **options}
    if isinstance(params, nn.Module):
        kinds = {k: options[k] for k in ("distribution", "perturbation", "seed") if k in options}
        params = method_space(params, method, method_settings, **kinds)
    space = params if isinstance(params, ParameterSpace) else options.get("space")
    name = "full" if space is None else space.direction["name"]
    if name != found.direction:
        raise ValueError(
            f"method={method!r} needs the direction {found.direction!r}, and the parameters have "
            f"{name!r}; pass the model, or method_space(model, {method!r})"
        )
    return found.rule(params, lr=lr, **options)


def method_space(
    model: nn.Module, method: str, settings: Settings | None = None, **options: Any
) -> ParameterSpace:
    """Return the parameter space of a model that a method trains in.

    Args:
        model: the model; a method with a direction of its own changes it.
        method: name of the method.
        settings: of the method.
        **options: ``distribution``, ``perturbation`` and ``seed`` of the run.

    Raises:
        ValueError: see :func:`make_optimizer` and :class:`ParameterSpace`.
    """
    found = method_named(method)
    return space_for(model, found.direction, found.split(settings)[1], **options)


def distribution_for(method: str, model: nn.Module) -> str:
    """Return the distribution of the directions of a new run that does not say which.

    ``"pairs"`` where all numbers of a model are perturbed, since drawing their noise takes a part
    of the step that shows; with adapters it does not.

    Args:
        method: name of the method.
        model: what is trained.
    """
    found = method_named(method)
    default = str(found.default("distribution"))
    full = found.direction == "full" and found.perturbs and not has_adapters(model)
    return "pairs" if full and default == "gaussian" else default


def table() -> list[dict[str, Any]]:
    """Return a row for each method with its defaults, as ``adazeta methods`` prints them.

    ``trained`` numbers of a bfloat16 matrix of 4096 x 4096 and the ``direction_bytes`` beside it;
    ``state_bytes`` of the rule for each trained number; ``forwards`` and ``passes`` of a step.
    """
    return [
        {
            "method": name,
            "paper": method.paper,
            "rule": method.summary,
            "direction": method.direction,
            "direction_bytes": method.drawn.state_bytes(
                [(EXAMPLE, EXAMPLE)], method.drawn.settings, 2
            ),
            "trained": method.drawn.trained([(EXAMPLE, EXAMPLE)], method.drawn.settings),
            "state_bytes": method.state_bytes(1),
            "forwards": method.forwards(),
            "passes": method.passes(),
            "settings": ", ".join(f"{k}={v}" for k, v in method.settings.items()) or "-",
        }
        for name, method in METHODS.items()
    ]
