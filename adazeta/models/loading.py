"""Load base models and their tokenizers from the hub, a folder or a GGUF file."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import SAFE_WEIGHTS_NAME

from adazeta.models.arguments import AUTO_CLASSES
from adazeta.models.gguf import converted_gguf, described_gguf
from adazeta.models.packed_gguf import load_packed
from adazeta.models.quantise import BACKENDS, KEEP, NONE, check_quantise
from adazeta.models.whole_checkpoint import check_kind, load_whole, refuse_adapters

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

SAFE = {"use_safetensors": True, "trust_remote_code": False}
"""Arguments of ``from_pretrained`` with which it unpickles nothing and runs no foreign code."""


def load_model_and_tokenizer(
    name: str | Path, *, dtype: str = "auto", task: str = "CAUSAL_LM", revision: str | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a base model and its tokenizer, see :func:`load_model` and :func:`load_tokenizer`."""
    tokenizer = load_tokenizer(name, task=task, revision=revision)
    return load_model(name, dtype=dtype, task=task, revision=revision), tokenizer


def load_tokenizer(
    name: str | Path,
    *,
    task: str = "CAUSAL_LM",
    revision: str | None = None,
    quantise: str = NONE,
) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a base model.

    Args:
        name: see :func:`load_model`.
        task: see :func:`load_model`.
        revision: see :func:`load_model`.
        quantise: see :func:`load_model`.

    Raises:
        FileNotFoundError, ValueError, ImportError, OSError: see :func:`load_model`.
    """
    try:
        return AutoTokenizer.from_pretrained(
            _source(name, task, quantise), revision=revision or "main", trust_remote_code=False
        )
    except json.JSONDecodeError as error:
        raise ValueError(f"a file of the tokenizer of {name} is damaged: {error}") from None


def load_model(
    name: str | Path,
    *,
    dtype: str = "auto",
    task: str = "CAUSAL_LM",
    revision: str | None = None,
    new: Sequence[str] = (),
    classes: int | None = None,
    seed: int = 0,
    drawn: list[str] | None = None,
    quantise: str = NONE,
) -> PreTrainedModel:
    """Load a base model. Code that a repository ships is never run.

    A GGUF file is converted on its first use, which needs the ``gguf`` package and takes a while;
    the model is then kept, in bfloat16, under ``$XDG_CACHE_HOME/adazeta/models`` (by default
    ``~/.cache/adazeta/models``). With ``quantise="keep"`` only its tokenizer and configuration are.

    Args:
        name: hub id, folder, or path of a ``.gguf`` file.
        dtype: ``"float32"``, ``"bfloat16"``, ``"float16"`` or ``"auto"``: the checkpoint's own
            where there is an accelerator, or a CPU with bfloat16 instructions (AVX512-BF16, AMX),
            else float32, because there bfloat16 products are several times slower.
        task: kind of model, as in PEFT: ``"CAUSAL_LM"``, ``"MASKED_LM"``, ``"SEQ_CLS"``, ...
        revision: revision on the hub.
        new: suffixes of modules that the checkpoint may lack, because adapters that are loaded
            later bring their weights, or because they are to be trained. Without it nothing may be
            missing.
        classes: outputs of a sequence-classification head.
        seed: of the values of what the checkpoint lacks, see
            :func:`adazeta.models.whole_checkpoint.draw_new`.
        drawn: the names of these are added to it.
        quantise: how the weights are held, see :data:`adazeta.models.quantise.CHOICES`.

    Returns:
        The model, on the CPU and in evaluation mode.

    Raises:
        FileNotFoundError: a path to a ``.gguf`` file does not exist.
        ValueError: the dtype or the task is unknown, the model is of another kind
            (:func:`adazeta.models.whole_checkpoint.check_kind`), or the checkpoint is not whole
            (:func:`adazeta.models.whole_checkpoint.load_whole`); or it cannot be held as
            ``quantise`` says (:func:`adazeta.models.quantise.check_quantise`,
            :func:`adazeta.models.packed_gguf.load_packed`).
        ImportError: ``gguf`` or the library of ``quantise`` is needed but not installed.
        OSError: transformers finds no model of that name, or none in safetensors format.
    """
    if dtype != "auto" and dtype not in _DTYPES:
        raise ValueError(f"dtype must be 'auto', {', '.join(map(repr, _DTYPES))}, got {dtype!r}")
    check_quantise(quantise, str(name))
    source = _source(name, task, quantise)
    kind = getattr(transformers, AUTO_CLASSES[task])
    chosen = best_dtype() if dtype == "auto" else _DTYPES[dtype]
    config = _config(source, revision)
    check_kind(config, task, str(name))
    heading: dict[str, Any] = {}
    if classes is not None:
        if quantise == KEEP:
            raise ValueError(
                f"quantise='keep' holds what is in {name}, and a head for {classes} classes is "
                "not; set label_words instead of classes, or quantise='none'"
            )
        heading["num_labels"] = classes
    return load_as(
        kind, source, str(name), config, chosen, quantise,
        new=new, revision=revision, seed=seed, drawn=drawn, **heading,
    )  # fmt: skip


def load_as(
    kind: Any,
    source: str,
    name: str,
    config: PretrainedConfig,
    dtype: torch.dtype | str,
    quantise: str = NONE,
    *,
    new: Sequence[str] = (),
    revision: str | None = None,
    seed: int = 0,
    drawn: list[str] | None = None,
    **more: Any,
) -> PreTrainedModel:
    """Load a model as a class of transformers; the arguments are those of :func:`load_model`.

    Args:
        kind: the class, also an auto class.
        source: what transformers can load.
        name: what was asked for; the ``.gguf`` file with ``quantise="keep"``.
        config: the model's.
        dtype: of torch, or ``"auto"``.
        quantise: see :func:`load_model`.
        new: see :func:`load_model`.
        revision: see :func:`load_model`.
        seed: see :func:`load_model`.
        drawn: see :func:`load_model`.
        **more: for ``from_pretrained`` of the class.
    """
    stated = getattr(config, "dtype", None) or torch.float32 if dtype == "auto" else dtype
    assert isinstance(stated, torch.dtype)
    if quantise == KEEP:
        packed = load_packed(kind, Path(name), config, stated, new=new)
        packed.name_or_path = packed.config.name_or_path = name  # not of the folder without weights
        packed.quantised_as = quantise  # type: ignore[assignment]
        return packed
    where: dict[str, Any] = {"dtype": dtype, "revision": revision or "main", **SAFE, **more}
    if quantise != NONE:
        where["quantization_config"] = BACKENDS[quantise].config(stated)
    try:
        model: PreTrainedModel = load_whole(
            kind, source, str(name), new=new, seed=seed, drawn=drawn, **where
        )
    except OSError as error:
        if SAFE_WEIGHTS_NAME not in str(error):
            raise
        raise OSError(
            f"{name} has no whole {SAFE_WEIGHTS_NAME} ({' '.join(str(error).split())}). Pickled "
            "weights can run code and are not loaded; convert them where you trust them: "
            "from_pretrained(name).save_pretrained(folder)"
        ) from None
    except SafetensorError as error:
        raise ValueError(f"the weights of {name} are damaged ({error}); fetch them again") from None
    if quantise != NONE:
        model.quantised_as = quantise  # type: ignore[assignment]
    return model.eval()


def on_accelerator(model: PreTrainedModel) -> PreTrainedModel:
    """Move a loaded model to the accelerator, if there is one and its library has not done so."""
    if getattr(model, "quantised_as", None) is not None and hasattr(model, "hf_device_map"):
        return model
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return model.to(accelerator or torch.device("cpu"))  # type: ignore[arg-type]


def load_configuration(
    name: str | Path,
    *,
    task: str | None = "CAUSAL_LM",
    revision: str | None = None,
    quantise: str = NONE,
) -> PretrainedConfig:
    """Load the configuration of a base model and check that it is of the kind that is wanted.

    Args:
        name: see :func:`load_model`.
        task: see :func:`load_model`; None for any kind.
        revision: see :func:`load_model`.
        quantise: see :func:`load_model`.

    Raises:
        FileNotFoundError, ValueError, ImportError, OSError: see :func:`load_model`.
    """
    check_quantise(quantise, str(name))
    source = _source(name, task or "CAUSAL_LM", quantise)
    refuse_adapters(source, str(name))
    config = _config(source, revision)
    if task is not None:
        check_kind(config, task, str(name))
    return config


def _config(source: str, revision: str | None) -> PretrainedConfig:
    return AutoConfig.from_pretrained(source, revision=revision or "main", trust_remote_code=False)


def settle_head(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Let a sequence-classification model know which token pads the batches of a task.

    Decoders of transformers find the last token of a text by it.
    """
    ends = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    model.config.pad_token_id = next(token for token in ends if token is not None)


