"""Which linears of a model get an adapter, decided by structure and by names of modules.

Nothing here depends on the type of the model: ``block`` looks at where the linears sit and how wide
they are, ``paper`` at what they are called. A mixture of experts has no last linear, so its module
stands for one: an adapter acts on what the experts make together.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from torch import nn

from adazeta.models.stacks import linears_of, main_stacks, residual_width, selected_blocks
from adazeta.models.structure import HEADS, linear_widths

Side = Literal["input", "output", "weight", "head", "block", "mixer"]

# Names of linears, and the side of them on which the official code puts the adapter.
_PAPER: tuple[tuple[str, Side], ...] = (
    (r"(.*\.)?(gate_proj|up_proj|fc1|dense_h_to_4h|fc_in)", "input"),
    (r"(.*\.)?(down_proj|fc2|dense_4h_to_h|fc_out)", "output"),
    (r"(.*\.)?mlp\.c_fc", "input"),
    (r"(.*\.)?mlp\.c_proj", "output"),
    (r"(.*\.)?output\.dense", "output"),
)
_ATTENTION = re.compile("attn|attention", re.IGNORECASE)


@dataclass(frozen=True)
class Placement:
    """One place for TT layers.

    Attributes:
        name: path of the linear, or of the mixture of experts, in the model.
        side: ``"input"`` or ``"output"``: the adapter acts on what the linear reads or writes;
            ``"weight"``: it adds to what the linear makes of its input;
            ``"head"``: a TT layer stands in for the linear; ``"block"``: the adapter acts on what a
            whole block returns; ``"mixer"``: on what a whole block reads.
        width: of what a block or a mixture of experts writes; None for linears, which tell theirs.
        reads: paths of the blocks below that an adapter of a block reads (what they return, a mixer
            what they are given), the lowest first.
        routed: the linear belongs to one of several experts, so its rows are chosen from a batch.
    """

    name: str
    side: Side
    width: int | None = None
    routed: bool = False
    reads: tuple[str, ...] = ()


def find_placements(
    model: nn.Module,
    target_modules: str | list[str] = "block",
    layers: str | list[int] | None = None,
    *,
    experts: bool = True,
    weights: bool = False,
) -> list[Placement]:
    """Choose the linears, and the mixtures of experts, that get an adapter.

    Args:
        model: the base model. Modules that occur in several places are taken once.
        target_modules: one of

            - ``"block"``: in every block of the main stack, the output of the last linear of each
              attention, and the output of the last linear outside attention, among the linears that
              write to the residual stream (their output has its width). The main stack is the
              outermost ``nn.ModuleList`` with most parameters, and every other with the same width
              (encoder and decoder). A mixture of experts counts as one linear, with what the
              experts make together as its output; linears inside it are passed over;
            - ``"paper"``: as the authors' code of AdaZeta, by names of linears: the inputs of
              gate_proj, up_proj, fc1, dense_h_to_4h, fc_in and mlp.c_fc, the outputs of down_proj,
              fc2, dense_4h_to_h, fc_out, mlp.c_proj and output.dense;
            - ``"all-linear"``: the output of every linear but the output embedding and the
              classification head;
            - a list of suffixes of module names, or a regular expression that matches whole names,
              as in PEFT: the outputs of these linears, or mixtures of experts.
        layers: indices of blocks of the main stack (negative ones count from the end), or
            ``"last:N"``; None for no restriction.
        experts: False: place adapters as versions did that knew no mixtures of experts.
        weights: choose linears whose weights get a term, so that every side is ``"weight"``:
            ``"block"`` then takes, in a mixture of experts, those linears of the experts that write
            to the residual stream. Experts that are one tensor are no linears and get nothing.

    Returns:
        The placements, in the order of ``model.named_modules()``.

    Raises:
        ValueError: if nothing, or something that is not linear, is selected, if an entry of the
            list matches nothing, or if ``layers`` names a block that does not exist.
    """
    linears = linears_of(model)
    mixtures = _mixtures(model) if experts or weights else {}
    sides: dict[str, Side]
    if weights:
        names: Iterable[str] = _sides(model, linears, {}, target_modules)
        if target_modules == "block":
            names = _residual_writers(model, mixtures, weights=True)
        sides = dict.fromkeys(names, "weight")
    else:
        sides = _sides(model, linears, mixtures, target_modules)
    if layers is not None:
        blocks = tuple(f"{block}." for block in selected_blocks(model, layers))
        sides = {name: side for name, side in sides.items() if name.startswith(blocks)}
    if not sides:
        raise ValueError(
            f"target_modules={target_modules!r} with layers={layers!r} selects no linear of "
            f"{type(model).__name__}; {_some(linears)} "
            "Name the ones to adapt: target_modules=['name', ...]"
        )
    routed = _routed(model)
    return [
        Placement(name, sides[name], mixtures.get(name), name.startswith(routed))
        for name, _ in model.named_modules()
        if name in sides
    ]


def find_head(model: nn.Module) -> list[Placement]:
    """Find the linears of a sequence-classification head.

    Args:
        model: a model with a module named ``classifier`` or ``score`` at its top.

    Returns:
        A ``"head"`` placement for each linear in it.

    Raises:
        ValueError: if there is none.
    """
    names = [name for name in linears_of(model) if name.split(".")[0] in HEADS]
    if not names:
        raise ValueError(
            f"tt_head_rank needs a classification head, but {type(model).__name__} has no linear "
            f"in a module named {' or '.join(HEADS)}; leave tt_head_rank unset"
        )
    return [Placement(name, "head") for name in names]


def matching(names: Iterable[str], suffixes: list[str]) -> list[str]:
    """Select module names by suffix, as PEFT does: the whole name, or its end after a dot.

    Args:
        names: module names.
        suffixes: what they may end with.

    Returns:
        The names that match, in their order.

    Raises:
        ValueError: if a suffix matches no name.
    """
    names = list(names)
    for suffix in suffixes:
        if not any(f".{name}".endswith(f".{suffix}") for name in names):
            raise ValueError(f"no module is named {suffix!r}; check the name with print(model)")
    return [name for name in names if f".{name}".endswith(tuple(f".{s}" for s in suffixes))]


def _sides(
    model: nn.Module,
    linears: Iterable[str],
    mixtures: Iterable[str],
    target_modules: str | list[str],
) -> dict[str, Side]:
    if target_modules == "block":
        return dict.fromkeys(_residual_writers(model, mixtures), "output")
    if target_modules == "paper":
        return {
            name: side for name in linears for names, side in _PAPER if re.fullmatch(names, name)
        }
    if target_modules == "all-linear":
        return dict.fromkeys(_all_but_heads(model, linears), "output")
    modules = [name for name, _ in model.named_modules() if name]
    if isinstance(target_modules, str):
        chosen = [name for name in modules if re.fullmatch(target_modules, name)]
    else:
        chosen = matching(modules, target_modules)
    for name in chosen:
        if name not in linears and name not in mixtures:
            raise ValueError(
                f"target_modules={target_modules!r} selects {name!r}, a "
                f"{type(model.get_submodule(name)).__name__}, which is not linear; {_some(linears)}"
            )
    return dict.fromkeys(chosen, "output")


def _some(linears: Iterable[str]) -> str:
    names = list(linears)
    if not names:
        return "it has no linear at all."
    # The last ones: the first layers of a model are often special.
    return f"some of its {len(names)} linears are {', '.join(map(repr, names[-8:]))}."


def _all_but_heads(model: nn.Module, linears: Iterable[str]) -> list[str]:
    output = getattr(model, "get_output_embeddings", lambda: None)()
    return [
        name
        for name in linears
        if name.split(".")[0] not in HEADS and model.get_submodule(name) is not output
    ]


def _residual_writers(
    model: nn.Module, mixtures: Iterable[str], *, weights: bool = False
) -> list[str]:
    names = []
    routed = _routed(model) if weights else ()
    for path, stack in main_stacks(model).items():
        residual = residual_width(stack)
        for index, block in enumerate(stack):
            start = f"{path}.{index}."
            mixed = [name.removeprefix(start) for name in mixtures if name.startswith(start)]
            inside = tuple(f"{name}." for name in mixed)
            inside += tuple(name.removeprefix(start) for name in routed if name.startswith(start))
            last = {
                _attention_of(block, name): name
                for name, (_, out_features) in linears_of(block).items()
                if out_features == residual and not name.startswith(inside)
            }
            if weights:
                mixed = [
                    name
                    for name, (_, out_features) in linears_of(block).items()
                    if out_features == residual and name.startswith(inside)
                ]
            names += [f"{start}{name}" for name in [*last.values(), *mixed]]
    return names


def _routed(model: nn.Module) -> tuple[str, ...]:
    """Return the beginnings of the names of what lies inside one of several experts."""
    found = []
    for path, stack in main_stacks(model).items():
        residual = residual_width(stack)
        for name, module in stack.named_modules():
            listed = isinstance(module, nn.ModuleList | nn.ModuleDict)
            if name and listed and _holds_experts(module, residual):
                found.append(f"{path}.{name}.")
    return tuple(found)


def _mixtures(model: nn.Module) -> dict[str, int]:
    """Find the mixtures of experts in the main stacks, and the width that they write.

    The mixture is the module around the one that holds the experts, since that one adds up what
    they write; experts that lie in the block itself do so themselves. Inside an attention it is
    the attention, unless a linear follows that writes to the residual stream.
    """
    found: dict[str, int] = {}
    for path, stack in main_stacks(model).items():
        residual = residual_width(stack)
        for index, block in enumerate(stack):
            written = {
                _attention_of(block, name)
                for name, (_, out_features) in linears_of(block).items()
                if out_features == residual
            }
            for name, module in block.named_modules():
                if not name or not _holds_experts(module, residual):
                    continue
                attention = _attention_of(block, name)
                mixture = attention or name.rpartition(".")[0] or name
                # Lists of modules are not called, so a hook on them would never run.
                called = not isinstance(block.get_submodule(mixture), nn.ModuleList | nn.ModuleDict)
                if called and not (attention and attention in written):
                    found[f"{path}.{index}.{mixture}"] = residual
    return found


def _holds_experts(module: nn.Module, residual: int) -> bool:
    """Tell whether a module holds the experts of a mixture: as one tensor or side by side."""
    if isinstance(module, nn.ModuleList | nn.ModuleDict):
        members = list(module.children())
        return (
            len(members) > 1
            and len({type(member) for member in members}) == 1
            and all(_is_expert(member, residual) for member in members)
        )
    if linear_widths(module) is not None or not _is_plain(module):
        return False
    own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    stacked = [t for t in own if t.dim() > 2 and min(t.shape[:3]) > 1]
    flat = [t for t in own if t.dim() == 2 and residual in t.shape]
    return any(residual in t.shape[1:] for t in stacked) or len(flat) > 1


def _is_expert(module: nn.Module, residual: int) -> bool:
    """Tell whether a module reads and writes the residual stream without attention."""
    widths = list(linears_of(module).values())
    attends = any(
        _ATTENTION.search(f"{name} {type(part).__name__}") for name, part in module.named_modules()
    )
    return (
        not attends
        and any(read == residual for read, _ in widths)
        and any(wrote == residual for _, wrote in widths)
    )


def _is_plain(module: nn.Module) -> bool:
    """Tell whether a module is none of torch's own layers with weights of many dimensions."""
    return not type(module).__module__.startswith("torch.nn.")


def _attention_of(block: nn.Module, name: str) -> str:
    """Return the path of the outermost attention module around a linear, "" if there is none."""
    parts = name.split(".")
    for depth in range(1, len(parts)):
        path = ".".join(parts[:depth])
        if _ATTENTION.search(f"{parts[depth - 1]} {type(block.get_submodule(path)).__name__}"):
            return path
    return ""
