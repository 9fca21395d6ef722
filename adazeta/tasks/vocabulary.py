"""Whether a tokenizer's tokens exist in a model: each needs a row of the embedding."""

import logging
from collections.abc import Sequence

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from adazeta.tasks.examples import Example, Examples

logger = logging.getLogger(__name__)


def rows_in(source: PretrainedConfig | nn.Module) -> int | None:
    """Return how many rows a model's embedding of tokens has, None if that cannot be told.

    Args:
        source: the model, or its configuration before it is loaded.
    """
    if isinstance(source, nn.Module):
        table = getattr(source, "get_input_embeddings", lambda: None)()
        rows = getattr(table, "num_embeddings", None)
    else:
        rows = getattr(source.get_text_config(), "vocab_size", None)
    return rows if isinstance(rows, int) else None


def settle_padding(tokenizer: PreTrainedTokenizerBase, rows: int) -> None:
    """Let a token that the model has do the padding, if the tokenizer's own has no row.

    That happens where a padding token was added and the embedding was not resized. The attention
    mask hides the padding, so any token can do it.

    Args:
        tokenizer: changed in place.
        rows: of the model's embedding.
    """
    token, found = tokenizer.pad_token, tokenizer.pad_token_id
    if found is None or found < rows:
        return
    others = [tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id, 0]
    other = next(index for index in others if index is not None and index < rows)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(other)
    logger.warning(
        "the padding token %r has the id %d, and the model's embedding has %d rows; %r pads "
        "instead, under the attention mask", token, found, rows, tokenizer.pad_token,
    )  # fmt: skip


def check_tokens(
    tokenizer: PreTrainedTokenizerBase,
    examples: Examples | Sequence[Example],
    rows: int,
    *,
    candidates: torch.Tensor | None = None,
) -> None:
    """Refuse examples with tokens that the model does not have.

    Args:
        tokenizer: the tokenizer.
        examples: encoded records.
        rows: of the model's embedding.
        candidates: int64, tokens of label words.

    Raises:
        ValueError: a token has no row.
    """
    if candidates is not None and int(candidates.max()) >= rows:
        raise _unknown(tokenizer, int(candidates.max()), rows, "a label word")
    for index in range(len(examples)):
        largest = max(_tokens_of(examples[index]), default=0)
        if largest >= rows:
            raise _unknown(tokenizer, largest, rows, f"example {index}")


def _tokens_of(example: Example) -> list[int]:
    labels = example.get("labels")
    texts = [*example.get("candidates", []), *([labels] if isinstance(labels, list) else [])]
    return [*example["input_ids"], *(token for text in texts for token in text)]


def _unknown(tokenizer: PreTrainedTokenizerBase, index: int, rows: int, where: str) -> ValueError:
    return ValueError(
        f"{where} has the token {tokenizer.convert_ids_to_tokens(index)!r} with the id {index}, "
        f"but the model's embedding has {rows} rows: the tokenizer is another model's, or tokens "
        "were added to it. Use the model's own tokenizer, or resize the model "
        "(model.resize_token_embeddings(len(tokenizer))) and save both"
    )
