"""Tensor-train matrices: modes for any width, shapes, dense form and decomposition.

A matrix of ``in_features x out_features`` is reshaped to its input modes followed by its output
modes and written as a chain of three-way cores; core k has shape ``(r_{k-1}, n_k, r_k)`` with
``r_0 = r_d = 1``. The boundary between input and output is always a boundary between two cores, so
the matrix is a product ``A B`` of an ``in x R`` and an ``R x out`` factor, R being the rank there.

Sources: I. Oseledets, "Tensor-Train Decomposition" (2011), Algorithm 1; AdaZeta (arXiv 2406.18060)
and LoRETTA (arXiv 2402.11417) for its use in adapters.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

MAX_MODE_RATIO = 4


def balanced_modes(width: int, count: int | None = None) -> tuple[int, ...]:
    """Split a width into modes that are as equal as possible.

    Among the ways to write the width as a product of ``count`` factors of at least 2, the one with
    the smallest ratio of largest to smallest factor is taken. If that ratio is above 4, or there is
    no such way (primes), the next larger integer is tried, and so on: the product of the modes is
    then larger than the width, and the surplus rows or columns of the matrix are never used.

    Args:
        width: the number of rows or columns, at least 1.
        count: the number of modes. Default: 3, or as many as leave a mean mode of at least 3
            (2 modes below a width of 27, 1 below 9).

    Returns:
        The modes in ascending order, e.g. ``(8, 8, 9)`` for 576 and ``(6, 13, 13)`` for 1009
        (padded to 1014).

    Raises:
        ValueError: if the width or the count is below 1.
    """
    if width < 1:
        raise ValueError(f"a width must be at least 1, got {width}")
    if count is None:
        count = next(modes for modes in (3, 2, 1) if width >= 3**modes or modes == 1)
    if count < 1:
        raise ValueError(f"the number of modes must be at least 1, got {count}")
    return _balanced_modes(width, count)


@cache
def _balanced_modes(width: int, count: int) -> tuple[int, ...]:
    if count == 1:
        return (width,)
    padded = max(width, 2**count)
    while True:
        modes = min(_factorisations(padded, count, smallest=2), key=_imbalance, default=None)
        if modes is not None and _imbalance(modes) <= MAX_MODE_RATIO:
            return modes
        padded += 1


def _imbalance(modes: tuple[int, ...]) -> float:
    return modes[-1] / modes[0]


def _factorisations(number: int, count: int, smallest: int) -> Iterator[tuple[int, ...]]:
    """Yield every ascending tuple of ``count`` factors >= ``smallest`` with the given product."""
    if count == 1:
        if number >= smallest:
            yield (number,)
        return
    factor = smallest
    while factor**count <= number:
        if number % factor == 0:
            for rest in _factorisations(number // factor, count - 1, factor):
                yield (factor, *rest)
        factor += 1


@dataclass(frozen=True)
class TTShape:
    """Shape of a matrix in tensor-train form, cut between its input and its output modes.

    Attributes:
        in_features: rows of the matrix; the product of ``in_modes`` is at least this.
        out_features: columns of the matrix; the product of ``out_modes`` is at least this.
        in_modes: modes of the rows, first mode slowest.
        out_modes: modes of the columns, first mode slowest.
        ranks: the inner ranks ``r_1 ... r_{d-1}``, one between each two neighbouring cores. They
            are taken as they are, also where a smaller one would do.

    Raises:
        ValueError: on a width, mode or rank below 1, a side without modes, modes whose product is
            too small, or a wrong number of ranks.
    """

    in_features: int
    out_features: int
    in_modes: tuple[int, ...]
    out_modes: tuple[int, ...]
    ranks: tuple[int, ...]

    def __post_init__(self) -> None:
        for side, width, modes in (
            ("in", self.in_features, self.in_modes),
            ("out", self.out_features, self.out_modes),
        ):
            if width < 1:
                raise ValueError(f"{side}_features must be at least 1, got {width}")
            if not modes or min(modes) < 1:
                raise ValueError(f"{side}_modes must be integers of at least 1, got {modes}")
            if math.prod(modes) < width:
                raise ValueError(
                    f"{side}_modes {modes} have the product {math.prod(modes)}, less than "
                    f"{side}_features {width}; give modes whose product is at least {width}"
                )
        if len(self.ranks) != len(self.modes) - 1:
            raise ValueError(
                f"{len(self.modes)} modes need {len(self.modes) - 1} inner ranks, got "
                f"{len(self.ranks)}: {self.ranks}"
            )
        if min(self.ranks) < 1:
            raise ValueError(f"ranks must be at least 1, got {self.ranks}")

    @classmethod
    def of(
        cls,
        in_features: int,
        out_features: int,
        rank: int | Sequence[int],
        in_modes: Sequence[int] | None = None,
        out_modes: Sequence[int] | None = None,
    ) -> "TTShape":
        """Fill in balanced modes where none are given, and one rank for all inner ranks.

        Args:
            in_features: rows of the matrix.
            out_features: columns of the matrix.
            rank: one rank for every inner boundary, or the list of inner ranks.
            in_modes: modes of the rows. Default: :func:`balanced_modes`.
            out_modes: modes of the columns. Default: :func:`balanced_modes`.

        Returns:
            The shape.

        Raises:
            ValueError: see the class.
        """
        in_modes = tuple(in_modes or balanced_modes(in_features))
        out_modes = tuple(out_modes or balanced_modes(out_features))
        if isinstance(rank, int):
            rank = [rank] * (len(in_modes) + len(out_modes) - 1)
        return cls(in_features, out_features, in_modes, out_modes, tuple(rank))

    @property
    def modes(self) -> tuple[int, ...]:
        """All modes, input first."""
        return self.in_modes + self.out_modes

    @property
    def cut(self) -> int:
        """The number of input cores."""
        return len(self.in_modes)

    @property
    def core_shapes(self) -> list[tuple[int, int, int]]:
        """The shapes ``(r_{k-1}, n_k, r_k)`` of the cores."""
        return list(zip((1, *self.ranks), self.modes, (*self.ranks, 1), strict=True))

    @property
    def transposed(self) -> "TTShape":
        """The shape of the transposed matrix: modes and ranks in reverse order."""
        return TTShape(
            self.out_features,
            self.in_features,
            self.out_modes[::-1],
            self.in_modes[::-1],
            self.ranks[::-1],
        )

    @property
    def num_parameters(self) -> int:
        """Elements of all cores together."""
        return sum(map(math.prod, self.core_shapes))

    def to_matrix(self, cores: Sequence[Tensor]) -> Tensor:
        """Multiply the cores out.

        Args:
            cores: tensors of :attr:`core_shapes`, of any floating dtype.

        Returns:
            The dense matrix ``(in_features, out_features)`` in the dtype of the cores.
        """
        product = cores[0]
        for core in cores[1:]:
            product = torch.tensordot(product, core, dims=1)
        padded = product.reshape(math.prod(self.in_modes), math.prod(self.out_modes))
        return padded[: self.in_features, : self.out_features]


def tt_svd(matrix: Tensor, shape: TTShape) -> list[Tensor]:
    """Decompose a matrix into cores by successive truncated SVDs, computed in float64.

    The error is zero up to rounding if the ranks suffice, and otherwise at most ``sqrt(d - 1)``
    times that of the best approximation with these ranks. The cores are scaled to equal norms, so
    that noise of one size perturbs each by the same share.

    Args:
        matrix: a dense matrix ``(in_features, out_features)``.
        shape: the shape to decompose into. Ranks beyond those of the matrix are filled with zeros.

    Returns:
        The cores, of ``shape.core_shapes``, in the dtype and on the device of the matrix.

    Raises:
        ValueError: if the matrix has not the widths of ``shape``.
    """
    if tuple(matrix.shape) != (shape.in_features, shape.out_features):
        raise ValueError(
            f"the matrix is {tuple(matrix.shape)}, the shape is for "
            f"({shape.in_features}, {shape.out_features})"
        )
    rest = matrix.new_zeros(
        math.prod(shape.in_modes), math.prod(shape.out_modes), dtype=torch.float64
    )
    rest[: shape.in_features, : shape.out_features] = matrix
    cores = []
    for left, mode, right in shape.core_shapes[:-1]:
        u, s, v = torch.linalg.svd(rest.reshape(left * mode, -1), full_matrices=False)
        kept = min(right, len(s))
        core = rest.new_zeros(left * mode, right)
        core[:, :kept] = u[:, :kept]
        carried = rest.new_zeros(right, v.shape[1])
        carried[:kept] = s[:kept, None] * v[:kept]
        cores.append(core.reshape(left, mode, right))
        rest = carried
    cores.append(rest.reshape(shape.core_shapes[-1]))
    return [core.to(matrix.dtype) for core in _equal_norms(cores)]


def _equal_norms(cores: list[Tensor]) -> list[Tensor]:
    norms = torch.stack([core.norm() for core in cores])
    if not norms.all():
        return cores
    target = norms.log().mean().exp()
    return [core * (target / norm) for core, norm in zip(cores, norms, strict=True)]
