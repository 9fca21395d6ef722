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
from typing import Any

from torch import nn

from adazeta.directions.sparse import add_sparse, chosen, memory
from adazeta.directions.subspace import add_subspaces, sizes
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
        folds: what is trained is added to the weights now and then and starts from zero again, so
            no rule may shrink it in the weights' stead.
        perturbs_weights: an evaluation takes a sweep over the weights outside of the forward.
        updates_weights: an update takes a sweep over them.
        trains_frozen: the setting that makes it train frozen linears too, None if it never does.
    """

    settings: Settings
    prepare: Callable[[nn.Module, Settings, int], Schedule | None]
    state_bytes: Callable[[Shapes, Settings, int], int]
    trained: Callable[[Shapes, Settings], int]
    folds: bool = False
    perturbs_weights: bool = True
    updates_weights: bool = True
    trains_frozen: str | None = None

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


def _subspace_direction(kind: str, rank: int, refresh: int) -> Direction:
    def prepare(model: nn.Module, settings: Settings, seed: int) -> Schedule:
        return add_subspaces(model, kind, seed=seed, **settings)

    def state_bytes(shapes: Shapes, settings: Settings, width: int) -> int:
        # Cores are new parameters; what keeps full directions is the model's own.
        found = [sizes(shape, kind, settings["rank"]) for shape in shapes]
        return sum(4 * (core + bases) for core, bases in found if bases)

    def trained(shapes: Shapes, settings: Settings) -> int:
        return sum(sizes(shape, kind, settings["rank"])[0] for shape in shapes)

    return Direction(
        {"rank": rank, "refresh": refresh, "vectors": True, "frozen": False},
        prepare,
        state_bytes,
        trained,
        folds=True,
        perturbs_weights=False,
        updates_weights=False,
        trains_frozen="frozen",
    )


DIRECTIONS: dict[str, Direction] = {
    "full": Direction(
        {},
        lambda model, settings, seed: None,
        lambda shapes, settings, width: 0,
        lambda shapes, settings: sum(math.prod(shape) for shape in shapes),
    ),
    "subzero": _subspace_direction("subzero", rank=8, refresh=1000),
    "lozo": _subspace_direction("lozo", rank=2, refresh=50),
    "sparse": Direction(
        {"sparsity": 0.8},
        lambda model, settings, seed: add_sparse(model, **settings),
        lambda shapes, settings, width: sum(
            memory(shape, settings["sparsity"], width) for shape in shapes
        ),
        lambda shapes, settings: sum(chosen(shape, settings["sparsity"]) for shape in shapes),
        updates_weights=False,
    ),
}
