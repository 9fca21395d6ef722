"""Multiple choice: every example brings its own candidates."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import EvalPrediction, PreTrainedTokenizerBase

from adazeta.tasks.base import Task
from adazeta.tasks.candidates import CandidateScoring
from adazeta.tasks.examples import Example, Examples
from adazeta.tasks.label_words import is_missing, place_text
from adazeta.tasks.template import Template, prompt_template

CANDIDATE = "candidate"
"""Placeholder of the candidate in the template of what follows the prompt."""

_PADDING = (
    -100.0
)  # what transformers' Trainer puts where batches differ in the number of candidates


class ChoiceTask(Task):
    """Multiple choice by the mean log-likelihood of each candidate after the prompt.

    Args:
        tokenizer: of the model.
        template: text with columns in braces, of what is given.
        choices: the column with an example's list of candidates (in a table a list as JSON has it),
            or several templates, one a candidate, e.g. ``["{choice1}", "{choice2}"]``.
        label_column: column of the right one: its number from 0, its text, or a list of these where
            several are right, of which the first is trained.
        continuation: template of what follows the prompt, with ``{candidate}`` and columns.
        max_length: longest prompt with a candidate in tokens; the prompt's columns are cut.
        decoder: the model is an encoder-decoder, whose decoder writes the candidates.
        objective: see :class:`~adazeta.tasks.candidates.CandidateScoring`.
        strip: drop white space around the columns' text.
        chat: see :class:`~adazeta.tasks.template.Template`.
        shots: see :class:`~adazeta.tasks.template.Template`.

    Raises:
        ValueError: a template is malformed or has no place for the candidate.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: str,
        choices: str | Sequence[str],
        *,
        label_column: str = "label",
        continuation: str = "{candidate}",
        max_length: int | None = None,
        decoder: bool = False,
        objective: str = "choice",
        strip: bool = True,
        chat: bool = False,
        shots: Sequence[Sequence[str]] = (),
    ) -> None:
        super().__init__(tokenizer, max_length)
        self.label_column = label_column
        self.template = prompt_template(
            template,
            tokenizer,
            self.max_length,
            strip=strip,
            chat=chat,
            closed=decoder,
            shots=shots,
        )
        if self.template.masked:
            raise ValueError("choices are for causal models and encoder-decoders: drop {mask}")
        self.choices = choices if isinstance(choices, str) else list(choices)
        if not isinstance(self.choices, str) and len(self.choices) < 2:
            raise ValueError(f"choices needs a column or two templates or more, got {choices!r}")
        self._texts = [
            Template(text, tokenizer, strip=strip)
            for text in ([] if isinstance(self.choices, str) else self.choices)
        ]
        self.continuation = Template(continuation, tokenizer)
        if CANDIDATE not in self.continuation.columns:
            raise ValueError(f"completion {continuation!r} has no {{candidate}} in it")
        self._scoring = CandidateScoring(tokenizer, decoder=decoder, objective=objective)

    @property
    def columns(self) -> list[str]:
        """Names of the columns of the template of what is given."""
        return self.template.columns

    def texts_of(self, record: Mapping[str, Any]) -> list[str]:
        """Return the candidates of a record.

        Raises:
            ValueError: a column is missing, or holds no list of two texts or more.
        """
        if not isinstance(self.choices, str):
            return [template.render(template.values(record)) for template in self._texts]
        if self.choices not in record:
            raise ValueError(
                f"no column {self.choices!r} for the candidates; there are "
                f"{', '.join(map(repr, record))}"
            )
        value = record[self.choices]
        found = _from_json(value) if isinstance(value, str) else value
        listed = list(found) if isinstance(found, Sequence | np.ndarray) else []
        if len(listed) < 2 or isinstance(found, str) or any(is_missing(one) for one in listed):
            raise ValueError(
                f"column {self.choices!r} holds {value!r}; it must be a list of two candidates or "
                'more (in a table written as ["one", "two"])'
            )
        return [str(one) for one in listed]

    def encode(self, record: Mapping[str, Any]) -> Example:
        """Turn a record into prompt, candidates and the number of the right one.

        Raises:
            ValueError: a column is missing, or nothing says which candidate is right.
        """
        right = self._right(record, self.texts_of(record))
        return {**self.encode_prompt(record), "labels": right[0], "right": right}

    def encode_prompt(self, record: Mapping[str, Any]) -> Example:
        """Turn a record without a label into ``{"input_ids": [...], "candidates": [[...]]}``."""
        texts = self.texts_of(record)
        candidates = [place_text(self.template, self._shown(text, record))[1] for text in texts]
        empty = next((text for text, found in zip(texts, candidates, strict=True) if not found), "")
        if not all(candidates):
            raise ValueError(f"the candidate {empty!r} has no token; fill it in")
        longest = 0 if self._scoring.decoder else max(map(len, candidates))
        return {
            "input_ids": self.template.encode(record, reserve=longest),
            "candidates": candidates,
        }

    def encode_training(self, records: Sequence[Mapping[str, Any]]) -> Examples:
        """Encode records for training; with ``"likelihood"`` only their right candidates."""
        examples = self.encode_all(records)
        if self._scoring.objective == "choice":
            return examples
        right = [(e, e["candidates"][e["labels"]]) for e in examples]  # type: ignore[attr-defined]
        return Examples(
            [{**e, "candidates": [text], "labels": 0, "right": [0]} for e, text in right]
        )

    def demonstration(self, record: Mapping[str, Any]) -> tuple[str, str]:
        """Return the text of a record's prompt and of its right candidate."""
        texts = self.texts_of(record)
        text = self._shown(texts[self._right(record, texts)[0]], record)
        answer = f" {text}" if self._scoring.decoder else place_text(self.template, text)[0]
        return self.template.render(self.template.values(record)), answer

    def collate(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """Lay out the candidates, see :meth:`CandidateScoring.collate`.

        Where several candidates are right, ``right``, bool (B, C), marks them.
        """
        batch = self._scoring.collate(examples)
        if any(len(example["right"]) > 1 for example in examples):
            right = torch.zeros(len(examples), max(len(e["candidates"]) for e in examples))
            for row, example in zip(right, examples, strict=True):
                row[example["right"]] = 1
            batch["right"] = right.bool()
        return batch

    def losses(
        self, model: nn.Module, inputs: Mapping[str, Any], *, label_smoothing: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """Compute the losses by the task's objective, float32 (B,), and the scores, (B, C).

        Where several candidates are right, the first of them has the best of their scores.
        """
        losses, scores = self._scoring.losses(model, inputs, label_smoothing=label_smoothing)
        if "right" not in inputs:
            return losses, scores
        # Any right candidate is as good as the first: that has the best of their scores.
        right, lowest = inputs["right"], -torch.inf
        best = scores.masked_fill(~right, lowest).max(-1, keepdim=True).values
        others = scores.masked_fill(right, lowest)
        return losses, others.scatter(-1, inputs["labels"][:, None], best)

    def metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        """Compute the accuracy: how often a right candidate has the best score."""
        scores = np.asarray(prediction.predictions)
        predicted = np.where(scores == _PADDING, -np.inf, scores).argmax(-1)
        return {"accuracy": float((predicted == np.asarray(prediction.label_ids)).mean())}

    def to_dict(self) -> dict[str, Any]:
        """Describe the task in JSON types."""
        return {
            "type": "choices",
            "template": self.template.text,
            "choices": self.choices,
            "label_column": self.label_column,
            "continuation": self.continuation.text,
            "max_length": self.max_length,
            "decoder": self._scoring.decoder,
            "objective": self._scoring.objective,
            "strip": self.template.strip,
            **self.template.options(),
        }

    def _shown(self, text: str, record: Mapping[str, Any]) -> str:
        return self.continuation.render(self.continuation.values({**record, CANDIDATE: text}))

    def _right(self, record: Mapping[str, Any], texts: Sequence[str]) -> list[int]:
        if self.label_column not in record:
            raise ValueError(
                f"no column {self.label_column!r} for the label; there are "
                f"{', '.join(map(repr, record))}"
            )
        value = record[self.label_column]
        several = value if isinstance(value, list | tuple | np.ndarray) else [value]
        found = [number for one in several for number in _numbers(one, texts)]
        if not found:
            raise ValueError(
                f"the label {value!r} is neither the number (from 0) nor the text of one of the "
                f"candidates {list(texts)}"
            )
        return found


def _numbers(value: Any, texts: Sequence[str]) -> list[int]:
    """Return the numbers of the candidates that a label means."""
    if is_missing(value):
        return []
    text = str(value).strip()
    same = [number for number, one in enumerate(texts) if one.strip() == text][:1]
    whole = text.removesuffix(".0")
    place = [int(whole)] if whole.isdecimal() and int(whole) < len(texts) else []
    if isinstance(value, int) or not same or same == place:
        return place or same
    if place:
        raise ValueError(
            f"the label {text!r} is the text of one candidate and may be the number of another; "
            "write it as a number, or the candidates otherwise"
        )
    return same


def _from_json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None
