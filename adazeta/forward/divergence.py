"""How far completions are from what the base model would write."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from adazeta.adapters.attach import disable_adapters
from adazeta.adapters.attached import attached_adapters, has_adapters
from adazeta.forward.logits import logits_at
from adazeta.support.batches import padded

_ROWS = 8  # at a time: the logits of all words are large


@torch.no_grad()
def divergence_from_base(
    model: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor,
    completions: Sequence[Sequence[int]],
    *,
    answer_only: bool = False,
) -> tuple[Tensor, Tensor]:
    """Compare a model with adapters with its base on completions.

    Args:
        model: the model, in evaluation mode.
        input_ids: int64 (N, T), prompts, padded on the left.
        attention_mask: (N, T).
        completions: tokens after each prompt; there may be none.
        answer_only: whether the adapters act from the prompts' last tokens on.

    Returns:
        For each completion the sum over its tokens of the Kullback-Leibler divergence of the
        model's next-token distribution from the base's, in nats, and its negative log likelihood
        under the base: float64 (N,) each, on the CPU. NaN for a model without adapters, whose base
        is not at hand.
    """
    count = len(completions)
    divergence = torch.full((count,), float("nan"), dtype=torch.float64)
    surprise = divergence.clone()
    if not has_adapters(model):
        return divergence, surprise
    for begin in range(0, count, _ROWS):
        part = range(begin, min(begin + _ROWS, count))
        prompts = [input_ids[k][attention_mask[k].bool()].tolist() for k in part]
        answers = [list(completions[k]) for k in part]
        both = [one + two for one, two in zip(prompts, answers, strict=True)]
        device = input_ids.device
        inputs = {
            "input_ids": padded(both, 0).to(device),
            "attention_mask": padded([[1] * len(row) for row in both], 0).to(device),
        }
        where = [
            (r, len(prompts[r]) - 1 + n) for r in range(len(part)) for n in range(len(answers[r]))
        ]
        divergence[begin : part.stop] = surprise[begin : part.stop] = 0
        if not where:
            continue
        rows, positions = torch.tensor(where, device=device).T
        tokens = torch.tensor([token for row in answers for token in row], device=device)
        with disable_adapters(model):
            base = logits_at(model, inputs, rows, positions).float().log_softmax(-1)
        first = torch.tensor([len(row) - 1 for row in prompts], device=device)
        handles = _acting_from(model, first) if answer_only else []
        try:
            own = logits_at(model, inputs, rows, positions).float().log_softmax(-1)
        finally:
            for handle in handles:
                handle.remove()
        gap = (own.exp() * (own - base)).nan_to_num(0.0).sum(-1).double().cpu()
        lost = -base.gather(1, tokens[:, None])[:, 0].double().cpu()
        at = rows.cpu() + begin
        divergence.index_add_(0, at, gap)
        surprise.index_add_(0, at, lost)
    return divergence, surprise


def _acting_from(model: nn.Module, first: Tensor) -> list[Any]:
    """Let adapters leave the tokens before ``first`` of each row as they are."""

    def keep(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        steps = torch.arange(output.shape[1], device=output.device)
        return torch.where((steps >= first[:, None])[..., None], output, args[0])

    return [adapter.register_forward_hook(keep) for _, adapter in attached_adapters(model)]
