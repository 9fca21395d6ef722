"""What a trainer says of rewards and other scores: which they are, and what they exclude."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from adazeta.adapters.attached import has_adapters
from adazeta.methods import method_named
from adazeta.optim.conservative import ConservativeSGD
from adazeta.optim.optimizer import ZerothOrderOptimizer
from adazeta.rewards.calling import Rewards
from adazeta.tasks.reward import RewardTask
from adazeta.training.arguments import ZOTrainingArguments
from adazeta.training.right_answers import RightAnswers
from adazeta.training.rollouts import Rollouts

OBJECTIVES = ("loss", "accuracy")

_ONLY = {"shaping": "prompt", "eps_share": 0.5}


def rollouts_of(
    reward_funcs: Any,
    task: RewardTask | None,
    model: nn.Module | None,
    args: ZOTrainingArguments,
    options: dict[str, Any],
    *,
    other_loss: bool,
    scored: bool = False,
) -> Rollouts | None:
    """Return what evaluates a trainer's rewards; None where it has a loss.

    Args:
        reward_funcs: a function, several, or a :class:`~adazeta.rewards.calling.Rewards`.
        task: how prompts are completed, None for the default.
        model: the model.
        args: the settings.
        options: of ``transformers.Trainer``; collator and metrics are filled in.
        other_loss: whether a ``loss_fn`` is given.
        scored: whether labels are scored where there are no rewards, see :func:`right_answers_of`.

    Raises:
        ValueError: settings exclude each other, or would be ignored.
    """
    if reward_funcs is None:
        given = [name for name, value in _ONLY.items() if getattr(args, name) != value]
        given = [] if scored else given
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


def right_answers_of(
    objective: str,
    reward_funcs: Any,
    args: ZOTrainingArguments,
    options: Mapping[str, Any],
    own_loss: str | None,
) -> RightAnswers | None:
    """Return what scores the labels chosen; None where a loss or rewards are trained.

    Args:
        objective: ``"loss"`` or ``"accuracy"``.
        reward_funcs: of the trainer.
        args: the settings.
        options: of ``transformers.Trainer``.
        own_loss: class that overrides ``compute_loss``, if any.

    Raises:
        ValueError: the objective is unknown, or a setting would be ignored beside it.
    """
    if objective not in OBJECTIVES:
        raise ValueError(
            f"objective must be one of {', '.join(map(repr, OBJECTIVES))}, got {objective!r}"
        )
    if objective == "loss":
        return None
    for name, wrong, why in (
        ("reward_funcs", reward_funcs is not None, "they score completions, not labels"),
        ("compute_loss_func", options.get("compute_loss_func") is not None, "it is another loss"),
        (f"compute_loss of {own_loss}", own_loss is not None, "it is another loss"),
        ("label_smoothing_factor", bool(args.label_smoothing_factor), "an answer is right or not"),
    ):
        if wrong:
            raise ValueError(f"objective='accuracy' excludes {name}: {why}; leave one of them out")
    if options.get("optimizers", (None, None))[0] is None:
        check_method(args.method)
    return RightAnswers()


def check_method(name: str) -> None:
    """Refuse methods whose rule :func:`check_rule` refuses, by name.

    Raises:
        ValueError: the rule needs something else than differences of scores.
    """
    rule = method_named(name).rule
    if isinstance(rule, type):
        _check_rule(rule)


def check_rule(optimizer: ZerothOrderOptimizer) -> None:
    """Refuse update rules that need something else than differences of scores.

    Raises:
        ValueError: the rule does.
    """
    _check_rule(type(optimizer))


def _check_rule(rule: type[ZerothOrderOptimizer]) -> None:
    if rule.closure_gives == "logits":
        why = "makes a model of the cross entropy from all logits, and a score has none"
    elif issubclass(rule, ConservativeSGD):
        why = "needs a loss that changes with every parameter, and a score moves in jumps"
    else:
        return
    raise ValueError(
        f"the update rule {rule.__name__} {why}; choose another method, e.g. 'zo-adam'"
    )
