"""In which form the weights of a base model are held: the values of the setting ``quantise``."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers

NONE, KEEP = "none", "keep"


@dataclass(frozen=True)
class Backend:
    """A library by which transformers quantises the linears of a model as it loads it.

    Attributes:
        what: in words.
        package: its distribution; the module has the same name.
        config: makes transformers' configuration, given the dtype of what is computed.
        devices: types of devices on which it works.
    """

    what: str
    package: str
    config: Callable[[torch.dtype], Any]
    devices: tuple[str, ...] = ("cpu", "cuda", "xpu")


def _int8(dtype: torch.dtype) -> Any:
    return transformers.BitsAndBytesConfig(load_in_8bit=True)


def _nf4(dtype: torch.dtype) -> Any:
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
    )


def _torchao(name: str, **settings: Any) -> Callable[[torch.dtype], Any]:
    def config(dtype: torch.dtype) -> Any:
        from torchao import quantization

        return transformers.TorchAoConfig(getattr(quantization, name)(**settings))

    return config


BACKENDS = {
    "bnb-int8": Backend("8-bit integers of bitsandbytes (LLM.int8)", "bitsandbytes", _int8),
    "bnb-nf4": Backend("4-bit normal floats of bitsandbytes", "bitsandbytes", _nf4),
    "torchao-int8": Backend(
        "8-bit weights of torchao", "torchao", _torchao("Int8WeightOnlyConfig")
    ),
    "torchao-int8-dynamic": Backend(
        "8-bit weights of torchao, with activations in 8 bits too", "torchao",
        _torchao("Int8DynamicActivationInt8WeightConfig"),
    ),
    "torchao-int4": Backend(
        "4-bit weights of torchao", "torchao", _torchao("Int4WeightOnlyConfig", group_size=32),
        devices=("cuda",),
    ),
}  # fmt: skip

CHOICES = (NONE, KEEP, *BACKENDS)


def check_quantise(value: str, source: str) -> None:
    """Refuse a value of ``quantise`` that is unknown, or that cannot be done here.

    Args:
        value: of the setting.
        source: the base model: a hub id, a folder or a file.

    Raises:
        ValueError: the value is unknown, or does not go with the model or the device.
        ImportError: its library is not installed.
    """
    if value not in CHOICES:
        raise ValueError(f"quantise must be one of {', '.join(CHOICES)}, got {value!r}")
    if value == KEEP and not source.endswith(".gguf"):
        raise ValueError(
            f"quantise 'keep' keeps the blocks of a .gguf file, and {source} is none; give such a "
            f"file, or choose one of {', '.join(BACKENDS)}, which quantise as they load"
        )
    if value in BACKENDS:
        backend = BACKENDS[value]
        if importlib.util.find_spec(backend.package) is None:
            raise ImportError(
                f"quantise {value!r} needs {backend.package}: pip install {backend.package}"
            )
        device = device_type()
        if device not in backend.devices:
            raise ValueError(
                f"quantise {value!r} ({backend.what}) works on {', '.join(backend.devices)} and "
                f"this machine trains on {device}; choose another value, or set it to 'none'"
            )


def device_type() -> str:
    """Return the type of device that a run here takes."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return "cpu" if accelerator is None else accelerator.type
