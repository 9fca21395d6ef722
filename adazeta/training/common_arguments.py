"""What the training arguments of both orders check and settle alike."""

from typing import Any

import torch
from transformers import TrainingArguments

from adazeta.forward.cache import KINDS
from adazeta.optim.averaging import check_average


def check_common(args: Any) -> None:
    """Refuse what neither order can do.

    Args:
        args: of either order.

    Raises:
        ValueError: the cache is unknown, its limit is not above 0, there is nothing to train, or
            the average is none, or another model is to be loaded in its place.
    """
    cache, limit = args.cache_trunk, args.cache_trunk_limit
    check_average(args.average, args.average_warmup)
    if args.average and args.load_best_model_at_end:
        raise ValueError(
            f"average={args.average} is what a run ends with, and load_best_model_at_end=True "
            "would put a checkpoint, which is no average, in its place; use one of the two"
        )
    if cache not in KINDS:
        raise ValueError(f"cache_trunk must be one of {', '.join(map(repr, KINDS))}, got {cache!r}")
    if not limit > 0:
        raise ValueError(f"cache_trunk_limit must be above 0, got {limit}")
    if args.max_steps == 0 or (args.max_steps < 0 and not args.num_train_epochs > 0):
        raise ValueError(
            f"there is nothing to train with max_steps={args.max_steps} and "
            f"num_train_epochs={args.num_train_epochs}: set one of them above 0 (max_steps=-1 "
            "counts epochs)"
        )


def settle_common(args: TrainingArguments) -> None:
    """Set what both orders need of the base class, before that looks at it."""
    # The base class would pickle the optimizer's state; checkpoints hold it as safetensors.
    args.save_only_model = True
    if args.data_seed is None:
        args.data_seed = args.seed  # so that the data's order does not hang on global state
    if not torch.accelerator.is_available():
        args.dataloader_pin_memory = False  # it would only warn
