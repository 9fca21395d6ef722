"""Zero-shot accuracy without the model's preference for one label word."""

import torch
from torch import Tensor


def fit_bias(logits: Tensor, labels: Tensor) -> float:
    """Find the threshold on the logit difference that classifies a binary training set best.

    A model that was never trained on the task prefers one word whatever the text; a threshold
    other than zero removes that preference (as contextual calibration does, 2102.09690).

    Args:
        logits: (N, 2).
        labels: (N,), 0 or 1.

    Returns:
        The threshold t: class 1 is predicted where ``logits[:, 1] - logits[:, 0] > t``. It lies
        half way between two examples; of several equally good ones it is the one nearest zero.

    Raises:
        ValueError: there are not exactly two classes, or no examples.
    """
    differences, order = _differences(logits).sort()
    positive = labels.to(order.device)[order].bool().double()
    none = positive.new_zeros(1)
    # After k examples in ascending order, cut there: below is class 0, above is class 1.
    correct = torch.cat([none, (1 - positive).cumsum(0)]) + positive.sum()
    correct -= torch.cat([none, positive.cumsum(0)])
    thresholds = torch.cat(
        [
            differences[:1] - 1,
            (differences[1:] + differences[:-1]) / 2,
            differences[-1:] + 1,
        ]
    )
    possible = torch.ones_like(correct, dtype=torch.bool)
    possible[1:-1] = differences[1:] > differences[:-1]
    best = thresholds[possible & (correct == correct[possible].max())]
    return float(best[best.abs().argmin()])


def accuracy_with_bias(logits: Tensor, labels: Tensor, bias: float) -> float:
    """Compute the accuracy of a binary task with a threshold from :func:`fit_bias`.

    Args:
        logits: (N, 2).
        labels: (N,), 0 or 1.
        bias: the threshold; 0 gives the ordinary accuracy.

    Raises:
        ValueError: there are not exactly two classes, or no examples.
    """
    predicted = _differences(logits) > bias
    return float((predicted == labels.to(predicted.device).bool()).double().mean())


def _differences(logits: Tensor) -> Tensor:
    if logits.dim() != 2 or logits.shape[1] != 2 or not len(logits):
        raise ValueError(f"a bias is for two classes, got logits of shape {tuple(logits.shape)}")
    return logits[:, 1].double() - logits[:, 0].double()
