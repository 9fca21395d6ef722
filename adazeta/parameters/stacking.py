"""Layers that can be evaluated at several parameter vectors in one forward."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from adazeta.kernels import FactorLayer, FactorPlan, Factors, perturbed_copies, stacked_factors

NamedParameters = Iterable[tuple[str, nn.Parameter]]
_MOST = 1 << 22  # elements of a parameter; copies of larger ones are not worth their memory


class StackedParameters(nn.Module):
    """A module whose own parameters can be replaced by stacked copies for the length of a context.

    With a stack of P copies set, the module treats the leading dimension of its input as P equal,
    consecutive groups of rows, and group p is computed with copy p. The parameters themselves stay
    as they are. A subclass reads each parameter through :meth:`value`.

    :class:`Stacks` sets and clears :attr:`stacked`, for the context of
    :meth:`adazeta.parameters.space.ParameterSpace.stacked`.

    Attributes:
        can_stack: False where an instance, unlike its class, computes one copy at a time.
    """

    can_stack = True

    def __init__(self) -> None:
        """Start with no stack: the module computes with its own parameters."""
        super().__init__()
        self.stacked: dict[str, Tensor] | None = None

    def value(self, name: str) -> Tensor:
        """Return the stack of a parameter if one is set, else the parameter itself.

        Args:
            name: the parameter's name relative to this module, e.g. ``"cores.0"``.

        Returns:
            A tensor ``(P, *shape)`` under a stack, otherwise the parameter ``(*shape)``.
        """
        if self.stacked is not None and name in self.stacked:
            return self.stacked[name]
        return self.get_parameter(name)


@dataclass(eq=False)
class FactorTable:
    """The factors that the tensor-train layers of a model compute with, in one place.

    So that one assignment sets those of hundreds of layers, or takes them away.

    Attributes:
        factors: of each layer, or None.
        read: whether every layer looks here; another table that took some over sets it to False.
    """

    factors: Sequence[Factors] | None = None
    read: bool = False

    def __getstate__(self) -> dict[str, object]:
        """Keep nothing: a copy of a model, even one of an evaluation, computes from its cores."""
        return {}


class FactoredParameters(StackedParameters):
    """A stackable module that needs of its parameters only the tensor-train factors.

    The factors of all such modules of a model come from one launch, so no copy of a core is made
    and no forward chains cores. A subclass computes with :attr:`factors` where they are set; the
    contexts that set and clear them are those of :class:`adazeta.parameters.space.ParameterSpace`.
    """

    def __init__(self) -> None:
        """Start with no factors set."""
        super().__init__()
        self._table: FactorTable | None = None
        self._place = 0

    @property
    def factors(self) -> Factors | None:
        """The factors that are set, or None: the module computes with its own parameters."""
        table = self._table
        return None if table is None or table.factors is None else table.factors[self._place]

    def read_factors_of(self, table: FactorTable, place: int) -> None:
        """Take the factors from a place of a table from now on."""
        if self._table is not None and self._table is not table:
            self._table.read = False
        self._table, self._place = table, place

    def factor_layer(self, offsets: Mapping[str, int]) -> FactorLayer | None:
        """Describe the cores and the bias in a flat parameter vector.

        Args:
            offsets: index of the first element of each parameter of this module, by name.

        Returns:
            The entry of a :class:`~adazeta.kernels.FactorPlan`, or None if the layer is beyond the
            limits of a plan; it is then stacked by copies of its parameters.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say where its cores lie")


