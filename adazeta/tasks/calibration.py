"""Zero-shot accuracy without the model's preference for some label words."""

import torch
from torch import Tensor
from torch.nn import functional

_RIDGE = 1e-3
_NEWTON_STEPS = 50


def fit_bias(logits: Tensor, labels: Tensor) -> Tensor:
    """Find one bias a class with which the classes of a training set are predicted best.

    A model that was never trained on the task prefers one word whatever the text; adding numbers
    to the logits removes that preference (as contextual calibration does, 2102.09690).

    For two classes the result is exact: no threshold on the difference of the logits is right more
    often; it lies half way between two examples, and of several equally good ones it is the one
    nearest zero. For more classes the search starts at zero and at the biases of least cross
    entropy, and moves one bias after another to its exact best until none gains: the result is
    right at least as often as both starts, and no other value of any single bias is better.

    Args:
        logits: (N, C).
        labels: (N,), classes from 0 to C - 1; some may be absent.

    Returns:
        float64 (C,) on the device of the logits, the first of them 0; the prediction is
        ``(logits.double() + bias).argmax(-1)``. The same arguments give the same bits.

    Raises:
        ValueError: there is less than two classes or no example, a logit is not finite, or a label
            is not a class.
    """
    scores, classes = _checked(logits, labels)
    zero = scores.new_zeros(scores.shape[1])
    if len(zero) == 2:
        return _moved(scores, classes, zero, 1)
    best, most = zero, -1
    for start in (zero, _least_cross_entropy(scores, classes)):
        bias, right = _ascended(scores, classes, start)
        if right > most:
            best, most = bias, right
    return best - best[0]


def accuracy_with_bias(logits: Tensor, labels: Tensor, bias: Tensor) -> float:
    """Compute the accuracy with the biases of :func:`fit_bias`.

    Args:
        logits: (N, C).
        labels: (N,), classes from 0 to C - 1.
        bias: (C,); zeros give the ordinary accuracy.

    Raises:
        ValueError: see :func:`fit_bias`.
    """
    scores, classes = _checked(logits, labels)
    return _right(scores, classes, bias.to(scores)) / len(scores)


def _checked(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    if logits.dim() != 2 or logits.shape[1] < 2 or not len(logits):
        raise ValueError(
            "biases are for examples of two or more classes, got logits of shape "
            f"{tuple(logits.shape)}"
        )
    if labels.shape != logits.shape[:1]:
        raise ValueError(f"{len(logits)} rows of logits, but labels {tuple(labels.shape)}")
    broken = (~logits.isfinite()).any(-1).nonzero()
    if len(broken):
        raise ValueError(
            f"the logits of example {int(broken[0])} are not finite: {logits[broken[0]].tolist()}; "
            "load the model in a dtype that can hold them, e.g. float32"
        )
    classes = labels.to(logits.device).long()
    strange = classes[(classes < 0) | (classes >= logits.shape[1])]
    if len(strange):
        raise ValueError(f"label {int(strange[0])} is none of {logits.shape[1]} classes")
    return logits.double(), classes


def _right(scores: Tensor, classes: Tensor, bias: Tensor) -> int:
    return int(((scores + bias).argmax(-1) == classes).sum())


def _ascended(scores: Tensor, classes: Tensor, bias: Tensor) -> tuple[Tensor, int]:
    """Move single biases until none gains; the number of right ones grows, so that it ends."""
    right = _right(scores, classes, bias)
    while True:
        before = right
        for index in range(len(bias)):
            moved = _moved(scores, classes, bias, index)
            if (found := _right(scores, classes, moved)) > right:
                bias, right = moved, found
        if right == before:
            return bias, right


def _moved(scores: Tensor, classes: Tensor, bias: Tensor, index: int) -> Tensor:
    """Give one bias its best value, of several equally good ones that nearest to its present."""
    others = scores + bias
    others[:, index] = -torch.inf
    rival, rivals = others.max(-1)
    # The class is predicted where the difference is above the threshold, else its rival.
    differences, order = (scores[:, index] - rival).sort(stable=True)
    above = (classes == index)[order].double()
    below = (classes == rivals)[order].double()
    none = above.new_zeros(1)
    # After k examples in ascending order, cut there.
    correct = torch.cat([none, below.cumsum(0)]) + above.sum()
    correct -= torch.cat([none, above.cumsum(0)])
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
    moved = bias.clone()
    moved[index] = -best[(best + bias[index]).abs().argmin()]
    return moved


def _least_cross_entropy(scores: Tensor, classes: Tensor) -> Tensor:
    """Fit the biases by Newton's method; a small ridge keeps those of absent classes finite."""
    count = scores.shape[1]
    wanted = functional.one_hot(classes, count).double().mean(0)
    unit = torch.eye(count, dtype=scores.dtype, device=scores.device)

    def loss(bias: Tensor) -> Tensor:
        return functional.cross_entropy(scores + bias, classes) + _RIDGE / 2 * bias.square().sum()

    bias = scores.new_zeros(count)
    present = loss(bias)
    for _ in range(_NEWTON_STEPS):
        p = (scores + bias).softmax(-1)
        gradient = p.mean(0) - wanted + _RIDGE * bias
        curvature = p.mean(0).diag() - p.T @ p / len(p) + _RIDGE * unit
        step = torch.linalg.solve(curvature, gradient)
        # A full step may go too far where the logits are large; half as far, until it gains.
        tries = [bias - step / 2**halvings for halvings in range(10)]
        better = next(((t, found) for t in tries if (found := loss(t)) < present), None)
        if better is None:
            break
        bias, present = better
    return bias
