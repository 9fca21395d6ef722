"""What the training arguments of both orders check and settle alike."""

import torch
from transformers import TrainingArguments

from adazeta.forward.cache import KINDS


def check_common(args: TrainingArguments, *, cache: str, limit: float) -> None:
    """Refuse what neither order can do.

    Args:
        args: of either order.
        cache: ``cache_trunk``.
        limit: ``cache_trunk_limit``, in GiB.

    Raises:
        ValueError: the cache is unknown, its limit is not above 0, or there is nothing to train.
    """
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
