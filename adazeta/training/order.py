"""The order of training: by losses alone (zeroth), or by gradients (first)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from adazeta.support.settings import build, setting, settings_of
from adazeta.training.arguments import ZOTrainingArguments
from adazeta.training.first_order_arguments import RULES, FOTrainingArguments

ORDERS: Mapping[str, type[ZOTrainingArguments] | type[FOTrainingArguments]] = {
    "zeroth": ZOTrainingArguments,
    "first": FOTrainingArguments,
}


_WHY = (
    "the worst move of an embedding is along its gradient, and the best of a few random moves "
    "gains next to nothing in so many dimensions; "
)


@dataclass
class OrderArguments:
    """What a run trains by.

    Raises:
        ValueError: the order is unknown.
    """

    order: str = setting(
        "zeroth",
        "Order of training: 'zeroth' by losses of forward passes alone, or 'first' by gradients "
        "(backpropagation), for comparison and where memory allows it.",
    )

    def __post_init__(self) -> None:
        """Check the order."""
        if self.order not in ORDERS:
            raise ValueError(f"order must be 'zeroth' or 'first', got {self.order!r}")


OF_ONE_ORDER = ("learning_rate", "rule_settings")
"""Settings that both orders have, whose values fit one of them only."""


def switched(file: Mapping[str, Any], order: str) -> tuple[dict[str, Any], list[str]]:
    """Leave out of a file's settings what belongs to the other order alone.

    So the same file trains by either order, with ``--order``. A rate of one order is none of the
    other's, though the setting has the same name.

    Args:
        file: settings by name.
        order: that a flag asks for.

    Returns:
        The settings, and the names of those that were left out; all and none where the file is of
        that order, or there is no such order.
    """
    before = file.get("order", "zeroth")
    if order == before or order not in ORDERS or before not in ORDERS:
        return dict(file), []
    known = settings_of(ORDERS[order])
    other = settings_of(ORDERS[before])
    dropped = [
        name for name in file if name in other and (name not in known or name in OF_ONE_ORDER)
    ]
    return {name: value for name, value in file.items() if name not in dropped}, dropped


def training_arguments(
    settings: Mapping[str, Any],
) -> ZOTrainingArguments | FOTrainingArguments:
    """Make the training arguments of the order that settings name.

    Args:
        settings: by name, as a file of settings has them; others than those of training are left
            alone.

    Raises:
        ValueError: the order is unknown, a setting belongs to the other order, or see the
            arguments themselves.
    """
    order = build(OrderArguments, settings).order
    (other,) = (name for name in ORDERS if name != order)
    known = settings_of(ORDERS[order])
    for name in settings_of(ORDERS[other]):
        if name in settings and name not in known:
            why = _WHY if name.startswith("adversarial_") else ""
            raise ValueError(
                f"{name}={settings[name]!r} is a setting of order={other!r}, and order is "
                f"{order!r}: {why}leave it out, or set order to {other!r}"
            )
    made = build(ORDERS[order], settings)
    if isinstance(made, FOTrainingArguments) and RULES[made.rule].fused:
        norm = settings.get("max_grad_norm")
        if norm is not None and float(norm):  # the default of the base class is no wish
            raise ValueError(
                f"max_grad_norm={norm!r} needs all gradients at once, and rule={made.rule!r} drops "
                "each within the backward pass; set it to 0, or leave it out"
            )
    return made
