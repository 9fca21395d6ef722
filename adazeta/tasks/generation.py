"""Answers by generation: trained on the answer's text, judged by what the model writes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from adazeta.tasks.causal_lm import CausalLMTask
from adazeta.tasks.examples import Example
from adazeta.tasks.label_words import is_missing
from adazeta.tasks.metrics import ANSWERS, checked, of_answers


class GenerationTask(CausalLMTask):
    """Language modelling on answers, evaluated by greedy generation after the prompt.

    Args:
        tokenizer: of the model.
        completion: template of the answer that is learnt, see
            :class:`~adazeta.tasks.causal_lm.CausalLMTask`. The column of answers stands in it for
            the first of them.
        references: column with the right answers: a text, a list of texts, or what SQuAD has, a
            mapping whose ``text`` is the list.
        max_new_tokens: longest generated answer in tokens.
        stop: texts that end an answer, beside the end token; they are left out of it.
        metrics: names of :data:`adazeta.tasks.metrics.ANSWERS`.
        **options: of :class:`~adazeta.tasks.causal_lm.CausalLMTask`.

    Raises:
        ValueError: a metric is unknown, a number is out of range, or the prompt has no column.
        ImportError: a metric needs a package that is not installed.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        completion: str,
        references: str,
        *,
        max_new_tokens: int = 50,
        stop: Sequence[str] = ("\n",),
        metrics: Sequence[str] = ("exact_match", "f1"),
        **options: Any,
    ) -> None:
        super().__init__(tokenizer, completion, **options)
        if not self.prompt.columns:
            raise ValueError(
                "answers are generated after a prompt, and the template has no column in braces; "
                "e.g. template: '{question}\\n'"
            )
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be 1 or more, got {max_new_tokens}")
        self.stop = [stop] if isinstance(stop, str) else list(stop)
        if not all(self.stop):
            raise ValueError("stop holds an empty text, which would end every answer at once")
        self.references = references
        self.max_new_tokens = max_new_tokens
        self.metric_names = checked(metrics, ANSWERS)
        of_answers(self.metric_names, ["a"], [["a"]])  # a package that is missing is missed here

    def encode(self, record: Mapping[str, Any]) -> Example:
        """Turn a record into tokens and labels, the prompt's own tokens, and the references.

        Raises:
            ValueError: a column is missing, or there is no answer.
        """
        if self.references not in record:
            raise ValueError(
                f"no column {self.references!r} for the answers; there are "
                f"{', '.join(map(repr, record))}"
            )
        references = _texts(record[self.references])
        if not references:
            raise ValueError(
                f"column {self.references!r} holds no answer ({record[self.references]!r})"
            )
        example = super().encode({**record, self.references: references[0]})
        return {**example, **self.encode_prompt(record), "references": references}

    def encode_prompt(self, record: Mapping[str, Any]) -> Example:
        """Turn a record without answers into ``{"prompt_ids": [...]}``."""
        reserve = 0 if self.decoder else self.max_new_tokens
        return {"prompt_ids": self.prompt.encode(record, reserve=reserve)}

    def demonstration(self, record: Mapping[str, Any]) -> tuple[str, str]:
        """Return the text of a record's prompt and of its first answer."""
        return super().demonstration(
            {**record, self.references: _texts(record[self.references])[0]}
        )

    def answer_of(self, text: str) -> str:
        """Return a generated text up to the first stop text, without white space around it."""
        # White space before the answer is none of its ends.
        text = text.lstrip()
        ends = [place for stop in self.stop if (place := text.find(stop)) >= 0]
        return text[: min(ends, default=len(text))].strip()

    def scores(
        self, answers: Sequence[str], references: Sequence[Sequence[str]]
    ) -> dict[str, np.ndarray]:
        """Compute the metrics of generated answers, float64 (N,) each."""
        return of_answers(self.metric_names, answers, references)

    def to_dict(self) -> dict[str, Any]:
        """Describe the task in JSON types."""
        return {
            **super().to_dict(),
            "type": "generation",
            "references": self.references,
            "max_new_tokens": self.max_new_tokens,
            "stop": self.stop,
            "metrics": self.metric_names,
        }


def _texts(value: Any) -> list[str]:
    """Return the answers that a column holds, each once."""
    if isinstance(value, Mapping):
        value = value.get("text", value.get("spans"))
    listed = list(value) if isinstance(value, list | tuple | np.ndarray) else [value]
    return list(dict.fromkeys(str(one) for one in listed if not is_missing(one)))
