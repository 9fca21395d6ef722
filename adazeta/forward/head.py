"""The output embedding of a prefill, on a copy of the few positions whose logits are wanted."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def contiguous_head(model: nn.Module) -> Iterator[None]:
    """Give the output embedding contiguous inputs meanwhile.

    transformers slices the hidden states to the last position before the output embedding. Of such
    a slice torch multiplies with a copy of the weight for each row, where the weight needs no
    gradient (its ``matmul`` then neither folds the batch nor copies the slice): with 64 rows, the
    vocabulary of SmolLM2 and float32 that is 3.4 GiB and 14 times the time. A copy of the slice is
    a few KiB.

    Args:
        model: a model of transformers; one without an output embedding is left alone.
    """
    find = getattr(model, "get_output_embeddings", None)
    head = None if find is None else find()
    if not isinstance(head, nn.Module):
        yield
        return

    def copied(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (inputs[0].contiguous(), *inputs[1:]) if inputs else inputs

    handle = head.register_forward_pre_hook(copied)
    try:
        yield
    finally:
        handle.remove()
