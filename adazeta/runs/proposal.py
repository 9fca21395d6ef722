"""All settings of a run from a file and the name of its label column."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from adazeta.adapters.config import TTAdapterConfig
from adazeta.models.loading import load_configuration, load_tokenizer
from adazeta.runs.base import checked_share
from adazeta.runs.prompt_choice import ROWS, choose_prompt
from adazeta.support.settings import build
from adazeta.tasks.arguments import TaskArguments
from adazeta.tasks.proposal import (
    label_values,
    proposed_templates,
    proposed_words,
    shown,
    text_columns,
)
from adazeta.tasks.records import Records, load_records
from adazeta.training.arguments import ZOTrainingArguments

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
FEWEST_ROWS = 50
_BATCH = 64
_MOST_BATCHES = 64  # of a step of 'newton', which keeps what it measures of all of them

CAUSAL: Mapping[str, Any] = {
    "adapt": "last",
    "form": "informed",
    "method": "newton",
    "num_train_epochs": 2,
    "per_device_train_batch_size": _BATCH,
    "per_device_eval_batch_size": _BATCH,
    "cache_trunk": "disk",
    "logging_steps": 1,
}
"""What learns most of a classification with a causal model (docs/learning.md)."""

MASKED: Mapping[str, Any] = {
    "rank": 5,
    "target_modules": "block",
    "probes": "example",
    "max_steps": 1000,
    "per_device_train_batch_size": 16,
    "per_device_eval_batch_size": _BATCH,
    "train_sampling_strategy": "group_by_length",
}
"""The same of a masked model, as examples/masked.yaml has it."""


def with_proposals(values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Fill in what ``labels`` leaves open; without it the settings stay as they are.

    Args:
        values: settings of a run by name. Those that are given are kept. Where ``method``, ``form``
            or ``adapt`` is, the other two are not filled in.

    Returns:
        The settings, with ``label_column`` in the place of ``labels``, and lines that say what was
        proposed.

    Raises:
        ValueError: the data have no such column, no texts or too few rows, or a label has no word;
            or a setting excludes ``labels``.
    """
    task = build(TaskArguments, values)
    if task.labels is None:
        return dict(values), []
    for name, value, plain in (
        ("completion", task.completion, None),
        ("label_column", task.label_column, "label"),
    ):
        if value not in (plain, task.labels):
            raise ValueError(f"labels={task.labels!r} and {name}={value!r} exclude each other")
    if task.train_data is None:
        raise ValueError(
            "labels names a column of the data, and train_data is missing: adazeta train FILE.csv "
            f"--labels {task.labels}"
        )
    filled = {k: v for k, v in values.items() if k != "labels"}
    model = filled.setdefault("model", MODEL)
    records = load_records(task.train_data, task.train_split)
    labels = label_values(records, task.labels)
    said = []
    masked = "{mask}" in task.template if task.template else _is_masked(str(model), values)
    templates = [task.template]
    left: dict[str, str] = {}
    if not task.template:
        columns, left = text_columns(records, task.labels)
        templates = proposed_templates(columns, task.labels, masked=masked)
    words: list[Any] = [task.label_words]
    if task.label_words is None:
        words = proposed_words(templates[0], labels, _tokenizer(str(model), masked, values))
    filled["label_column"] = task.labels
    if task.validation_data is None and "validation_share" not in values:
        filled["validation_share"] = _share_of(records)
    filled = {**_settings(masked, values, records), **filled}
    # The wording is chosen by rows that are trained on, so that the others stay unseen.
    rows, _ = records.split(checked_share(build(TaskArguments, filled)))
    prompts = [{"template": t, "label_words": w} for t in templates for w in words]
    size = int(filled["per_device_eval_batch_size"])
    best = 0
    losses: list[float] = []
    if len(prompts) > 1:
        for kind in (TTAdapterConfig, ZOTrainingArguments):
            build(kind, filled)  # a mistake there should not wait for this
        best, losses = choose_prompt(filled, prompts, records, rows, size)
    filled |= prompts[best]
    if not task.template:
        said.append(f"template {filled['template']!r}")
        if left:
            reasons = ", ".join(f"{column} ({why})" for column, why in left.items())
            said[-1] += f" without the columns {reasons}"
    if task.label_words is None:
        said.append(f"label_words '{shown(filled['label_words'])}'")
    if "validation_share" in filled and "validation_share" not in values:
        said.append(f"validation_share {filled['validation_share']:g}")
    lines = [f"{model}: {len(records):,} rows, {len(labels)} labels; proposed " + ", ".join(said)]
    if losses:
        ranked = sorted(zip(losses, prompts, strict=True), key=lambda pair: pair[0])
        tried = "; ".join(
            f"{loss:.3f} {prompt['template'].splitlines()[-1]!r}"
            + (f" {shown(prompt['label_words'])}" if len(words) > 1 else "")
            for loss, prompt in ranked
        )
        lines.append(
            f"what the untrained model knows of {min(len(rows), ROWS)} rows, as a loss: {tried}"
        )
    return filled, lines if said else []


def _share_of(records: Records) -> float:
    if len(records) < FEWEST_ROWS:
        raise ValueError(
            f"{records.source} has {len(records)} rows, too few to keep a tenth of them for "
            f"validation (that takes {FEWEST_ROWS}); give --validation_data FILE, or go without by "
            "--validation_share 0"
        )
    return 0.1


def _is_masked(model: str, values: Mapping[str, Any]) -> bool:
    if model.endswith(".gguf"):
        return False
    config = load_configuration(model, task="FEATURE_EXTRACTION", revision=values.get("revision"))
    kinds = getattr(config, "architectures", None) or []
    return any(str(kind).endswith("ForMaskedLM") for kind in kinds)


def _tokenizer(model: str, masked: bool, values: Mapping[str, Any]) -> PreTrainedTokenizerBase:
    kind = "MASKED_LM" if masked else "CAUSAL_LM"
    return load_tokenizer(model, task=kind, revision=values.get("revision"))


def _settings(masked: bool, values: Mapping[str, Any], records: Records) -> dict[str, Any]:
    """Return the settings of training for what is not given."""
    name = Path(records.source).stem if Path(records.source).suffix else "adazeta"
    found = {"output_dir": f"runs/{name}", **(MASKED if masked else CAUSAL)}
    if masked:
        return found
    chosen = {"method", "form", "adapt"}
    if chosen & values.keys():
        own = {*chosen, "num_train_epochs"}
        return {name: value for name, value in found.items() if name not in own}
    size = int(values.get("per_device_train_batch_size", _BATCH))
    if len(records) > size * _MOST_BATCHES and "num_train_epochs" not in values:
        found |= {"gradient_accumulation_steps": _MOST_BATCHES, "max_steps": 2}
    return found
