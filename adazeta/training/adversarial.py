"""Losses at embeddings that are moved against the model, after ScaLA (arXiv 2201.12469).

For each example i of a batch, with e the embeddings of its tokens: the gradient
``g_i = d loss_i / d e`` of one forward and backward pass gives the move
``delta_i = min(step, radius) g_i / |g_i|``, zero on padding, and the loss that is trained is that
at ``e + delta``, with delta held constant. A ``random`` move has the same norm and needs no pass.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from adazeta.kernels import gaussian
from adazeta.support.seeds import ADVERSARIAL_SEEDS, derive_seed

KINDS = ("gradient", "random")
AUTO = "auto"
SHARE = 0.01
"""Of the mean norm of an embedding, times the root of the tokens: the radius by ``"auto"``."""
_ROWS = 4096  # of an embedding that are looked up at a time


class Adversary:
    """What moves embeddings during training.

    Args:
        kind: of :data:`KINDS`.
        radius: largest norm of an example's move, or ``"auto"``.
        step: norm before that bound; by default the radius.
        start: optimizer steps before the first that it is on for.
        seed: of the run, for random moves.
    """

    def __init__(
        self, kind: str, radius: float | str, step: float | None, start: int, seed: int
    ) -> None:
        self.kind, self.radius, self.step, self.start, self.seed = kind, radius, step, start, seed
        self._tried = False
        self._mean: Tensor | None = None

    def evaluate(
        self,
        backward: Callable[[], Tensor],
        loss: Callable[[], Tensor],
        module: nn.Module,
        inputs: Mapping[str, Any],
        place: tuple[int, int],
    ) -> Tensor:
        """Evaluate a micro-batch with its embeddings moved, if the run is that far.

        Args:
            backward: evaluates the micro-batch.
            loss: computes its mean loss, with a graph.
            module: the model, which runs its input embedding once a batch.
            inputs: the micro-batch; ``attention_mask``, ``(B, T)``, tells padding if it is there.
            place: optimizer steps done, and micro-batches of this one: with the seed they are
                what random moves depend on.

        Returns:
            What ``backward`` returned.

        Raises:
            ValueError: the model has no input embedding, or the loss does not run it once; or the
                mask does not fit.
        """
        embedding = embedding_of(module)
        mask = inputs.get("attention_mask")
        if place[0] < self.start:
            if self._tried:
                return backward()
            self._tried = True  # what will not do is told now, not after part of the run
            with _once(embedding, lambda embedded: _fitting(embedded, mask)):
                return backward()
        direction = _gradient(embedding, loss, mask) if self.kind == "gradient" else None

        def moved(embedded: Tensor) -> Tensor:
            along = self._noise(embedded, mask, place) if direction is None else direction
            return embedded + self._scaled(along, embedded, mask, embedding).to(embedded.dtype)

        with _once(embedding, moved):
            return backward()

    def _noise(self, embedded: Tensor, mask: Any, place: tuple[int, int]) -> Tensor:
        seed = derive_seed(self.seed, ADVERSARIAL_SEEDS, *place)
        noise = gaussian(seed, 0, embedded.numel(), device=embedded.device)
        return _on_tokens(noise.view(embedded.shape), mask)

    def _scaled(
        self, direction: Tensor, embedded: Tensor, mask: Any, embedding: nn.Module
    ) -> Tensor:
        """Give each example's direction its norm."""
        norm = direction.flatten(1).norm(dim=1)
        wanted = torch.as_tensor(self._norm(embedded, mask, embedding), device=norm.device)
        factor = torch.where(norm > 0, wanted / norm.clamp_min(1e-38), 0.0)
        return direction * factor.view(-1, *[1] * (direction.dim() - 1))

    def _norm(self, embedded: Tensor, mask: Any, embedding: nn.Module) -> Tensor | float:
        if isinstance(self.radius, str):
            tokens = _on_tokens(torch.ones_like(embedded[..., :1]).float(), mask).flatten(1).sum(1)
            radius = SHARE * self._mean_norm(embedding, embedded)
            found = radius * tokens.sqrt()
            return found if self.step is None else found.clamp(max=self.step)
        return self.radius if self.step is None else min(self.radius, self.step)

    def _mean_norm(self, embedding: nn.Module, embedded: Tensor) -> Tensor:
        """Return the mean norm of what an embedding returns, over all that it has."""
        if type(embedding) is nn.Embedding:
            return embedding.weight.detach().float().norm(dim=-1).mean()
        # Others scale their weights, or hold them packed.
        if self._mean is not None:
            return self._mean
        count = getattr(embedding, "num_embeddings", None)
        with torch.no_grad():
            if count is None:
                found = embedded.detach().float().flatten(0, -2).norm(dim=-1).mean()
            else:
                sums = [
                    embedding.forward(ids).float().norm(dim=-1).sum()
                    for ids in torch.arange(count, device=embedded.device).split(_ROWS)
                ]
                found = torch.stack(sums).sum() / count
        if count is not None and not any(p.requires_grad for p in embedding.parameters()):
            self._mean = found
        return found


def embedding_of(module: nn.Module) -> nn.Module:
    """Return a model's input embedding.

    Raises:
        ValueError: it says none.
    """
    get = getattr(module, "get_input_embeddings", None)
    try:
        found = None if get is None else get()
    except NotImplementedError:
        found = None
    if not isinstance(found, nn.Module):
        raise ValueError(
            f"adversarial_radius moves input embeddings, and {type(module).__name__} has no "
            "get_input_embeddings(); leave it at 0"
        )
    return found


def _gradient(embedding: nn.Module, loss: Callable[[], Tensor], mask: Any) -> Tensor:
    """Return the gradient of the loss along the embeddings of a batch, ``(B, T, d)``, float32.

    Of one example it is that of the example's own loss, times a factor.
    """
    leaves: list[Tensor] = []

    def leaf(embedded: Tensor) -> Tensor:
        leaves.append(embedded.detach().requires_grad_())
        return leaves[-1]

    with torch.enable_grad(), _once(embedding, leaf):
        value = loss()
    (found,) = torch.autograd.grad(value, leaves)
    return _on_tokens(found.float(), mask)


def _on_tokens(value: Tensor, mask: Any) -> Tensor:
    """Return values of tokens with those of padding set to 0."""
    if not isinstance(mask, Tensor):
        return value
    if mask.shape != value.shape[:2]:
        raise ValueError(
            f"adversarial_radius: the attention mask is {tuple(mask.shape)} and the embeddings are "
            f"{tuple(value.shape)}, so padding cannot be told (label words of several tokens and "
            "choices are texts of their own); leave it at 0"
        )
    return value * mask.to(value).unsqueeze(-1)


def _fitting(embedded: Tensor, mask: Any) -> Tensor:
    """Return embeddings as they are, if padding can be told."""
    _on_tokens(embedded[..., :1].detach(), mask)
    return embedded


@contextmanager
def _once(embedding: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Change what an embedding returns inside the context; it is to be called once.

    Raises:
        ValueError: it was not called, or more than once.
    """
    calls: list[int] = []

    def hook(module: nn.Module, arguments: Any, output: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) > 1:
            raise ValueError(
                "adversarial_radius: the loss runs the input embedding more than once a batch "
                "(an encoder and a decoder, or texts one after another), and which is to be moved "
                "is not known; leave it at 0"
            )
        return change(output)

    handle = embedding.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
    if not calls:
        raise ValueError(
            "adversarial_radius: the loss does not run the model's input embedding; leave it at 0"
        )
