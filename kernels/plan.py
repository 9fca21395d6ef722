"""The static plan of :func:`stacked_factors`: where the cores of a model lie, where factors go.

A plan is made once per model. It holds Python ints only, so it can be hashed, compared and sent to
any backend as one table.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

MAX_CORES = 8
MAX_RANK = 64
# Columns of the table of :attr:`FactorPlan.items`, and of each step in it.
ITEM_COLUMNS = 15
STEP_COLUMNS = 8
MAX_STEPS = MAX_CORES - 2

Shape = tuple[int, int, int]


def fits_plan(shapes: Sequence[Shape]) -> bool:
    """Say whether a layer of cores of these shapes is within the limits of a plan."""
    return len(shapes) <= MAX_CORES and max(max(left, right) for left, _, right in shapes) <= (
        MAX_RANK
    )


class Factors(NamedTuple):
    """The factors of a tensor-train layer: y = (x A) B + bias.

    Attributes:
        a: (in_features, R), or (P, in_features, R) for P probes.
        b: (R, out_features), or (P, R, out_features).
        bias: (out_features,) or (P, out_features), or None.
    """

    a: Tensor
    b: Tensor
    bias: Tensor | None = None


@dataclass(frozen=True)
class FactorLayer:
    """One tensor-train layer in a flat parameter vector.

    Attributes:
        offsets: index of the first element of each core.
        shapes: (r_{k-1}, n_k, r_k) of each core.
        cut: number of input cores.
        in_features: rows of A that are kept.
        out_features: columns of B that are kept.
        bias: index of the first element of the bias, or None.

    Raises:
        ValueError: if the cores do not chain, are more than 8, have a rank above 64, or cannot
            hold the widths, or an offset is negative.
    """

    offsets: tuple[int, ...]
    shapes: tuple[Shape, ...]
    cut: int
    in_features: int
    out_features: int
    bias: int | None = None

    def __post_init__(self) -> None:
        shapes = self.shapes
        if not 2 <= len(shapes) <= MAX_CORES or not 1 <= self.cut < len(shapes):
            raise ValueError(
                f"{len(shapes)} cores cut after {self.cut}; a layer has 2 to "
                f"{MAX_CORES} cores, at least one on each side of the cut"
            )
        ranks = [1, *(shape[2] for shape in shapes)]
        if [shape[0] for shape in shapes] != ranks[:-1] or ranks[-1] != 1:
            raise ValueError(
                f"cores of shapes {list(shapes)} do not chain; the last size of each "
                "must be the first of the next, and the outer two must be 1"
            )
        if not 1 <= min(ranks) or max(ranks) > MAX_RANK:
            raise ValueError(f"ranks are {ranks[1:-1]}; keep them from 1 to {MAX_RANK}")
        rows, columns = (
            prod(shape[1] for shape in side) for side in (shapes[: self.cut], shapes[self.cut :])
        )
        if not 0 < self.in_features <= rows or not 0 < self.out_features <= columns:
            raise ValueError(
                f"modes of {rows} x {columns} cannot hold a matrix of "
                f"{self.in_features} x {self.out_features}; choose larger modes"
            )
        if len(self.offsets) != len(shapes) or min(*self.offsets, self.bias or 0) < 0:
            raise ValueError(
                f"offsets are {self.offsets} and {self.bias} for {len(shapes)} "
                "cores; give one non-negative index each"
            )

    @property
    def rank(self) -> int:
        """The rank R at the cut."""
        return self.shapes[self.cut][0]

    @property
    def kind(self) -> tuple[object, ...]:
        """What layers must share to be contracted together."""
        return (self.shapes, self.cut, self.in_features, self.out_features, self.bias is None)


class Group(NamedTuple):
    """Layers of one kind, whose factors lie one after another in the output.

    Attributes:
        layers: indices of the layers.
        a: index of the first element of the block of A transposed, (len(layers), R, in).
        b: the same of B, (len(layers), R, out).
        bias: the same of the biases, (len(layers), out); unused if the kind has none.
    """

    layers: tuple[int, ...]
    a: int
    b: int
    bias: int


@dataclass(frozen=True)
class FactorPlan:
    """The tensor-train layers of a model and the layout of their factors.

    The output of :func:`stacked_factors` is (P, :attr:`size`): for each group of layers of one
    kind the blocks of A transposed, of B and of the biases, each begun on a multiple of 4. A lies
    transposed because the kernels read its columns.

    Attributes:
        layers: the layers, in the order of :meth:`views`.
    """

    layers: tuple[FactorLayer, ...]

    @cached_property
    def _layout(self) -> tuple[tuple[Group, ...], int]:
        kinds: dict[tuple[object, ...], list[int]] = {}
        for index, layer in enumerate(self.layers):
            kinds.setdefault(layer.kind, []).append(index)
        groups, end = [], 0
        for members in kinds.values():
            layer = self.layers[members[0]]
            starts = []
            for width in (
                layer.in_features * layer.rank,
                layer.rank * layer.out_features,
                0 if layer.bias is None else layer.out_features,
            ):
                starts.append(end)
                end += -(-len(members) * width // 4) * 4
            groups.append(Group(tuple(members), *starts))
        return tuple(groups), end

    @property
    def groups(self) -> tuple[Group, ...]:
        """Layers of one kind, contracted together by the reference."""
        return self._layout[0]

    @property
    def size(self) -> int:
        """Elements of the factors of one probe, padding included."""
        return self._layout[1]

    @cached_property
    def extent(self) -> int:
        """The least length of a parameter vector that holds all cores and biases."""
        ends = [
            offset + prod(shape)
            for layer in self.layers
            for offset, shape in zip(layer.offsets, layer.shapes, strict=True)
        ]
        ends += [layer.bias + layer.out_features for layer in self.layers if layer.bias is not None]
        return max(ends, default=0)

    @cached_property
    def rank(self) -> int:
        """The largest rank of any core."""
        return max(
            (max(shape) for layer in self.layers for shape in ((s[0], s[2]) for s in layer.shapes)),
            default=1,
        )

    def __hash__(self) -> int:
        """Hash the layers once; a plan is a key of caches on the hot path."""
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash(self.layers)

    @cached_property
    def _places(self) -> list[tuple[int, int, int | None]]:
        places: list[tuple[int, int, int | None]] = [(0, 0, None)] * len(self.layers)
        for group in self.groups:
            for number, index in enumerate(group.layers):
                layer = self.layers[index]
                places[index] = (
                    group.a + number * layer.in_features * layer.rank,
                    group.b + number * layer.rank * layer.out_features,
                    None if layer.bias is None else group.bias + number * layer.out_features,
                )
        return places

    def views(self, factors: Tensor) -> list[Factors]:
        """Return A, B and bias of each layer as views of the output of ``stacked_factors``.

        Args:
            factors: (P, size), contiguous.

        Returns:
            Per layer (P, in, R), with strides (size, 1, in), (P, R, out) and (P, out) or None.
        """
        probes, size = factors.shape[0], self.size
        views = []
        for layer, (a, b, bias) in zip(self.layers, self._places, strict=True):
            rank, n, m = layer.rank, layer.in_features, layer.out_features
            views.append(
                Factors(
                    factors.as_strided((probes, n, rank), (size, 1, n), a),
                    factors.as_strided((probes, rank, m), (size, m, 1), b),
                    None if bias is None else factors.as_strided((probes, m), (size, 1), bias),
                )
            )
        return views

    @cached_property
    def code(self) -> Tensor:
        """The layers as one int64 vector, for registered ops; :meth:`decode` reads it."""
        numbers: list[int] = []
        for layer in self.layers:
            numbers += [
                len(layer.shapes),
                layer.cut,
                layer.in_features,
                layer.out_features,
                -1 if layer.bias is None else layer.bias,
                *layer.offsets,
            ]
            numbers += [size for shape in layer.shapes for size in shape]
        return torch.tensor(numbers, dtype=torch.int64)

    @classmethod
    def decode(cls, numbers: Sequence[int]) -> "FactorPlan":
        """Return the plan that :attr:`code` came from."""
        layers, place = [], 0
        while place < len(numbers):
            count, cut, in_features, out_features, bias = numbers[place : place + 5]
            offsets = tuple(numbers[place + 5 : place + 5 + count])
            place += 5 + count
            sizes = numbers[place : place + 3 * count]
            place += 3 * count
            shapes = tuple((sizes[k], sizes[k + 1], sizes[k + 2]) for k in range(0, 3 * count, 3))
            layers.append(
                FactorLayer(
                    offsets, shapes, cut, in_features, out_features, None if bias < 0 else bias
                )
            )
        return cls(tuple(layers))

    @cached_property
    def items(self) -> Tensor:
        """The contractions as an int64 table on the CPU, one row per factor or bias.

        Row i describes an output over points p and columns c. A vector v of length 1 with the
        element 1 is carried through the steps, ``v'[s] = sum_t v[t] theta[offset + t *
        term_stride + digit * digit_stride + s * rank_stride]`` with ``digit = p // divisor %
        mode``, and ends in ``sum_t v[t] theta[offset + t * term_stride + c * column_stride]``,
        written to ``start + outer * limit + place`` where ``outer = c // outer_divisor %
        outer_modulus``, ``inner = c // inner_divisor % inner_modulus`` and ``place = inner *
        inner_stride + p * point_stride``, unless place is ``limit`` or more (padding of the
        modes). Sums run in the order of t. ``outer`` is the rank at the cut, ``place`` the row of
        A or the column of B: both A, which is stored transposed, and B lie as (R, width).

        Columns: offset, terms, term_stride, column_stride, columns, points, outer_divisor,
        outer_modulus, inner_divisor, inner_modulus, inner_stride, point_stride, limit, start,
        steps; then per step offset, terms, term_stride, divisor, mode, digit_stride,
        rank_stride, ranks.
        """
        rows = [
            row + [0] * (ITEM_COLUMNS + MAX_STEPS * STEP_COLUMNS - len(row))
            for row in self._item_rows()
        ]
        return torch.tensor(rows, dtype=torch.int64).view(
            -1, ITEM_COLUMNS + MAX_STEPS * STEP_COLUMNS
        )

    def _item_rows(self) -> Iterator[list[int]]:
        for layer, (a, b, bias) in zip(self.layers, self._places, strict=True):
            cores = list(zip(layer.offsets, layer.shapes, strict=True))
            modes = [shape[1] for shape in layer.shapes]
            cut, last = layer.cut, layer.cut - 1
            steps: list[int] = []
            for k, (offset, (left, mode, right)) in enumerate(cores[:last]):
                steps += [
                    offset,
                    left,
                    mode * right,
                    prod(modes[k + 1 : last]),
                    mode,
                    right,
                    1,
                    right,
                ]
            offset, (left, mode, right) = cores[last]
            width = mode * right
            yield [
                offset,
                left,
                width,
                1,
                width,
                -(-layer.in_features // mode),
                1,
                right,
                right,
                mode,
                1,
                mode,
                layer.in_features,
                a,
                last,
                *steps,
            ]
            steps = []
            for k in range(len(cores) - 1, cut, -1):
                offset, (left, mode, right) = cores[k]
                steps += [offset, right, 1, prod(modes[k + 1 :]), mode, right, mode * right, left]
            offset, (left, mode, right) = cores[cut]
            points = prod(modes[cut + 1 :])
            yield [
                offset,
                right,
                1,
                right,
                left * mode,
                min(points, layer.out_features),
                mode,
                left,
                1,
                mode,
                points,
                1,
                layer.out_features,
                b,
                len(cores) - 1 - cut,
                *steps,
            ]
            if bias is not None and layer.bias is not None:
                width = layer.out_features
                yield [layer.bias, 1, 0, 1, width, 1, width, 1, 1, width, 1, 0, width, bias, 0]
