"""Adapters in a space that the task's own prompts choose, small enough for few evaluations.

A random direction over thousands of numbers says little about each of them. An informed adapter
has fewer, and better ones. It reads the hidden states of its own block and of some below, and moves
those of its own::

    h_R + ((h_1 - mean_1) V_1, ..., (h_R - mean_R) V_R, 1) Z U

``V_i`` holds the principal components of h_i on the task's prompts, ``U`` the directions in which
the output embedding tells the answers apart. Both come from forward passes and stay frozen; only
the small core ``Z`` is trained. As a tensor train it has the cores V, Z and U.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from adazeta.adapters.readers import StateReader
from adazeta.parameters.stacking import StackedParameters

_SHARE = 0.05  # a step of one in the core moves h by this share of its mean length


class InformedAdapter(StackedParameters):
    """Adds ``((h_1 - mean_1) V_1, ..., (h_R - mean_R) V_R, 1) Z U`` to what a block returns.

    Args:
        width: of the hidden states, d.
        components: principal components k of each hidden state that is read.
        answers: directions r of the output side.
        readers: of the R - 1 blocks below that are read beside the adapter's own, the lowest first.
        device: device of parameters and bases.

    Attributes:
        core: Z, float32 ``(R k + 1, r)``, zero at first; the last row belongs to the constant.
        mean: float32 ``(R, d)``.
        inputs: V, float32 ``(R, d, k)``; zero before :func:`inform`, and so is the adapter.
        outputs: U, float32 ``(r, d)``.
        readers: as given.
        enabled: whether the adapter acts.
        scale: share of what is added, see :func:`adazeta.adapters.scaling.adapter_scale`.
        is_last: whether no adapter above it reads; what was read is let go of after it.
    """

    enabled = True
    scale = 1.0
    is_last = True
    handle: RemovableHandle
    mean: Tensor
    inputs: Tensor
    outputs: Tensor

    def __init__(
        self,
        width: int,
        components: int,
        answers: int,
        readers: Sequence[StateReader] = (),
        *,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.readers = list(readers)  # a list: they are modules of their blocks, not of this one
        count = len(self.readers) + 1
        self.core = nn.Parameter(torch.zeros(count * components + 1, answers, device=device))
        self.register_buffer("mean", torch.zeros(count, width, device=device))
        self.register_buffer("inputs", torch.zeros(count, width, components, device=device))
        self.register_buffer("outputs", torch.zeros(answers, width, device=device))
        self._offsets: Tensor | None = None
        self._seen: list[Tensor] | None = None

    @property
    def num_parameters(self) -> int:
        """Elements of the core."""
        return self.core.numel()

    def forward(self, hidden: Tensor) -> Tensor:
        """Apply the adapter.

        Args:
            hidden: ``(B, T, d)`` of any floating dtype, what its block returned. Under a stack of P
                cores, or P offsets, the rows are P equal, consecutive groups.

        Returns:
            The same shape and dtype.

        Raises:
            RuntimeError: a block that it reads did not run before it.
        """
        features = self.features(hidden)
        if self.is_last:
            for reader in self.readers:
                reader.free()
        if self._seen is not None:
            self._seen.append(features.detach())
        core = self.value("core")
        groups = core.shape[0] if core.dim() == 3 else 1
        by_group = features.view(groups, -1, features.shape[-1])
        moved = (by_group @ core).view(*features.shape[:-1], -1)
        if self._offsets is not None:
            each = hidden.shape[0] // len(self._offsets)
            moved = moved + self._offsets.repeat_interleave(each, 0)[:, None]
        if self.scale != 1:
            moved = moved * self.scale
        return (hidden + (moved @ self.outputs)).to(hidden.dtype)

    def states(self, hidden: Tensor) -> list[Tensor]:
        """Return what the adapter reads, float32: R tensors ``(B, T, d)``, its own block's last."""
        read = [reader.states(hidden.shape) for reader in self.readers]
        return [state.to(hidden.device).float() for state in (*read, hidden)]

    def features(self, hidden: Tensor) -> Tensor:
        """Return ``((h_1 - mean_1) V_1, ..., 1)``, float32 ``(B, T, R k + 1)``."""
        read = self.states(hidden)
        scores = [(h - m) @ v for h, m, v in zip(read, self.mean, self.inputs, strict=True)]
        return torch.cat([*scores, torch.ones_like(scores[0][..., :1])], -1)

    @contextmanager
    def offset(self, offsets: Tensor | None) -> Iterator[list[Tensor]]:
        """Add offsets in front of U inside the context, and keep the features seen there.

        Args:
            offsets: float32 ``(P, r)``, one for each of P equal groups of rows; None adds nothing.

        Yields:
            The features of each forward.
        """
        self._offsets, self._seen = offsets, []
        try:
            yield self._seen
        finally:
            self._offsets = self._seen = None


