"""Texts that are scored: a prompt, what the model writes after it, and a reward for that."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import EvalPrediction, PreTrainedTokenizerBase

from adazeta.forward.decode import Decoding, Start, decode
from adazeta.tasks.base import Task
from adazeta.tasks.examples import Example
from adazeta.tasks.template import Template

ADAPT = ("all", "answer")
PROMPT = "prompt"
"""Column with the prompt, where there is no template."""

# What the trainer and the model give to reward functions, never the data.
_OWN = (PROMPT, "completion", "completion_ids")


class RewardTask(Task):
    r"""Completions of prompts, to be scored by reward functions.

    Args:
        tokenizer: of the model.
        prompt: template of the prompt, e.g. ``"{question}\n"``; empty: the column ``prompt`` is
            the prompt, a text or a conversation (a list of messages), as in TRL.
        chat: make the template's text the message of a user, in the model's chat template. A
            conversation is put into the chat template in any case.
        max_new_tokens: most tokens of a completion.
        stop: texts that end a completion; what comes before is the completion.
        temperature: 0 writes the likeliest text, else it is sampled.
        adapt: tokens on which the adapters act: ``"all"``, or ``"answer"``, from the last token of
            the prompt on, so that prompts are computed once
            (:class:`~adazeta.forward.prompt_states.PromptStates`).
        max_length: longest prompt with its completion, in tokens; columns of a template are cut.
        strip: drop white space around the columns' text.

    Raises:
        ValueError: a setting is out of range, or the tokenizer has no chat template.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        prompt: str = "",
        chat: bool = False,
        max_new_tokens: int = 64,
        stop: str | Sequence[str] = (),
        temperature: float = 0.0,
        adapt: str = "all",
        max_length: int | None = None,
        strip: bool = False,
    ) -> None:
        super().__init__(tokenizer, max_length)
        if adapt not in ADAPT:
            raise ValueError(
                f"adapt={adapt!r} is not for a reward; set 'all' or 'answer' (from the last token "
                "of the prompt on)"
            )
        self.stop = [stop] if isinstance(stop, str) else list(stop)
        if not all(isinstance(text, str) and text for text in self.stop):
            raise ValueError(f"stop holds texts, and none is empty, got {self.stop!r}")
        self.chat, self.adapt = chat, adapt
        self._check_chat(needed=chat)
        end = tokenizer.eos_token_id
        self.decoding = Decoding(max_new_tokens, temperature, () if end is None else (int(end),))
        if self.max_length is not None and self.max_length <= max_new_tokens:
            raise ValueError(
                f"max_length={self.max_length} leaves no room for a prompt before "
                f"max_new_tokens={max_new_tokens}; raise the one or lower the other"
            )
        self.prompt = Template(prompt, tokenizer, max_length=self.max_length, strip=strip)
        if self.prompt.masked:
            raise ValueError("{mask} belongs to templates with label words")

    def _check_chat(self, *, needed: bool) -> None:
        if needed and not self.tokenizer.chat_template:
            raise ValueError(
                "chat=true needs a tokenizer with a chat template, and this one has none; leave it "
                "off, or use the model's instruct version"
            )

    @property
    def columns(self) -> list[str]:
        """Names of the columns that a prompt is made of."""
        return self.prompt.columns or [PROMPT]

    def encode(self, record: Mapping[str, Any]) -> Example:
        """Turn a record into ``input_ids``, the ``prompt`` as rewards see it, and its ``columns``.

        Raises:
            ValueError: a column is missing, or the prompt is empty or too long.
        """
        columns = {name: value for name, value in record.items() if name not in _OWN}
        prompt: Any = record.get(PROMPT)
        if self.prompt.text:
            ids = self.prompt.encode(record, reserve=self.decoding.max_new_tokens)
            prompt = self.prompt.render(self.prompt.values(record))
            if self.chat:
                prompt = [{"role": "user", "content": prompt}]
        elif self.chat and isinstance(prompt, str):
            prompt = [{"role": "user", "content": prompt}]
        if not isinstance(prompt, str):
            ids = self._conversation(prompt)
        elif not self.prompt.text:
            ids = self.prompt.tokens(prompt)
        if not ids:
            raise ValueError("the prompt is empty, and a completion needs a token to go on from")
        room = None if self.max_length is None else self.max_length - self.decoding.max_new_tokens
        if room is not None and len(ids) > room:
            raise ValueError(
                f"the prompt has {len(ids)} tokens, and max_length={self.max_length} leaves "
                f"{room} beside max_new_tokens={self.decoding.max_new_tokens}; raise max_length, "
                "or leave the example out"
            )
        return {"input_ids": ids, PROMPT: prompt, "columns": columns}

    def _conversation(self, prompt: Any) -> list[int]:
        messages = isinstance(prompt, list) and prompt and all(isinstance(m, dict) for m in prompt)
        if not messages:
            raise ValueError(
                f"the column {PROMPT!r} holds {prompt!r}; a prompt is a text or a list of messages "
                "(or set template, which names the columns of the prompt)"
            )
        self._check_chat(needed=True)
        text = self.tokenizer.apply_chat_template(
            prompt, add_generation_prompt=True, tokenize=False
        )
        quiet: dict[str, Any] = {"add_special_tokens": False, "verbose": False}
        return list(self.tokenizer(text, **quiet)["input_ids"])

    def collate(self, examples: Sequence[Example]) -> dict[str, Any]:
        """Pad examples on the left, where completions go on from.

        Records that are not encoded yet are encoded.

        Returns:
            int64 ``input_ids`` and ``attention_mask``, ``(B, T)``; the ``prompt`` of each example,
            and its ``columns``, a list each.
        """
        rows = [e if "columns" in e and "input_ids" in e else self.encode(e) for e in examples]
        width = max(len(row["input_ids"]) for row in rows)
        gaps = [width - len(row["input_ids"]) for row in rows]
        names = rows[0]["columns"]
        return {
            "input_ids": torch.tensor(
                [[self.padding] * n + r["input_ids"] for n, r in zip(gaps, rows, strict=True)]
            ),
            "attention_mask": torch.tensor([[0] * n + [1] * (width - n) for n in gaps]),
            PROMPT: [row[PROMPT] for row in rows],
            "columns": {name: [row["columns"][name] for row in rows] for name in names},
        }

    def complete(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        *,
        seeds: Tensor | None = None,
        groups: int = 1,
        keep_groups: Callable[[Tensor], None] | None = None,
        start: Start | None = None,
    ) -> tuple[list[str], list[list[int]]]:
        """Write the completions of a batch.

        Args:
            model: the model, in evaluation mode.
            inputs: what :meth:`collate` returned, on the model's device; rows may be repeated.
            seeds: of the rows' noise, see :func:`adazeta.forward.decode.decode`.
            groups: see there.
            keep_groups: see there.
            start: see there.

        Returns:
            The texts, up to where they stop, and their tokens.
        """
        tokens = decode(
            model,
            inputs["input_ids"],
            inputs["attention_mask"],
            self.decoding,
            seeds=seeds,
            groups=groups,
            keep_groups=keep_groups,
            ended=(lambda _, row: self._stops(row)) if self.stop else None,
            start=start,
        )
        return [self._cut(self._text(row)) for row in tokens], tokens

    def _text(self, tokens: Sequence[int]) -> str:
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True))

    def _stops(self, tokens: Sequence[int]) -> bool:
        text = self._text(tokens)
        return any(stop in text for stop in self.stop)

    def _cut(self, text: str) -> str:
        places = [text.find(stop) for stop in self.stop]
        return text[: min((place for place in places if place >= 0), default=len(text))]

    def losses(
        self, model: nn.Module, inputs: Mapping[str, Any], *, label_smoothing: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """Refuse: the losses are rewards, which the trainer computes.

        Raises:
            TypeError: always.
        """
        raise TypeError(
            "a reward is no loss of given texts; train with ZOTrainer(reward_funcs=...)"
        )

    def metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        """Reduce the columns of an evaluation to means; missing values (NaN) are left out."""
        found = np.asarray(prediction.predictions, dtype=np.float64)
        reward = found[~np.isnan(found[:, 0]), 0]
        if not len(reward):
            return {"reward": math.nan}
        return {"reward": float(reward.mean()), "reward_std": float(reward.std())}

    def to_dict(self) -> dict[str, Any]:
        """Describe the task in JSON types."""
        return {
            "type": "reward",
            "prompt": self.prompt.text,
            "chat": self.chat,
            "max_new_tokens": self.decoding.max_new_tokens,
            "stop": self.stop,
            "temperature": self.decoding.temperature,
            "adapt": self.adapt,
            "max_length": self.max_length,
            "strip": self.prompt.strip,
        }
