"""Trained adapters as a LoRA in PEFT's format, which plain ``peft`` loads and others serve."""

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from adazeta.adapters.attached import adapter_config, saved_modules
from adazeta.adapters.files import (
    CONFIG_NAME,
    PREFIX,
    WEIGHTS_NAME,
    config_to_save,
    plain_name,
    state_of,
)
from adazeta.adapters.low_rank import LowRankTerm, adapted_linears, low_rank_term
from adazeta.adapters.placement import matching
from adazeta.models.structure import linear_widths
from adazeta.support.tensor_files import save_tensors

# Kinds of tasks that PEFT knows; of others it takes the class of the model.
_TASKS = ("SEQ_CLS", "SEQ_2_SEQ_LM", "CAUSAL_LM", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION")


@dataclass(frozen=True)
class Lora:
    """A LoRA: ``y = W x + s (x A) B`` on some linears of a model.

    Attributes:
        config: what PEFT's ``adapter_config.json`` holds.
        terms: the pairs by the path of their linear.
        modules: tensors of the base's modules that were trained in full, by their key in the model.
    """

    config: dict[str, Any]
    terms: dict[str, LowRankTerm]
    modules: dict[str, Tensor]

    def state_dict(self) -> dict[str, Tensor]:
        """Return the tensors of ``adapter_model.safetensors`` by PEFT's keys, on the CPU."""
        state = {f"{PREFIX}{key}": tensor for key, tensor in self.modules.items()}
        for name, term in self.terms.items():
            state[f"{PREFIX}{name}.lora_A.weight"] = term.a.T
            state[f"{PREFIX}{name}.lora_B.weight"] = term.b.T
            if self.config["lora_bias"]:
                shift = torch.zeros_like(term.b[0]) if term.shift is None else term.shift
                state[f"{PREFIX}{name}.lora_B.bias"] = shift
        # safetensors takes no views.
        return {key: t.detach().cpu().clone(memory_format=torch.contiguous_format)
                for key, t in state.items()}  # fmt: skip

    def save(self, folder: str | Path) -> None:
        """Write the two files of PEFT to a folder, which is made if need be.

        Raises:
            OSError: it cannot be written.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_tensors(self.state_dict(), folder / WEIGHTS_NAME, {"format": "pt"})
        text = json.dumps(self.config, indent=2, sort_keys=True)
        (folder / CONFIG_NAME).write_text(f"{text}\n", encoding="utf-8")


def to_lora(model: nn.Module) -> Lora:
    """Return a model's trained adapters as a LoRA.

    A and B are exactly the factors that the tensor trains are computed with, and ``lora_alpha`` is
    the rank times the scale s. A bottleneck of the activation ``"linear"`` has ``A = W A1`` and
    ``B = B1 A2 B2``, W being the linear's weight, and needs ``lora_bias`` where it adds a bias.

    Args:
        model: a model with adapters; it is not changed.

    Returns:
        The LoRA; its :meth:`Lora.save` writes it.

    Raises:
        ValueError: the adapters are no LoRA, with the reason: an activation, informed adapters,
            adapters on the last tokens only, a tensor-train head, or a bottleneck on a quantised
            weight.
    """
    linears = adapted_linears(model)
    terms = {
        plain_name(name): low_rank_term(name, linear, adapter)
        for name, (linear, adapter) in linears.items()
    }
    own = config_to_save(model)
    ranks = {name: term.a.shape[1] for name, term in terms.items()}
    rank = max(ranks.values())
    scale = next(iter(terms.values())).scale
    task = own["task_type"] if own["task_type"] in _TASKS else None
    kind = None
    if task is None:
        base = getattr(model, "_orig_mod", model)
        kind = {"base_model_class": type(base).__name__, "parent_library": type(base).__module__}
    config = {
        "peft_type": "LORA",
        "task_type": task,
        "auto_mapping": kind,
        "base_model_name_or_path": own["base_model_name_or_path"],
        "revision": own["revision"],
        "inference_mode": True,
        "r": rank,
        "lora_alpha": _number(rank * scale),
        # The alpha of each rank is such that alpha / rank is the same scale.
        "rank_pattern": {name: r for name, r in ranks.items() if r != rank},
        "alpha_pattern": {name: _number(r * scale) for name, r in ranks.items() if r != rank},
        "lora_dropout": 0.0,
        "bias": "none",
        "lora_bias": any(term.shift is not None for term in terms.values()),
        "fan_in_fan_out": any(isinstance(linear, Conv1D) for linear, _ in linears.values()),
        "target_modules": _targets(model, set(terms)),
        "modules_to_save": adapter_config(model).modules_to_save,
    }
    modules = {
        plain_name(key): tensor
        for name, module in saved_modules(model, adapter_config(model)).items()
        for key, tensor in state_of(name, module)
    }
    return Lora(config, terms, modules)


def _targets(model: nn.Module, chosen: Collection[str]) -> list[str]:
    """Return the last parts of the names of linears if they select just these, else the names."""
    every = [plain_name(n) for n, m in model.named_modules() if n and linear_widths(m) is not None]
    ends = sorted({name.rpartition(".")[2] for name in chosen})
    return ends if set(matching(every, ends)) == set(chosen) else sorted(chosen)


def _number(value: float) -> float | int:
    return int(value) if value == int(value) else value
