"""The best core for logits that are taken as linear in it.

An evaluation of a classification prompt gives C logits for each example, not one loss. Where the
change of every logit with an adapter's output is known, the logits are a linear function of its
core around where they were measured, and the best core is that of a multinomial logistic
regression: a small convex problem, solved on the host without a forward pass. Its ridge is chosen
by cross-validation, so that nothing is left to be tuned.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

_RIDGES = tuple(10.0 ** (-power / 2) for power in range(13))  # of the mean curvature, falling
_FOLDS = 5
_ITERATIONS = 100
_MEMORY = 10  # of L-BFGS, pairs


@dataclass(frozen=True)
class Responses:
    """What was measured of N examples at the core of an adapter.

    Attributes:
        logits: float32 ``(N, C)``.
        labels: int64 ``(N,)``, or probabilities of the classes, float32 ``(N, C)``.
        features: float32 ``(N, k)``, what the core is multiplied with.
        slopes: float32 ``(N, r, C)``, change of the logits with each number that the core adds.
    """

    logits: Tensor
    labels: Tensor
    features: Tensor
    slopes: Tensor

    def __len__(self) -> int:
        """Return the number of examples N."""
        return len(self.labels)

    def part(self, chosen: Tensor) -> "Responses":
        """Return some of the examples, by a mask or by index."""
        return Responses(*(getattr(self, name)[chosen] for name in self.__dataclass_fields__))

    def is_finite(self) -> Tensor:
        """Tell of which examples all values are finite, bool ``(N,)``."""
        found = self.logits.isfinite().all(-1)
        found &= self.features.isfinite().all(-1)
        return found & self.slopes.isfinite().flatten(1).all(-1)

    @staticmethod
    def together(parts: list["Responses"]) -> "Responses":
        """Put examples together."""
        names = Responses.__dataclass_fields__
        return Responses(*(torch.cat([getattr(part, name) for part in parts]) for name in names))


@dataclass(frozen=True)
class Fit:
    """The solution of :func:`fit_core`.

    Attributes:
        core: float32 ``(k, r)``.
        ridge: that was chosen, a multiple of the mean curvature.
        expected: mean loss of examples that were held out, under linear logits.
    """

    core: Tensor
    ridge: float
    expected: float


def fit_core(responses: Responses, start: Tensor, *, seed: int = 0) -> Fit:
    """Minimise the mean cross entropy of linear logits, and a ridge, over the core.

    Args:
        responses: measured at ``start``, two examples or more.
        start: float32 ``(k, r)``.
        seed: of the folds.

    Returns:
        The core, a pure function of the arguments on one machine.

    Raises:
        ValueError: there are fewer than two examples.
    """
    if len(responses) < 2:
        raise ValueError(f"a core is fitted on two examples or more, got {len(responses)}")
    problem = Responses(
        responses.logits.double().cpu(), responses.labels.cpu(),
        responses.features.double().cpu(), responses.slopes.double().cpu(),
    )  # fmt: skip
    origin = start.double().cpu()
    curvature = _curvature(problem)
    generator = torch.Generator().manual_seed(seed)
    folds = min(_FOLDS, len(problem))
    fold = torch.randperm(len(problem), generator=generator) % folds
    held_out = torch.zeros(len(_RIDGES), dtype=torch.float64)
    for index in range(folds):
        known, unknown = problem.part(fold != index), problem.part(fold == index)
        core = origin
        for place, ridge in enumerate(_RIDGES):  # each begins where the stronger ridge ended
            core = _minimise(_objective(known, origin, ridge * curvature), core)
            loss, _ = _objective(unknown, origin, 0.0)(core)
            held_out[place] += loss * (len(unknown) / len(problem))
    best = int(held_out.argmin())
    core = origin
    for ridge in _RIDGES[: best + 1]:
        core = _minimise(_objective(problem, origin, ridge * curvature), core)
    return Fit(core.float(), _RIDGES[best], float(held_out[best]))


def _curvature(problem: Responses) -> float:
    """Return the mean, over examples and answers, of the squared slope along all of the core."""
    features, slopes = problem.features.square().sum(-1), problem.slopes.square().sum(-2)
    return max(float((features[:, None] * slopes).mean()), 1e-30)


def _objective(
    problem: Responses, origin: Tensor, ridge: float
) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Return the function of the core that gives the objective and its gradient."""
    ones = problem.labels.double()
    if problem.labels.dim() == 1:
        ones = functional.one_hot(problem.labels, problem.logits.shape[1]).double()

    def objective(core: Tensor) -> tuple[Tensor, Tensor]:
        moved = problem.features @ (core - origin)
        logits = problem.logits + torch.einsum("nr,nrc->nc", moved, problem.slopes)
        log_share = logits.log_softmax(-1)
        loss = -(log_share * ones).sum(-1).mean() + ridge * core.square().sum() / 2
        wrong = (log_share.exp() - ones) / len(problem)
        pulled = torch.einsum("nc,nrc->nr", wrong, problem.slopes)
        return loss, problem.features.T @ pulled + ridge * core

    return objective


def _minimise(objective: Callable[[Tensor], tuple[Tensor, Tensor]], point: Tensor) -> Tensor:
    """Minimise a smooth convex function by L-BFGS with backtracking (Nocedal, 1980)."""
    loss, gradient = objective(point)
    first = gradient.norm()
    pairs: list[tuple[Tensor, Tensor, Tensor]] = []
    for _ in range(_ITERATIONS):
        if gradient.norm() <= 1e-5 * first or not first > 0:
            break
        direction = _quasi_newton(gradient, pairs)
        slope, length = (gradient * direction).sum(), 1.0
        while True:
            there = point - length * direction
            new_loss, new_gradient = objective(there)
            if new_loss <= loss - 1e-4 * length * slope or length < 1e-8:
                break
            length /= 2
        if not new_loss < loss:
            break
        step, change = there - point, new_gradient - gradient
        product = (step * change).sum()
        if product > 0:
            pairs = [*pairs, (step, change, product)][-_MEMORY:]
        gain, point, loss, gradient = loss - new_loss, there, new_loss, new_gradient
        if gain <= 1e-6 * loss.abs():
            break
    return point


def _quasi_newton(gradient: Tensor, pairs: list[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """Return the gradient times the inverse curvature that the last steps showed."""
    if not pairs:
        return gradient / max(1.0, float(gradient.norm()))
    found, shares = gradient, []
    for step, change, product in reversed(pairs):
        share = (step * found).sum() / product
        found = found - share * change
        shares.append(share)
    _, change, product = pairs[-1]
    found = found * (product / change.square().sum())
    for (step, change, product), share in zip(pairs, reversed(shares), strict=True):
        found = found + (share - (change * found).sum() / product) * step
    return found
