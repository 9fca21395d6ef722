"""Built-in rewards that another package computes: a classifier, vaderSentiment."""

from pathlib import Path
from typing import Any

import torch

from adazeta.rewards.one_function import RewardFunction
from adazeta.rewards.records import Completion, text_of


def classifier(argument: str, folder: Path) -> RewardFunction:
    """Make the probability of a label by a text classifier a reward.

    Each completion is classified by itself: padding beside others would change the last bits, and
    with them what a run in several processes or a replay of its texts sees.

    Args:
        argument: ``"MODEL:LABEL"``, the model a folder or a name on the hub. Code of its
            repository is not run.
        folder: that a model in a folder is relative to.

    Raises:
        ValueError: the argument is no such text, or the model lacks the label.
        OSError: there is no such model.
    """
    name, _, label = argument.rpartition(":")
    if not name or not label:
        raise ValueError("reward classifier is written classifier:MODEL:LABEL")
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    place = folder / Path(name).expanduser()
    source = str(place) if place.is_dir() else name
    model = AutoModelForSequenceClassification.from_pretrained(source).eval()
    labels = {str(text): index for index, text in model.config.id2label.items()}
    if label not in labels:
        raise ValueError(
            f"reward classifier: {name} has no label {label!r}; it has {', '.join(labels)}"
        )
    tokenizer = AutoTokenizer.from_pretrained(source)
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    model.to(device)
    limit = min(tokenizer.model_max_length, _positions(model.config))

    def classifier(completions: list[Completion], **columns: Any) -> list[float]:
        rewards = []
        with torch.inference_mode():
            for completion in completions:
                row = tokenizer(
                    text_of(completion), truncation=True, max_length=limit, return_tensors="pt"
                )
                logits = model(**row.to(device)).logits[0].double()
                several = model.config.problem_type == "multi_label_classification"
                shares = logits.sigmoid() if several else logits.softmax(-1)
                rewards.append(shares[labels[label]].item())
        return rewards

    return classifier


def _positions(config: Any) -> int:
    """Return the longest text that a model reads, in tokens."""
    positions = getattr(config, "max_position_embeddings", None)
    return positions if isinstance(positions, int) and positions > 0 else 10**9


def vader(argument: str, folder: Path) -> RewardFunction:
    """Make vaderSentiment's compound score, from -1 to 1, a reward.

    Hutto and Gilbert, "VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social
    Media Text", ICWSM 2014.

    Raises:
        ImportError: vaderSentiment is not installed.
    """
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError:
        raise ImportError(
            "reward vader needs vaderSentiment: pip install 'adazeta[rewards]'"
        ) from None
    analyzer = SentimentIntensityAnalyzer()

    def vader(completions: list[Completion], **columns: Any) -> list[float]:
        return [analyzer.polarity_scores(text_of(one))["compound"] for one in completions]

    return vader
