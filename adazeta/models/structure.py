"""Find the parts of a model by what they are, not by what the model is called."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from transformers.pytorch_utils import Conv1D

from adazeta.models.packed import PackedLinear

HEADS = ("classifier", "score")


def coarsest_dtype(source: nn.Module | Iterable[Tensor]) -> torch.dtype:
    """Return the dtype that rounds most, of those of a module's floating parameters or of some."""
    parameters = source.parameters() if isinstance(source, nn.Module) else source
    floating = {p.dtype for p in parameters if p.is_floating_point()}
    return max(floating, key=lambda dtype: torch.finfo(dtype).eps)


def linear_widths(module: nn.Module) -> tuple[int, int] | None:
    """Return (in_features, out_features) of a linear-like module, None for any other.

    Linear-like are ``nn.Linear``, transformers' ``Conv1D`` and everything that states both widths,
    as quantised linears do. The output projection of ``nn.MultiheadAttention`` is not: its weight
    is used without the module being called.
    """
    if isinstance(module, Conv1D):
        return module.nx, module.nf
    if isinstance(module, NonDynamicallyQuantizableLinear):
        return None
    in_features = getattr(module, "in_features", None)
    out_features = getattr(module, "out_features", None)
    if isinstance(in_features, int) and isinstance(out_features, int):
        return in_features, out_features
    return None


def quantised_sizes(model: nn.Module) -> dict[int, int]:
    """Count what the weights of quantised linears and embeddings stand for, by the weight's id."""
    found = {}
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if not isinstance(weight, Tensor) or weight.is_floating_point():
            continue
        table: Any = module
        widths = linear_widths(module)
        if widths is None and hasattr(module, "num_embeddings"):
            widths = table.num_embeddings, table.embedding_dim
        if widths is not None:
            found[id(weight)] = widths[0] * widths[1]
    return found


def plain_head(model: nn.Module) -> nn.Linear | PackedLinear | None:
    """Return the output embedding if it does nothing but multiply with its weight.

    What it multiplies with is for :func:`adazeta.models.packed.outputs_of`.
    """
    find = getattr(model, "get_output_embeddings", None)
    head = None if find is None else find()
    if type(head) not in (nn.Linear, PackedLinear) or "forward" in vars(head):
        return None
    assert isinstance(head, nn.Linear | PackedLinear)
    hooked = head._forward_hooks or head._forward_pre_hooks
    return None if hooked else head


def blocks_with(
    model: nn.Module, parameters: Iterable[nn.Parameter], modules: Iterable[nn.Module] = ()
) -> tuple[list[nn.Module], int]:
    """Find the blocks that hold some of the parameters, and the index of the first such block.

    The blocks are the elements of the first ``nn.ModuleList`` in module order with any of the
    parameters in it. A block with one of the modules in it counts as one with parameters.

    Returns:
        All blocks, and how many lie below all the parameters: 0 where a parameter is registered
        before the blocks, or where a block's forward has been replaced.
    """
    wanted = {id(found) for found in (*parameters, *modules)}

    def holds(module: nn.Module) -> bool:
        return any(id(part) in wanted for part in (*module.parameters(), *module.modules()))

    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and holds(module):
            blocks = list(module)
            depth = next(k for k, block in enumerate(blocks) if holds(block))
            clear = not any(holds(part) for part in _registered_before(model, name))
            unpatched = all("forward" not in vars(block) for block in blocks[:depth])
            return blocks, depth if clear and unpatched else 0
    return [], 0


def _registered_before(model: nn.Module, name: str) -> list[nn.Module]:
    """Modules that are registered before the named one, at its level or above."""
    found: list[nn.Module] = []
    parent = model
    for part in name.split("."):
        for child_name, child in parent.named_children():
            if child_name == part:
                break
            found.append(child)
        parent = parent.get_submodule(part)
    return found
