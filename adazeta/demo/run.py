"""``adazeta demo``: fine-tune a real language model on real sentences, forward passes only.

The training itself is ``adazeta train`` with the settings below; the demo fetches model and data,
and measures before and after.
"""

import argparse
import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from adazeta.adapters.attach import trainable_parameters
from adazeta.demo.data import film_reviews, model_file, sources
from adazeta.demo.folder import write_folder
from adazeta.demo.plot import plot
from adazeta.models.loading import load_model, load_tokenizer
from adazeta.runs.inference import score
from adazeta.runs.run import Run, prepare_from
from adazeta.support.memory import PeakMemory
from adazeta.support.settings import build
from adazeta.tasks.arguments import TaskArguments
from adazeta.tasks.calibration import accuracy_with_bias, fit_bias
from adazeta.tasks.examples import Examples
from adazeta.tasks.records import load_records
from adazeta.tasks.registry import make_task

BATCH = 64

TASKS: dict[str, dict[str, Any]] = {
    "film": {
        "template": "{text}\nSentiment:",
        "label_words": {0: "negative", 1: "positive"},
    },
    "source": {
        "template": "{text}\nSource:",
        "label_words": {
            "tweet": "Twitter", "film": "movie", "amazon": "Amazon", "editorial": "news",
        },
    },
}  # fmt: skip
EXAMPLES = {"film": "A film to remember.", "source": "Battery life is great, and it fits my bag."}
# The same for every task; docs/demo.md says what mattered.
SETTINGS: dict[str, Any] = {
    "adapt": "last",
    "form": "informed",
    "method": "newton",
    "num_train_epochs": 2,
    "per_device_train_batch_size": BATCH,
    "per_device_eval_batch_size": BATCH,
    # What the frozen model computes of the sentences is kept between epochs and runs.
    "cache_trunk": "disk",
    "logging_steps": 1,
    "eval_strategy": "steps",
    "eval_steps": 1,
    "report_to": "none",
}


@dataclass
class Report:
    """What ``report.json`` holds; accuracies are fractions of the test sentences."""

    test_accuracy_before: float
    test_accuracy_bias_corrected: float
    test_accuracy_after: float
    dev_accuracy: float
    train_seconds: float
    total_seconds: float
    steps: int
    evaluations: int
    eps: float
    trainable_parameters: int
    peak_memory_mb: float
    inference_peak_memory_mb: float
    seed: int
    task: str = "film"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument("--seed", type=int, default=0, help="adapters, directions, order of data")
    parser.add_argument("--output", type=Path, default=Path("runs/demo"), help="folder to write to")
    parser.add_argument("--steps", type=int, help="optimizer steps (two epochs, one each)")
    parser.add_argument(
        "--task", choices=tuple(TASKS), default="film",
        help="film: is a review good or bad; source: is it a tweet, a film review, ...",
    )  # fmt: skip


def run(options: argparse.Namespace) -> int:
    """Fetch, measure, fine-tune, measure again, report.

    Returns:
        The exit status.
    """
    print(f"SmolLM2-135M-Instruct, task {options.task}: forward passes only, no gradient")
    source = model_file()
    data = film_reviews() if options.task == "film" else sources()
    settings = configure(
        source, data, options.output, options.seed, options.steps, TASKS[options.task]
    )
    began = time.monotonic()
    inference = inference_memory(settings)
    with PeakMemory() as training:
        run = prepare_from(settings)
        before, corrected = zero_shot(run)
        print(f"zero-shot: test accuracy {before:.1%}, bias only {corrected:.1%}")
        metrics = run.train()
    report = Report(
        test_accuracy_before=before,
        test_accuracy_bias_corrected=corrected,
        test_accuracy_after=metrics["test_accuracy"],
        dev_accuracy=metrics["validation_accuracy"],
        train_seconds=metrics["train_runtime"],
        total_seconds=time.monotonic() - began,
        steps=run.trainer.state.global_step,
        evaluations=run.trainer.evaluations,
        eps=run.trainer.zo_optimizer.estimator.eps or 0.0,
        trainable_parameters=trainable_parameters(run.model)[0],
        peak_memory_mb=training.mebibytes,
        inference_peak_memory_mb=inference,
        seed=options.seed,
        task=options.task,
    )
    write(report, run.trainer.state.log_history, options.output)
    print(describe(report, options.output))
    return 0


def configure(
    source: Path,
    data: Mapping[str, Iterable[Mapping[str, Any]]],
    output: Path,
    seed: int,
    steps: int | None,
    task: Mapping[str, Any],
) -> dict[str, Any]:
    """Write the data and ``config.yaml``, with which ``adazeta train`` repeats the training.

    Returns:
        The settings.
    """
    chosen = {"model": str(source), "seed": seed, **task, **SETTINGS}
    if steps is not None:
        chosen["max_steps"] = steps
    return write_folder(output, data, chosen)


def inference_memory(settings: Mapping[str, Any]) -> float:
    """Measure the peak memory of plain inference, in MiB, on the longest training sentences.

    No batch of the run needs more: activations grow with the width of the batch.
    """
    task = make_task(build(TaskArguments, settings), load_tokenizer(settings["model"]))
    examples = task.encode_all(load_records(settings["train_data"]))
    rows = [examples[index] for index in range(len(examples))]
    longest = sorted(rows, key=lambda example: len(example["input_ids"]))[-BATCH:]
    model = load_model(settings["model"])
    with PeakMemory() as peak:
        score(model, task, Examples(longest), batch_size=BATCH)
    return peak.mebibytes


def zero_shot(run: Run) -> tuple[float, float]:
    """Measure the model without its adapters.

    Returns:
        Test accuracy, and test accuracy with the words' biases fitted on the training sentences.
    """
    _, fitted_on = run.score("train", base=True)
    _, logits = run.score("test", base=True)
    bias = fit_bias(fitted_on, run.examples["train"].labels)
    labels = run.examples["test"].labels
    plain, corrected = (accuracy_with_bias(logits, labels, b) for b in (0 * bias, bias))
    return plain, corrected


def write(report: Report, log: list[dict[str, Any]], output: Path) -> None:
    """Write ``report.json`` and ``plot.png``."""
    (output / "report.json").write_text(json.dumps(asdict(report), indent=2) + "\n")
    references = {
        "test, before": report.test_accuracy_before,
        "test, bias only": report.test_accuracy_bias_corrected,
    }
    plot(log, references, output / "plot.png")


def describe(report: Report, output: Path) -> str:
    """Return the summary that the command prints."""
    ratio = report.peak_memory_mb / report.inference_peak_memory_mb
    rows = {
        "test accuracy before": f"{report.test_accuracy_before:.1%}",
        "  bias only": f"{report.test_accuracy_bias_corrected:.1%}",
        "test accuracy after": f"{report.test_accuracy_after:.1%}",
        "dev accuracy after": f"{report.dev_accuracy:.1%}",
        "trained parameters": f"{report.trainable_parameters:,}",
        "steps": f"{report.steps:,}",
        "evaluations of a batch": f"{report.evaluations:,} (eps {report.eps:.2g})",
        "time": f"{report.train_seconds:.0f} s training, {report.total_seconds:.0f} s in all",
        "peak memory": f"{report.peak_memory_mb:,.0f} MiB, {ratio:.2f} times plain inference",
    }
    lines = [f"{name:24} {value}" for name, value in rows.items()]
    lines.append(f"wrote the adapter, plot.png and report.json to {output}")
    lines.append(f'use it: adazeta predict {output} "{EXAMPLES[report.task]}"')
    return "\n".join(lines)
