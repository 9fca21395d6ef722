"""A LoRA as a GGUF file, which llama.cpp loads beside the GGUF file of the base model.

The format is that of llama.cpp's own ``convert_lora_to_gguf.py``: metadata ``general.type``
``adapter``, ``adapter.type`` ``lora`` and ``adapter.lora.alpha``; for each linear two tensors under
llama.cpp's name for its weight, ``.lora_a`` ``(R, in)`` and ``.lora_b`` ``(out, R)``.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PretrainedConfig

from adazeta.adapters.lora import Lora

GGUF_NAME = "adapter_model.gguf"

# model_type of transformers: llama.cpp's name of the architecture. Only models whose weights
# llama.cpp keeps as they are, but for the order of rotary rows in those of the first table.
_PERMUTED = {"llama": "llama", "mistral": "llama"}
_PLAIN = {
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
    "gpt2": "gpt2",
    "phi3": "phi3",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
}


def save_gguf_lora(lora: Lora, config: PretrainedConfig, path: str | Path) -> None:
    """Write a LoRA for llama.cpp, in float32.

    Args:
        lora: the LoRA.
        config: of the base model.
        path: the file, which is replaced.

    Raises:
        ValueError: the LoRA has what the format has no place for (biases, modules trained in full),
            or the architecture or a linear is unknown here or to the ``gguf`` package.
        ImportError: ``gguf`` is not installed.
    """
    try:
        import gguf
    except ImportError:
        raise ImportError("writing a GGUF file needs the gguf package: pip install gguf") from None
    kind = config.model_type
    name = {**_PERMUTED, **_PLAIN}.get(kind)
    if name is None:
        raise ValueError(
            f"a model of the type {kind!r} cannot be written for llama.cpp here, only "
            f"{', '.join(sorted({**_PERMUTED, **_PLAIN}))}; export to 'lora' and use llama.cpp's "
            "convert_lora_to_gguf.py"
        )
    if lora.modules:
        raise ValueError(
            "a GGUF adapter has no place for modules trained in full "
            f"({next(iter(lora.modules))}); export to 'merged', and convert that"
        )
    architecture = next(a for a, n in gguf.MODEL_ARCH_NAMES.items() if n == name)
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    rank = lora.config["r"]
    tensors: dict[str, Tensor] = {}
    for path_of, term in lora.terms.items():
        if term.shift is not None:
            raise ValueError(
                f"a GGUF adapter has no place for the bias that the adapter of {path_of} adds; "
                "train with bias: false, or export to 'merged', and convert that"
            )
        target = names.get_name(f"{path_of}.weight", try_suffixes=(".weight",))
        if target is None:
            raise ValueError(f"llama.cpp has no name for {path_of} in a {name} model")
        a, b = term.a.T, term.b.T
        if kind in _PERMUTED:
            b = _permuted(path_of, b, config)
        # One alpha stands for all, so smaller ranks are filled with zeros.
        missing = rank - a.shape[0]
        tensors[f"{target}.lora_a"] = functional.pad(a, (0, 0, 0, missing))
        tensors[f"{target}.lora_b"] = functional.pad(b, (0, missing))
    writer = gguf.GGUFWriter(path, name)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(lora.config["lora_alpha"]))
    for key, tensor in tensors.items():
        writer.add_tensor(key, tensor.detach().cpu().float().contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _permuted(name: str, b: Tensor, config: Any) -> Tensor:
    """Bring the rows of queries and keys into llama.cpp's order of rotary pairs."""
    heads = {
        "q_proj": config.num_attention_heads,
        "k_proj": config.num_key_value_heads,
    }.get(name.rpartition(".")[2])
    if heads is None:
        return b
    halves = b.reshape(heads, 2, b.shape[0] // heads // 2, b.shape[1])
    return torch.swapaxes(halves, 1, 2).reshape(b.shape)
