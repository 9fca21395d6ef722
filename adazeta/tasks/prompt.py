"""Classification as the prediction of a word.

Schick and Schuetze (2001.07676), LM-BFF (2012.15723), MeZO (2305.17333): the loss is the cross
entropy over the label words' logits at one position.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import EvalPrediction, PreTrainedTokenizerBase

from adazeta.adapters.attached import has_adapters
from adazeta.forward.contexts import suffix_logits
from adazeta.forward.logits import candidate_logits
from adazeta.tasks.base import Task
from adazeta.tasks.examples import Example, Examples, alternating
from adazeta.tasks.label_words import Labels, place_words, with_class_names
from adazeta.tasks.records import Records
from adazeta.tasks.template import Template


class PromptTask(Task):
    """Classification by predicting a label word after, or within, a prompt.

    Args:
        tokenizer: of the model.
        template: text with columns in braces, e.g. ``"{text} It was"`` for a causal model or
            ``"{text} It was {mask}."`` for a masked one. Spaces just before the word are dropped.
        label_words: label value -> word, or a list of words for the labels 0, 1, ... A word is
            exactly one token where the template puts it;
            :func:`~adazeta.tasks.label_words.place_words` says whether it follows a space.
        label_column: column of the label, whose value is compared as text, so that ``1``, ``1.0``
            and ``"1"`` are the same label, see :class:`~adazeta.tasks.label_words.Labels`.
        max_length: longest prompt in tokens; the columns' text is cut, never the template.
        adapt: ``"all"``: adapters act on every token. ``"suffix"``, for causal models: only on the
            template's tokens after its last column; what comes before is a frozen context
            (:class:`adazeta.forward.suffix.FrozenContext`), and an evaluation costs a few tokens.
            ``"last"``: only on the very last token, which predicts the word.
        strip: drop white space around the columns' text.

    Attributes:
        labels: label values as text, in the order of the classes.
        words: label words as they are tokenized, in the same order.
        candidates: int64 (C,), the words' token ids.
        suffix: number of last tokens on which the adapters act; 0: on every token.

    Raises:
        ValueError: fewer than two words, a word that is not one token, or a bad template.
        TypeError: a label word is not text.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: str,
        label_words: Mapping[Any, str] | Sequence[str],
        *,
        label_column: str = "label",
        max_length: int | None = None,
        adapt: str = "all",
        strip: bool = True,
    ) -> None:
        super().__init__(tokenizer, max_length)
        if adapt not in ("all", "suffix", "last"):
            raise ValueError(f"adapt must be 'all', 'suffix' or 'last', got {adapt!r}")
        # A word brings its own space; after another one it would be another token.
        before, mask, after = template.partition("{mask}")
        text = f"{before.rstrip(' ')}{mask}{after}"
        self.template = Template(text, tokenizer, max_length=self.max_length, strip=strip)
        if not self.template.columns:
            raise ValueError(
                f"template {template!r} has no column in braces, so every prompt would be the "
                "same; e.g. '{text} It was'"
            )
        counted = not isinstance(label_words, Mapping)
        pairs = dict(label_words if isinstance(label_words, Mapping) else enumerate(label_words))
        if len(pairs) < 2:
            raise ValueError(f"a task needs two or more label words, got {dict(pairs)}")
        for label, word in pairs.items():
            if not isinstance(word, str) or not word.strip():
                raise TypeError(
                    f"the word of label {label!r} must be text, got {word!r}; in YAML put words "
                    "such as yes, no, on and off in quotes"
                )
        self.label_column = label_column
        self.adapt = adapt
        self._suffix = [] if adapt == "all" else self.template.suffix_tokens()
        if adapt == "last":
            self._suffix = self._suffix[-1:]
        self.suffix = len(self._suffix)
        self._labels = Labels(pairs, counted=counted)
        self.labels = self._labels.texts
        self.words, tokens = place_words(self.template, list(pairs.values()))
        self.candidates = torch.tensor(tokens)
        for token in self.candidates.tolist():
            if self.candidates.tolist().count(token) > 1:
                shared = [w for w, c in zip(self.words, self.candidates, strict=True) if c == token]
                raise ValueError(
                    f"the label words {shared} are the same token {tokenizer.decode([token])!r}; "
                    "choose words that the tokenizer knows and tells apart"
                )

    def encode(self, record: Mapping[str, Any]) -> Example:
        """Turn a record into ``{"input_ids": [...], "labels": class}``.

        Raises:
            ValueError: a column is missing, or the label is not one of the task's.
        """
        if self.label_column not in record:
            raise ValueError(
                f"no column {self.label_column!r} for the label; there are "
                f"{', '.join(map(repr, record))}"
            )
        label = self._labels.index(record[self.label_column])
        return {**self.encode_prompt(record), "labels": label}

    def encode_all(self, records: Sequence[Mapping[str, Any]]) -> Examples:
        """Encode records; where the label words are for class names, numbers are taken as names.

        Raises:
            ValueError: a record is unusable; the message says where it came from.
        """
        if isinstance(records, Records):
            records = with_class_names(records, self.label_column, self._labels)
        return super().encode_all(records)

    def encode_prompt(self, record: Mapping[str, Any]) -> Example:
        """Turn a record without a label into ``{"input_ids": [...]}``."""
        ids = self.template.encode(record)
        if self._suffix and ids[-len(self._suffix) :] != self._suffix:
            raise ValueError(
                f"the tokenizer merges the text with what follows it in {self.template.text!r}; "
                "begin that part with a space or a line break, or set adapt to 'all'"
            )
        return {"input_ids": ids}

    def collate(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """Add ``positions``, int64 (B,): the mask token's, or the last token's."""
        ids = [example["input_ids"] for example in examples]
        if self.template.masked:
            positions = [row.index(self.tokenizer.mask_token_id) for row in ids]
        else:
            positions = [len(row) - 1 for row in ids]
        return {**super().collate(examples), "positions": torch.tensor(positions)}

    def collate_mixed(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """Collate with the labels taking turns, see :func:`alternating`."""
        return self.collate(alternating(examples))

    def logits(self, model: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
        """Compute the label words' logits, (B, C)."""
        tokens = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        candidates = self.candidates.to(inputs["input_ids"].device)
        if self.suffix and has_adapters(model):
            return suffix_logits(model, tokens, candidates, self.suffix)
        return candidate_logits(model, tokens, inputs["positions"], candidates)

    def losses(
        self, model: nn.Module, inputs: Mapping[str, Any], *, label_smoothing: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """Compute the cross entropy over the label words, float32 (B,), and their logits."""
        logits = self.logits(model, inputs)
        losses = functional.cross_entropy(
            logits.float(), inputs["labels"], reduction="none", label_smoothing=label_smoothing
        )
        return losses, logits

    def metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        """Compute the accuracy."""
        predicted = np.asarray(prediction.predictions).argmax(-1)
        return {"accuracy": float((predicted == np.asarray(prediction.label_ids)).mean())}

    def to_dict(self) -> dict[str, Any]:
        """Describe the task in JSON types."""
        return {
            "type": "prompt",
            "template": self.template.text,
            "label_words": dict(zip(self.labels, self.words, strict=True)),
            "label_column": self.label_column,
            "max_length": self.max_length,
            "adapt": self.adapt,
            "strip": self.template.strip,
        }
