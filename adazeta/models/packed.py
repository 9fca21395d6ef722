"""Linears and embeddings whose weights stay in quantised blocks.

A layer unpacks its blocks into memory that all layers of a model share, multiplies, and forgets the
values. So the model's weights are never in memory as floating-point numbers, except for those of
one piece of one layer. The values have the bits of the unpacked model's weights; products agree
with that model's to rounding.
"""

import threading
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from adazeta.kernels import unpack_blocks
from adazeta.kernels.reference.blocks import FORMATS

_MOST = 1 << 22  # values that are unpacked at a time: 16 MiB in float32


class Workspace:
    """Memory that the layers of a model unpack their blocks into, one after another.

    Attributes:
        lock: held while the memory is in use.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._memory: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle as one without memory: a lock can be neither."""
        return Workspace, ()

    def take(self, rows: int, columns: int, like: Tensor) -> Tensor:
        """Return memory of a shape, with anything in it; the same as the last call's."""
        key = like.device, like.dtype
        held = self._memory.get(key)
        if held is None or held.numel() < rows * columns:
            with torch.inference_mode(False):  # or it could be used in that mode only
                self._memory[key] = held = torch.empty(
                    rows * columns, device=like.device, dtype=like.dtype
                )
        return held[: rows * columns].view(rows, columns)


class PackedWeight(nn.Module):
    """A matrix in quantised blocks; tied layers share one.

    Args:
        blocks: uint8 (rows, bytes of a row).
        kind: format of the blocks, see :func:`adazeta.kernels.unpack_blocks`.
    """

    blocks: Tensor

    def __init__(self, blocks: Tensor, kind: str) -> None:
        super().__init__()
        self.register_buffer("blocks", blocks)
        self.kind = kind
        self.columns = blocks.shape[1] // FORMATS[kind].bytes * FORMATS[kind].values

    def values(
        self, dtype: torch.dtype, rows: Tensor | None = None, out: Tensor | None = None
    ) -> Tensor:
        """Return the values of some rows, by default of all, (M, columns)."""
        return unpack_blocks(self.blocks, self.kind, rows, dtype=dtype, out=out)

    def extra_repr(self) -> str:
        """Describe the matrix."""
        return f"{self.kind}, {len(self.blocks)} x {self.columns}"


class PackedLinear(nn.Module):
    """``x W^T + bias`` with W in quantised blocks, in the dtype of x.

    Args:
        packed: W, (out, in).
        bias: (out,), or None.
        workspace: of the model.
    """

    def __init__(
        self, packed: PackedWeight, bias: nn.Parameter | None, workspace: Workspace
    ) -> None:
        super().__init__()
        self.packed = packed
        self.bias = bias
        self.workspace = workspace
        self.in_features, self.out_features = packed.columns, len(packed.blocks)

    @property
    def weight(self) -> Tensor:
        """The blocks: uint8 (out, bytes of a row)."""
        return self.packed.blocks

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer to (..., in)."""
        return self.product(input)

    def product(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        """Apply some outputs of the layer.

        Args:
            x: (..., in).
            rows: int64 (M,), which outputs; by default all.

        Returns:
            (..., M) in the dtype of x.
        """
        bias = self.bias if rows is None or self.bias is None else self.bias[rows]
        if torch.is_grad_enabled() and x.requires_grad:
            y: Tensor = _Product.apply(x, self, rows)
            return y if bias is None else y + bias
        return self._product(x, rows, bias)

    def _product(self, x: Tensor, rows: Tensor | None, bias: Tensor | None = None) -> Tensor:
        pieces = self._pieces(rows)
        with self.workspace.lock:
            if len(pieces) == 1:
                return functional.linear(x, self._unpacked(x, rows), bias)
            y = x.new_empty((*x.shape[:-1], self.out_features if rows is None else len(rows)))
            for place, chosen in pieces:
                values = self._unpacked(x, chosen)
                y[..., place] = functional.linear(x, values, None if bias is None else bias[place])
        return y

    def _gradient(self, grad: Tensor, rows: Tensor | None) -> Tensor:
        """Return the gradient of x from that of the product."""
        found: Any = 0
        with self.workspace.lock:
            for place, chosen in self._pieces(rows):
                found = found + grad[..., place] @ self._unpacked(grad, chosen)
        result: Tensor = found
        return result

    def _pieces(self, rows: Tensor | None) -> list[tuple[slice, Tensor | None]]:
        """Cut outputs in pieces small enough to unpack at a time: their places, and which."""
        count, device = self.out_features if rows is None else len(rows), self.weight.device
        step = max(1, _MOST // max(1, self.in_features))
        if count <= step:
            return [(slice(0, count), rows)]
        every = torch.arange(count, device=device) if rows is None else rows
        places = [slice(begin, begin + step) for begin in range(0, count, step)]
        return [(place, every[place]) for place in places]

    def _unpacked(self, x: Tensor, rows: Tensor | None) -> Tensor:
        if torch.compiler.is_compiling():
            return self.packed.values(x.dtype, rows)
        count = self.out_features if rows is None else len(rows)
        memory = self.workspace.take(count, self.in_features, x)
        return self.packed.values(x.dtype, rows, memory)

    def extra_repr(self) -> str:
        """Describe the layer as ``nn.Linear`` does."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}"
        )