class StackedLinear:
    """Computes a ``nn.Linear`` with stacked copies of its parameters while some are set.

    Stands beside the layer as :class:`~adazeta.parameters.stacking.StackedParameters` stands for
    tensor-train layers; the layer itself, its name and its state stay as they are.

    Args:
        linear: the layer; see :meth:`fits`.
    """

    def __init__(self, linear: nn.Linear) -> None:
        self._linear = linear
        self._stacked: dict[str, Tensor] | None = None

    @staticmethod
    def fits(module: nn.Module) -> bool:
        """Tell whether a module is an ordinary linear layer of moderate size."""
        return (
            type(module) is nn.Linear
            and "forward" not in vars(module)
            and module.weight.numel() <= _MOST
        )

    @property
    def stacked(self) -> dict[str, Tensor] | None:
        """Copies ``(P, *shape)`` by the parameter's name, or None; set to begin and to end."""
        return self._stacked

    @stacked.setter
    def stacked(self, copies: dict[str, Tensor] | None) -> None:
        self._stacked = copies
        if copies is None:
            vars(self._linear).pop("forward", None)
        else:
            self._linear.forward = self._forward  # type: ignore[assignment, method-assign]

    def _forward(self, x: Tensor) -> Tensor:
        """Apply copy p to group p of the rows; x is ``(P * B, ..., in)``."""
        copies = self._stacked or {}
        weight = copies.get("weight", self._linear.weight)
        bias = copies.get("bias", self._linear.bias)
        groups = (weight if "weight" in copies else bias).shape[0]
        rows = x.reshape(groups, -1, x.shape[-1])
        y = torch.matmul(rows, weight.transpose(-1, -2))
        if bias is not None:
            y = y + (bias.unsqueeze(1) if bias.dim() == 2 else bias)
        return y.reshape(*x.shape[:-1], y.shape[-1])


Owner = StackedParameters | StackedLinear


def stacked_owners(
    source: nn.Module | NamedParameters, parameters: Sequence[nn.Parameter]
) -> list[tuple[Owner, str]] | None:
    """Find the one stackable module of each parameter; None if a parameter has none or several."""
    if not isinstance(source, nn.Module):
        return None
    owners: dict[int, list[tuple[Owner, str]]] = {id(p): [] for p in parameters}
    # Heads beside tensor-train layers; what has no such layer is no case for stacking.
    dense = any(isinstance(module, StackedParameters) for module in source.modules())
    for module in source.modules():
        owner: Owner
        if isinstance(module, StackedParameters):
            if not module.can_stack:
                continue
            owner = module
        elif dense and StackedLinear.fits(module):
            owner = StackedLinear(module)  # type: ignore[arg-type]
        else:
            continue
        # An adapter is a sub-module of its linear, which does not own it.
        whole = owner is module
        for local, parameter in module.named_parameters(recurse=whole, remove_duplicate=False):
            if id(parameter) in owners:
                owners[id(parameter)].append((owner, local))
    if any(len(found) != 1 for found in owners.values()):
        return None
    return [owners[id(parameter)][0] for parameter in parameters]


