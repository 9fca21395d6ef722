"""The blocks whose own input or output gets an adapter, and those that the adapter reads."""

from torch import nn

from adazeta.adapters.placement import Placement
from adazeta.models.stacks import main_stacks, residual_width, selected_blocks


def find_blocks(
    model: nn.Module,
    layers: str | list[int] | None = None,
    read_layers: list[int] | None = None,
) -> list[Placement]:
    """Choose the blocks whose output gets an adapter, and those that it reads.

    Args:
        model: a model with one main stack of blocks.
        layers: see :func:`find_placements`; None for the blocks at two thirds and
            at five sixths of the height, and the last one.
        read_layers: indices of the blocks that are read, by each adapter that lies above them;
            None for six of them, from two fifths of the height to nine tenths.

    Returns:
        A ``"block"`` placement for each, from the lowest to the highest.

    Raises:
        ValueError: if there is no stack, or several, or no such block.
    """
    path, stack = _only_stack(model, "informed adapters need")
    count = len(stack)
    # Lower blocks see more of the text, and the last one sees the answers apart.
    heights = [2 * count // 3, 5 * count // 6, count - 1]
    below = [tenths * count // 10 for tenths in range(4, 10)]
    written, read = (
        sorted({int(name.rpartition(".")[2]) for name in selected_blocks(model, wanted)})
        for wanted in (
            heights if layers is None else layers,
            below if read_layers is None else read_layers,
        )
    )
    width = residual_width(stack)
    return [
        Placement(
            f"{path}.{block}",
            "block",
            width,
            reads=tuple(f"{path}.{k}" for k in read if k < block),
        )
        for block in written
    ]


def find_mixer(
    model: nn.Module, features: str | list[int] | None = None, late: int = 1
) -> list[Placement]:
    """Choose the block whose input is mixed with that of others, and these.

    Args:
        model: a model with one main stack of L blocks.
        features: indices of the blocks whose input is read, 0 for the embeddings; ``"every:N"`` for
            0, N, 2 N, ..., as far as these lie below the mixer; None for ``every:`` a fifth of L.
        late: blocks above the mixer, which acts on the input of block ``L - late``.

    Returns:
        One ``"mixer"`` placement.

    Raises:
        ValueError: there is no stack, or several; the model has too few blocks; or a block that is
            named does not lie below the mixer.
    """
    path, stack = _only_stack(model, "a feature mixer needs")
    count = len(stack)
    if late >= count:
        raise ValueError(
            f"late={late} leaves no block below the mixer: {type(model).__name__} has {count} "
            f"blocks; set late to {count - 1} or less"
        )
    block = count - late
    if isinstance(features, list):
        for index in features:
            if not 0 <= index < block:
                raise ValueError(
                    f"features={features!r} asks for the input of block {index}, and the mixer "
                    f"reads those of blocks 0 to {block - 1}; the input of block {block}, where it "
                    "acts, is always there"
                )
        read = sorted(set(features))
    else:
        step = max(count // 5, 1) if features is None else int(features.removeprefix("every:"))
        read = list(range(0, block, step))
    reads = tuple(f"{path}.{index}" for index in read)
    return [Placement(f"{path}.{block}", "mixer", residual_width(stack), reads=reads)]


def _only_stack(model: nn.Module, who: str) -> tuple[str, nn.ModuleList]:
    stacks = main_stacks(model)
    if len(stacks) != 1:
        raise ValueError(
            f"{who} a model with one stack of blocks, and {type(model).__name__} has "
            f"{len(stacks)}; use form='bottleneck'"
        )
    ((path, stack),) = stacks.items()
    return path, stack
