"""Classification by label words of any length, scored by their mean log-likelihood.

As the large models' tasks of MeZO (2305.17333) do it: the score of a candidate is the mean of its
tokens' log-probabilities, so that a longer one is not at a disadvantage.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from adazeta.tasks.candidates import CandidateScoring
from adazeta.tasks.classification import ClassificationTask, with_teacher
from adazeta.tasks.examples import Example
from adazeta.tasks.label_words import place_phrases, words_by_label
from adazeta.tasks.template import prompt_template


class PhraseTask(ClassificationTask):
    """Classification by the likelihood of label words that may have several tokens.

    Where every word is one token, :class:`~adazeta.tasks.prompt.PromptTask` does the same with one
    row an example.

    Args:
        tokenizer: of the model.
        template: text with columns in braces that the words follow, or that an encoder reads.
        label_words: label value -> words, or a list of them for the labels 0, 1, ...
        label_column: see :class:`~adazeta.tasks.classification.ClassificationTask`.
        max_length: longest prompt with words in tokens; the columns' text is cut.
        decoder: the model is an encoder-decoder, whose decoder writes the words.
        strip: drop white space around the columns' text.
        metrics: names of :data:`adazeta.tasks.metrics.CLASSES`.
        chat: see :class:`~adazeta.tasks.template.Template`.
        shots: see :class:`~adazeta.tasks.template.Template`.

    Attributes:
        candidates: tokens of the words.

    Raises:
        ValueError: fewer than two words, a word that the tokenizer does not know, or a bad
            template.
        TypeError: a word is not text.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: str,
        label_words: Mapping[Any, str] | Sequence[str],
        *,
        label_column: str = "label",
        max_length: int | None = None,
        decoder: bool = False,
        strip: bool = True,
        metrics: Sequence[str] = ("accuracy",),
        chat: bool = False,
        shots: Sequence[Sequence[str]] = (),
    ) -> None:
        labels, listed = words_by_label(label_words)
        super().__init__(
            tokenizer, labels, label_column=label_column, max_length=max_length, metrics=metrics
        )
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
            raise ValueError(
                "label words of several tokens are for causal models and encoder-decoders: a mask "
                "is one token; choose words of one token"
            )
        self._scoring = CandidateScoring(tokenizer, decoder=decoder)
        self.words, self.candidates = place_phrases(self.template, listed)
        self._longest = 0 if decoder else max(map(len, self.candidates))

    @property
    def columns(self) -> list[str]:
        """Names of the columns of the template."""
        return self.template.columns

    def encode_prompt(self, record: Mapping[str, Any]) -> Example:
        """Turn a record without a label into ``{"input_ids": [...]}``."""
        ids = self.template.encode(record, reserve=self._longest)
        return {"input_ids": ids, "candidates": self.candidates}

    def demonstration(self, record: Mapping[str, Any]) -> tuple[str, str]:
        """Return the text of a record's prompt and of its words."""
        word = self.words[self._labels.index(record[self.label_column])]
        space = " " if self._scoring.decoder else ""
        return self.template.render(self.template.values(record)), f"{space}{word}"

    def collate(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """Lay out the candidates, see :meth:`CandidateScoring.collate`."""
        return with_teacher(self._scoring.collate(examples), examples)

    def losses(
        self, model: nn.Module, inputs: Mapping[str, Any], *, label_smoothing: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """Compute the cross entropy over the words' scores, float32 (B,), and the scores."""
        return self._scoring.losses(model, inputs, label_smoothing=label_smoothing)

    def to_dict(self) -> dict[str, Any]:
        """Describe the task in JSON types."""
        return {
            "type": "phrases",
            "template": self.template.text,
            "label_words": dict(zip(self.labels, self.words, strict=True)),
            "label_column": self.label_column,
            "max_length": self.max_length,
            "decoder": self._scoring.decoder,
            "strip": self.template.strip,
            "metrics": self.metric_names,
            **self.template.options(),
        }
