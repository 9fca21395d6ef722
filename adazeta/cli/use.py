"""The commands that use a trained model: ``eval`` and ``predict``."""

from typing import Any

from adazeta.cli.output import add_folder, add_scale, show
from adazeta.support.settings import OneLineParser, build, check_keys, read_yaml, settings_of


def run_eval(arguments: list[str]) -> int:
    """Run ``adazeta eval``; return the exit status."""
    parser = OneLineParser(
        prog="adazeta eval",
        description=(
            "Score a trained model on data; or, given the .yaml file of settings of a run in the "
            "folder's place, its base model before any training (zero-shot, or with the "
            "demonstrations that shots asks for)."
        ),
    )
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
    parser.add_argument(
        "--scale",
        type=float,
        action="append",
        default=[],
        metavar="ALPHA",
        help="share of what the adapters add: 0 is the base model (repeatable, one row each)",
    )
    parser.add_argument(
        "--fit_scale",
        "--fit-scale",
        metavar="DATA",
        help="also the share, of 0, 0.25, 0.5, 0.75 and 1, with the least loss on this data",
    )
    options = parser.parse_args(arguments)
    if options.folder.endswith((".yaml", ".yml")):
        return _eval_untrained(options)
    from adazeta.adapters.attach import disable_adapters
    from adazeta.adapters.files import load_config
    from adazeta.adapters.scaling import SCALES, adapter_scale, check_scale
    from adazeta.runs.inference import fit_scale, load_task, load_trained
    from adazeta.tasks.head import HeadTask
    from adazeta.tasks.records import load_records

    task = load_task(options.folder)
    _refuse_rewards(task)
    if options.base and isinstance(task, HeadTask):
        raise ValueError(
            "--base scores the model without its adapters, and this one's head is trained: without "
            "them it is not the base model; leave it out"
        )
    asked = bool(options.scale) or options.fit_scale is not None
    for alpha in (*options.scale, *(SCALES if options.fit_scale is not None else ())):
        check_scale(load_config(options.folder), alpha)
    examples = task.encode_all(load_records(options.data, options.split))
    fitted_on = _bias_data(task, options.fit_bias)
    scale_data = None
    if options.fit_scale is not None:
        scale_data = task.encode_all(load_records(options.fit_scale))
    model = load_trained(
        options.folder, model=options.model, dtype=options.dtype, quantise=options.quantise
    )
    rows = []
    if options.base:
        with disable_adapters(model):
            rows.append(_row("base", model, task, examples, fitted_on, options))
    tried: list[tuple[float, dict[float, float]]] = [(alpha, {}) for alpha in options.scale]
    if scale_data is not None:
        tried.append(fit_scale(model, task, scale_data, batch_size=options.batch_size))
    for alpha, losses in tried or [(1.0, {})]:
        with adapter_scale(model, alpha):
            name = "fitted" if losses else "adapters"
            row = _row(name, model, task, examples, fitted_on, options)
        rows.append(row | ({"scale": alpha, "scale_losses": losses} if asked else {}))
    if asked and options.base:
        rows[0] |= {"scale": 0.0, "scale_losses": {}}
    show(rows, as_json=options.json)
    return 0


def _eval_untrained(options: Any) -> int:
    """Score a base model on data, as the settings in a file describe the task."""
    from adazeta.adapters.config import TTAdapterConfig
    from adazeta.models.arguments import ModelArguments
    from adazeta.runs.base import load_untrained, set_up_base
    from adazeta.tasks.arguments import TaskArguments
    from adazeta.tasks.records import load_records
    from adazeta.training.arguments import ZOTrainingArguments
    from adazeta.training.first_order_arguments import FOTrainingArguments
    from adazeta.training.order import OrderArguments

    values = read_yaml(options.folder)
    kinds = (
        ModelArguments, TaskArguments, TTAdapterConfig, OrderArguments, ZOTrainingArguments,
        FOTrainingArguments,
    )  # fmt: skip
    check_keys(values, [name for kind in kinds for name in settings_of(kind)], options.folder)
    if options.model is not None:
        values["model"] = options.model
    if options.dtype != "auto":
        values["dtype"] = options.dtype
    if options.quantise is not None:
        values["quantise"] = options.quantise
    if values.get("model") is None:
        raise ValueError(f"model is missing: set it in {options.folder} or with --model")
    if options.scale or options.fit_scale is not None:
        raise ValueError(
            "--scale and --fit_scale are for a trained model: this one has no adapters"
        )
    if options.base:
        raise ValueError("--base is for a trained model: the settings' model is scored as it is")
    model_arguments = build(ModelArguments, values)
    revision = values.get("revision")
    found = set_up_base(model_arguments, build(TaskArguments, values), revision)
    _refuse_rewards(found.task)
    examples = found.task.encode_all(load_records(options.data, options.split))
    fitted_on = _bias_data(found.task, options.fit_bias)
    model = load_untrained(model_arguments, found, revision)
    show([_row("base", model, found.task, examples, fitted_on, options)], as_json=options.json)
    return 0