class Stacks:
    """Gives the modules of a model several parameter vectors at once, or factors of one.

    Args:
        source: the model, or ``(name, parameter)`` pairs, of which none can be stacked.
        parameters: the trainable parameters.
        offsets: index of each parameter's first element in the vector of them all.
        distribution: of the directions, ``"gaussian"``, ``"rademacher"`` or ``"pairs"``.
    """

    def __init__(
        self,
        source: nn.Module | NamedParameters,
        parameters: Sequence[nn.Parameter],
        offsets: Sequence[int],
        distribution: str,
    ) -> None:
        self._owned = stacked_owners(source, parameters)
        self._parameters, self._offsets = parameters, offsets
        self._distribution = distribution
        self._factored, self._plan = self._plan_factors()
        self._table = FactorTable()
        self._single: tuple[Tensor, list[Factors]] | None = None
        factored: set[Owner] = set(self._factored)
        self._copied = [owner for owner in self.owners if owner not in factored]

    @property
    def possible(self) -> bool:
        """Whether every parameter belongs to exactly one module that supports stacking."""
        return self._owned is not None

    @property
    def owners(self) -> list[Owner]:
        """The modules that hold the parameters, each once; none if some hold none that stacks."""
        return list(dict.fromkeys(owner for owner, _ in self._owned or []))

    @contextmanager
    def of(self, theta: Tensor, seeds: Tensor, scales: Tensor) -> Iterator[None]:
        """Compute group p of the rows with ``theta + scales[p] * z(seeds[p])`` in the context.

        Args:
            theta: float32, the parameters in their places.
            seeds: int64 (P,).
            scales: float32 (P,).
        """
        factored: set[Owner] = set(self._factored)
        try:
            with torch.no_grad():
                self.set_factors(theta, seeds, scales)
            if not factored:  # all of them in one launch
                every = perturbed_copies(theta, seeds, scales, distribution=self._distribution)
            for (owner, local), parameter, offset in zip(
                self._owned or [], self._parameters, self._offsets, strict=True
            ):
                if owner in factored:
                    continue
                if owner.stacked is None:
                    owner.stacked = {}
                if not factored:
                    end = offset + parameter.numel()
                    copies = every[:, offset:end].view(-1, *parameter.shape)
                else:
                    copies = perturbed_copies(
                        parameter.data,
                        seeds,
                        scales,
                        offset=offset,
                        distribution=self._distribution,
                    )
                owner.stacked[local] = copies
            yield
        finally:
            self.clear()

    def set_factors(
        self, theta: Tensor, seeds: Tensor | None = None, scales: Tensor | None = None
    ) -> None:
        """Give the tensor-train layers their factors of one launch, of theta or of a stack."""
        if not self._factored:
            return
        if seeds is None:
            out, views = self._buffer(theta.device)
            stacked_factors(theta, self._plan, out=out)
        else:
            factors = stacked_factors(
                theta, self._plan, seeds, scales, distribution=self._distribution
            )
            views = self._plan.views(factors)
        if not self._table.read:
            for place, module in enumerate(self._factored):
                module.read_factors_of(self._table, place)
            self._table.read = True
        self._table.factors = views

    def _buffer(self, device: torch.device) -> tuple[Tensor, list[Factors]]:
        """Return the factors of one parameter vector, the same memory every time.

        Those of a stack are made anew: to keep them would cost P times as much.
        """
        if self._single is None or self._single[0].device != device:
            with torch.inference_mode(False):
                out = torch.empty((1, self._plan.size), device=device)
                self._single = out, self._plan.views(out)
        return self._single

    def held(self) -> list[Tensor]:
        """Return the memory of the factors of one parameter vector, if there is any."""
        return [] if self._single is None else [self._single[0]]

    def keep(self, groups: Tensor) -> None:
        """Leave some of the parameter vectors of a stack out for the rest of its context.

        Args:
            groups: int64, indices among those that are there.
        """
        if self._table.factors is not None:
            at = groups.to(self._table.factors[0].a.device)
            self._table.factors = [
                Factors(*(x if x is None else x[at] for x in factors))
                for factors in self._table.factors
            ]
        for owner in self.owners:
            if owner.stacked is not None:
                owner.stacked = {n: x[groups.to(x.device)] for n, x in owner.stacked.items()}

    def clear(self) -> None:
        """Take stacks and factors away: the modules compute with their own parameters."""
        self._table.factors = None
        for owner in self._copied:
            owner.stacked = None

    def _plan_factors(self) -> tuple[list[FactoredParameters], FactorPlan]:
        """Find the tensor-train layers that lie in the space whole, and plan their factors."""
        owned: dict[FactoredParameters, dict[str, int]] = {}
        for (module, local), parameter, offset in zip(
            self._owned or [], self._parameters, self._offsets, strict=False
        ):
            if isinstance(module, FactoredParameters) and parameter.dtype == torch.float32:
                owned.setdefault(module, {})[local] = offset
        found = []
        for module, offsets in owned.items():
            if set(offsets) == {name for name, _ in module.named_parameters()}:
                layer = module.factor_layer(offsets)
                if layer is not None:
                    found.append((module, layer))
        return [module for module, _ in found], FactorPlan(tuple(layer for _, layer in found))