@torch.no_grad()
def sees_ahead(model: PreTrainedModel) -> bool:
    """Tell whether a model's logits at a position depend on the tokens after it.

    Args:
        model: a language model in evaluation mode, which computes two rows of four tokens.
    """
    ids = torch.tensor([[0, 1, 2, 3], [0, 1, 2, 4]], device=model.device)
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, :-1]
    eps = 4 * torch.finfo(logits.dtype).eps  # rows of one batch may round differently
    gap = (logits[0] - logits[1]).abs().max()
    return bool(gap > max(1e-3, eps) * logits.abs().max())


def _source(name: str | Path, task: str, quantise: str = NONE) -> str:
    """Return what transformers can load; of a file that stays packed, all but its weights."""
    if task not in AUTO_CLASSES:
        raise ValueError(f"task must be one of {', '.join(AUTO_CLASSES)}, got {task!r}")
    if not str(name).endswith(".gguf"):
        return str(name)
    path = Path(name)
    return str(described_gguf(path) if quantise == KEEP else converted_gguf(path, task))


def best_dtype() -> torch.dtype | str:
    """Return what ``dtype="auto"`` means on this machine: ``"auto"`` or ``torch.float32``."""
    # Where this version of torch does not tell, the CPU counts as one without bfloat16.
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    fast = any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16"))
    return "auto" if torch.accelerator.is_available() or fast else torch.float32
