"""How the directions of a method are drawn: over all elements, in subspaces, or over small ones.

A direction other than ``"full"`` is a reparametrisation of the model
(:mod:`adazeta.directions.subspace`, :mod:`adazeta.directions.sparse`): the trainable parameters
become cores or chosen elements, which are ordinary parameters of a
:class:`~adazeta.parameters.space.ParameterSpace`. So every update rule, every way to evaluate and
the probe log work with each of them.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from adazeta.directions.bases import is_thin, near_square
from adazeta.directions.reparametrise import attach, is_reparametrised, matrix_hosts
from adazeta.directions.sparse import SparseWeight
from adazeta.directions.subspace import add_subspaces
from adazeta.parameters.space import ParameterSpace, Schedule

Shapes = Sequence[Sequence[int]]
Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Direction:
    """One way to draw directions.

    Attributes:
        settings: the settings it takes, with their defaults.
        prepare: ``(model, settings, seed)``: reparametrises the model; returns the schedule of
            what happens after steps, or None.
        state_bytes: ``(shapes, settings, width)``: memory beside the model for trainable parameters
            of these shapes and so many bytes an element, without any rule's state.
        trained: ``(shapes, settings)``: elements of the parameter space, which a rule's state has.
    """

    settings: Settings
    prepare: Callable[[nn.Module, Settings, int], Schedule | None]
    state_bytes: Callable[[Shapes, Settings, int], int]
    trained: Callable[[Shapes, Settings], int]

    def build(
        self,
        name: str,
        model: nn.Module,
        settings: Settings,
        *,
        distribution: str = "gaussian",
        perturbation: str = "auto",
        seed: int = 0,
    ) -> ParameterSpace:
        """Reparametrise a model and return the space of its trainable parameters.

        A model that has the reparametrisation already, as one whose run goes on, is refused.

        Args:
            name: of this direction, for :attr:`ParameterSpace.direction`.
            model: the model, changed in place.
            settings: those that differ from the defaults.
            distribution: see :class:`ParameterSpace`.
            perturbation: see :class:`ParameterSpace`.
            seed: of the run.

        Raises:
            ValueError: an unknown setting, one out of its range, or see :class:`ParameterSpace`.
        """
        for key in settings:
            if key not in self.settings:
                known = ", ".join(self.settings) or "none"
                raise ValueError(f"direction {name!r} has no setting {key!r}; it has: {known}")
        merged = {**self.settings, **settings}
        schedule = self.prepare(model, merged, seed)
        return ParameterSpace(
            model,
            distribution=distribution,
            perturbation=perturbation,
            direction={"name": name, "settings": merged},
            schedule=schedule,
        )


def space_for(
    model: nn.Module,
    direction: str = "full",
    settings: Settings | None = None,
    *,
    distribution: str = "gaussian",
    perturbation: str = "auto",
    seed: int = 0,
) -> ParameterSpace:
    """Return the parameter space of a model for a direction, see :meth:`Direction.build`.

    Args:
        model: the model, changed in place unless the direction is ``"full"``.
        direction: a key of :data:`DIRECTIONS`.
        settings: of the direction.
        distribution: see :class:`ParameterSpace`.
        perturbation: see :class:`ParameterSpace`.
        seed: of the run.

    Raises:
        ValueError: the direction is unknown, or see :meth:`Direction.build`.
    """
    if direction not in DIRECTIONS:
        raise ValueError(f"direction must be one of {', '.join(DIRECTIONS)}, got {direction!r}")
    return DIRECTIONS[direction].build(
        direction,
        model,
        settings or {},
        distribution=distribution,
        perturbation=perturbation,
        seed=seed,
    )


def _subspaces(kind: str) -> Callable[[nn.Module, Settings, int], Schedule]:
    def prepare(model: nn.Module, settings: Settings, seed: int) -> Schedule:
        return add_subspaces(model, kind, seed=seed, **settings)

    return prepare


def _sparse_weight(weight: Tensor, sparsity: float, role: str) -> SparseWeight:
    return SparseWeight(weight, sparsity)  # the same in every role


def _sparse(model: nn.Module, settings: Settings, seed: int) -> None:
    sparsity = settings["sparsity"]
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity must be in [0, 1), got {sparsity}")
    if is_reparametrised(model):
        raise ValueError(
            "the model is reparametrised already; call merge(model) of "
            "adazeta.directions.reparametrise first"
        )
    for hosts in matrix_hosts(model).values():
        weight = getattr(hosts[0].module, hosts[0].local)
        if weight.numel():
            attach(hosts, "sparse", partial(_sparse_weight, weight, sparsity))


def _size(shape: Sequence[int]) -> int:
    return math.prod(shape)


def _chosen(shape: Sequence[int], settings: Settings) -> int:
    if len(shape) < 2:
        return _size(shape)
    return max(1, math.ceil(round((1 - settings["sparsity"]) * _size(shape), 6)))


def _core(kind: str) -> Callable[[Sequence[int], int], tuple[int, int]]:
    """Return a function that gives the elements of core and bases of a parameter."""

    def sizes(shape: Sequence[int], rank: int) -> tuple[int, int]:
        if len(shape) != 2:
            return _size(shape), 0
        view = shape
        if kind == "subzero" and is_thin(*shape):
            view = near_square(_size(shape))
            if view[0] == 1:
                return _size(shape), 0
        rows, columns = view
        r = min(rank, rows, columns)
        return (r * r, r * (rows + columns)) if kind == "subzero" else (rows * r, r * columns)

    return sizes


def _subspace_direction(kind: str, rank: int, refresh: int) -> Direction:
    sizes = _core(kind)

    def state_bytes(shapes: Shapes, settings: Settings, width: int) -> int:
        # Cores are new parameters; what keeps full directions is the model's own.
        found = [(shape, *sizes(shape, settings["rank"])) for shape in shapes]
        return sum(4 * (core + bases) for shape, core, bases in found if bases)

    def trained(shapes: Shapes, settings: Settings) -> int:
        return sum(sizes(shape, settings["rank"])[0] for shape in shapes)

    defaults = {"rank": rank, "refresh": refresh, "vectors": True, "frozen": False}
    return Direction(defaults, _subspaces(kind), state_bytes, trained)


DIRECTIONS: dict[str, Direction] = {
    "full": Direction(
        {},
        lambda model, settings, seed: None,
        lambda shapes, settings, width: 0,
        lambda shapes, settings: sum(map(_size, shapes)),
    ),
    "subzero": _subspace_direction("subzero", rank=8, refresh=1000),
    "lozo": _subspace_direction("lozo", rank=2, refresh=50),
    "sparse": Direction(
        {"sparsity": 0.8},
        _sparse,
        lambda shapes, settings, width: sum(
            width * _chosen(shape, settings) + -(-_size(shape) // 8)
            for shape in shapes
            if len(shape) > 1
        ),
        lambda shapes, settings: sum(_chosen(shape, settings) for shape in shapes),
    ),
}
