"""A checkpoint is loaded whole, as the model that it was, or not at all.

transformers fills what a checkpoint lacks with random numbers, leaves out what a model has no place
for, and chooses a class by the task alone. Each of these trains and saves without an error, and no
later load gives the same model. Here each is an error that names the tensors or the kind of model.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PretrainedConfig

from adazeta.kernels import gaussian
from adazeta.models.arguments import AUTO_CLASSES
from adazeta.models.structure import HEADS
from adazeta.support.files import read_object
from adazeta.support.seeds import NEW_WEIGHTS_SEEDS, derive_seed

_MAPPINGS: dict[str, Any] = {
    "CAUSAL_LM": transformers.MODEL_FOR_CAUSAL_LM_MAPPING,
    "SEQ_2_SEQ_LM": transformers.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    "MASKED_LM": transformers.MODEL_FOR_MASKED_LM_MAPPING,
    "SEQ_CLS": transformers.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    "TOKEN_CLS": transformers.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
    "QUESTION_ANS": transformers.MODEL_FOR_QUESTION_ANSWERING_MAPPING,
    "FEATURE_EXTRACTION": transformers.MODEL_MAPPING,
}
_SHOWN = 4  # names of tensors in a message


def load_whole(
    kind: Any,
    source: str | Path,
    name: str,
    *,
    new: Sequence[str] = (),
    seed: int = 0,
    drawn: list[str] | None = None,
    **arguments: Any,
) -> Any:
    """Load a model by ``kind.from_pretrained`` and refuse it if the checkpoint is another model's.

    Args:
        kind: a class of transformers with ``from_pretrained``, also an auto class.
        source: what to load.
        name: what to call it in messages.
        new: suffixes of modules whose weights may be absent: they get values later.
        seed: of the values of absent weights until then, see :func:`draw_new`.
        drawn: the names of these weights are added to it.
        **arguments: of ``from_pretrained``.

    Returns:
        The model.

    Raises:
        ValueError: the checkpoint lacks weights of the model, has them in other shapes, or has
            weights inside the model's blocks that the model would not use. Weights that are tied,
            or that transformers says it computes itself, may be absent.
    """
    refuse_adapters(source, name)
    arguments = {**arguments, "output_loading_info": True, "ignore_mismatched_sizes": True}
    model, info = kind.from_pretrained(source, **arguments)
    _check_whole(model, info, name, new)
    absent = {*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}
    names = sorted(key for key in absent if _inside(key, new))
    draw_new(model, names, seed)
    if drawn is not None:
        drawn += names
    return model


@torch.no_grad()
def draw_new(model: nn.Module, names: Sequence[str], seed: int) -> None:
    """Give weights that a checkpoint lacks their values, the same at every load.

    transformers would draw them from torch's global generator. Here matrices are drawn with the
    standard deviation of the model's configuration, and biases are zero.

    Args:
        model: the model.
        names: of the parameters.
        seed: of the values; each parameter has numbers of its own.
    """
    spread = float(getattr(getattr(model, "config", None), "initializer_range", None) or 0.02)
    parameters = dict(model.named_parameters())
    for number, name in enumerate(name for name in names if name in parameters):
        target = parameters[name]
        if target.dim() < 2:
            target.zero_()
            continue
        values = gaussian(derive_seed(seed, NEW_WEIGHTS_SEEDS, number), 0, target.numel())
        target.copy_(values.view(target.shape) * spread)


def trained_head(model: nn.Module) -> list[str]:
    """Return the modules of a sequence-classification model that are its head.

    Raises:
        ValueError: there is none.
    """
    found = [name for name, _ in model.named_children() if name in HEADS]
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no head named {' or '.join(HEADS)} to train; set "
            "label_words instead of classes"
        )
    return found


def refuse_adapters(source: str | Path, name: str) -> None:
    """Refuse a folder of this package's adapters in the place of a base model.

    Raises:
        ValueError: it is one.
    """
    path = Path(source) / "adapter_config.json"
    if path.is_file() and read_object(path).get("peft_type") == "ADAZETA":
        raise ValueError(
            f"{name} holds TT adapters and is no base model; load both by "
            "adazeta.from_pretrained(base, folder), or give the base model itself"
        )


def _check_whole(model: nn.Module, info: dict[str, Any], name: str, new: Sequence[str]) -> None:
    kind, made_for = type(model).__name__, _made_for(model)
    unknown = sorted(info["unexpected_keys"])
    adapters = [key for key in unknown if ".tt_adapter." in key]
    if adapters:
        raise ValueError(
            f"{name} holds a model with TT adapters ({_some(adapters)}), which would be left out; "
            "load them by adazeta.from_pretrained(base, folder), or give the base model itself"
        )
    wrong = sorted(
        (key, tuple(there), tuple(here))
        for key, there, here in info["mismatched_keys"]
        if not _inside(key, new)
    )
    if wrong:
        key, there, here = wrong[0]
        raise ValueError(
            f"{name} has {key} in the shape {there}, but {kind} needs {here} ({len(wrong)} such "
            f"tensors){made_for}; its config.json and its weights belong to different models"
        )
    absent = sorted(key for key in info["missing_keys"] if not _inside(key, new))
    if absent:
        raise ValueError(
            f"{name} lacks weights that {kind} needs: {_some(absent)}{made_for}; they would be "
            "random numbers at every load. Give a checkpoint that has them, or the task that this "
            "one was made for"
        )
    unused = _unused(model, unknown)
    if unused:
        raise ValueError(
            f"{name} has weights inside its blocks that {kind} would not use: {_some(unused)}"
            f"{made_for}; its config.json belongs to another model, or it is of another kind"
        )


def check_kind(config: PretrainedConfig, task: str, name: str) -> None:
    """Refuse a model that would be loaded as something else than it is.

    Args:
        config: the model's configuration.
        task: kind of model to load, see :data:`~adazeta.models.arguments.AUTO_CLASSES`.
        name: what to call it in messages.

    Raises:
        ValueError: no class of transformers is that kind of model; or an encoder-decoder would be
            loaded as a causal or masked language model, without its encoder; or an encoder as a
            causal language model, in which every position would see the words after it.
    """
    kind = f"{config.model_type}, {type(config).__name__}"
    if task in ("CAUSAL_LM", "MASKED_LM") and config.is_encoder_decoder:
        raise ValueError(
            f"{name} is an encoder-decoder ({kind}): its encoder reads the prompt and its decoder "
            "writes the words, so take {mask} out of the template. In Python: load it as "
            "SEQ_2_SEQ_LM for adazeta.ZOTrainer"
        )
    fits = {task for task, mapping in _MAPPINGS.items() if type(config) in mapping}
    if task not in fits:
        remedy = "give a model of that kind"
        if task == "MASKED_LM" and "CAUSAL_LM" in fits:
            remedy = "it is a causal language model: take {mask} out of the template"
        elif task == "CAUSAL_LM" and "MASKED_LM" in fits:
            remedy = "it is a masked language model: put {mask} into the template"
        raise ValueError(
            f"{name} ({kind}) has no class for the task {task} ({AUTO_CLASSES[task]}); {remedy}"
        )
    if task == "CAUSAL_LM" and "MASKED_LM" in fits and not getattr(config, "is_decoder", False):
        raise ValueError(
            f"{name} is an encoder ({kind}), in which every position sees the words after it, so "
            "it is no causal language model; put {mask} where the word belongs in the template"
        )


def _made_for(model: nn.Module) -> str:
    """Name the class that the configuration says the checkpoint was saved from."""
    names = [
        name
        for name in getattr(getattr(model, "config", None), "architectures", None) or []
        if name != type(model).__name__
    ]
    return f" (it was saved from {', '.join(names)})" if names else ""


def _inside(key: str, modules: Iterable[str]) -> bool:
    """Tell whether a tensor belongs to a module whose path ends with one of the suffixes."""
    return any(f".{module}." in f".{key}" for module in modules)


def _some(keys: Sequence[str]) -> str:
    rest = len(keys) - _SHOWN
    return ", ".join(keys[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def _unused(model: nn.Module, keys: Iterable[str]) -> list[str]:
    """Return the keys without a place that change what a block computes.

    Heads of other tasks (``score``, ``pooler``, ``cls.seq_relationship``) lie outside the blocks,
    and buffers of earlier versions of transformers are called neither weight nor bias of a module.
    """
    modules = dict(model.named_modules())
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    found = []
    for key in keys:
        # A checkpoint of the body alone lacks the prefix.
        for path in (key, f"{prefix}{key}"):
            owner, _, last = path.rpartition(".")
            if last not in ("weight", "bias"):
                continue
            stack = re.match(r"(.*?)\.(\d+)\.", path)
            if stack is None or not isinstance(modules.get(stack[1]), nn.ModuleList):
                continue
            # A bias without a weight beside it was a mask of earlier versions.
            if last == "weight" or hasattr(modules.get(owner), "weight"):
                found.append(key)
                break
    return found
