"""A model whose weights are rounded to few bits, in floating point: what rounding costs, alone.

Round to nearest in groups, as the simplest quantisers do it. The values are those that a packed
model would compute with, so that any training of the package works on them; no memory is saved.
"""

import torch
from torch import Tensor, nn

GROUP = 64


def rounded(weight: Tensor, bits: int, group: int = GROUP) -> Tensor:
    """Round a matrix to the nearest of ``2**bits`` evenly spaced levels in each group of a row.

    Args:
        weight: floating, ``(rows, columns)``.
        bits: of a number.
        group: columns that share their levels, which reach from their least to their largest value.

    Returns:
        The same shape and dtype.

    Raises:
        ValueError: the columns are no whole number of groups.
    """
    rows, columns = weight.shape
    if columns % group:
        raise ValueError(f"{columns} columns are no whole number of groups of {group}")
    values = weight.detach().float().view(rows, columns // group, group)
    low, high = values.amin(-1, keepdim=True), values.amax(-1, keepdim=True)
    step = ((high - low) / (2**bits - 1)).clamp_min(torch.finfo(torch.float32).tiny)
    return (low + ((values - low) / step).round() * step).view_as(weight).to(weight.dtype)


@torch.no_grad()
def round_blocks(model: nn.Module, bits: int, group: int = GROUP) -> list[str]:
    """Round the weights of the linears of a model but its output embedding, in place.

    Returns:
        The names of the linears.
    """
    head = getattr(model, "get_output_embeddings", lambda: None)()
    found = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    }
    for module in found.values():
        module.weight.copy_(rounded(module.weight, bits, group))
    return list(found)
