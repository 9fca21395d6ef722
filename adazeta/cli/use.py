"""The commands that use a trained model: ``eval`` and ``predict``."""

from adazeta.cli.output import add_folder, show
from adazeta.support.settings import OneLineParser


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
    from adazeta.tasks.reward import RewardTask

    task = load_task(options.folder)
    if isinstance(task, RewardTask):
        raise ValueError(
            "the task of this folder has rewards, which are code and not saved with it: train "
            "measures them on validation_data and test_data, and predict writes completions"
        )
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
    parser = OneLineParser(
        prog="adazeta predict",
        description="Label texts with a trained model, or complete them if rewards trained it.",
    )
    add_folder(parser)
    parser.add_argument("texts", nargs="+", metavar="TEXT")
    options = parser.parse_args(arguments)

    from adazeta.runs.inference import complete, load_task, load_trained, predict
    from adazeta.tasks.registry import prompt_column, takes_one_text
    from adazeta.tasks.reward import RewardTask

    task = load_task(options.folder)
    if isinstance(task, RewardTask):
        name = prompt_column(task)
        if name is None:
            raise ValueError(
                "predict completes prompts of one column; in Python, "
                "adazeta.runs.inference.complete takes records"
            )
        model = load_trained(options.folder, model=options.model, dtype=options.dtype)
        written = complete(model, task, [{name: text} for text in options.texts])
        pairs = zip(options.texts, written, strict=True)
        rows = [{"completion": completion, "text": text} for text, completion in pairs]
        show(rows, as_json=options.json)
        return 0
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
