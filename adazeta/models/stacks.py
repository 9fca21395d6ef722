"""The stacks of equal blocks that most of a model consists of."""

from torch import nn

from adazeta.models.structure import linear_widths


def linears_of(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Return the widths (in, out) of the linears of a module by their path."""
    widths = {name: linear_widths(module) for name, module in model.named_modules()}
    return {name: width for name, width in widths.items() if width is not None}


def main_stacks(model: nn.Module) -> dict[str, nn.ModuleList]:
    """Return the outermost stack of blocks with most parameters, and all others of its width."""
    stacks: dict[str, nn.ModuleList] = {}
    for name, module in model.named_modules():
        inside = name.startswith(tuple(f"{outer}." for outer in stacks))
        if isinstance(module, nn.ModuleList) and not inside and linears_of(module):
            stacks[name] = module
    if not stacks:
        return {}
    main = max(stacks.values(), key=lambda stack: sum(p.numel() for p in stack.parameters()))
    residual = residual_width(main)
    return {name: stack for name, stack in stacks.items() if residual_width(stack) == residual}


def residual_width(stack: nn.ModuleList) -> int:
    """Return the width of the residual stream of a stack."""
    # A block starts by reading the residual stream.
    return next(in_features for in_features, _ in linears_of(stack).values())


def selected_blocks(model: nn.Module, layers: str | list[int]) -> list[str]:
    """Return the paths of blocks of the main stacks.

    Args:
        model: the model.
        layers: indices, negative ones counted from the end, or ``"last:N"``.

    Raises:
        ValueError: there are no blocks, or not so many.
    """
    stacks = main_stacks(model)
    if not stacks:
        raise ValueError(
            f"layers={layers!r} needs blocks to count, but {type(model).__name__} has no "
            "nn.ModuleList of blocks; leave layers unset and choose by target_modules"
        )
    selected = []
    for path, stack in stacks.items():
        indices = (
            range(-int(layers.removeprefix("last:")), 0) if isinstance(layers, str) else layers
        )
        for index in indices:
            if not -len(stack) <= index < len(stack):
                raise ValueError(
                    f"layers={layers!r} asks for block {index} of {path!r}, which has {len(stack)}"
                )
            selected.append(f"{path}.{index % len(stack)}")
    return selected
