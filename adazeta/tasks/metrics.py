"""Metrics of predictions: of classes, and of answers as text."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from adazeta.support.answers import exact_match, token_f1


def _accuracy(predicted: np.ndarray, labels: np.ndarray) -> float:
    return float((predicted == labels).mean())


def _f1_of(predicted: np.ndarray, labels: np.ndarray, label: int) -> float:
    right = int(((predicted == label) & (labels == label)).sum())
    named = int((predicted == label).sum()) + int((labels == label).sum())
    return 2 * right / named if named else 0.0


def _f1(predicted: np.ndarray, labels: np.ndarray) -> float:
    return _f1_of(predicted, labels, 1)


def _macro_f1(predicted: np.ndarray, labels: np.ndarray) -> float:
    found = np.union1d(predicted, labels)
    return float(np.mean([_f1_of(predicted, labels, label) for label in found]))


def _matthews(predicted: np.ndarray, labels: np.ndarray) -> float:
    classes, joint = np.unique(np.concatenate([predicted, labels]), return_inverse=True)
    table = np.zeros((len(classes), len(classes)))
    np.add.at(table, (joint[len(predicted) :], joint[: len(predicted)]), 1)
    of_labels, of_predicted, count = table.sum(1), table.sum(0), table.sum()
    covariance = np.trace(table) * count - of_labels @ of_predicted
    spread = (count**2 - of_predicted @ of_predicted) * (count**2 - of_labels @ of_labels)
    return float(covariance / np.sqrt(spread)) if spread > 0 else 0.0


CLASSES: Mapping[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "macro_f1": _macro_f1,
    "matthews": _matthews,
}
"""Metrics of predicted classes (N,) and labels (N,): the share that is right, F1 of class 1, the
mean of the F1 of all classes that occur, Matthews' correlation coefficient for any number of
classes (0 where one side is constant)."""


def of_classes(names: Sequence[str], predicted: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Compute metrics of classes.

    Args:
        names: of :data:`CLASSES`.
        predicted: integers (N,).
        labels: integers (N,).
    """
    return {name: CLASSES[name](predicted, labels) for name in names}


def checked(names: Sequence[str], known: Mapping[str, Any]) -> list[str]:
    """Return the names of metrics as a list.

    Raises:
        ValueError: one is unknown, or there is none.
    """
    listed = [names] if isinstance(names, str) else list(names)
    strange = [name for name in listed if name not in known]
    if strange or not listed:
        raise ValueError(
            f"metrics of this task are {', '.join(known)}; got {strange[0]!r}"
            if strange
            else f"metrics is empty; there are {', '.join(known)}"
        )
    return listed


def _exact_match(answer: str, reference: str) -> float:
    return exact_match(answer, [reference])


def _token_f1(answer: str, reference: str) -> float:
    return token_f1(answer, [reference])


def _rouge(answer: str, reference: str) -> float:
    return float(_rouge_scorer().score(reference, answer)["rougeL"].fmeasure)


def _rouge_scorer() -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError:
        raise ImportError(
            "the metric 'rouge' needs the rouge-score package: pip install adazeta[rouge]"
        ) from None
    return RougeScorer(["rougeL"], use_stemmer=True)


ANSWERS: Mapping[str, Callable[[str, str], float]] = {
    "exact_match": _exact_match,
    "f1": _token_f1,
    "rouge": _rouge,
}
"""Metrics of an answer and one reference: equality and F1 of words by SQuAD's rules, and the F
measure of ROUGE-L with stemming of the rouge-score package."""


def of_answers(
    names: Sequence[str], answers: Sequence[str], references: Sequence[Sequence[str]]
) -> dict[str, np.ndarray]:
    """Compute metrics of generated answers, each against the reference that suits it best.

    Args:
        names: of :data:`ANSWERS`.
        answers: N texts.
        references: for each of them one text or more.

    Returns:
        float64 (N,) for each metric.

    Raises:
        ImportError: a metric needs a package that is not installed.
    """
    return {
        name: np.array(
            [
                max(ANSWERS[name](answer, reference) for reference in several)
                for answer, several in zip(answers, references, strict=True)
            ]
        )
        for name in names
    }
