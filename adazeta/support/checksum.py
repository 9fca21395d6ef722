"""Numbers that tell whether two sets of tensors have the same bits."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from adazeta.support.seeds import MASK64

_WORDS = {2: torch.int16, 4: torch.int32}


def checksum(tensors: Iterable[Tensor]) -> int:
    """Fold the bits of parameters into 64, for a comparison of two moments or two machines.

    The words of each tensor are added, and the sums combined in order: any single changed bit
    shows; it is no protection against an adversary. Reads every parameter once.

    Args:
        tensors: contiguous, of 2 or 4 bytes an element.

    Returns:
        An integer in [0, 2**64), the same on every device.
    """
    # One transfer for all of them where they lie on an accelerator.
    words = [_sum_of_words(tensor.detach()) for tensor in tensors]
    sums = torch.stack(words).tolist() if words else []
    total = 0
    for value in sums:
        total = (total * 0x9E3779B97F4A7C15 + value + 1) & MASK64
    return total


def _sum_of_words(tensor: Tensor) -> Tensor:
    """Sum of a tensor's elements as integers, modulo 2**64."""
    flat = tensor.reshape(-1)
    # Eight bytes at a time, 25 times as fast on a CPU, where the memory is aligned to that. What
    # one such word carries from one element into the next is the same everywhere, so long as the
    # words are: they start at the tensor's first element.
    per_word = 8 // flat.element_size()
    aligned = flat if flat.storage_offset() % per_word == 0 else flat.clone()
    whole = aligned.numel() // per_word * per_word
    rest = aligned[whole:].view(_WORDS[flat.element_size()])
    return aligned[:whole].view(torch.int64).sum() + rest.sum(dtype=torch.int64)


def add_tensors(digest: Any, named: Iterable[tuple[str, Tensor]]) -> None:
    """Add tensors, every bit of them, with their names, shapes and dtypes to a digest.

    Args:
        digest: of :mod:`hashlib`.
        named: the tensors by name.
    """
    for name, tensor in named:
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy())


def plain_parts(name: str, tensor: Tensor) -> Iterable[tuple[str, Tensor]]:
    """Yield the tensors that a quantised one is made of, by name; an ordinary one as it is.

    Args:
        name: of the tensor.
        tensor: ordinary, or of a class that wraps others, such as torchao's.
    """
    whole: Any = tensor
    if not is_traceable_wrapper_subclass(whole):
        yield name, whole
        return
    for inner in whole.__tensor_flatten__()[0]:
        yield from plain_parts(f"{name}.{inner}", getattr(whole, inner))
