"""Small GGUF files of random models, and random blocks of every format."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adazeta.kernels import unpack_blocks
from adazeta.kernels.reference.blocks import FORMATS

# Where a format has its float16 scales, from the beginning of a block.
_SCALES = {
    "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q4_K": [0, 2],
    "Q5_K": [0, 2], "Q6_K": [208],
}  # fmt: skip


def random_blocks(kind: str, rows: int, columns: int, seed: int = 0, scale: float = 0.01) -> Tensor:
    """Random bytes with ordinary scales: uint8 (rows, bytes)."""
    generator = torch.Generator().manual_seed(seed)
    layout = FORMATS[kind]
    count = rows * (columns // layout.values)
    blocks = torch.randint(0, 256, (count, layout.bytes), generator=generator, dtype=torch.uint8)
    for at in _SCALES[kind]:
        values = scale * torch.randn(count, 1, generator=generator)
        blocks[:, at : at + 2] = values.half().view(torch.uint8)
    return blocks.reshape(rows, -1)


def write_gguf(
    path: Path,
    architecture: str,
    tensors: dict[str, tuple[Tensor, str | None]],
    fields: dict[str, Any],
    words: int,
) -> Path:
    """Write a file.

    Args:
        path: where.
        architecture: as GGUF calls it.
        tensors: by name, blocks with the name of their format, or values with None.
        fields: metadata under the architecture's own prefix.
        words: of a vocabulary of letters, with and without a space before them; at least 58.
    """
    import gguf

    writer = gguf.GGUFWriter(path, architecture)
    for name, value in fields.items():
        key = f"{architecture}.{name}"
        if isinstance(value, float):
            writer.add_float32(key, value)
        else:
            writer.add_uint32(key, value)
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    tokens = ["<p>", "<s>", "</s>", *letters, "Ġ", "Ċ", ":", *(f"Ġ{letter}" for letter in letters)]
    tokens += [f"<{index}>" for index in range(words - len(tokens))]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * words)
    writer.add_token_merges([f"Ġ {letter}" for letter in letters])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    for name, (tensor, kind) in tensors.items():
        data = np.ascontiguousarray(tensor.numpy())
        raw = None if kind is None else gguf.GGMLQuantizationType[kind]
        writer.add_tensor(name, data, raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def llama_tensors(
    kind: str,
    *,
    words: int = 96,
    width: int = 256,
    inner: int = 256,
    layers: int = 3,
    heads: int = 4,
    groups: int = 2,
    tied: bool = True,
    biases: bool = False,
    norms_of_heads: bool = False,
) -> tuple[dict[str, tuple[Tensor, str | None]], dict[str, Any]]:
    """Return the tensors and fields of a random model of the llama family."""
    seed = 0
    head = width // heads
    tensors: dict[str, tuple[Tensor, str | None]] = {}

    def blocks(name: str, rows: int, columns: int) -> None:
        nonlocal seed
        seed += 1
        values = unpack_blocks(random_blocks(kind, rows, columns, seed, 1.0), kind)
        scale = 0.06 / float(values.std())
        tensors[f"{name}.weight"] = (random_blocks(kind, rows, columns, seed, scale), kind)

    def values(name: str, size: int, mean: float) -> None:
        nonlocal seed
        seed += 1
        generator = torch.Generator().manual_seed(seed)
        tensors[name] = (mean + 0.1 * torch.randn(size, generator=generator), None)

    blocks("token_embd", words, width)
    values("output_norm.weight", width, 1.0)
    if not tied:
        blocks("output", words, width)
    for layer in range(layers):
        at = f"blk.{layer}."
        for name, rows, columns in (
            ("attn_q", width, width), ("attn_k", groups * head, width),
            ("attn_v", groups * head, width), ("attn_output", width, width),
            ("ffn_gate", inner, width), ("ffn_up", inner, width), ("ffn_down", width, inner),
        ):  # fmt: skip
            blocks(at + name, rows, columns)
            if biases and name in ("attn_q", "attn_k", "attn_v"):
                values(f"{at}{name}.bias", rows, 0.0)
        for name in ("attn_norm", "ffn_norm"):
            values(f"{at}{name}.weight", width, 1.0)
        if norms_of_heads:
            for name in ("attn_q_norm", "attn_k_norm"):
                values(f"{at}{name}.weight", head, 1.0)
    fields = {
        "block_count": layers, "context_length": 128, "embedding_length": width,
        "feed_forward_length": inner, "attention.head_count": heads,
        "attention.head_count_kv": groups, "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.freq_base": 10000.0, "rope.dimension_count": head, "vocab_size": words,
    }  # fmt: skip
    if norms_of_heads:
        fields["attention.key_length"] = fields["attention.value_length"] = head
    return tensors, fields
