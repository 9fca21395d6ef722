"""Texts that a model writes, to be trained on where there are none.

Apart from :mod:`adazeta.runs.generation`, whose answers are the likeliest ones to prompts of data:
these are drawn, and each one again by its seed.
"""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from adazeta.models.arguments import ModelArguments
from adazeta.models.quantise import NONE
from adazeta.runs.base import load_untrained, set_up_base
from adazeta.support.batches import on_device
from adazeta.support.seeds import derive_seed
from adazeta.tasks.arguments import TaskArguments
from adazeta.tasks.reward import PROMPT, RewardTask

_TEXTS_STREAM = 0x7E87  # keeps the draws apart from those of a run with the same seed
_PATIENCE = 10  # texts drawn for each that is wanted, before giving up


@torch.no_grad()
def written_texts(
    model: PreTrainedModel,
    task: RewardTask,
    prompts: Sequence[str],
    count: int,
    *,
    seed: int = 0,
    batch_size: int = 64,
) -> list[dict[str, Any]]:
    """Let a model write different texts.

    Text k is drawn after prompt ``k mod len(prompts)`` by a seed of its own, a pure function of
    ``seed`` and k (:mod:`adazeta.forward.gumbel`), so that its tokens depend on neither the batch
    nor the count, but for rounding. Empty texts, and those that were written before, are left out.

    Args:
        model: a causal language model.
        task: how a text is drawn, and where it ends.
        prompts: what the texts follow, taking turns.
        count: of texts.
        seed: of all.
        batch_size: texts in one batch.

    Returns:
        Records with the ``text`` without white space around it, its ``prompt`` and ``seed``.

    Raises:
        ValueError: nothing is drawn or asked for, or the model keeps writing the same.
    """
    _check(task, prompts, count, batch_size)
    model.eval()
    found: dict[str, dict[str, Any]] = {}
    for begin in range(0, _PATIENCE * count, batch_size):
        numbers = range(begin, min(begin + batch_size, _PATIENCE * count))
        seeds = [derive_seed(seed, _TEXTS_STREAM, number) for number in numbers]
        asked = [prompts[number % len(prompts)] for number in numbers]
        encoded = [task.encode({PROMPT: one}) for one in asked]
        batch = on_device(task.collate(encoded), model.device)
        drawn = torch.tensor(seeds, device=model.device)
        for text, prompt, own in zip(
            task.complete(model, batch, seeds=drawn)[0], asked, seeds, strict=True
        ):
            kept = text.strip()
            if kept:
                found.setdefault(kept, {"text": kept, PROMPT: prompt, "seed": own})
        if len(found) >= count:
            return list(found.values())[:count]
    raise ValueError(
        f"of {_PATIENCE * count} texts only {len(found)} are different and not empty, and {count} "
        "are wanted; raise the temperature, or give other prompts"
    )


def write_texts(
    model: str,
    prompts: Sequence[str],
    count: int,
    *,
    seed: int = 0,
    temperature: float = 1.0,
    max_new_tokens: int = 64,
    stop: Sequence[str] = ("\n",),
    chat: bool = False,
    batch_size: int = 64,
    dtype: str = "auto",
    quantise: str = NONE,
) -> list[dict[str, Any]]:
    """Load a causal language model and let it write texts, see :func:`written_texts`.

    Args:
        model: hub id, folder or ``.gguf`` file.
        prompts: see :func:`written_texts`.
        count: see :func:`written_texts`.
        seed: see :func:`written_texts`.
        temperature: logits are divided by it.
        max_new_tokens: most tokens of a text.
        stop: texts that end one.
        chat: make each prompt a user's message.
        batch_size: see :func:`written_texts`.
        dtype: see :func:`adazeta.models.loading.load_model`.
        quantise: see :func:`adazeta.models.loading.load_model`.

    Raises:
        ValueError: see :func:`written_texts`; or the model is not of this kind.
    """
    # The task of writing; what would score the texts is never looked for.
    settings = TaskArguments(
        reward="none", temperature=temperature, max_new_tokens=max_new_tokens, stop=list(stop),
        chat=chat,
    )  # fmt: skip
    arguments = ModelArguments(model=model, dtype=dtype, quantise=quantise)
    found = set_up_base(arguments, settings)
    if found.kind != "CAUSAL_LM":
        raise ValueError(
            f"{model} is an encoder-decoder, and texts are drawn from causal language models; give "
            "one of these"
        )
    assert isinstance(found.task, RewardTask)
    _check(found.task, prompts, count, batch_size)  # before the weights are read
    loaded = load_untrained(arguments, found)
    return written_texts(loaded, found.task, prompts, count, seed=seed, batch_size=batch_size)


def _check(task: RewardTask, prompts: Sequence[str], count: int, batch_size: int) -> None:
    """Refuse what cannot be written, see :func:`written_texts`."""
    for name, value in (("count", count), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} must be 1 or more, got {value}")
    if not prompts:
        raise ValueError("texts follow a prompt, and none is given")
    if not task.decoding.temperature and count > len(prompts):
        raise ValueError(
            "temperature 0 writes one text after each prompt; set it above 0 to draw "
            f"{count} texts after {len(prompts)}"
        )
    for prompt in prompts:
        task.encode({PROMPT: prompt})
