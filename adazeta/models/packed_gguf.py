"""A GGUF file as a model of transformers whose weights stay in the blocks of the file."""

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from adazeta.models.gguf_file import Entry, GgufFile
from adazeta.models.packed import PackedEmbedding, PackedLinear, PackedWeight, Workspace

_ROTARY = "rope_freqs.weight"
_FILLS = "set quantise to 'none', which unpacks the model, or give another file"

Order = Callable[[int], Tensor]


def _rotated(heads: int) -> Order:
    """Order of rows of a projection whose heads llama.cpp keeps with rotated pairs side by side."""

    def order(rows: int) -> Tensor:
        pairs = torch.arange(rows).view(heads, rows // heads // 2, 2)
        return pairs.transpose(1, 2).reshape(-1)

    return order


def _llama(config: PretrainedConfig) -> dict[str, Order]:
    return {
        "attn_q": _rotated(config.num_attention_heads),
        "attn_k": _rotated(config.num_key_value_heads),
    }


def _as_they_are(config: PretrainedConfig) -> dict[str, Order]:
    return {}


ARCHITECTURES: dict[str, Callable[[PretrainedConfig], dict[str, Order]]] = {
    "llama": _llama,
    "qwen2": _as_they_are,
    "qwen3": _as_they_are,
}
"""What can be kept, as GGUF calls it: which tensors have rows in another order than transformers.

Others have values that transformers changes (Gemma's norms), turns round (GPT-2) or stacks.
"""


def load_packed(
    kind: Any,
    path: Path,
    config: PretrainedConfig,
    dtype: torch.dtype,
    *,
    new: Sequence[str] = (),
) -> PreTrainedModel:
    """Make a model whose linears and embeddings read the blocks of a file.

    Args:
        kind: class of transformers that makes the model from its configuration.
        path: the file; it stays mapped, and must not change.
        config: of the model.
        dtype: of norms, biases and of what is computed.
        new: suffixes of modules that get their values later; they are zeros until then.

    Returns:
        The model, with the values of the unpacked one to the bit (in float32), frozen, and in
        evaluation mode.

    Raises:
        FileNotFoundError: the file does not exist.
        ImportError: ``gguf`` is not installed.
        ValueError: the architecture or a format cannot be kept, or file and model do not fit.
    """
    file = GgufFile(path)
    if file.architecture not in ARCHITECTURES:
        raise ValueError(
            f"{path} is of the architecture {file.architecture!r}, whose blocks cannot be kept "
            f"(those of {', '.join(ARCHITECTURES)} can); set quantise to 'none', which unpacks the "
            "model, or quantise it as it is loaded: quantise: bnb-int8"
        )
    orders = ARCHITECTURES[file.architecture](config)
    with init_empty_weights(include_buffers=False):
        model: PreTrainedModel = kind.from_config(config, dtype=dtype)
    names = _names(model, file.architecture)
    workspace, filled = Workspace(), set()
    entries = dict(file.entries)
    rotary = entries.pop(_ROTARY, None)
    for entry in entries.values():
        stem = entry.name.split(".")[2] if entry.name.startswith("blk.") else ""
        place = names.get(entry.name)
        if place is None:
            raise ValueError(
                f"{path} has {entry.name}, which {type(model).__name__} lacks; {_FILLS}"
            )
        data = entry.data if stem not in orders else entry.data[orders[stem](entry.shape[0])]
        _fill(model, place, entry, data, dtype, workspace, path)
        filled.add(place)
    _tie(model, filled, workspace)
    for name, parameter in list(model.named_parameters()):
        if parameter.is_meta and any(f".{part}." in f".{name}" for part in new):
            owner, _, last = name.rpartition(".")
            zeros = torch.zeros(parameter.shape, dtype=parameter.dtype)
            setattr(model.get_submodule(owner), last, nn.Parameter(zeros, requires_grad=False))
    absent = [name for name, p in model.named_parameters() if p.is_meta]
    if absent:
        raise ValueError(
            f"{path} lacks weights that {type(model).__name__} needs: {absent}; {_FILLS}"
        )
    if rotary is not None:
        _scale_frequencies(model, rotary.data.float(), path)
    model.is_quantized, model.hf_quantizer = True, KeptBlocks()
    return model.requires_grad_(False).eval()


class KeptBlocks:
    """What transformers asks a quantised model about: it cannot be saved whole, or differentiated.

    Attributes:
        quantization_config: names the method in messages.
    """

    is_trainable = is_qat_trainable = False

    def __init__(self) -> None:
        self.quantization_config = SimpleNamespace(quant_method="blocks of a GGUF file")

    def is_serializable(self, *args: Any, **kwargs: Any) -> bool:
        """Say that ``save_pretrained`` of the model must refuse."""
        return False


def _names(model: nn.Module, architecture: str) -> dict[str, str]:
    """Return the model's parameters by the names that a file has for them."""
    try:
        import gguf
    except ImportError:
        raise ImportError("reading GGUF files needs the gguf package: pip install gguf") from None
    number = next(n for n, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    config: Any = model.config
    table = gguf.get_tensor_name_map(number, config.num_hidden_layers)
    found = {}
    for name in model.state_dict():
        owner, _, last = name.rpartition(".")
        there = table.get_name(owner)
        if there is not None:
            found[f"{there}.{last}"] = name
    return found


def _fill(
    model: nn.Module,
    place: str,
    entry: Entry,
    data: Tensor,
    dtype: torch.dtype,
    workspace: Workspace,
    path: Path,
) -> None:
    owner, _, last = place.rpartition(".")
    module = model.get_submodule(owner)
    old = getattr(module, last)
    if tuple(old.shape) != entry.shape:
        raise ValueError(
            f"{path} has {entry.name} in the shape {entry.shape}, but {place} needs "
            f"{tuple(old.shape)}; {_FILLS}"
        )
    if entry.kind is None:
        # A copy: the file's memory must not be written to, whatever becomes of the model.
        setattr(module, last, nn.Parameter(data.to(dtype, copy=True), requires_grad=False))
        return
    packed = PackedWeight(data, entry.kind)
    parent, _, child = owner.rpartition(".")
    made: nn.Module
    if type(module) is nn.Linear:
        made = PackedLinear(packed, module.bias, workspace)
    elif type(module) is nn.Embedding:
        made = PackedEmbedding(packed, dtype)
    else:
        raise ValueError(
            f"{path} has {entry.name} in blocks, and {owner} is a {type(module).__name__}, which "
            f"is no plain linear or embedding; {_FILLS}"
        )
    setattr(model.get_submodule(parent), child, made)


def _tie(model: PreTrainedModel, filled: set[str], workspace: Workspace) -> None:
    """Give a tied output embedding the blocks of the input embedding."""
    if not model.config.get_text_config().tie_word_embeddings:
        return
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    if isinstance(table, PackedEmbedding) and head is not None:
        name = next(name for name, module in model.named_modules() if module is head)
        parent, _, child = name.rpartition(".")
        made = PackedLinear(table.packed, getattr(head, "bias", None), workspace)
        setattr(model.get_submodule(parent), child, made)
        # They are one module's now; transformers would look for the names that they had.
        model._tied_weights_keys, model.all_tied_weights_keys = {}, {}
    else:
        model.tie_weights()


def _scale_frequencies(model: nn.Module, factors: Tensor, path: Path) -> None:
    """Divide the rotary frequencies as llama.cpp does, for the long contexts of Llama 3.1."""
    found: list[Any]
    found = [m for m in model.modules() if isinstance(getattr(m, "inv_freq", None), Tensor)]
    if not found or any(len(m.inv_freq) != len(factors) for m in found):
        raise ValueError(f"{path} has {_ROTARY}, for which the model has no place; {_FILLS}")
    for module in found:
        module.inv_freq = module.inv_freq / factors
        if isinstance(getattr(module, "original_inv_freq", None), Tensor):
            module.original_inv_freq = module.inv_freq.clone()
