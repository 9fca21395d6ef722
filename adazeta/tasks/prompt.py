"""Classification as the prediction of a word.

Schick and Schuetze (2001.07676), LM-BFF (2012.15723), MeZO (2305.17333): the loss is the cross
entropy over the label words' logits at one position.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedTokenizerBase

from adazeta.adapters.attached import has_adapters
from adazeta.forward.contexts import suffix_logits
from adazeta.forward.logits import candidate_logits
from adazeta.support.batches import targets_of
from adazeta.tasks.classification import ClassificationTask
from adazeta.tasks.examples import Example
from adazeta.tasks.label_words import place_words, words_by_label
from adazeta.tasks.template import prompt_template


class PromptTask(ClassificationTask):
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
        metrics: names of :data:`adazeta.tasks.metrics.CLASSES`.
        chat: see :class:`~adazeta.tasks.template.Template`.
        shots: see :class:`~adazeta.tasks.template.Template`.

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
        metrics: Sequence[str] = ("accuracy",),
        chat: bool = False,
        shots: Sequence[Sequence[str]] = (),
    ) -> None:
        labels, listed = words_by_label(label_words)
        super().__init__(
            tokenizer, labels, label_column=label_column, max_length=max_length, metrics=metrics
        )
        if adapt not in ("all", "suffix", "last"):
            raise ValueError(f"adapt must be 'all', 'suffix' or 'last', got {adapt!r}")
        self.template = prompt_template(
            template, tokenizer, self.max_length, strip=strip, chat=chat, shots=shots
        )
        self.adapt = adapt
        self._suffix = [] if adapt == "all" else self.template.suffix_tokens()
        if adapt == "last":
            self._suffix = self._suffix[-1:]
        self.suffix = len(self._suffix)
        self.words, tokens = place_words(self.template, listed)
        self.candidates = self._placed = torch.tensor(tokens)
        # Contexts of suffixes are found by what the batch holds.
        self.reads_only_the_batch = not self.suffix
        for token in self.candidates.tolist():
            if self.candidates.tolist().count(token) > 1:
                shared = [w for w, c in zip(self.words, self.candidates, strict=True) if c == token]
                raise ValueError(
                    f"the label words {shared} are the same token {tokenizer.decode([token])!r}; "
                    "choose words that the tokenizer knows and tells apart"
                )

    @property
    def columns(self) -> list[str]:
        """Names of the columns of the template."""
        return self.template.columns

    def encode_prompt(self, record: Mapping[str, Any]) -> Example:
        """Turn a record without a label into ``{"input_ids": [...]}``."""
        ids = self.template.encode(record)
        if self._suffix and ids[-len(self._suffix) :] != self._suffix:
            raise ValueError(
                f"the tokenizer merges the text with what follows it in {self.template.text!r}; "
                "begin that part with a space or a line break, or set adapt to 'all'"
            )
        return {"input_ids": ids}

    def demonstration(self, record: Mapping[str, Any]) -> tuple[str, str]:
        """Return the text of a record's prompt and of its word."""
        word = self.words[self._labels.index(record[self.label_column])]
        values = self.template.values(record)
        if self.template.masked:
            # The template has no space in the word's place; the word brings it.
            return self.template.render(values, mask=word), ""
        return self.template.render(values), word

    def collate(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """Add ``positions``, int64 (B,): the mask token's, or the last token's."""
        ids = [example["input_ids"] for example in examples]
        if self.template.masked:
            positions = [row.index(self.tokenizer.mask_token_id) for row in ids]
        else:
            positions = [len(row) - 1 for row in ids]
        return {**super().collate(examples), "positions": torch.tensor(positions)}

    def logits(self, model: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
        """Compute the label words' logits, (B, C)."""
        tokens = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        candidates = self._candidates_on(inputs["input_ids"].device)
        if self.suffix and has_adapters(model):
            return suffix_logits(model, tokens, candidates, self.suffix)
        return candidate_logits(model, tokens, inputs["positions"], candidates)

    def _candidates_on(self, device: torch.device) -> Tensor:
        """Return the words' token ids on a device, copied there once: a copy waits for it."""
        if self._placed.device != device:
            self._placed = self.candidates.to(device)
        return self._placed

    def losses(
        self, model: nn.Module, inputs: Mapping[str, Any], *, label_smoothing: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """Compute the cross entropy over the label words, float32 (B,), and their logits."""
        logits = self.logits(model, inputs)
        losses = functional.cross_entropy(
            logits.float(), targets_of(inputs), reduction="none", label_smoothing=label_smoothing
        )
        return losses, logits

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
            "metrics": self.metric_names,
            **self.template.options(),
        }
