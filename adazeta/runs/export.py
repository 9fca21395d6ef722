"""From the folder of a run, or of a checkpoint, to files that others load without this package."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from adazeta.adapters.attach import disable_adapters
from adazeta.adapters.files import CONFIG_NAME, load_config
from adazeta.adapters.gguf_lora import GGUF_NAME, save_gguf_lora
from adazeta.adapters.lora import to_lora
from adazeta.adapters.low_rank import adapted_linears, check_form, only_last_tokens
from adazeta.adapters.merging import merge_adapters
from adazeta.adapters.scaling import adapter_scale, check_scale
from adazeta.forward.reach import relative_error, roundings
from adazeta.models.loading import load_tokenizer
from adazeta.recording.folder import SETTINGS_NAME, TASK_NAME
from adazeta.recording.snapshot import checkpoints
from adazeta.runs.inference import load_trained
from adazeta.support.files import read_object
from adazeta.support.settings import read_yaml

FORMATS = {
    "lora": "a LoRA in PEFT's format",
    "merged": "a plain model of transformers, adapters merged",
    "gguf-lora": "a LoRA for llama.cpp",
}


def export(
    folder: str | Path,
    to: str,
    output: str | Path,
    *,
    model: str | None = None,
    dtype: str = "auto",
    scale: float = 1.0,
) -> dict[str, Any]:
    """Write trained adapters in a format of others.

    Args:
        folder: ``output_dir`` of a run, a checkpoint in it, or any folder of saved adapters.
        to: a key of :data:`FORMATS`.
        output: folder to write to; it must be new or empty.
        model: base model, if it is no longer where it was.
        dtype: of the base model, see :func:`adazeta.models.loading.load_model`; a merged model is
            saved in it.
        scale: share of what the adapters add, see
            :func:`~adazeta.adapters.scaling.adapter_scale`; not 0.

    Returns:
        What was written: ``format``, ``linears``, ``saved in``, and for a LoRA its ``rank``, for a
        merged model ``effect``, what the adapters change in logits, and ``error``, how far those of
        the merged model are from it; both are relative to the spread of the logits.

    Raises:
        FileNotFoundError: the folder holds no adapters.
        ValueError: ``to`` is unknown, ``output`` is not empty, the adapters cannot be written so
            (:func:`to_lora`, :func:`merge_adapters`), the merged model computes otherwise, or
            ``scale`` is 0 or means nothing (:func:`~adazeta.adapters.scaling.check_scale`).
    """
    if to not in FORMATS:
        raise ValueError(f"to must be one of {', '.join(FORMATS)}, got {to!r}")
    folder, output = Path(folder), Path(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"output {output} exists and is not an empty folder; choose another one")
    if not (folder / CONFIG_NAME).is_file():
        saved = [str(path) for path in checkpoints(folder)] if folder.is_dir() else []
        hint = f"; it has checkpoints: {saved[0]}" if saved else ""
        raise FileNotFoundError(f"no {CONFIG_NAME} in {folder}{hint or '; give a run folder'}")
    _refuse_last_tokens(folder)
    config = load_config(folder)
    check_form(config)  # refused before the weights are loaded
    check_scale(config, scale)
    if scale == 0:
        raise ValueError("a scale of 0 leaves the base model, which needs no export; give another")
    trained = load_trained(folder, model=model, dtype=dtype)
    with adapter_scale(trained, scale):
        row = _write(trained, to, folder, output)
    return {**row, "saved in": str(output)}


def _write(trained: PreTrainedModel, to: str, folder: Path, output: Path) -> dict[str, Any]:
    """Write the adapters of a model as they act now."""
    row: dict[str, Any] = {"format": to}
    if to == "merged":
        row |= _merge(trained)
        output.mkdir(parents=True, exist_ok=True)
        trained.save_pretrained(output)
        _save_tokenizer(folder, trained, output)
    else:
        lora = to_lora(trained)
        row |= {"linears": len(lora.terms), "rank": lora.config["r"]}
        if to == "lora":
            lora.save(output)
        else:
            # A file that is refused half-way must leave no folder.
            output.parent.mkdir(parents=True, exist_ok=True)
            made = not output.exists()
            output.mkdir(exist_ok=True)
            try:
                save_gguf_lora(lora, trained.config, output / GGUF_NAME)
            except (ValueError, ImportError):
                if made:
                    output.rmdir()
                raise
    return row


def _refuse_last_tokens(folder: Path) -> None:
    """Refuse adapters that were trained to act on the last tokens only."""
    for place in (folder, folder.parent):
        task, settings = place / TASK_NAME, place / SETTINGS_NAME
        if task.is_file():
            adapt = read_object(task).get("adapt", "all")
        elif settings.is_file():
            adapt = read_yaml(settings).get("adapt", "all")
        else:
            continue
        if adapt != "all":
            raise ValueError(only_last_tokens(f"adapt: {adapt}"))
        return


@torch.no_grad()
def _merge(model: PreTrainedModel) -> dict[str, Any]:
    """Merge, and see that the model computes what it did with its adapters."""
    with disable_adapters(model):
        base = _outputs(model)
    before = _outputs(model)
    row: dict[str, Any] = {"linears": len(adapted_linears(model))}
    merge_adapters(model)
    after = _outputs(model)
    if base is None or before is None or after is None:
        return row
    error, effect = relative_error(after, before), relative_error(base, before)
    weights = next(model.parameters())
    if not error <= roundings(after, weights):
        raise ValueError(
            f"the merged model's logits differ from those with adapters by {error:.2g} of their "
            "spread; a linear of this model is used otherwise than by being called. Export to "
            "'lora'"
        )
    return {**row, "effect": effect, "error": error}


def _outputs(model: PreTrainedModel) -> Tensor | None:
    """Return what a model makes of a few tokens, ``(rows, values)``; None if it reads no tokens."""
    if model.main_input_name != "input_ids":
        return None
    size = model.get_input_embeddings().num_embeddings
    ids = torch.arange(16, device=model.device).view(2, 8) * 7919 % size
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids
    return model(**inputs)[0].float().flatten(0, -2)


def _save_tokenizer(folder: Path, model: PreTrainedModel, output: Path) -> None:
    """Copy the tokenizer of the run, or of its base model, if there is one."""
    for source in (folder, folder.parent, model.name_or_path):
        try:
            tokenizer = load_tokenizer(source)
        except (OSError, ValueError):
            continue
        tokenizer.save_pretrained(str(output))
        return