def _refuse_rewards(task: Any) -> None:
    """Refuse a task without labels, answers or texts to compare with.

    Raises:
        ValueError: it has rewards.
    """
    from adazeta.tasks.reward import RewardTask

    if isinstance(task, RewardTask):
        raise ValueError(
            "the task of this folder has rewards, which are code and not saved with it: train "
            "measures them on validation_data and test_data, and predict writes completions"
        )


def _bias_data(task: Any, source: str | None) -> Any:
    """Encode the data on which the biases are fitted; None if they are not asked for.

    Raises:
        ValueError: the task has no labels.
    """
    from adazeta.tasks.classification import ClassificationTask
    from adazeta.tasks.records import load_records

    if source is None:
        return None
    if not isinstance(task, ClassificationTask):
        raise ValueError(
            "--fit_bias is for classification: the task of this folder has no label words; leave "
            "it out"
        )
    return task.encode_all(load_records(source))


def _row(
    name: str, model: Any, task: Any, examples: Any, fitted_on: Any, options: Any
) -> dict[str, Any]:
    """Measure a model on examples; with the biases that suit other data, if there are any."""
    from adazeta.runs.inference import evaluate, score
    from adazeta.tasks.calibration import accuracy_with_bias, fit_bias

    found, outputs = evaluate(model, task, examples, batch_size=options.batch_size)
    row = {"model": name, "data": options.data, **found}
    if fitted_on is not None:
        _, known = score(model, task, fitted_on, batch_size=options.batch_size)
        bias = fit_bias(known, fitted_on.labels)
        row["bias"] = dict(zip(task.labels, bias.tolist(), strict=True))
        row["bias_accuracy"] = accuracy_with_bias(outputs, examples.labels, bias)
    return row


def run_predict(arguments: list[str]) -> int:
    """Run ``adazeta predict``; return the exit status."""
    parser = OneLineParser(
        prog="adazeta predict",
        description="Label, answer or complete texts with a trained model.",
    )
    add_folder(parser)
    parser.add_argument("texts", nargs="*", metavar="TEXT")
    parser.add_argument("--data", help="file with the columns of the template, instead of texts")
    add_scale(parser)
    options = parser.parse_intermixed_args(arguments)
    if bool(options.texts) == (options.data is not None):
        raise ValueError("give texts, or a file with --data (one of the two)")

    from adazeta.adapters.files import load_config
    from adazeta.adapters.scaling import adapter_scale, check_scale
    from adazeta.runs.inference import load_task, load_trained
    from adazeta.tasks.classification import ClassificationTask
    from adazeta.tasks.generation import GenerationTask
    from adazeta.tasks.records import load_records
    from adazeta.tasks.reward import RewardTask

    task = load_task(options.folder)
    if not isinstance(task, ClassificationTask | GenerationTask | RewardTask):
        raise ValueError(
            "predict is for classification, for answers (references) and for rewards; in Python, "
            "the model of adazeta.runs.inference.load_trained generates any text"
        )
    check_scale(load_config(options.folder), options.scale)
    if options.data is None and len(task.columns) != 1:
        raise ValueError(
            f"the template has the columns {', '.join(task.columns)}, so that one text does not "
            "fill it; give a file that has them, with --data"
        )
    if options.data is None:
        records = [{task.columns[0]: text} for text in options.texts]
    else:
        records = list(load_records(options.data))
    shown = [" | ".join(str(record.get(name)) for name in task.columns) for record in records]
    model = load_trained(
        options.folder, model=options.model, dtype=options.dtype, quantise=options.quantise
    )
    with adapter_scale(model, options.scale):
        rows = _answers(model, task, records, shown)
    show(rows, as_json=options.json)
    return 0


def _answers(model: Any, task: Any, records: Any, shown: list[str]) -> list[dict[str, Any]]:
    """Complete, answer or label records, a row each; ``shown`` is how each is printed."""
    from adazeta.runs.generation import generate_answers
    from adazeta.runs.inference import complete, predict
    from adazeta.tasks.generation import GenerationTask
    from adazeta.tasks.reward import RewardTask

    if isinstance(task, RewardTask):
        written = complete(model, task, records)
        return [{"completion": c, "text": text} for c, text in zip(written, shown, strict=True)]
    if isinstance(task, GenerationTask):
        prompts = [task.encode_prompt(record) for record in records]
        answers = generate_answers(model, task, prompts)
        return [{"answer": a, "text": text} for a, text in zip(answers, shown, strict=True)]
    best = predict(model, task, records).max(-1)
    return [
        {
            "label": task.labels[int(index)],
            "word": task.words[int(index)].strip(),
            "probability": float(value),
            "text": text,
        }
        for text, value, index in zip(shown, best.values, best.indices, strict=True)
    ]
