"""Sparse-MeZO (arXiv 2402.15751): only the small elements of each matrix are perturbed and trained.

``z_ij`` counts where ``|theta_ij| <= h``, h a percentile of the matrix, fixed before training. Here
the chosen elements themselves are the parameters: a vector of values, scattered into a copy of the
matrix for the length of its module's forward. So the mask is honoured by everything there is, by
``+eps``, ``-eps``, update, momentum and second moment, because nothing knows of other elements;
noise, states and updates cost what the chosen share costs; and the mask cannot flip, as it does
where it is taken anew from a perturbed matrix.
"""

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from adazeta.directions.reparametrise import (
    ReparametrisedWeight,
    attach,
    check_plain,
    matrix_hosts,
)

_BITS = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8)


class SparseWeight(ReparametrisedWeight):
    """The chosen elements of one matrix.

    Args:
        weight: the matrix.
        sparsity: share of its elements that stay as they are, the largest ones, in [0, 1).

    Attributes:
        values: the chosen elements, in the order of the matrix and in its dtype.
        bits: the mask, eight elements a byte. It follows from the matrix, which is never written,
            and is kept in no state.
    """

    suffix = "sparse"
    always_swaps = True
    bits: Tensor

    def __init__(self, weight: Tensor, sparsity: float) -> None:
        super().__init__()
        count = chosen(weight.shape, sparsity)
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

    def merged(self, weight: Tensor, rounding: str) -> Tensor:
        """Return the matrix with the values in their places; nothing is rounded."""
        return self(weight)


def add_sparse(model: nn.Module, *, sparsity: float) -> None:
    """Train the smallest elements of each matrix of a model, in place; vectors as they are.

    Args:
        model: any model.
        sparsity: share of each matrix's elements that stay as they are, in [0, 1).

    Raises:
        ValueError: the sparsity is out of its range, or the model has reparametrisations already.
    """
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity must be in [0, 1), got {sparsity}")
    check_plain(model)
    for hosts in matrix_hosts(model).values():
        weight = getattr(hosts[0].module, hosts[0].local)
        if weight.numel():
            attach(hosts, SparseWeight, partial(_in_any_role, weight, sparsity))


def _in_any_role(weight: Tensor, sparsity: float, role: str) -> SparseWeight:
    return SparseWeight(weight, sparsity)


def chosen(shape: Sequence[int], sparsity: float) -> int:
    """Return the elements that are trained of a parameter of this shape."""
    count = math.prod(shape)
    if len(shape) < 2 or not count:
        return count
    return max(1, math.ceil(round((1 - sparsity) * count, 6)))


def memory(shape: Sequence[int], sparsity: float, width: int) -> int:
    """Return the bytes of values and mask of a parameter with so many bytes an element."""
    if len(shape) < 2:
        return 0
    return width * chosen(shape, sparsity) + -(-math.prod(shape) // 8)


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
