"""Layers that can be evaluated at several parameter vectors in one forward."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from adazeta.kernels import FactorLayer, Factors

NamedParameters = Iterable[tuple[str, nn.Parameter]]
_MOST = 1 << 22  # elements of a parameter; copies of larger ones are not worth their memory


class StackedParameters(nn.Module):
    """A module whose own parameters can be replaced by stacked copies for the length of a context.

    With a stack of P copies set, the module treats the leading dimension of its input as P equal,
    consecutive groups of rows, and group p is computed with copy p. The parameters themselves stay
    as they are. A subclass reads each parameter through :meth:`value`.

    The context that sets and clears :attr:`stacked` is
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


class FactoredParameters(StackedParameters):
    """A stackable module that needs of its parameters only the tensor-train factors.

    The factors of all such modules of a model come from one launch, so no copy of a core is made
    and no forward chains cores. A subclass computes with :attr:`factors` where they are set; the
    contexts that set and clear them are those of :class:`adazeta.parameters.space.ParameterSpace`.
    """

    def __init__(self) -> None:
        """Start with no factors set."""
        super().__init__()
        self.factors: Factors | None = None

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
