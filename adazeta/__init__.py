"""AdaZeta: fine-tune language models with forward passes only.

Tensor-train adapters, zeroth-order optimizers and the kernels under them. The names below are the
public API; they are imported on first use, so ``import adazeta`` itself loads neither torch nor
transformers.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from adazeta.version import __version__

_API = {
    "TTAdapter": "adapters.layers",
    "TTAdapterConfig": "adapters.config",
    "TTConfig": "adapters.peft_method",
    "TTLinear": "adapters.layers",
    "adapter_scale": "adapters.scaling",
    "add_tt_adapters": "adapters.attach",
    "disable_adapters": "adapters.attach",
    "from_pretrained": "adapters.loading",
    "merge_adapters": "adapters.merging",
    "print_trainable_parameters": "adapters.attach",
    "multi_positive_margin_nce": "forward.contrastive",
    "remove_adapters": "adapters.attach",
    "replay": "recording.replay",
    "save_pretrained": "adapters.files",
    "to_lora": "adapters.lora",
    "ParameterSpace": "parameters.space",
    "Probes": "estimation.probes",
    "RandomizedGradientEstimator": "estimation.estimator",
    "QuerySchedule": "estimation.queries",
    "AdaLomo": "optim.adalomo",
    "HELENE": "optim.helene",
    "METHODS": "methods",
    "fuse_into_backward": "optim.fused_backward",
    "make_optimizer": "methods",
    "ZOAdam": "optim.adam",
    "ZOSGD": "optim.sgd",
    "ZOSign": "optim.sign",
    "FOTrainer": "training.first_order",
    "FOTrainingArguments": "training.first_order_arguments",
    "ZOTrainer": "training.trainer",
    "ZOTrainingArguments": "training.arguments",
}

__all__ = ["__version__", *_API]

if TYPE_CHECKING:
    from adazeta.adapters.attach import (
        add_tt_adapters,
        disable_adapters,
        print_trainable_parameters,
        remove_adapters,
    )
    from adazeta.adapters.config import TTAdapterConfig
    from adazeta.adapters.files import save_pretrained
    from adazeta.adapters.layers import TTAdapter, TTLinear
    from adazeta.adapters.loading import from_pretrained
    from adazeta.adapters.lora import to_lora
    from adazeta.adapters.merging import merge_adapters
    from adazeta.adapters.peft_method import TTConfig
    from adazeta.adapters.scaling import adapter_scale
    from adazeta.estimation.estimator import RandomizedGradientEstimator
    from adazeta.estimation.probes import Probes
    from adazeta.estimation.queries import QuerySchedule
    from adazeta.forward.contrastive import multi_positive_margin_nce
    from adazeta.methods import METHODS, make_optimizer
    from adazeta.optim.adalomo import AdaLomo
    from adazeta.optim.adam import ZOAdam
    from adazeta.optim.fused_backward import fuse_into_backward
    from adazeta.optim.helene import HELENE
    from adazeta.optim.sgd import ZOSGD
    from adazeta.optim.sign import ZOSign
    from adazeta.parameters.space import ParameterSpace
    from adazeta.recording.replay import replay
    from adazeta.training.arguments import ZOTrainingArguments
    from adazeta.training.first_order import FOTrainer
    from adazeta.training.first_order_arguments import FOTrainingArguments
    from adazeta.training.trainer import ZOTrainer


def __getattr__(name: str) -> Any:
    """Import a public name from the module that defines it."""
    if name not in _API:
        raise AttributeError(f"module 'adazeta' has no attribute {name!r}")
    return getattr(import_module(f"adazeta.{_API[name]}"), name)


def __dir__() -> list[str]:
    """List the public names for tab completion."""
    return sorted(__all__)
