"""A matrix trained through a small core: ``W + s L C R^T`` with random bases L and R.

SubZero (arXiv 2410.08989): L (m x r) and R (n x r) have orthonormal columns, the core C is
(r x r), and ``s = sqrt(m n) / r``. LOZO (arXiv 2410.07698): R is Gaussian, L is the identity, the
core is (m x r), and ``s = 1 / sqrt(r)``. In both, a standard normal perturbation of the core moves
the elements of W by variables of variance one, as MeZO's does, so its scale and rate transfer; and
the estimate of the core's gradient, carried to W, is unbiased in the mean over the bases. (LOZO's
paper perturbs by ``U V^T`` and divides the update by r: the factor ``1 / sqrt(r)`` in both places
is the same method at ``eps sqrt(r)``. Its code has the 1/r in neither.)
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from adazeta.directions.bases import gaussian_basis, haar_basis
from adazeta.directions.reparametrise import ReparametrisedWeight
from adazeta.kernels import low_rank_add
from adazeta.kernels.reference.noise import round_stochastically
from adazeta.kernels.reference.philox import ROUNDING_STREAM, words
from adazeta.parameters.stacking import StackedParameters
from adazeta.support.seeds import BASES_SEEDS, FOLD_SEEDS, derive_seed

_PIECE = 1 << 22  # elements of a matrix that are folded at a time


class SubspaceWeight(StackedParameters, ReparametrisedWeight):
    """The core of one matrix and the bases that it acts through.

    A sub-module of the module that holds the matrix, called by a hook of that module. What the
    module computes with is ``W + delta``; W itself is read only, until :meth:`fold`.

    Args:
        shape: of the matrix as it is stored.
        view: the shape in which the subspace sees its elements; a view that is not the shape
            itself is meant for small matrices, whose delta is built.
        kind: ``"subzero"`` or ``"lozo"``.
        rank: r, at most either side of the view.
        role: what the matrix is to the first module that holds it: ``"linear"`` (out x in),
            ``"conv1d"`` (in x out), ``"embedding"`` (rows are looked up) or ``"swap"`` (anything:
            the module runs with another tensor in the matrix's place, one parameter vector at a
            time).
        seed: of the run.
        layer: number of the matrix in its model.
        device: of the core.

    Attributes:
        core: float32 ``(r, r)`` or ``(m, r)``, zero at first and after every fold.
        index: number of the present bases, an int64 scalar.
        left, right: the bases, drawn from ``(seed, layer, index)`` and kept in no state.
        scale: s.
    """

    suffix = "subspace"
    index: Tensor

    def __init__(
        self,
        shape: tuple[int, int],
        view: tuple[int, int],
        kind: str,
        rank: int,
        role: str,
        *,
        seed: int,
        layer: int,
        device: torch.device,
    ) -> None:
        super().__init__()
        self.shape, self.view, self.kind, self.rank, self.role = shape, view, kind, rank, role
        self.can_stack = role != "swap"
        self._seed, self._layer = seed, layer
        rows, columns = view
        self.scale = math.sqrt(rows * columns) / rank if kind == "subzero" else rank**-0.5
        self.core = nn.Parameter(torch.zeros(core_shape(kind, view, rank), device=device))
        self.register_buffer("index", torch.zeros((), dtype=torch.int64))
        self.redraw()

    def redraw(self) -> None:
        """Draw the bases of the present index."""
        rows, columns = self.view
        index, device = int(self.index), self.core.device
        place = (self._seed, BASES_SEEDS, self._layer, index)
        left, right = (derive_seed(*place, side) for side in (0, 1))
        self.left: Tensor | None = None
        if self.kind == "subzero":
            self.left = haar_basis(left, rows, self.rank, device)
            self.right = haar_basis(right, columns, self.rank, device)
        else:
            self.right = gaussian_basis(right, columns, self.rank, device)
        self._drawn = (index, device)

    def settle(self) -> None:
        """Make the bases those of the index and of the core's device, after either has changed."""
        if self._drawn != (int(self.index), self.core.device):
            self.redraw()

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)  # type: ignore[no-untyped-call]
        self.settle()

    def _apply(self, *args: Any, **kwargs: Any) -> "SubspaceWeight":
        super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]
        if not self.core.is_meta:
            self.settle()
        return self

    def forward(self, x: Tensor, y: Tensor | None = None, role: str = "swap") -> Tensor:
        """Add what the delta does to the output of the module, or to the matrix itself.

        Args:
            x: input of the module: rows for a linear, indices for an embedding; the matrix for
                ``"swap"``. Under a stack of P cores its leading dimension is P equal groups.
            y: output of the module; None for ``"swap"``.
            role: what the matrix is to the module.

        Returns:
            The new output, in the dtype of the old one; or the new matrix.
        """
        core = self.value("core").float()  # whatever model.to() made of it
        if y is None:
            return (x.float() + self.dense(core)).to(x.dtype)
        if role == "embedding":
            return self._look_up(x, y, core)
        return low_rank_add(y, x, *self._factors(core, role), scale=self.scale)

    def dense(self, core: Tensor) -> Tensor:
        """Return the delta of a core, or of a stack of cores, in the shape of the matrix."""
        delta = (core if self.left is None else self.left @ core) @ self.right.mT
        return (delta * self.scale).view(*core.shape[:-2], *self.shape)

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return A ``(in, r)`` and B ``(r, out)``: a linear computes ``x W + (x A) B`` meanwhile.

        Raises:
            ValueError: the delta of a viewed matrix, or of one that is no linear's, has none.
        """
        if self.role not in ("linear", "conv1d") or self.view != self.shape:
            raise ValueError(f"a delta of shape {self.shape} in the role {self.role!r}, viewed as "
                             f"{self.view}, has no low-rank factors; use dense()")  # fmt: skip
        a, b = self._factors(self.core.detach(), self.role)
        return a, b * self.scale

    def _factors(self, core: Tensor, role: str) -> tuple[Tensor, Tensor]:
        """A and B without the scale; one of them is stacked if the core is."""
        if self.view != self.shape:
            delta = self.dense(core) / self.scale
            a = delta.mT if role == "linear" else delta
            narrow = min(a.shape[-2:])  # the inner dimension, as short as it can be
            one = torch.eye(narrow, device=a.device)
            return (one, a) if a.shape[-2] == narrow else (a, one)
        wide = core if self.left is None else self.left @ core  # (..., m, r)
        if role == "linear":
            return self.right, wide.mT
        return wide, self.right.mT

    def _look_up(self, indices: Tensor, y: Tensor, core: Tensor) -> Tensor:
        """Add the delta's rows of the indices: (L[i] C) R^T, each group of rows with its core."""
        table = core if self.left is None else self.left
        if self.view != self.shape:
            table = self.dense(core)
        groups = core.shape[0] if core.dim() == 3 else 1
        rows = indices.reshape(groups, -1)
        if table.dim() == 3:
            found = table[torch.arange(groups, device=rows.device)[:, None], rows]
        else:
            found = table[rows]
        if self.view == self.shape:
            if self.left is not None:
                found = found @ core
            found = (found @ self.right.mT) * self.scale
        return (y.float() + found.view(y.shape)).to(y.dtype)

    def merged(self, weight: Tensor, rounding: str) -> Tensor:
        """Return the matrix with the delta added, as a new tensor of its shape and dtype."""
        # Below every step's number, so that no fold has the same seed.
        return self.fold(weight, -1, rounding, out=torch.empty_like(weight))

    @torch.no_grad()
    def fold(self, weight: Tensor, step: int, rounding: str, out: Tensor | None = None) -> Tensor:
        """Add the delta to the matrix.

        Args:
            weight: the matrix.
            step: number that the seed of stochastic rounding is made of.
            rounding: ``"stochastic"`` or ``"nearest"``, of bfloat16 and float16 matrices.
            out: where to write; by default the matrix itself.

        Returns:
            ``out``. The core stays as it is.
        """
        out = weight if out is None else out
        seed = derive_seed(self._seed, FOLD_SEEDS, self._layer, step)
        key = torch.tensor([seed], dtype=torch.int64, device=weight.device)
        for rows, delta in self._pieces():
            value = weight[rows].float() + delta
            if rounding == "stochastic" and weight.dtype != torch.float32:
                start = rows.start * self.shape[1]
                random = words(key, start, value.numel(), ROUNDING_STREAM)
                value = round_stochastically(value, random.view(value.shape), weight.dtype)
            out[rows] = value.to(weight.dtype)
        return out

    def _pieces(self) -> Iterator[tuple[slice, Tensor]]:
        """Cut the delta in runs of rows."""
        rows, columns = self.shape
        if self.view != self.shape:
            yield slice(0, rows), self.dense(self.core.float())
            return
        core = self.core.float()
        wide = core if self.left is None else self.left @ core
        step = max(1, _PIECE // columns)
        for start in range(0, rows, step):
            part = slice(start, min(start + step, rows))
            yield part, (wide[part] @ self.right.mT) * self.scale

    @torch.no_grad()
    def move(self, momenta: list[Tensor]) -> None:
        """Set the core to zero and go on to the next bases.

        Args:
            momenta: states in the shape of the core that are linear in the gradient; each becomes
                the coordinates, in the new bases, of the matrix that it stood for:
                ``L'^T L M R^T R'``, for LOZO ``N V^T V' / n`` as LOZO-M has it.
        """
        left, right = self.left, self.right
        self.core.zero_()
        self.index += 1
        self.redraw()
        overlap = right.mT @ self.right
        for momentum in momenta:
            if left is None or self.left is None:
                momentum.copy_(momentum @ overlap / len(right))
            else:
                momentum.copy_(self.left.mT @ left @ momentum @ overlap)

    @property
    def basis_bytes(self) -> int:
        """Memory of the bases: 4 r (m + n) for SubZero, 4 r n for LOZO."""
        return 4 * (self.right.numel() + (0 if self.left is None else self.left.numel()))

    def extra_repr(self) -> str:
        """Describe the subspace in ``print(model)``."""
        return f"{self.kind}, view={self.view}, rank={self.rank}, role={self.role}"


def core_shape(kind: str, view: tuple[int, int], rank: int) -> tuple[int, int]:
    """Return the shape of the core of a matrix that is seen as ``view``."""
    return (rank if kind == "subzero" else view[0], rank)


def basis_elements(kind: str, view: tuple[int, int], rank: int) -> int:
    """Return the numbers in the bases of a matrix that is seen as ``view``."""
    rows, columns = view
    return rank * (rows + columns if kind == "subzero" else columns)
