"""Sparse-MeZO (arXiv 2402.15751): only the small elements of each matrix are perturbed and trained.

``z_ij`` counts where ``|theta_ij| <= h``, h a percentile of the matrix, fixed before training. Here
the chosen elements themselves are the parameters: a vector of values, scattered into a copy of the
matrix for the length of its module's forward. So the mask is honoured by everything there is, by
``+eps``, ``-eps``, update, momentum and second moment, because nothing knows of other elements;
noise, states and updates cost what the chosen share costs; and the mask cannot flip, as it does
where it is taken anew from a perturbed matrix.
"""

import math

import torch
from torch import Tensor, nn

_BITS = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8)


class SparseWeight(nn.Module):
    """The chosen elements of one matrix.

    Args:
        weight: the matrix.
        sparsity: share of its elements that stay as they are, the largest ones, in [0, 1).

    Attributes:
        values: the chosen elements, in the order of the matrix and in its dtype.
        bits: the mask, eight elements a byte. It follows from the matrix, which is never written,
            and is kept in no state.
    """

    bits: Tensor

    def __init__(self, weight: Tensor, sparsity: float) -> None:
        super().__init__()
        count = max(1, math.ceil(round((1 - sparsity) * weight.numel(), 6)))
        size = weight.detach().reshape(-1).abs().float()
        threshold = size.kthvalue(count).values
        mask = size <= threshold
        self.count = weight.numel()
        self.values = nn.Parameter(weight.detach().reshape(-1)[mask].clone())
        self.register_buffer("bits", pack_bits(mask), persistent=False)

    def mask(self) -> Tensor:
        """Return the mask, bool ``(elements of the matrix,)``."""
        return unpack_bits(self.bits, self.count)

    def forward(self, weight: Tensor) -> Tensor:
        """Return the matrix with the values in their places.

        Args:
            weight: the matrix as it was at first.

        Returns:
            A new tensor of its shape and dtype.
        """
        out = weight.detach().clone()
        out.view(-1).masked_scatter_(self.mask(), self.values.detach())
        return out


def pack_bits(mask: Tensor) -> Tensor:
    """Pack a bool vector, eight elements a byte, the first in the lowest bit.

    Args:
        mask: bool ``(n,)``.

    Returns:
        uint8 ``(ceil(n / 8),)``.
    """
    padded = nn.functional.pad(mask.to(torch.uint8), (0, -len(mask) % 8)).view(-1, 8)
    return (padded * _BITS.to(mask.device)).sum(1, dtype=torch.uint8)


def unpack_bits(bits: Tensor, count: int) -> Tensor:
    """Undo :func:`pack_bits`: bool ``(count,)``."""
    return (bits[:, None] & _BITS.to(bits.device)).ne(0).view(-1)[:count]
