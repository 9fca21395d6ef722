"""Training in random subspaces: SubZero (arXiv 2410.08989) and LOZO (arXiv 2410.07698).

Between two folds the matrices of the model are only read: a step moves the cores, which are a few
thousand numbers, and every so many steps the cores are added to the matrices, set to zero, and
given other bases. All of it is a pure function of the run's seed and the step, so a log of probes
replays it, and a snapshot holds the matrices as they were folded last and the cores.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from adazeta.directions.bases import is_thin, near_square
from adazeta.directions.reparametrise import (
    Attached,
    Host,
    attach,
    attached,
    check_plain,
    matrix_hosts,
    matrix_of,
    role_of,
)
from adazeta.directions.subspace_weight import SubspaceWeight, basis_elements, core_shape
from adazeta.models.structure import linear_widths

LINEAR_STATES = ("momentum_buffer", "exp_avg")
"""States of the rules that are linear in the gradient, where a rule does not name its own."""


def add_subspaces(
    model: nn.Module,
    kind: str,
    *,
    rank: int,
    refresh: int,
    vectors: bool = True,
    frozen: bool = False,
    seed: int = 0,
) -> "FoldSchedule":
    """Train the matrices of a model through cores in random subspaces, in place.

    Matrices are the trainable parameters of two dimensions; all else that is trainable (biases,
    norms, filters) keeps full Gaussian directions. A matrix smaller than ``rank`` on one side gets
    that side as its rank. SubZero views thin matrices (a side of at most 64, four times shorter
    than the other: the tensors of LoRA, prefixes and prompts) as near-square ones first; where the
    number of elements has no two factors above 1, they keep full directions.

    Args:
        model: any model with trainable matrices.
        kind: ``"subzero"`` or ``"lozo"``.
        rank: of the subspaces.
        refresh: steps from one fold to the next; 0 for never, which makes the result an adapter of
            that rank, see :func:`subspace_factors`.
        vectors: train what keeps full directions too. Without it the parameters can be stacked,
            so that several evaluations share a forward and examples have their own directions.
        frozen: give the linears whose matrix is frozen (for instance quantised) a core as well;
            these cannot be folded, so ``refresh`` must be 0.
        seed: of the run.

    Returns:
        The schedule of the folds, for :attr:`adazeta.parameters.space.ParameterSpace.schedule`.

    Raises:
        ValueError: a setting is out of its range, the model has reparametrisations already, or
            there is no matrix to train; the model is then left as it was.
    """
    if kind not in ("subzero", "lozo"):
        raise ValueError(f"kind must be 'subzero' or 'lozo', got {kind!r}")
    if rank < 1:
        raise ValueError(f"rank must be 1 or more, got {rank}")
    if refresh < 0:
        raise ValueError(f"refresh must be 0 (never) or a number of steps, got {refresh}")
    if frozen and refresh:
        raise ValueError(
            f"refresh={refresh} would write to frozen matrices; set refresh=0, which trains an "
            "adapter of the given rank, or unfreeze them and leave frozen=False"
        )
    check_plain(model)
    plans = [*_plans(model, kind, rank), *(_frozen_plans(model) if frozen else [])]
    if not plans:
        raise ValueError(
            f"{kind} trains matrices, and the model has none that is trainable; unfreeze some, or "
            "set frozen=True for an adapter on every linear"
        )
    for layer, (hosts, shape, view) in enumerate(plans):
        place = getattr(hosts[0].module, hosts[0].local).device  # quantised, it may be a buffer

        def make(
            role: str,
            shape: tuple[int, int] = shape,
            view: tuple[int, int] = view,
            layer: int = layer,
            place: torch.device = place,
        ) -> SubspaceWeight:
            r = min(rank, *view)
            return SubspaceWeight(shape, view, kind, r, role, seed=seed, layer=layer, device=place)

        attach(hosts, SubspaceWeight, make)
    if not vectors:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(matrix_of(name) != name)
    return FoldSchedule(model, refresh)


Plan = tuple[list[Host], tuple[int, int], tuple[int, int]]


def _plans(model: nn.Module, kind: str, rank: int) -> Iterator[Plan]:
    """Yield the holders, the shape and the view of each trainable matrix."""
    for hosts in matrix_hosts(model).values():
        matrix = getattr(hosts[0].module, hosts[0].local)
        view = view_of(matrix.shape, kind)
        if view is not None:
            yield hosts, (matrix.shape[0], matrix.shape[1]), view


def view_of(shape: Sequence[int], kind: str) -> tuple[int, int] | None:
    """Return the shape in which a subspace sees a parameter; None if it keeps full directions."""
    if len(shape) != 2 or not math.prod(shape):
        return None
    rows, columns = shape
    if kind != "subzero" or not is_thin(rows, columns):
        return rows, columns
    view = near_square(rows * columns)
    return view if view[0] > 1 else None


def sizes(shape: Sequence[int], kind: str, rank: int) -> tuple[int, int]:
    """Return the elements of what is trained of a parameter, and of its bases.

    Args:
        shape: of the parameter.
        kind: ``"subzero"`` or ``"lozo"``.
        rank: of the subspaces.
    """
    view = view_of(shape, kind)
    if view is None:
        return math.prod(shape), 0
    rank = min(rank, *view)
    return math.prod(core_shape(kind, view, rank)), basis_elements(kind, view, rank)


def _frozen_plans(model: nn.Module) -> Iterator[Plan]:
    for path, module in model.named_modules():
        widths = linear_widths(module)
        weight = getattr(module, "weight", None)
        if widths is None or not isinstance(weight, Tensor) or weight.requires_grad:
            continue
        host = Host(path, module, "weight")
        if role_of(host) != "swap":
            shape = widths if role_of(host) == "conv1d" else (widths[1], widths[0])
            yield [host], shape, shape


class FoldSchedule:
    """Folds the cores of a model into its matrices every so many steps.

    Args:
        model: has the cores.
        refresh: steps from one fold to the next, 0 for never.
    """

    def __init__(self, model: nn.Module, refresh: int) -> None:
        self._model, self.refresh = model, refresh

    def after_step(self, optimizer: Any) -> None:
        """Fold if it is time: ``W <- W + delta``, cores to zero, other bases, momenta projected."""
        if not self.refresh or optimizer.steps % self.refresh:
            return
        for found, module in _subspaces(self._model):
            module.fold(getattr(found.host, found.local).data, optimizer.steps, optimizer.rounding)
            states = optimizer.state.get(module.core, {})
            names = getattr(optimizer, "linear_states", LINEAR_STATES)
            module.move([states[name] for name in names if name in states])
        told = getattr(optimizer, "on_refresh", None)
        if told is not None:
            told()

    def tensors(self) -> dict[str, Tensor]:
        """Return the matrices and the numbers of their bases, by name."""
        return folded_tensors(self._model)

    def follow_snapshot(self) -> None:
        """Draw the bases again whose number was changed."""
        for _, module in _subspaces(self._model):
            module.settle()


def subspace_factors(model: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the low-rank factors of what was trained since the last fold, by the linear's path.

    Args:
        model: a model whose linears are trained in subspaces.

    Returns:
        A ``(in, r)`` and B ``(r, out)``, float32: the linear computes ``x W + (x A) B``. With
        ``refresh=0`` that is all that was trained, to be saved beside a base that stays as it is.
    """
    return {found.path.rpartition(".")[0]: module.factors() for found, module in _subspaces(model)}


def folded_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return what steps change beside the trainable parameters: folded matrices and indices.

    Args:
        model: any model.

    Returns:
        The tensors by their names in the state dict.
    """
    names: dict[str, Tensor] = {}
    for found, module in _subspaces(model):
        holder = found.path.rpartition(".")[0]
        weight = getattr(found.host, found.local)
        if weight.is_floating_point():
            names[f"{holder}.{found.local}" if holder else found.local] = weight
        names[f"{found.path}.index"] = module.index
    return names


def _subspaces(model: nn.Module) -> Iterator[tuple[Attached, SubspaceWeight]]:
    for found in attached(model):
        if isinstance(found.module, SubspaceWeight):
            yield found, found.module
