"""Matrices of a model trained through other parameters: attach, find, merge and take off again.

A reparametrisation is a sub-module ``<parameter>_subspace`` or ``<parameter>_sparse`` of the module
that holds the matrix, called by that module's hooks. The matrix is frozen and keeps its name.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from transformers.pytorch_utils import Conv1D

from adazeta.models.structure import linear_widths

PARAMETERS = {"subspace": "core", "sparse": "values"}
"""Name of the one parameter of each kind. A table, so that names in a log can be read as they are:
``<matrix>_<suffix>.<parameter>``."""

_SUFFIX = re.compile(f"_({'|'.join(map('[.]'.join, PARAMETERS.items()))})$")


class ReparametrisedWeight(nn.Module):
    """A sub-module of the module that holds a matrix, called by hooks of that module.

    The matrix itself is frozen. A subclass has one parameter, and a ``forward`` that takes the
    matrix and returns the one to compute with; or, unless it :attr:`always_swaps`, the input and
    the output of the module and what the matrix is to it, and returns the new output.

    Attributes:
        suffix: of its name, a key of :data:`PARAMETERS`.
        always_swaps: the module always runs with another tensor in the matrix's place.
    """

    suffix: ClassVar[str]
    always_swaps: ClassVar[bool] = False

    def merged(self, weight: Tensor, rounding: str) -> Tensor:
        """Return the matrix that the module computes with, as a new tensor.

        Args:
            weight: the matrix.
            rounding: ``"stochastic"`` or ``"nearest"``, where a result has to be rounded.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say how it is merged")


class Host(NamedTuple):
    """A module that holds a matrix."""

    path: str
    module: nn.Module
    local: str


class Attached(NamedTuple):
    """A reparametrisation: its path, the module that holds it, the matrix's name there, itself."""

    path: str
    host: nn.Module
    local: str
    module: ReparametrisedWeight


def attached(model: nn.Module) -> Iterator[Attached]:
    """Yield the reparametrisations of a model, each once.

    Args:
        model: any model.
    """
    modules = dict(model.named_modules())
    for path, module in modules.items():
        if isinstance(module, ReparametrisedWeight):
            host, _, name = path.rpartition(".")
            yield Attached(path, modules[host], name.rpartition("_")[0], module)


def is_reparametrised(model: nn.Module) -> bool:
    """Tell whether :func:`attached` yields any."""
    return any(True for _ in attached(model))


def check_plain(model: nn.Module) -> None:
    """Refuse a model that is reparametrised.

    Raises:
        ValueError: it is.
    """
    if is_reparametrised(model):
        raise ValueError(
            "the model is reparametrised already; call merge(model) of "
            "adazeta.directions.reparametrise first"
        )


def matrix_of(name: str) -> str:
    """Return the name of the matrix that a parameter of a reparametrisation stands for.

    Args:
        name: of any parameter; one of no reparametrisation comes back as it is.
    """
    return _SUFFIX.sub("", name)


def matrix_hosts(model: nn.Module) -> dict[int, list[Host]]:
    """Find the modules that hold each trainable matrix, by the parameter's id.

    A matrix that some holder uses without being called itself is left out: no hook would see it.
    """
    found: dict[int, list[Host]] = {}
    unseen: set[int] = set()
    for path, module in model.named_modules():
        own = module.named_parameters(recurse=False)
        for local, parameter in own:
            if not parameter.requires_grad or parameter.dim() < 2:
                continue
            if type(module).forward is nn.Module.forward or isinstance(
                module, NonDynamicallyQuantizableLinear
            ):
                unseen.add(id(parameter))
            found.setdefault(id(parameter), []).append(Host(path, module, local))
    return {key: hosts for key, hosts in found.items() if key not in unseen}


def role_of(host: Host) -> str:
    """Tell what a matrix is to its module.

    See :class:`~adazeta.directions.subspace_weight.SubspaceWeight`.
    """
    forward, module = type(host.module).forward, host.module
    if host.local == "weight" and "forward" not in vars(module):
        if isinstance(module, nn.Embedding) and forward is nn.Embedding.forward:
            return "embedding"
        if isinstance(module, nn.Linear) and forward is nn.Linear.forward:
            return "linear"
        if isinstance(module, Conv1D) and forward is Conv1D.forward:
            return "conv1d"
        weight = getattr(module, host.local)
        if linear_widths(module) is not None and not weight.is_floating_point():
            return "linear"  # quantised
    return "swap"


