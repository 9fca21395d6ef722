"""The command ``adazeta train``."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adazeta.cli.output import NOT_SET_BY_USERS
from adazeta.models.arguments import ModelArguments
from adazeta.support.settings import (
    OneLineParser,
    add_flags,
    build,
    check_keys,
    flag_values,
    read_yaml,
    settings_of,
)
from adazeta.support.yaml_values import dump_yaml
from adazeta.tasks.arguments import MAIN_SETTINGS, TaskArguments

DATA_SUFFIXES = (".csv", ".tsv", ".jsonl")
_DEFAULTS = {"output_dir": "runs/adazeta", "logging_steps": 50}

MAIN: Mapping[str, str | None] = {
    "model": None,
    "labels": "Column of the labels; the rest is then proposed.",
    "train_data": None,
    "validation_data": None,
    "test_data": None,
    "template": None,
    "label_words": "Classification: {label: word}, e.g. {0: bad, 1: good}.",
    "completion": "Language modelling: what follows the template.",
    "reward": "Score of the texts it writes: file.py:function.",
    "adapt": None,
    "form": "Adapters: 'bottleneck', 'lora' on weights, 'informed' by prompts, 'mixer' of blocks.",
    "rank": "Rank of the tensor trains, or the list of ranks.",
    "layers": None,
    "order": "'zeroth' or 'first' (gradients).",
    "method": "Method of training; 'adazeta methods' lists them.",
    "learning_rate": "Learning rate, or 'auto': measured.",
    "eps": "Scale of perturbations, or 'auto'.",
    "probes": "Which examples share a direction: 'batch', 'example': none, or a number of groups.",
    "cache_trunk": "Keep what the frozen model computes of the data: 'none', 'memory' or 'disk'.",
    "max_steps": "Steps to train; -1: as many as num_train_epochs are.",
    "num_train_epochs": "Passes over the training data, where max_steps is -1.",
    "per_device_train_batch_size": "Examples of a step, in each process.",
    "output_dir": "Folder for adapters, checkpoints and log.",
    "seed": "Seed of adapters, directions and data.",
}
"""The settings that most runs choose, which ``--help`` shows; texts where the first sentence of the
setting's own does not do."""


def run_train(arguments: list[str]) -> int:
    """Run ``adazeta train``; return the exit status."""
    from adazeta.adapters.config import TTAdapterConfig
    from adazeta.training.arguments import ZOTrainingArguments
    from adazeta.training.first_order_arguments import FOTrainingArguments
    from adazeta.training.order import OrderArguments, switched, training_arguments

    everything = "--help-all" in arguments
    parser = OneLineParser(
        prog="adazeta train",
        usage="adazeta train [CONFIG.yaml | DATA.csv --labels COLUMN] [--key value ...]",
        description=(
            "Fine-tune a model. A file of data (.csv, .tsv, .jsonl) needs the column of its labels "
            "alone. Every setting is a key of the YAML file or a flag; flags win. Give the file "
            "before the flags; lists and mappings are written as in YAML. "
            + ("These are all settings;" if everything else "These are the main settings;")
            + (" --help shows the main ones." if everything else " --help-all shows all.")
        ),
        epilog="Each setting is explained in docs/settings.md." if everything else None,
    )
    parser.add_argument("--help-all", action="help", help="show all settings and exit")
    parser.add_argument("config", nargs="?", help="YAML file of settings, or file of data")
    hidden = NOT_SET_BY_USERS
    kinds: list[tuple[str, type]] = [
        ("base model", ModelArguments),
        ("data and prompt", TaskArguments),
        ("adapters", TTAdapterConfig),
        ("training", OrderArguments),
        ("training", ZOTrainingArguments),
        ("training", FOTrainingArguments),
    ]
    shared = settings_of(ZOTrainingArguments)
    groups: dict[str, Any] = {}
    for title, kind in kinds:
        groups[title] = add_flags(
            parser,
            kind,
            title,
            group=groups.get(title),
            leave_out=[*hidden, *shared] if kind is FOTrainingArguments else hidden,
            defaults=_DEFAULTS,
            briefly=None if everything else MAIN,
        )
    known = [name for _, kind in kinds for name in settings_of(kind, leave_out=hidden)]
    namespace, rest = parser.parse_known_args(arguments)
    strange = [flag.split("=")[0].lstrip("-") for flag in rest if flag.startswith("--")]
    check_keys([flag.replace("-", "_") for flag in strange], known, "the command line")
    if rest:
        raise ValueError(f"unexpected argument {rest[0]!r}; settings are --key value")
    flags = vars(namespace)
    config = flags.pop("config")
    given = flag_values(flags, [kind for _, kind in reversed(kinds)])
    if config is not None and Path(config).suffix in DATA_SUFFIXES:
        given = _with_data(config, given)
        config = None
    values = {} if config is None else read_yaml(config)
    check_keys(values, known, str(config))
    lines: list[str] = []
    if "order" in given:
        values, dropped = switched(values, given["order"])
        if dropped:
            lines.append(
                f"order={given['order']!r}: these settings of {config} are of the other order, and "
                f"are left out: {', '.join(dropped)}"
            )
    values = {**values, **given}
    if values.get("labels") is not None:
        from adazeta.runs.proposal import with_proposals

        if values.get("order", "zeroth") != "zeroth":
            raise ValueError(
                f"labels={values['labels']!r} proposes settings of order='zeroth', and order is "
                f"{values['order']!r}: set template and label_words instead of labels"
            )

        values, proposed = with_proposals(values)
        lines += proposed
    if int(os.environ.get("RANK") or 0) == 0:
        for line in lines:
            print(line)
    values = {**_DEFAULTS, **values}
    model = build(ModelArguments, values)
    task = build(TaskArguments, values)
    adapters = build(TTAdapterConfig, values, leave_out=hidden)
    training = training_arguments(values)

    from adazeta.recording.folder import SETTINGS_NAME
    from adazeta.runs.run import prepare

    run = prepare(model, task, adapters, training)
    run.first_files[SETTINGS_NAME] = dump_yaml(values)
    metrics = run.train()
    if training.should_save:
        for line in _summary(run, metrics):
            print(line)
    run.trainer.accelerator.end_training()  # closes the connections to other processes
    return 0


