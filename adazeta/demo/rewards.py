"""``adazeta demo rewards``: a small model learns to write film reviews that sound pleased.

No text is given to imitate: the first words of real reviews are continued by the model, and what it
writes is scored by vaderSentiment's compound (-1 to 1; Hutto and Gilbert, ICWSM 2014; MIT), and by
the share of word pairs that no other text has, or all texts would be the same one in the end. The
training itself is ``adazeta train`` with the settings below.
"""

import argparse
import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from adazeta.adapters.attach import trainable_parameters
from adazeta.demo.data import film_reviews, model_file, sentiment_scorer
from adazeta.demo.folder import write_folder
from adazeta.runs.run import Run, prepare_from
from adazeta.support.memory import PeakMemory

WORDS = 5  # of a review that are given
SIZES = {"train": 1000, "test": 200}
STEPS = 45
SCORE = "rewards/sentiment/mean"
"""Metric that the training is about; ``reward`` is the weighted sum."""

# docs/rewards.md says what mattered.
SETTINGS: dict[str, Any] = {
    "dtype": "float32",
    "max_new_tokens": 16,
    "form": "informed",
    "layers": [15],
    "components": 16,
    "probes": "example",
    "probes_per_forward": 2,
    "method": "zo-adam",
    "eps_share": 0.8,
    "weight_decay": 0.2,
    "anchored_decay": True,
    "per_device_train_batch_size": 48,
    "per_device_eval_batch_size": 100,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
}

_SCORER = '''"""Scores the sentiment of completions by vaderSentiment, from -1 to 1."""

import importlib.util

_spec = importlib.util.spec_from_file_location("vader_sentiment", {path!r})
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)
_analyser = _module.SentimentIntensityAnalyzer()


def sentiment(prompts, completions, **columns):
    """Return the compound score of each completion."""
    return [_analyser.polarity_scores(text)["compound"] for text in completions]
'''


@dataclass
class Report:
    """What ``report.json`` holds; the figures of texts are of the unseen openings.

    ``reward_before`` and ``reward_after`` are mean sentiments, without what is added for variety.
    """

    reward_before: float
    reward_after: float
    distinct_bigrams_before: float
    distinct_bigrams_after: float
    base_perplexity_before: float
    base_perplexity_after: float
    kl: float
    train_seconds: float
    total_seconds: float
    steps: int
    evaluations: int
    eps: float
    trainable_parameters: int
    peak_memory_mb: float
    seed: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument("--seed", type=int, default=0, help="directions, order of data")
    parser.add_argument(
        "--output", type=Path, default=Path("runs/demo-rewards"), help="folder to write to"
    )
    parser.add_argument("--steps", type=int, default=STEPS, help=f"optimizer steps ({STEPS})")


def run(options: argparse.Namespace) -> int:
    """Fetch, measure, train, measure again, report.

    Returns:
        The exit status.
    """
    print("SmolLM2-135M-Instruct learns to continue film reviews kindly: a score, no gradient")
    source, scorer = model_file(), sentiment_scorer()
    began = time.monotonic()
    prompts = {name: openings(records) for name, records in film_reviews(SIZES).items()}
    settings = configure(source, scorer, prompts, options.output, options.seed, options.steps)
    with PeakMemory() as memory:
        made = prepare_from(settings)
        before = measured(made)
        print(f"before: mean score {before[SCORE]:.3f} on {SIZES['test']} unseen openings")
        metrics = made.train()
    after = {name.removeprefix("test_"): value for name, value in metrics.items()}
    report = Report(
        reward_before=before[SCORE],
        reward_after=after[SCORE],
        distinct_bigrams_before=before["distinct_bigrams"],
        distinct_bigrams_after=after["distinct_bigrams"],
        base_perplexity_before=before["base_perplexity"],
        base_perplexity_after=after["base_perplexity"],
        kl=after["kl"],
        train_seconds=metrics["train_runtime"],
        total_seconds=time.monotonic() - began,
        steps=made.trainer.state.global_step,
        evaluations=made.trainer.evaluations,
        eps=made.trainer.zo_optimizer.estimator.eps or 0.0,
        trainable_parameters=trainable_parameters(made.model)[0],
        peak_memory_mb=memory.mebibytes,
        seed=options.seed,
    )
    (options.output / "report.json").write_text(json.dumps(asdict(report), indent=2) + "\n")
    print(describe(report, options.output))
    return 0


def openings(records: Iterable[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Return the first words of reviews that have more, as prompts; each once."""
    texts = [str(record["text"]).split() for record in records]
    found = dict.fromkeys(" ".join(words[:WORDS]) for words in texts if len(words) > WORDS)
    return [{"prompt": text} for text in found]


def configure(
    source: Path,
    scorer: Path,
    data: Mapping[str, Iterable[Mapping[str, Any]]],
    output: Path,
    seed: int,
    steps: int = STEPS,
) -> dict[str, Any]:
    """Write data, reward and ``config.yaml``, with which ``adazeta train`` repeats the training.

    Args:
        source: the model.
        scorer: vaderSentiment's module.
        data: records with a ``prompt``, of ``"train"`` and ``"test"``.
        output: folder to write to.
        seed: of the run.
        steps: optimizer steps.

    Returns:
        The settings.
    """
    output.mkdir(parents=True, exist_ok=True)
    reward = output / "reward.py"
    reward.write_text(_SCORER.format(path=str(scorer)), encoding="utf-8")
    chosen = {
        "model": str(source),
        "reward": [f"{reward}:sentiment", "distinct"],
        "reward_weights": [1.0, 0.9],
        "seed": seed,
        "max_steps": steps,
        **SETTINGS,
    }
    return write_folder(output, data, chosen)


def measured(made: Run) -> dict[str, float]:
    """Evaluate on the unseen openings, before training."""
    found = made.trainer.evaluate(made.examples["test"])
    return {name.removeprefix("eval_"): value for name, value in found.items()}


def describe(report: Report, output: Path) -> str:
    """Return the summary that the command prints."""
    rows = {
        "mean score": f"{report.reward_before:.3f} before, {report.reward_after:.3f} after",
        "distinct word pairs": f"{report.distinct_bigrams_before:.0%} before, "
        f"{report.distinct_bigrams_after:.0%} after",
        "perplexity, base": f"{report.base_perplexity_before:.1f} before, "
        f"{report.base_perplexity_after:.1f} after (KL {report.kl:.2f} a token)",
        "trained parameters": f"{report.trainable_parameters:,}",
        "steps": f"{report.steps:,} (eps {report.eps:.2g})",
        "time": f"{report.train_seconds:.0f} s training, {report.total_seconds:.0f} s in all",
        "peak memory": f"{report.peak_memory_mb:,.0f} MiB",
    }
    lines = [f"{name:24} {value}" for name, value in rows.items()]
    lines.append(f"wrote the adapter, completions.jsonl and report.json to {output}")
    lines.append(f'use it: adazeta predict {output} "The story of a young"')
    return "\n".join(lines)
