"""Tasks: records in, batches, losses of the examples and metrics out.

:class:`PromptTask` turns classification into word prediction (Schick and Schuetze, 2001.07676;
LM-BFF, 2012.15723; MeZO, 2305.17333): the loss is the cross entropy over the label words' logits at
one position. :class:`CausalLMTask` is ordinary language modelling on completions or plain text.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import EvalPrediction, PreTrainedTokenizerBase

from adazeta.adapters.attached import has_adapters
from adazeta.batches import Example, Examples, alternating
from adazeta.forward.logits import candidate_logits
from adazeta.forward.losses import smoothed_losses
from adazeta.forward.suffix import FrozenContext
from adazeta.label_words import Labels, place_words, with_class_names
from adazeta.records import Records
from adazeta.support.batches import padded
from adazeta.templates import Template

_IGNORED = -100


class Task(ABC):
    """What training and evaluation need to know of a task.

    Args:
        tokenizer: of the model.
        max_length: longest example in tokens; at most, and by default, the tokenizer's own limit.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int | None = None) -> None:
        limit = tokenizer.model_max_length
        self.tokenizer = tokenizer
        # transformers writes "no limit" as a huge number.
        limits = [n for n in (max_length, limit if limit < 10**9 else None) if n]
        self.max_length = min(limits, default=None)

    @abstractmethod
    def encode(self, record: Mapping[str, Any]) -> Example:
        """Turn a record into ``{"input_ids": [...], "labels": ...}``.

        Raises:
            ValueError: a column is missing or its value is unusable.
        """

    @abstractmethod
    def losses(
        self, model: nn.Module, inputs: Mapping[str, Any], *, label_smoothing: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """Compute the losses of the examples of a batch, for ``ZOTrainer(loss_fn=task.losses)``.

        Args:
            model: the model.
            inputs: what :meth:`collate` returned, on the model's device; its rows may be repeated.
            label_smoothing: share of each target that is spread over all classes; the trainer's
                ``label_smoothing_factor``.

        Returns:
            The losses, float32 ``(B,)``, and what :meth:`metrics` needs, ``(B, C)``.
        """

    @abstractmethod
    def metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        """Compute the metrics, for ``Trainer(compute_metrics=task.metrics)``."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Describe the task in JSON types; :func:`task_from_dict` reads it."""

    def encode_all(self, records: Sequence[Mapping[str, Any]]) -> Examples:
        """Encode records.

        Raises:
            ValueError: a record is unusable; the message says where it came from.
        """
        examples = []
        for index, record in enumerate(records):
            try:
                examples.append(self.encode(record))
            except ValueError as error:
                place = records.place(index) if isinstance(records, Records) else f"record {index}"
                raise ValueError(f"{place}: {error}") from None
        return Examples(examples)

    def collate(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """Pad examples on the right and stack them.

        Returns:
            int64 ``input_ids`` and ``attention_mask``, ``(B, T)``, and ``labels``.
        """
        return {
            "input_ids": padded([e["input_ids"] for e in examples], self._padding),
            "attention_mask": padded([[1] * len(e["input_ids"]) for e in examples], 0),
            "labels": self._collate_labels(examples),
        }

    def collate_mixed(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """Collate in an order of the task's choice that suits training; here the given one."""
        return self.collate(examples)

    def _collate_labels(self, examples: Sequence[Example]) -> Tensor:
        return torch.tensor([e["labels"] for e in examples])

    @property
    def _padding(self) -> int:
        for token in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id):
            if token is not None:
                return int(token)
        return 0  # the attention mask hides it


class PromptTask(Task):
    """Classification by predicting a label word after, or within, a prompt.

    Args:
        tokenizer: of the model.
        template: text with columns in braces, e.g. ``"{text} It was"`` for a causal model or
            ``"{text} It was {mask}."`` for a masked one. Spaces just before the word are dropped.
        label_words: label value -> word, or a list of words for the labels 0, 1, ... A word is
            exactly one token where the template puts it; :func:`~adazeta.label_words.place_words`
            says whether it follows a space.
        label_column: column of the label, whose value is compared as text, so that ``1``, ``1.0``
            and ``"1"`` are the same label, see :class:`~adazeta.label_words.Labels`.
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
        self._context: FrozenContext | None = None
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
        if self._suffix and has_adapters(model):
            return self._suffix_logits(model, inputs)
        tokens = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        device = inputs["input_ids"].device
        return candidate_logits(model, tokens, inputs["positions"], self.candidates.to(device))

    def _suffix_logits(self, model: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
        if self._context is None or self._context.model is not model:
            self._context = FrozenContext(model, len(self._suffix))
        context = self._context
        last = torch.full_like(inputs["positions"], len(self._suffix) - 1)
        with context.inputs(inputs["input_ids"], inputs["attention_mask"]) as tokens:
            return candidate_logits(model, tokens, last, self.candidates.to(last.device))

    def keep_contexts(self, model: nn.Module, cache: str, **options: Any) -> None:
        """Keep the frozen contexts of the examples, as training wants (``adapt="suffix"``).

        Args:
            model: the model with its adapters.
            cache: ``"none"``, ``"memory"`` or ``"disk"``.
            **options: see :class:`~adazeta.forward.suffix.FrozenContext`.
        """
        if self._suffix:
            self._context = FrozenContext(model, len(self._suffix), cache=cache, **options)

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


class CausalLMTask(Task):
    r"""Language modelling: the loss is the mean cross entropy over the completion's tokens.

    Args:
        tokenizer: of the model.
        prompt: template of what is given, e.g. ``"{question}\n"``; empty for plain text.
        completion: template of what is learnt, e.g. ``"{answer}"`` or ``"{text}"``. It follows the
            prompt as it is, so that one of them has the space between the two. The end token is
            added if the tokenizer has one.
        max_length: longest example in tokens; the completion is cut only where it is longer than
            that alone, the prompt's columns before.
        strip: drop white space around the columns' text, as this class once did.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        completion: str,
        *,
        prompt: str = "",
        max_length: int | None = None,
        strip: bool = False,
    ) -> None:
        super().__init__(tokenizer, max_length)
        self.prompt = Template(prompt, tokenizer, max_length=self.max_length, strip=strip)
        self.completion = Template(completion, tokenizer, strip=strip)
        if self.prompt.masked or self.completion.masked:
            raise ValueError("{mask} belongs to templates with label words")
        if not self.completion.columns:
            raise ValueError(
                f"completion {completion!r} has no column in braces, so there is nothing to learn; "
                "e.g. '{text}'"
            )

    def encode(self, record: Mapping[str, Any]) -> Example:
        """Turn a record into ``{"input_ids": [...], "labels": [...]}``, -100 on the prompt.

        Raises:
            ValueError: a column is missing, or the completion is empty.
        """
        text = self.completion.render(self.completion.values(record))
        learnt = self._tokens_of(text, record)
        if not learnt:
            raise ValueError(
                f"the completion {self.completion.text!r} is empty ({text!r}), so there is nothing "
                "to learn; fill it in or remove the example"
            )
        if self.tokenizer.eos_token_id is not None:
            learnt = [*learnt, self.tokenizer.eos_token_id]
        if self.max_length is not None:
            bare = len(self.prompt.encode(dict.fromkeys(self.prompt.columns, "")))
            learnt = learnt[: max(self.max_length - bare, 1)]
        given = self.prompt.encode(record, reserve=len(learnt))
        return {"input_ids": given + learnt, "labels": [_IGNORED] * len(given) + learnt}

    def _tokens_of(self, text: str, record: Mapping[str, Any]) -> list[int]:
        if self.prompt.render(self.prompt.values(record)):
            return self.completion.continuation(text)
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _collate_labels(self, examples: Sequence[Example]) -> Tensor:
        return padded([example["labels"] for example in examples], _IGNORED)

    def losses(
        self, model: nn.Module, inputs: Mapping[str, Any], *, label_smoothing: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """Compute the mean cross entropy of each example's completion, float32 (B,).

        The second result is the losses as ``(B, 1)``, without smoothing: logits of all tokens of
        an evaluation set would not fit into memory.
        """
        kept = {name: inputs[name] for name in ("input_ids", "attention_mask", "labels")}
        # Whatever the model's own loss does: these labels are the tokens themselves.
        losses, plain = smoothed_losses(
            model, kept, label_smoothing=label_smoothing, shift=True
        )
        return losses, plain[:, None]

    def metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        """Compute the perplexity: the exponential of the mean over the examples' losses."""
        return {"perplexity": math.exp(float(np.asarray(prediction.predictions).mean()))}

    def to_dict(self) -> dict[str, Any]:
        """Describe the task in JSON types."""
        return {
            "type": "causal_lm",
            "prompt": self.prompt.text,
            "completion": self.completion.text,
            "max_length": self.max_length,
            "strip": self.completion.strip,
        }


def task_from_dict(description: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> Task:
    """Make the task that ``task.to_dict()`` described.

    Raises:
        ValueError: the description has an unknown type.
    """
    kinds = {"prompt": PromptTask, "causal_lm": CausalLMTask}
    # Descriptions without the key come from versions that dropped white space around all texts.
    options = {"strip": True, **description}
    kind = options.pop("type", None)
    if kind not in kinds:
        raise ValueError(f"unknown task type {kind!r}; known: {', '.join(kinds)}")
    return kinds[kind](tokenizer, **options)
