"""docs/settings.md, made from the help texts of the settings: ``adazeta info --settings``."""

import dataclasses
import re
from collections.abc import Collection, Mapping
from enum import Enum
from typing import Any, get_type_hints

from adazeta.adapters.config import TTAdapterConfig
from adazeta.models.arguments import ModelArguments
from adazeta.support.settings import settings_of
from adazeta.tasks.arguments import TaskArguments
from adazeta.training.arguments import ZOTrainingArguments
from adazeta.training.first_order_arguments import FOTrainingArguments
from adazeta.training.order import OrderArguments

SECTIONS: Mapping[str, type] = {
    "Base model": ModelArguments,
    "Data and prompt": TaskArguments,
    "Adapters": TTAdapterConfig,
    "Order": OrderArguments,
    "Training": ZOTrainingArguments,
    "First-order training": FOTrainingArguments,
}
_OPENING = """\
# Settings

`adazeta info --settings` writes this page from the help texts of the settings.

Each setting is a key of the YAML file of `adazeta train`, and a flag (`--rank 5`), which wins over
the file. In Python, those of *Adapters* are arguments of `TTAdapterConfig`, those of *Training* of
`ZOTrainingArguments`, and those of *First-order training* of `FOTrainingArguments`.
"""
_INHERITED = """
`ZOTrainingArguments` also has the settings of `transformers.TrainingArguments`, such as
`output_dir`, `per_device_train_batch_size`, `max_steps`, `save_steps` and `seed`.
[Training arguments](training_arguments.md) says which of them mean what without gradients.

With `order: first` ([related systems](related.md)), `FOTrainingArguments` has the settings above,
the `data_seed`, `remove_unused_columns`, `share_trunk` and `cache_trunk` settings of *Training*,
and those of `transformers.TrainingArguments`. The others of *Training* are refused.
"""
# A word or two in quotes: a value, as in "'all' or 'last:N'". An apostrophe has no quote before it.
_QUOTED = re.compile(r"(?<![\w'])'([^']+)'(?!\w)")


def settings_document(*, leave_out: Collection[str] = ()) -> str:
    """Return the page of all settings that AdaZeta has itself.

    Args:
        leave_out: fields that users do not set.
    """
    lines = [_OPENING]
    for title, kind in SECTIONS.items():
        lines += [f"## {title}", "", "| setting | |", "|---|---|"]
        hints = get_type_hints(kind)
        for name, field in settings_of(kind, leave_out=leave_out).items():
            if name in vars(kind)["__annotations__"] and not _elsewhere(name, kind):
                lines.append(
                    f"| `{name}` | {_text(field)}<br>{_type(hints[name])}{_default(field)} |"
                )
        lines.append("")
    return "\n".join(lines).rstrip("\n") + "\n" + _INHERITED


def _elsewhere(name: str, kind: type) -> bool:
    """Whether a setting of first-order training stands among those of zeroth order."""
    return kind is FOTrainingArguments and name in settings_of(ZOTrainingArguments)


def _type(hint: Any) -> str:
    """Write a type as users of YAML know it."""
    text = hint.__name__ if isinstance(hint, type) and "[" not in str(hint) else str(hint)
    text = text.replace("typing.", "").replace(" | None", "")
    return f"`{text}`".replace(" | ", "` or `")


def _default(field: dataclasses.Field[Any]) -> str:
    """Return what follows the type: nothing where the help text says what happens by default."""
    value = field.default
    if value is None or value is dataclasses.MISSING or value == "":
        return ""
    value = value.value if isinstance(value, Enum) else value
    return f", default `{str(value).lower() if isinstance(value, bool) else value}`"


def _text(field: dataclasses.Field[Any]) -> str:
    """Return a help text as Markdown, what is quoted in it as code."""
    text = str(field.metadata["help"]).replace("|", "\\|").replace("*", "\\*")
    return _QUOTED.sub(r"`\1`", text)
