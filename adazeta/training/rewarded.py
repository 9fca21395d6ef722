"""What a trainer says of rewards: which they are, and what they exclude."""

from typing import Any

from torch import nn

from adazeta.adapters.attached import has_adapters
from adazeta.optim.conservative import ConservativeSGD
from adazeta.optim.optimizer import ZerothOrderOptimizer
from adazeta.rewards.calling import Rewards
from adazeta.tasks.reward import RewardTask
from adazeta.training.arguments import ZOTrainingArguments
from adazeta.training.rollouts import Rollouts

_ONLY = {"shaping": "prompt", "eps_share": 0.5}


def rollouts_of(
    reward_funcs: Any,
    task: RewardTask | None,
    model: nn.Module | None,
    args: ZOTrainingArguments,
    options: dict[str, Any],
    *,
    other_loss: bool,
) -> Rollouts | None:
    """Return what evaluates a trainer's rewards; None where it has a loss.

    Args:
        reward_funcs: a function, several, or a :class:`~adazeta.rewards.calling.Rewards`.
        task: how prompts are completed, None for the default.
        model: the model.
        args: the settings.
        options: of ``transformers.Trainer``; collator and metrics are filled in.
        other_loss: whether a ``loss_fn`` is given.

    Raises:
        ValueError: settings exclude each other, or would be ignored.
    """
    if reward_funcs is None:
        given = [name for name, value in _ONLY.items() if getattr(args, name) != value]
        if task is not None or given:
            name = "reward_task" if task is not None else f"{given[0]}={getattr(args, given[0])!r}"
            raise ValueError(f"{name} is for rewards, and there are none; give reward_funcs too")
        return None
    for name, wrong, why in (
        ("loss_fn", other_loss, "completions are scored, so there is no other loss"),
        ("compute_loss_func", options.get("compute_loss_func") is not None, "as with loss_fn"),
        ("label_smoothing_factor", bool(args.label_smoothing_factor), "there are no labels"),
        ("remove_unused_columns", args.remove_unused_columns, "rewards may need all columns"),
        ("padding_free", args.padding_mode() is True, "each prompt is a row that grows"),
    ):
        if wrong:
            raise ValueError(f"reward_funcs exclude {name}: {why}; leave it out")
    tokenizer = options.get("processing_class")
    if task is None:
        if tokenizer is None:
            raise ValueError(
                "completions need a tokenizer: pass processing_class=tokenizer, or "
                "reward_task=RewardTask(tokenizer, max_new_tokens=...)"
            )
        task = RewardTask(tokenizer)
    if args.cache_trunk != "none" and task.adapt != "answer":
        raise ValueError(
            f"cache_trunk={args.cache_trunk!r} keeps the states of prompts, which are those of the "
            "frozen model with adapt='answer' only; set that, or leave cache_trunk at 'none'"
        )
    if task.adapt == "answer" and model is not None and not has_adapters(model):
        raise ValueError("adapt='answer' is for adapters, and the model has none; use adapt='all'")
    if not isinstance(reward_funcs, Rewards):
        functions = [reward_funcs] if callable(reward_funcs) else list(reward_funcs)
        reward_funcs = Rewards(functions)
    rollouts = Rollouts(
        task,
        reward_funcs,
        seed=args.seed,
        cache="memory"
        if task.adapt == "answer" and args.cache_trunk == "none"
        else args.cache_trunk,
        limit=args.cache_trunk_limit,
        folder=args.cache_trunk_folder,
    )
    if options.get("data_collator") is None:
        options["data_collator"] = task.collate
    if options.get("compute_metrics") is None:
        options["compute_metrics"] = rollouts.metrics
    return rollouts


def check_rule(optimizer: ZerothOrderOptimizer) -> None:
    """Refuse update rules that need something else than differences of scores.

    Raises:
        ValueError: the rule does.
    """
    if optimizer.closure_gives != "losses" or isinstance(optimizer, ConservativeSGD):
        raise ValueError(
            f"the update rule {type(optimizer).__name__} needs a loss that changes with every "
            "parameter, and a score of texts moves in jumps; choose another method, e.g. 'zo-adam'"
        )