@torch.no_grad()
def inform(
    adapters: Sequence[InformedAdapter],
    run: Callable[[Any], Any],
    batches: Iterable[Any],
    answers: Tensor,
) -> int:
    """Give adapters their bases, from forward passes over the task's prompts.

    Args:
        adapters: of a model, in the order of its blocks.
        run: runs the model on a batch, so that each adapter sees ``(B, T, d)``.
        batches: of prompts; more than a thousand prompts in all change little.
        answers: ``(C, d)``, rows of the output embedding that stand for the answers, C > 1.

    Returns:
        The evaluations of a batch that it took.

    Raises:
        ValueError: the prompts are fewer than two, or the answers do not differ.
    """
    seen, count = _seen(adapters, run, batches)
    directions = _answer_directions(answers)
    for adapter, states in zip(adapters, seen, strict=True):
        if states.shape[1] < 2:
            raise ValueError(f"adapters are informed by two prompts or more, got {states.shape[1]}")
        _set_inputs(adapter, states)
        _set_outputs(adapter, states[-1], directions)
    return count


@torch.no_grad()
def inform_by_scores(
    adapters: Sequence[InformedAdapter],
    run: Callable[[Any], Any],
    batches: Iterable[Any],
    of_answers: Callable[[Tensor], Tensor],
    owners: Tensor,
    scores: Tensor,
) -> None:
    """Give adapters bases for texts that are scored, from scored texts of the model itself.

    ``V`` holds the principal components of h on the tokens of the texts. The first row of ``U`` is
    the direction in which the mean h of a text goes with its score (their covariance); the others
    are the first principal components of these means, made orthogonal to it.

    Args:
        adapters: of a model, in the order of its blocks.
        run: runs the model on a batch of the texts, so that each adapter sees their hidden states.
        batches: of the texts.
        of_answers: takes what an adapter sees in a forward, (B, T, d), and returns those of the
            texts' tokens, (n, d).
        owners: int64 (tokens,), the text that each token of all forwards belongs to.
        scores: (N,), of the texts, finite.

    Raises:
        ValueError: there are fewer than two texts.
    """
    if len(scores) < 2:
        raise ValueError(f"adapters are informed by two scored texts or more, got {len(scores)}")
    seen, _ = _seen(adapters, run, batches, of_answers)
    weights = scores.double() - scores.double().mean()
    for adapter, states in zip(adapters, seen, strict=True):
        hidden = states[-1].double()
        owned, there = owners.to(hidden.device), weights.to(hidden.device)
        means = hidden.new_zeros(len(scores), hidden.shape[1]).index_add_(0, owned, hidden)
        means /= owned.bincount(minlength=len(scores)).clamp_min(1)[:, None]
        _set_inputs(adapter, states)
        means = means - means.mean(0)
        components = torch.linalg.svd(means, full_matrices=False).Vh
        signs = components.gather(1, components.abs().argmax(1, keepdim=True)).sign()
        rows = [there @ means, *(components * signs)]
        _set_outputs(adapter, hidden, _orthonormal(rows, len(adapter.outputs)))