def attach(
    hosts: list[Host],
    kind: type[ReparametrisedWeight],
    make: Callable[[str], ReparametrisedWeight],
) -> None:
    """Give a matrix its reparametrisation, and freeze it.

    Args:
        hosts: all modules that hold the matrix, which may be tied.
        kind: class of the reparametrisation.
        make: makes it for a role; ``"swap"`` serves any module.
    """
    roles = [role_of(host) for host in hosts]
    swap = kind.always_swaps or "swap" in roles
    # One role for all holders, or hooks for each: an embedding tied to the output layer.
    module = make("swap" if swap else roles[0])
    first = hosts[0]
    first.module.add_module(f"{first.local}_{kind.suffix}", module)
    getattr(first.module, first.local).requires_grad_(False)
    handles = []
    for host, role in zip(hosts, roles, strict=True):
        # In a tuple, so that a second holder does not count as a parent.
        uses = vars(host.module).setdefault("_reparametrised", {})
        uses[host.local] = (module, role)
        if swap:
            handles.append(host.module.register_forward_pre_hook(_swap_in))
            handles.append(host.module.register_forward_hook(_swap_out, always_call=True))
        else:
            handles.append(host.module.register_forward_hook(_add_delta))
    vars(module)["attachment"] = (hosts, handles)


# Hooks are functions of this module, not closures, so that models can be copied and pickled.


def _add_delta(host: Any, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
    module, role = host._reparametrised["weight"]
    return module(args[0], output, role)


def _swap_in(host: Any, args: Any) -> None:
    for local, (module, _) in host._reparametrised.items():
        weight = getattr(host, local)
        if "original" not in vars(module):  # a module with two matrices has two such hooks
            changed = module(weight.data)
            vars(module)["original"] = weight.data
            weight.data = changed


def _swap_out(host: Any, args: Any, output: Any) -> None:
    for local, (module, _) in host._reparametrised.items():
        original = vars(module).pop("original", None)
        if original is not None:
            getattr(host, local).data = original


@torch.no_grad()
def merged_weight(found: Attached, rounding: str = "stochastic") -> Tensor:
    """Return the matrix that a module computes with, as a new tensor of its shape and dtype."""
    return found.module.merged(getattr(found.host, found.local).data, rounding)


def merged_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Return the state dict of the plain model that a reparametrised one computes as.

    Args:
        model: any model.

    Returns:
        The state dict without reparametrisations, with merged matrices in new memory; tied ones
        share theirs.
    """
    everything = list(attached(model))
    prefixes = tuple(f"{found.path}." for found in everything)
    merged = {id(getattr(found.host, found.local)): merged_weight(found) for found in everything}
    state = model.state_dict(keep_vars=True)
    return {
        name: merged[id(value)] if id(value) in merged else value.detach()
        for name, value in state.items()
        if not name.startswith(prefixes)
    }


@torch.no_grad()
def merge(model: nn.Module) -> nn.Module:
    """Write what was trained into the matrices, and take the reparametrisations off, in place.

    Args:
        model: any model.

    Returns:
        The same model; the matrices require gradients again.

    Raises:
        ValueError: a matrix is quantised and cannot be written;
            :func:`adazeta.directions.subspace.subspace_factors` has what was trained.
    """
    everything = list(attached(model))
    for found in everything:
        if not getattr(found.host, found.local).is_floating_point():
            raise ValueError(
                f"{found.path} belongs to a quantised matrix, which cannot take the update; save "
                "subspace_factors(model) beside the base instead"
            )
    for found in everything:
        weight = getattr(found.host, found.local)
        weight.data.copy_(merged_weight(found))
        weight.requires_grad_(True)
        _detach(found)
    return model


def _detach(found: Attached) -> None:
    hosts, handles = vars(found.module)["attachment"]
    for handle in handles:
        handle.remove()
    for host in hosts:
        vars(host.module)["_reparametrised"].pop(host.local)
    delattr(found.host, found.path.rpartition(".")[2])
