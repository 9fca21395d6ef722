"""Batches and losses of tasks that choose among candidate texts by their likelihood."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from adazeta.forward.candidates import continuation_scores, score_losses, target_scores
from adazeta.support.batches import IGNORED, padded, targets_of
from adazeta.tasks.base import padding_of
from adazeta.tasks.examples import Example


class CandidateScoring:
    """How candidates that follow a prompt are laid out and scored.

    Args:
        tokenizer: of the model.
        decoder: the model is an encoder-decoder: the encoder reads the prompt, and the decoder
            writes the candidate.
        objective: ``"choice"``: the loss is the cross entropy over the candidates' scores;
            ``"likelihood"``: it is minus the score of the right candidate alone.

    Raises:
        ValueError: the objective is unknown.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, *, decoder: bool, objective: str = "choice"
    ) -> None:
        if objective not in ("choice", "likelihood"):
            raise ValueError(f"objective must be 'choice' or 'likelihood', got {objective!r}")
        self.decoder = decoder
        self.objective = objective
        self._padding = padding_of(tokenizer)

    def collate(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """Lay out the prompts of examples with their ``candidates``, lists of tokens.

        Returns:
            For a causal model int64 ``input_ids`` and ``attention_mask`` (B, C, T) and ``starts``
            (B, C), for an encoder-decoder ``input_ids`` and ``attention_mask`` (B, T) and
            ``targets`` (B, C, L), and ``labels`` (B,). C is the largest number of candidates; a
            missing one is a row of one token, of which none counts.
        """
        most = max(len(example["candidates"]) for example in examples)
        labels = torch.tensor([example["labels"] for example in examples])
        count = len(examples)
        if self.decoder:
            targets = [row for e in examples for row in _filled(e["candidates"], most, [IGNORED])]
            prompts = [example["input_ids"] for example in examples]
            return {
                "input_ids": padded(prompts, self._padding),
                "attention_mask": padded([[1] * len(row) for row in prompts], 0),
                "targets": padded(targets, IGNORED).view(count, most, -1),
                "labels": labels,
            }
        rows, starts = [], []
        for example in examples:
            prompt = example["input_ids"]
            rows += _filled([prompt + text for text in example["candidates"]], most, prompt[:1])
            here = len(example["candidates"])
            starts.append([len(prompt)] * here + [0] * (most - here))
        return {
            "input_ids": padded(rows, self._padding).view(count, most, -1),
            "attention_mask": padded([[1] * len(row) for row in rows], 0).view(count, most, -1),
            "starts": torch.tensor(starts),
            "labels": labels,
        }

    def scores(self, model: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
        """Compute the mean log-likelihood of the candidates, float32 (B, C)."""
        return (target_scores if self.decoder else continuation_scores)(model, inputs)

    def losses(
        self, model: nn.Module, inputs: Mapping[str, Any], *, label_smoothing: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """Compute the losses of the examples, float32 (B,), and the scores, (B, C)."""
        scores = self.scores(model, inputs)
        labels = inputs["labels"]
        if self.objective == "likelihood":
            if label_smoothing:
                raise ValueError(
                    f"label_smoothing_factor={label_smoothing} is for a choice among candidates, "
                    "and objective='likelihood' trains the right one alone; set it to 0"
                )
            return -scores.gather(-1, labels[:, None])[:, 0], scores
        return score_losses(scores, targets_of(inputs), label_smoothing), scores


def _filled(rows: Sequence[list[int]], count: int, filler: list[int]) -> list[list[int]]:
    return [*rows, *[filler] * (count - len(rows))]