def _set_inputs(adapter: InformedAdapter, states: Tensor) -> None:
    """Let an adapter read the principal components of the states of each block (R, n, d)."""
    for place, hidden in enumerate(states):
        adapter.mean[place], adapter.inputs[place] = _components(
            hidden.double(), adapter.inputs.shape[-1]
        )


def _set_outputs(adapter: InformedAdapter, hidden: Tensor, directions: Tensor) -> None:
    """Let an adapter move hidden states (n, d) in some directions, orthonormal rows."""
    adapter.outputs.zero_()
    found = directions[: len(adapter.outputs)].to(adapter.outputs.device)
    adapter.outputs[: len(found)] = found * (_SHARE * float(hidden.norm(dim=1).mean()))


def _orthonormal(rows: Sequence[Tensor], count: int) -> Tensor:
    """Make rows orthonormal in their order, leaving out those that add nothing; keep some."""
    kept: list[Tensor] = []
    for row in rows:
        size = row.norm()
        for other in kept + kept:  # twice, since once leaves rounding
            row = row - (row @ other) * other
        if len(kept) < count and size > 0 and row.norm() > 1e-6 * size:
            kept.append(row / row.norm())
    return torch.stack(kept).float()


class _Enough(Exception):
    """Ends a forward at the last adapter: what comes above is not needed."""


def _seen(
    adapters: Sequence[InformedAdapter],
    run: Callable[[Any], Any],
    batches: Iterable[Any],
    choose: Callable[[Tensor], Tensor] = lambda hidden: hidden.flatten(0, 1),
) -> tuple[list[Tensor], int]:
    """Run the model on batches, as far up as its last adapter.

    Returns:
        What each adapter reads of the chosen tokens, (R, N, d), and the number of batches.
    """
    seen: list[list[Tensor]] = [[] for _ in adapters]

    def record(adapter: InformedAdapter, args: tuple[Tensor, ...]) -> None:
        place = adapters.index(adapter)
        seen[place].append(torch.stack([choose(h) for h in adapter.states(args[0].detach())]))
        if place + 1 == len(adapters):
            for reader in adapter.readers:
                reader.free()
            raise _Enough

    handles = [adapter.register_forward_pre_hook(record) for adapter in adapters]
    count = 0
    try:
        for batch in batches:
            with suppress(_Enough):
                run(batch)
            count += 1
    finally:
        for handle in handles:
            handle.remove()
    return [torch.cat(kept, 1) for kept in seen], count


def _components(hidden: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the mean (d,) of states (N, d), and their first principal components (d, count).

    Together all components have a variance of one; those beyond d are zero.
    """
    mean = hidden.mean(0)
    # Of the covariance, so that the sign of a component is the only freedom left.
    values, vectors = torch.linalg.eigh((hidden - mean).T @ (hidden - mean) / len(hidden))
    chosen = vectors.flip(1)[:, :count]
    chosen = chosen * chosen.gather(0, chosen.abs().argmax(0, keepdim=True)).sign()
    # Not whitened: rare components keep their small share, so their number matters little.
    scale = values.clamp_min(0).sum().sqrt()
    found = hidden.new_zeros(len(mean), count)
    found[:, : chosen.shape[1]] = chosen / scale.clamp_min(1e-12)
    return mean, found


def _answer_directions(answers: Tensor) -> Tensor:
    """Return orthonormal directions in which the answers' rows differ, the widest first."""
    rows = answers.detach().double()
    rows = rows - rows.mean(0)
    _, values, vectors = torch.linalg.svd(rows, full_matrices=False)
    kept = values > values[0] * 1e-6 if len(values) else values.bool()
    if not bool(kept.any()):
        raise ValueError("the answers have the same row in the output embedding")
    found = vectors[kept]
    found = found * found.gather(1, found.abs().argmax(1, keepdim=True)).sign()
    return found.float()
