"""Classification by a trained head on the model's hidden state, without words."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedTokenizerBase

from adazeta.support.batches import targets_of
from adazeta.tasks.classification import ClassificationTask
from adazeta.tasks.examples import Example
from adazeta.tasks.label_words import Labels
from adazeta.tasks.template import prompt_template


class HeadTask(ClassificationTask):
    """Classification with a model of ``AutoModelForSequenceClassification``.

    Args:
        tokenizer: of the model.
        template: text with columns in braces, read with the tokenizer's special tokens around it.
        classes: values of the label column, in the order of the head's outputs.
        label_column: see :class:`~adazeta.tasks.classification.ClassificationTask`.
        max_length: longest text in tokens; the columns are cut.
        strip: drop white space around the columns' text.
        metrics: names of :data:`adazeta.tasks.metrics.CLASSES`.
        chat: see :class:`~adazeta.tasks.template.Template`.

    Raises:
        ValueError: fewer than two classes, two that are the same, or a bad template.
    """

    reads_only_the_batch = True

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: str,
        classes: Sequence[Any],
        *,
        label_column: str = "label",
        max_length: int | None = None,
        strip: bool = True,
        metrics: Sequence[str] = ("accuracy",),
        chat: bool = False,
    ) -> None:
        if isinstance(classes, str) or len(classes) < 2:
            raise ValueError(f"classes is a list of two labels or more, got {classes!r}")
        super().__init__(
            tokenizer,
            Labels(classes),
            label_column=label_column,
            max_length=max_length,
            metrics=metrics,
        )
        self.template = prompt_template(
            template, tokenizer, self.max_length, strip=strip, chat=chat, closed=True
        )
        if self.template.masked:
            raise ValueError("classes are told by a head, which needs no {mask} in the template")
        self.words = self.labels

    @property
    def columns(self) -> list[str]:
        """Names of the columns of the template."""
        return self.template.columns

    def encode_prompt(self, record: Mapping[str, Any]) -> Example:
        """Turn a record without a label into ``{"input_ids": [...]}``."""
        return {"input_ids": self.template.encode(record)}

    def losses(
        self, model: nn.Module, inputs: Mapping[str, Any], *, label_smoothing: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """Compute the cross entropy over the classes, float32 (B,), and the logits."""
        given = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        logits = model(**given).logits.float()
        losses = functional.cross_entropy(
            logits, targets_of(inputs), reduction="none", label_smoothing=label_smoothing
        )
        return losses, logits

    def to_dict(self) -> dict[str, Any]:
        """Describe the task in JSON types."""
        return {
            "type": "head",
            "template": self.template.text,
            "classes": self.labels,
            "label_column": self.label_column,
            "max_length": self.max_length,
            "strip": self.template.strip,
            "metrics": self.metric_names,
            **self.template.options(),
        }