class _Product(torch.autograd.Function):
    """x W^T of a packed linear; for x's gradient W is unpacked again rather than kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: PackedLinear, rows: Tensor | None) -> Tensor:
        ctx.layer, ctx.rows = layer, rows
        return layer._product(x, rows)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return ctx.layer._gradient(grads[0], ctx.rows), None, None


class PackedEmbedding(nn.Module):
    """An embedding whose rows are unpacked as they are looked up.

    Args:
        packed: (words, width).
        dtype: of what it returns; ``model.to(dtype)`` changes it.
    """

    like: Tensor

    def __init__(self, packed: PackedWeight, dtype: torch.dtype) -> None:
        super().__init__()
        self.packed = packed
        self.num_embeddings, self.embedding_dim = len(packed.blocks), packed.columns
        self.register_buffer("like", torch.empty(0, dtype=dtype), persistent=False)

    @property
    def weight(self) -> Tensor:
        """The blocks: uint8 (words, bytes of a row)."""
        return self.packed.blocks

    def forward(self, input: Tensor) -> Tensor:
        """Return the rows of token ids (...): (..., width)."""
        rows = self.packed.values(self.like.dtype, input.reshape(-1).long())
        return rows.view(*input.shape, self.embedding_dim)

    def extra_repr(self) -> str:
        """Describe the layer as ``nn.Embedding`` does."""
        return f"{self.num_embeddings}, {self.embedding_dim}"


def weight_rows(linear: nn.Module, rows: Tensor) -> Tensor:
    """Return rows of a linear's weight as numbers, float32 ``(M, in)``.

    Args:
        linear: a linear with an ordinary weight, or a :class:`PackedLinear`.
        rows: int64 (M,).
    """
    if isinstance(linear, PackedLinear):
        return linear.packed.values(torch.float32, rows.to(linear.weight.device))
    weight: Any = linear.weight
    chosen: Tensor = weight[rows.to(weight.device)]
    return chosen.float()


def outputs_of(linear: nn.Linear | PackedLinear, x: Tensor, rows: Tensor | None = None) -> Tensor:
    """Apply some outputs of a linear, by default all: ``(..., in)`` to ``(..., M)``."""
    if isinstance(linear, PackedLinear):
        return linear.product(x, rows)
    if rows is None:
        return functional.linear(x, linear.weight, linear.bias)
    return functional.linear(
        x, linear.weight[rows], None if linear.bias is None else linear.bias[rows]
    )
