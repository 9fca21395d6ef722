"""The command ``adazeta``: train, eval, predict, replay, methods, demo, info.

Every command imports what it needs when it runs, so that help and mistakes are answered at once.
"""

import dataclasses
import json
import math
import os
import platform
import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from importlib import metadata
from pathlib import Path
from typing import Any

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
from adazeta.table import show
from adazeta.tasks.arguments import TaskArguments
from adazeta.version import __version__

# The run fills these in, or they mean nothing in it.
NOT_SET_BY_USERS = {
    "task_type",
    "base_model_name_or_path",
    "auto_mapping",
    "inference_mode",
    "tt_head_rank",
}
_DEFAULTS = {"output_dir": "runs/adazeta", "logging_steps": 50}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: the command line; by default the process's own.

    Returns:
        The exit status: 0, 2 after an error (one line on stderr; with ``ADAZETA_DEBUG=1`` it is
        raised instead), 130 after an interrupt.
    """
    try:
        return _dispatch(list(sys.argv[1:] if arguments is None else arguments))
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if os.environ.get("ADAZETA_DEBUG") == "1":
            raise
        message = " ".join(str(error).split()) or type(error).__name__
        if not isinstance(error, ValueError | TypeError | OSError | ImportError):
            message = f"{type(error).__name__}: {message} (ADAZETA_DEBUG=1 shows where)"
        rank = f" (rank {os.environ['RANK']})" if "RANK" in os.environ else ""
        print(f"adazeta: error{rank}: {message}", file=sys.stderr)
        return 2


def _dispatch(arguments: list[str]) -> int:
    if arguments and arguments[0] in _COMMANDS:
        return _COMMANDS[arguments[0]][0](arguments[1:])
    if arguments and not arguments[0].startswith("-"):
        near = get_close_matches(arguments[0], _COMMANDS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(_COMMANDS)}"
        raise ValueError(f"unknown command {arguments[0]!r}; {hint}")
    width = max(map(len, _COMMANDS))
    commands = "\n".join(f"  {name:{width}}  {text}" for name, (_, text) in _COMMANDS.items())
    parser = OneLineParser(
        prog="adazeta",
        usage="adazeta COMMAND ...",
        description="Fine-tune language models with forward passes only.\n\ncommands:\n" + commands,
        epilog="adazeta COMMAND --help explains a command.",
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"adazeta {__version__}")
    parser.parse_args(arguments)
    parser.print_help()
    return 0


def run_train(arguments: list[str]) -> int:
    """Run ``adazeta train``; return the exit status."""
    from adazeta.adapters.config import TTAdapterConfig
    from adazeta.training.arguments import ZOTrainingArguments

    parser = OneLineParser(
        prog="adazeta train",
        usage="adazeta train [CONFIG.yaml] [--key value ...]",
        description=(
            "Fine-tune a model. Every setting is a key of the YAML file or a flag; flags win. Give "
            "the file before the flags; lists and mappings are written as in YAML."
        ),
    )
    parser.add_argument("config", nargs="?", help="YAML file of settings")
    hidden = NOT_SET_BY_USERS
    kinds: list[tuple[str, type]] = [
        ("base model", ModelArguments),
        ("data and prompt", TaskArguments),
        ("adapters", TTAdapterConfig),
        ("training", ZOTrainingArguments),
    ]
    for title, kind in kinds:
        add_flags(parser, kind, title, leave_out=hidden, defaults=_DEFAULTS)
    known = [name for _, kind in kinds for name in settings_of(kind, leave_out=hidden)]
    namespace, rest = parser.parse_known_args(arguments)
    strange = [flag.split("=")[0].lstrip("-") for flag in rest if flag.startswith("--")]
    check_keys([flag.replace("-", "_") for flag in strange], known, "the command line")
    if rest:
        raise ValueError(f"unexpected argument {rest[0]!r}; settings are --key value")
    flags = vars(namespace)
    config = flags.pop("config")
    values = {} if config is None else read_yaml(config)
    check_keys(values, known, str(config))
    values = {**_DEFAULTS, **values, **flag_values(flags, [kind for _, kind in kinds])}
    model = build(ModelArguments, values)
    task = build(TaskArguments, values)
    adapters = build(TTAdapterConfig, values, leave_out=hidden)
    training = build(ZOTrainingArguments, values)

    from adazeta.runs.run import prepare

    run = prepare(model, task, adapters, training)
    metrics = run.train()
    if training.should_save:
        settings = dump_yaml(values)
        (run.folder / "config.yaml").write_text(settings, encoding="utf-8")
        for line in _summary(run, metrics):
            print(line)
    run.trainer.accelerator.end_training()  # closes the connections to other processes
    return 0


def _summary(run: Any, metrics: dict[str, float]) -> list[str]:
    from adazeta.adapters.attach import trainable_parameters
    from adazeta.tasks.registry import takes_one_text

    optimizer = run.trainer.zo_optimizer
    trainable, total = trainable_parameters(run.model)
    lines = [
        f"trained {trainable:,} of {total:,} parameters: {optimizer.steps:,} steps, "
        f"{optimizer.evaluations:,} evaluations of a batch, eps {optimizer.estimator.eps:.2g}, "
        f"{metrics['train_runtime']:.0f} s"
    ]
    for name in ("validation", "test"):
        found = [
            f"{key} {metrics[f'{name}_{key}']:.4f}"
            for key in ("accuracy", "perplexity", "loss")
            if f"{name}_{key}" in metrics
        ]
        if found:
            lines.append(f"{name}: {', '.join(found)}")
    use = f"eval {run.folder} --data FILE"
    if takes_one_text(run.task):
        use = f'predict {run.folder} "..."'
    return [*lines, f"saved; try it: adazeta {use}"]


def run_eval(arguments: list[str]) -> int:
    """Run ``adazeta eval``; return the exit status."""
    parser = OneLineParser(prog="adazeta eval", description="Score a trained model on data.")
    add_folder(parser)
    parser.add_argument("--data", required=True, help="file or data set of the hub, as in training")
    parser.add_argument("--split", help="split of a data set of the hub")
    parser.add_argument("--batch_size", "--batch-size", type=int, default=32)
    parser.add_argument("--base", action="store_true", help="score the base model as well")
    parser.add_argument(
        "--fit_bias",
        "--fit-bias",
        metavar="DATA",
        help="also the accuracy with one bias a label that was fitted on this data",
    )
    options = parser.parse_args(arguments)
    from contextlib import nullcontext

    from adazeta.adapters.attach import disable_adapters
    from adazeta.runs.inference import load_task, load_trained, score, summarise
    from adazeta.tasks.calibration import accuracy_with_bias, fit_bias
    from adazeta.tasks.prompt import PromptTask
    from adazeta.tasks.records import load_records

    task = load_task(options.folder)
    if options.fit_bias is not None and not isinstance(task, PromptTask):
        raise ValueError(
            "--fit_bias is for classification: the task of this folder has no label words; leave "
            "it out"
        )
    examples = task.encode_all(load_records(options.data, options.split))
    fitted_on = None
    if options.fit_bias is not None:
        fitted_on = task.encode_all(load_records(options.fit_bias))
    model = load_trained(options.folder, model=options.model, dtype=options.dtype)
    rows = []
    for name in ["base", "adapters"] if options.base else ["adapters"]:
        with disable_adapters(model) if name == "base" else nullcontext():
            losses, outputs = score(model, task, examples, batch_size=options.batch_size)
            row = {"model": name, "data": options.data}
            row |= summarise(task, examples, losses, outputs)
            if fitted_on is not None:
                assert isinstance(task, PromptTask)
                _, known = score(model, task, fitted_on, batch_size=options.batch_size)
                bias = fit_bias(known, fitted_on.labels)
                row["bias"] = dict(zip(task.labels, bias.tolist(), strict=True))
                row["bias_accuracy"] = accuracy_with_bias(outputs, examples.labels, bias)
        rows.append(row)
    show(rows, as_json=options.json)
    return 0


def run_predict(arguments: list[str]) -> int:
    """Run ``adazeta predict``; return the exit status."""
    parser = OneLineParser(prog="adazeta predict", description="Label texts with a trained model.")
    add_folder(parser)
    parser.add_argument("texts", nargs="+", metavar="TEXT")
    options = parser.parse_args(arguments)

    from adazeta.runs.inference import load_task, load_trained, predict
    from adazeta.tasks.registry import takes_one_text

    task = load_task(options.folder)
    if not takes_one_text(task):
        raise ValueError(
            "predict is for classification with one column in the template; in Python, "
            "adazeta.runs.inference.predict takes records"
        )
    model = load_trained(options.folder, model=options.model, dtype=options.dtype)
    (column,) = task.template.columns
    probabilities = predict(model, task, [{column: text} for text in options.texts])
    best = probabilities.max(-1)
    show(
        [
            {
                "label": task.labels[int(index)],
                "word": task.words[int(index)].strip(),
                "probability": float(value),
                "text": text,
            }
            for text, value, index in zip(options.texts, best.values, best.indices, strict=True)
        ],
        as_json=options.json,
    )
    return 0


def run_replay(arguments: list[str]) -> int:
    """Run ``adazeta replay``; return the exit status."""
    parser = OneLineParser(
        prog="adazeta replay",
        description=(
            "Make the trained parameters again from the base model and the probe log of a run: no "
            "data, no forward pass, the same bits."
        ),
    )
    parser.add_argument("log", help="probes.log of a run, or its output_dir")
    parser.add_argument("--to-step", type=int, help="steps to have done (default: all)")
    parser.add_argument("--output", metavar="DIR", help="where to save the adapters (or the model)")
    parser.add_argument("--model", help="base model, if it is no longer where it was")
    parser.add_argument("--show", action="store_true", help="print the records as JSON, and stop")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(arguments)

    from adazeta.recording.folder import LOG_NAME
    from adazeta.recording.probe_log import read_log

    path = Path(options.log)
    log = read_log(path / LOG_NAME if path.is_dir() else path)
    if options.show:
        for record in log:
            if options.to_step is None or record.step < options.to_step:
                print(json.dumps(dataclasses.asdict(record)))
        return 0

    from adazeta.recording.header import fingerprint_of_parameters
    from adazeta.recording.replay import rebuild, save_rebuilt

    model, optimizer = rebuild(log, to_step=options.to_step, model=options.model)
    if options.output is not None:
        save_rebuilt(model, options.output)
    row = {
        "steps": optimizer.steps,
        "loss": math.nan if optimizer.last is None else optimizer.last.loss,
        "parameters": fingerprint_of_parameters(optimizer),
        "saved in": options.output or "-",
    }
    show([row], as_json=options.json)
    return 0


def add_folder(parser: OneLineParser) -> None:
    """Add the options of commands that use the folder of a run."""
    parser.add_argument("folder", help="output_dir of a training run")
    parser.add_argument("--model", help="base model, if it is no longer where it was")
    parser.add_argument("--dtype", default="auto", help="of the base model (default: auto)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run_methods(arguments: list[str]) -> int:
    """Run ``adazeta methods``; return the exit status."""
    parser = OneLineParser(prog="adazeta methods", description=METHODS_TEXT)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(arguments)
    from adazeta.methods import EXAMPLE, table

    if options.json:
        print(json.dumps(table()))
        return 0
    for row in table():
        name = row.pop("method")
        refreshed = ", and 1 at a refresh" if "refresh" in row["settings"] else ""
        beside = f", {row['direction_bytes']:,} bytes beside it" if row["direction_bytes"] else ""
        print(f"{name}: {row['rule']}")
        print(f"  paper     {row['paper']}")
        print(f"  trained   {row['trained']:,} of a matrix of {EXAMPLE} x {EXAMPLE}{beside}")
        print(f"  state     {row['state_bytes']} bytes for each of them")
        print(f"  a step    {row['forwards']} forwards, {row['passes']} passes{refreshed}")
        print(f"  settings  {row['settings']}")
    return 0


def _demo(arguments: list[str]) -> int:
    parser = OneLineParser(prog="adazeta demo", description=_COMMANDS["demo"][1])
    from adazeta.demo import run as demo

    demo.add_arguments(parser)
    return int(demo.run(parser.parse_args(arguments)))


def run_info(arguments: list[str]) -> int:
    """Run ``adazeta info``; return the exit status."""
    parser = OneLineParser(prog="adazeta info", description=INFO_TEXT)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--settings", action="store_true", help="print docs/settings.md instead")
    options = parser.parse_args(arguments)
    if options.settings:
        from adazeta.settings_document import settings_document

        print(settings_document(leave_out=NOT_SET_BY_USERS), end="")
        return 0
    import torch

    from adazeta.kernels import backend_name, use_triton
    from adazeta.kernels.cpu.library import level, problem

    facts = {"adazeta": __version__, "python": platform.python_version()}
    for name in ("torch", "triton", "transformers", "accelerate", "safetensors"):
        try:
            facts[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            facts[name] = "not installed"
    facts["triton interpreter"] = "on" if os.environ.get("TRITON_INTERPRET") == "1" else "off"
    facts["ADAZETA_BACKEND"] = os.environ.get("ADAZETA_BACKEND", "auto")
    facts["C library"] = problem() or f"loads; instruction set: {level()}"
    devices = [torch.device("cpu")]
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is not None:
        devices += [
            torch.device(accelerator.type, index)
            for index in range(torch.accelerator.device_count())
        ]
    for device in devices:
        name = platform.processor() or platform.machine()
        if device.type != "cpu":
            name = str(torch.get_device_module(device).get_device_name(device))
        probe = torch.empty(0, device=device)
        served, trains = backend_name(probe), "triton" if use_triton(probe) else "reference"
        facts[str(device)] = f"{name}; noise and factors: {served}, tensor-train layers: {trains}"
    if options.json:
        print(json.dumps(facts))
        return 0
    width = max(map(len, facts))
    for key, value in facts.items():
        print(f"{key:{width}}  {value}")
    return 0


METHODS_TEXT = "the methods: paper, state, forwards and passes of a step, settings"
INFO_TEXT = "versions, devices, and which backend serves them"
_COMMANDS: dict[str, tuple[Callable[[list[str]], int], str]] = {
    "train": (run_train, "fine-tune a model: adazeta train config.yaml [--key value ...]"),
    "eval": (run_eval, "score a trained model: adazeta eval FOLDER --data FILE"),
    "predict": (run_predict, 'label texts: adazeta predict FOLDER "text" ...'),
    "replay": (run_replay, "make the adapters again from the base model and a run's log"),
    "methods": (run_methods, METHODS_TEXT),
    "demo": (_demo, "fine-tune a small model from end to end"),
    "info": (run_info, INFO_TEXT),
}


if __name__ == "__main__":  # torchrun -m adazeta.cli
    raise SystemExit(main())
