"""The order of training: by losses alone (zeroth), or by gradients (first)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from adazeta.support.settings import build, setting, settings_of
from adazeta.training.arguments import ZOTrainingArguments
from adazeta.training.first_order_arguments import FOTrainingArguments

ORDERS: Mapping[str, type[ZOTrainingArguments] | type[FOTrainingArguments]] = {
    "zeroth": ZOTrainingArguments,
    "first": FOTrainingArguments,
}


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
            raise ValueError(
                f"{name}={settings[name]!r} is a setting of order={other!r}, and order is "
                f"{order!r}: leave it out, or set order to {other!r}"
            )
    return build(ORDERS[order], settings)
