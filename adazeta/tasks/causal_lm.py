"""Language modelling on completions or plain text, by a decoder alone or behind an encoder."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn
from transformers import EvalPrediction, PreTrainedTokenizerBase

from adazeta.forward.losses import smoothed_losses
from adazeta.support.batches import IGNORED, padded
from adazeta.tasks.base import Task
from adazeta.tasks.examples import Example
from adazeta.tasks.template import Template


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
        decoder: the model is an encoder-decoder: its encoder reads the prompt, with the special
            tokens that the tokenizer puts around a text, and its decoder learns the completion,
            without white space around it.
        chat: see :class:`~adazeta.tasks.template.Template`.
        shots: see :class:`~adazeta.tasks.template.Template`.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        completion: str,
        *,
        prompt: str = "",
        max_length: int | None = None,
        strip: bool = False,
        decoder: bool = False,
        chat: bool = False,
        shots: Sequence[Sequence[str]] = (),
    ) -> None:
        super().__init__(tokenizer, max_length)
        self.decoder = decoder
        self.prompt = Template(
            prompt,
            tokenizer,
            max_length=self.max_length,
            strip=strip,
            chat=chat,
            closed=decoder,
            shots=shots,
        )
        self.completion = Template(completion, tokenizer, strip=strip)
        if self.prompt.masked or self.completion.masked:
            raise ValueError("{mask} belongs to templates with label words")
        if not self.completion.columns:
            raise ValueError(
                f"completion {completion!r} has no column in braces, so there is nothing to learn; "
                "e.g. '{text}'"
            )
        if decoder and not self.prompt.columns:
            raise ValueError(
                "an encoder-decoder needs a prompt for its encoder: set template, with a column in "
                "braces"
            )

    @property
    def columns(self) -> list[str]:
        """Names of the columns of the prompt."""
        return self.prompt.columns

    def demonstration(self, record: Mapping[str, Any]) -> tuple[str, str]:
        """Return the text of a record's prompt and of its completion."""
        answer = self.completion.render(self.completion.values(record))
        return self.prompt.render(self.prompt.values(record)), answer

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
        if self.decoder:
            learnt = learnt if self.max_length is None else learnt[: self.max_length]
            return {"input_ids": self.prompt.encode(record), "labels": learnt}
        if self.max_length is not None:
            bare = len(self.prompt.encode(dict.fromkeys(self.prompt.columns, "")))
            learnt = learnt[: max(self.max_length - bare, 1)]
        given = self.prompt.encode(record, reserve=len(learnt))
        return {"input_ids": given + learnt, "labels": [IGNORED] * len(given) + learnt}

    def _tokens_of(self, text: str, record: Mapping[str, Any]) -> list[int]:
        if self.decoder:
            text = text.strip()
        elif self.prompt.render(self.prompt.values(record)):
            return self.completion.continuation(text)
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _collate_labels(self, examples: Sequence[Example]) -> Tensor:
        return padded([example["labels"] for example in examples], IGNORED)

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
            model, kept, label_smoothing=label_smoothing, shift=not self.decoder
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
            **({"decoder": True} if self.decoder else {}),
            **self.prompt.options(),
        }
