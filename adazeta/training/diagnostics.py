"""Checks for what goes wrong in silence when a model is trained without gradients.

- Parameters that do not come back after an evaluation: a perturbation in place, or a loss function
  that writes to them.
- Updates below the resolution of the parameters' dtype: rounding to nearest swallows them.
- Losses that differ by less than the dtype can tell apart: the estimate is rounding noise.
- Losses that do not differ at all: the trainable parameters do not reach the loss.
- One direction that makes nearly the whole estimate: an outlier, or a loss that explodes.

All are silent because training goes on and the loss merely fails to fall.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from adazeta.models.structure import coarsest_dtype
from adazeta.optim.optimizer import ZerothOrderOptimizer
from adazeta.parameters.space import ParameterSpace
from adazeta.support.checksum import checksum
from adazeta.support.settings import dtype_name

_MANY, _DOMINATES = 16, 0.9  # probes, and the share of one of them, that are worth a warning


class Diagnostics:
    """Watches an optimizer; warns once about each fault, and keeps the latest figures.

    Every ``every``-th step costs three passes that read the parameters (or a sample of them) and
    no memory to speak of.

    Args:
        optimizer: is watched from now on, by a watch of its space and a hook of its step.
        every: steps from one check to the next; the first step is checked.
        dtype: precision that the losses are computed in; by default the coarsest dtype among the
            trainable parameters. Give that of the frozen base if it is coarser.
        smooth: whether the loss changes with every parameter, if little; scores of texts, which
            move in jumps, may well be the same.

    Attributes:
        values: the latest figures by name, for a log:
            ``restored`` (1.0 if every parameter had its bits back after the evaluations, else
            0.0), ``drift_share`` and ``drift_rms`` (share of a sample of the parameters that did
            not, and root mean square of the difference), ``moved_share`` and ``update_rms`` (share
            of the sample that the update changed, and root mean square of the change),
            ``loss_resolution`` (mean difference of the two losses of a direction, in units of what
            ``dtype`` resolves at that loss), ``projected_spread`` and ``largest_probe_share``
            (standard deviation of the step's projected gradients, and share of the largest in the
            sum of their squares).
    """

    def __init__(
        self,
        optimizer: ZerothOrderOptimizer,
        *,
        every: int = 50,
        dtype: torch.dtype | None = None,
        smooth: bool = True,
    ) -> None:
        if every < 1:
            raise ValueError(f"every must be 1 or more steps, got {every}")
        self.values: dict[str, float] = {}
        self._optimizer = optimizer
        self._every = every
        self._smooth = smooth
        space = optimizer.space
        self._dtype = dtype or max(
            (parameter.dtype for parameter in space.parameters), key=lambda d: torch.finfo(d).eps
        )
        self._warned: set[str] = set()
        self._before_update: Tensor | None = None
        space.add_watch(self._watch)
        optimizer.register_step_post_hook(self._after_step)

    @contextmanager
    def _watch(self) -> Iterator[None]:
        """Compare the parameters before and after the evaluations inside the context."""
        if self._optimizer.steps % self._every:
            yield
            return
        space = self._optimizer.space
        digest, before = checksum(space.parameters), sample(space)
        yield
        after = sample(space)
        self._before_update = after
        restored = checksum(space.parameters) == digest
        drift = after - before
        share = (drift != 0).double().mean().item()
        rms = drift.square().mean().sqrt().item()
        self.values.update(restored=float(restored), drift_share=share, drift_rms=rms)
        if restored:
            return
        if space.perturbation == "in_place":
            self._warn(
                "drift",
                f"perturbing in place changed {share:.1%} of the parameters (by {rms:.1e}, root "
                "mean square) without any update; perturbation='streamed' and 'buffer' are exact",
            )
        else:
            self._warn(
                "drift",
                "the parameters changed while losses were evaluated "
                f"({share:.1%} of a sample): the loss function writes to them; it must only read "
                "them, and buffers such as running statistics must be frozen by model.eval()",
            )

    def _after_step(self, *hook: Any) -> None:
        """Look at what the update did; called after each optimizer step."""
        optimizer, before = self._optimizer, self._before_update
        self._before_update = None
        if before is None or optimizer.last is None or not len(optimizer.last):
            return
        self._look_at_spread(optimizer.last.projected)
        change = sample(optimizer.space) - before
        moved = (change != 0).double().mean().item()
        self.values.update(moved_share=moved, update_rms=change.square().mean().sqrt().item())
        # An estimate that is noise, or even zero, says nothing about the update.
        # And of updates rounded at random few, but the right ones, need to move.
        if not self._smooth and not optimizer.last.projected.any():
            return
        if (
            (self._smooth and self._losses_are_noise())
            or moved >= 0.5
            or optimizer.rounding == "stochastic"
        ):
            return
        if any(group["lr"] for group in optimizer.param_groups):
            half = self._coarsest() != torch.float32
            self._warn(
                "swallowed",
                f"an update changed {moved:.1%} of the parameters only: rounding to the nearest "
                f"{dtype_name(self._coarsest())} swallows the rest; use "
                + "rounding='stochastic', float32 weights or " * half
                + "a larger learning rate",
            )

    def _losses_are_noise(self) -> bool:
        probes, eps = self._optimizer.last, self._optimizer.estimator.eps
        assert probes is not None and eps is not None
        sides = 1 if self._optimizer.estimator.one_sided else 2
        difference = sides * eps * probes.mean
        if self._optimizer.space.dropped_all:
            return True
        if difference == 0 and eps > torch.finfo(self._dtype).eps:
            self.values["loss_resolution"] = 0.0
            self._warn(
                "flat",
                f"the loss, {probes.loss:.3g}, is the same in all directions: it does not depend "
                "on the trainable parameters. Are they used in the forward pass, and are there "
                "labels other than -100?",
            )
            return True
        floor = torch.finfo(self._dtype).eps * abs(probes.loss)
        if not floor > 0:
            return False
        self.values["loss_resolution"] = difference / floor
        if difference < floor:
            self._warn(
                "noise",
                f"the losses of a direction differ by {difference:.1e}, and "
                f"{dtype_name(self._dtype)} resolves {floor:.1e} at a loss of {probes.loss:.3g}: "
                "the estimate is rounding noise; use eps='auto' or more than "
                f"eps={eps:g}, or compute in float32",
            )
        return difference < floor

    def _look_at_spread(self, projected: Tensor) -> None:
        """Note how unequal the projected gradients of a step are."""
        squares = projected.double().square()
        total = squares.sum().item()
        if len(squares) < 2 or not total > 0:
            return
        share = squares.max().item() / total
        self.values.update(projected_spread=projected.std().item(), largest_probe_share=share)
        # Of 16 normal numbers the largest has a third of the squares; nine tenths never happens.
        if len(squares) >= _MANY and share > _DOMINATES:
            self._warn(
                "spread",
                f"one of {len(squares)} directions makes {share:.0%} of the estimate: an example "
                "with an enormous loss, or a step into a region where the loss explodes; look at "
                "the data, or use a smaller eps or learning rate",
            )

    def _coarsest(self) -> torch.dtype:
        return coarsest_dtype(self._optimizer.space.parameters)

    def _warn(self, kind: str, message: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            warnings.warn(message, stacklevel=2)


@torch.no_grad()
def sample(space: ParameterSpace, count: int = 1 << 16) -> Tensor:
    """Return about ``count`` of a space's parameters, evenly spread, float32 (exactly)."""
    total = sum(parameter.numel() for parameter in space.parameters)
    step = max(total // count, 1)
    parts = [parameter.detach().reshape(-1)[::step] for parameter in space.parameters]
    return torch.cat([part.float() for part in parts])
