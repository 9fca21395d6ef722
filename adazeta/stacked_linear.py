"""A plain linear layer, such as a classification head, evaluated at several parameter vectors."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from adazeta.stacking import StackedParameters

NamedParameters = Iterable[tuple[str, nn.Parameter]]
_MOST = 1 << 22  # elements of a parameter; copies of larger ones are not worth their memory


class StackedLinear:
    """Computes a ``nn.Linear`` with stacked copies of its parameters while some are set.

    Stands beside the layer as :class:`~adazeta.stacking.StackedParameters` stands for
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