def _with_data(path: str, given: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of flags with a file of data in the place of one of settings.

    Raises:
        ValueError: the flags name other data, or do not say what the labels are.
    """
    other = given.get("train_data")
    if other is not None:
        raise ValueError(f"the data are {path} and --train_data {other}; give one of the two")
    if not {"labels", *MAIN_SETTINGS} & given.keys():
        from adazeta.tasks.records import load_records

        columns = ", ".join(dict.fromkeys(name for record in load_records(path) for name in record))
        raise ValueError(
            f"say which column of {path} holds the labels: --labels COLUMN; there are {columns}"
        )
    return {**given, "train_data": path}


def _summary(run: Any, metrics: dict[str, float]) -> list[str]:
    from adazeta.adapters.attach import trainable_parameters
    from adazeta.runs.baselines import accuracy_table
    from adazeta.tasks.metrics import ANSWERS, CLASSES
    from adazeta.tasks.registry import takes_one_text

    trainable, total = trainable_parameters(run.model)
    lines = [
        f"trained {trainable:,} of {total:,} parameters: {run.trainer.account()}, "
        f"{metrics['train_runtime']:.0f} s"
    ]
    table = accuracy_table(metrics, ("validation", "test"))
    for name in ("validation", "test"):
        found = [
            f"{key} {metrics[f'{name}_{key}']:.4f}"
            for key in (*dict.fromkeys((*CLASSES, *ANSWERS)), "perplexity", "reward")
            if f"{name}_{key}" in metrics
        ]
        if f"{name}_accuracy_low" in metrics and not table:
            low, high = (metrics[f"{name}_accuracy_{end}"] for end in ("low", "high"))
            found[0] += f" (95%: {low:.4f} to {high:.4f})"
        if f"{name}_loss" in metrics:
            found.append(f"loss {metrics[f'{name}_loss']:.4f}")
        if found:
            lines.append(f"{name}: {', '.join(found)}")
    if table:
        note = f"(95% intervals; baselines: {metrics['baseline_evaluations']:,.0f} evaluations)"
        lines += [*table, note]
    use = f"eval {run.folder} --data FILE"
    if takes_one_text(run.task):
        use = f'predict {run.folder} "..."'
    return [*lines, f"saved; try it: adazeta {use}"]
