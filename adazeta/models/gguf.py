"""A GGUF file as a folder that transformers can load, made once and kept."""

import shutil
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig

from adazeta.models.arguments import AUTO_CLASSES
from adazeta.models.whole_checkpoint import check_kind, load_whole
from adazeta.support.files import cache_folder, sha256


def converted_gguf(path: Path, task: str = "CAUSAL_LM") -> Path:
    """Return the folder with the safetensors copy of a GGUF file; make it on first use.

    The folder's name has a hash of the file's content, so another file of that name is not
    mistaken for it.

    Args:
        path: the file.
        task: kind of model.

    Raises:
        FileNotFoundError: the file does not exist.
        ImportError: ``gguf`` is not installed.
    """
    return _kept(path, "", lambda scratch: _convert(path, task, scratch))


def described_gguf(path: Path) -> Path:
    """Return the folder with the tokenizer and the configuration of a GGUF file, without weights.

    It is made on first use, as that of :func:`converted_gguf` is.

    Args:
        path: the file.

    Raises:
        FileNotFoundError: the file does not exist.
        ImportError: ``gguf`` is not installed.
        ValueError: it is damaged, or no GGUF file.
    """
    return _kept(path, "-packed", lambda scratch: _describe(path, scratch))


def _kept(path: Path, ending: str, make: Callable[[Path], None]) -> Path:
    """Return a folder of the cache that belongs to a file's content; fill it if it is not there."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    cache = cache_folder() / "models"
    folder = cache / f"{path.stem}-{sha256(path)[:16]}{ending}"
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    # Written elsewhere and renamed, so that an interrupted conversion leaves nothing half done.
    scratch = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=cache))
    try:
        try:
            make(scratch)
        except struct.error as error:
            raise ValueError(f"{path} is damaged, or no GGUF file: {error}") from None
        try:
            scratch.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was faster
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder


def _describe(path: Path, folder: Path) -> PretrainedConfig:
    try:
        import gguf  # noqa: F401
    except ImportError:
        raise ImportError(f"reading {path.name} needs the gguf package: pip install gguf") from None
    where: dict[str, Any] = {"gguf_file": path.name}
    AutoTokenizer.from_pretrained(path.parent, **where).save_pretrained(folder)
    config = AutoConfig.from_pretrained(path.parent, **where)
    config.dtype = torch.bfloat16  # what "auto" stands for, as for a converted file
    config.save_pretrained(folder)
    return config


def _convert(path: Path, task: str, folder: Path) -> None:
    kind = getattr(transformers, AUTO_CLASSES[task])
    config = _describe(path, folder)
    where: dict[str, Any] = {"gguf_file": path.name}
    check_kind(config, task, str(path))
    if hasattr(transformers, "GgufConfig"):  # versions that may keep the weights packed
        where["quantization_config"] = transformers.GgufConfig(dequantize=True)
    loaded = load_whole(kind, path.parent, str(path), dtype=torch.bfloat16, **where)
    tensors = loaded.state_dict()
    # transformers refuses to save a model that came from a GGUF file, so an ordinary one takes
    # over its tensors.
    with torch.device("meta"):
        model = kind.from_config(config)
    model.load_state_dict(tensors, assign=True)
    model.config.dtype = torch.bfloat16
    model.tie_weights()
    model.save_pretrained(folder)
