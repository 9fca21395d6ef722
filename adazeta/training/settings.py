"""What becomes of each setting of ``transformers.TrainingArguments``: used, refused, or no matter.

A setting that would be ignored is refused before any work. This table is what
:class:`~adazeta.training.arguments.ZOTrainingArguments` checks, and what
``docs/training_arguments.md`` shows.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import transformers
from transformers import TrainingArguments

from adazeta.methods import METHODS

USED = "used"
REFUSED = "refused"
NO_MATTER = "no meaning"


class Setting(NamedTuple):
    """What becomes of one setting.

    Attributes:
        kind: ``USED``, ``REFUSED`` (unless it is left off), or ``NO_MATTER``: accepted, since
            training comes out the same whatever it is.
        reason: why, or what to do instead; a sentence after "name=value: ".
        accepts: tells, from the value and the arguments, whether the value can stand; by default
            everything can, and of a refused setting what leaves it off.
    """

    kind: str
    reason: str
    accepts: Callable[[Any, Any], bool] | None = None


def _used(reason: str, accepts: Callable[[Any, Any], bool] | None = None) -> Setting:
    return Setting(USED, reason, accepts)


def _refused(reason: str, accepts: Callable[[Any, Any], bool] | None = None) -> Setting:
    return Setting(REFUSED, reason, accepts)


def _no_matter(reason: str) -> Setting:
    return Setting(NO_MATTER, reason)


def _taken(field: str) -> Setting:
    """A field that settings of some methods come from, and no other method has a use for."""
    takers = {
        name: setting
        for name, method in METHODS.items()
        for setting, fields in method.takes.items()
        if field in fields
    }

    def accepts(value: Any, args: Any) -> bool:
        return args.method in takers and takers[args.method] not in (args.method_settings or {})

    setting = next(iter(takers.values()))
    names = " and ".join(map(repr, takers))
    return _used(
        f"by method {names}, unless method_settings have its {setting}; others have "
        "method_settings",
        accepts,
    )


def _deals_plainly(value: Any, args: Any) -> bool:
    """Whether an ``accelerator_config`` leaves the dealing of batches as it is."""
    found = value if isinstance(value, Mapping) else getattr(value, "__dict__", None)
    if found is None:  # a path; what it holds is not known here
        return False
    changes = ("split_batches", "dispatch_batches", "gradient_accumulation_kwargs")
    return not any(found.get(name) for name in changes)


_AS_BASE = "as in the base class"
_GRADIENTS = "there are no gradients; leave it off"
_MEMORY = "no activations are kept, since nothing is propagated back; leave it off"
_COMPILED = "perturbed parameters are evaluated by the model as it is; leave it off"
_DIVIDED = (
    "each process holds the whole model and there are no gradients to divide; start with torchrun "
    "and see 'shard'"
)
_HUB = "by trainer.push_to_hub() after training"
_TRACKIO = "by the trackio integration"
_OPTIM = "choose how updates are made by 'method' and 'method_settings'"
_EXCHANGE = "tunes the exchange of gradients, of which there is none"

SETTINGS: dict[str, Setting] = {
    "output_dir": _used("adapters, checkpoints and the log of the run go there"),
    "per_device_train_batch_size": _used(_AS_BASE),
    "num_train_epochs": _used(_AS_BASE),
    "max_steps": _used("as in the base class: it wins over num_train_epochs"),
    "learning_rate": _used("a number, or 'auto', the default"),
    "lr_scheduler_type": _used("every kind; resuming brings it to where it was"),
    "lr_scheduler_kwargs": _used(_AS_BASE),
    "warmup_steps": _used(_AS_BASE),
    "warmup_ratio": _used("of older versions, as there"),
    "optim": _refused(_OPTIM),
    "optim_args": _refused(_OPTIM),
    "weight_decay": _used("on the parameters that the base class decays"),
    "adam_beta1": _taken("adam_beta1"),
    "adam_beta2": _taken("adam_beta2"),
    "adam_epsilon": _refused("set method_settings={'epsilon': ...} where the method has it"),
    "optim_target_modules": _refused(
        "choose what is trained by the adapters (target_modules, layers) or by requires_grad"
    ),
    "gradient_accumulation_steps": _used("averages the estimates of so many micro-batches"),
    "average_tokens_across_devices": _no_matter("examples count the same, not their tokens"),
    "max_grad_norm": _refused("there is no gradient to clip; leave it out, or set it to 0"),
    "label_smoothing_factor": _used(
        "each example's loss is smoothed as transformers' LabelSmoother smooths it, in training "
        "and evaluation; refused with compute_loss_func, with several labels an example, with "
        "regression, and with a loss_fn that has no parameter label_smoothing"
    ),
    "bf16": _used("autocast to bfloat16, as in the base class"),
    "fp16": _refused(
        "its gradient scaler needs gradients; load the model in the precision you want instead, "
        "e.g. dtype=torch.bfloat16"
    ),
    "bf16_full_eval": _refused(
        "it would round the trained parameters themselves; load the model in bfloat16 instead"
    ),
    "fp16_full_eval": _refused(
        "it would round the trained parameters themselves; load the model in float16 instead"
    ),
    "tf32": _used(_AS_BASE),
    "activation_checkpointing": _refused(_MEMORY),
    "activation_checkpointing_kwargs": _refused(_MEMORY),
    "gradient_checkpointing": _refused(_MEMORY),
    "gradient_checkpointing_kwargs": _refused(_MEMORY),
    "torch_compile": _refused(_COMPILED),
    "torch_compile_backend": _refused(_COMPILED),
    "torch_compile_mode": _refused(_COMPILED),
    "use_liger_kernel": _refused(
        "its kernels replace the forward and the loss that are computed here; leave it off"
    ),
    "liger_kernel_config": _refused("belongs to use_liger_kernel; leave it off"),
    "use_cache": _used("sets the model's configuration; losses are the same"),
    "neftune_noise_alpha": _refused(
        "all evaluations of a step must see the same function, without noise; leave it off"
    ),
    "torch_empty_cache_steps": _used(_AS_BASE),
    "auto_find_batch_size": _refused(
        "a run begins once, with one batch size; set a smaller per_device_train_batch_size with "
        "more gradient_accumulation_steps (stacks shrink by themselves where memory runs out)"
    ),
    "logging_strategy": _used(_AS_BASE),
    "logging_steps": _used(_AS_BASE),
    "logging_first_step": _used(_AS_BASE),
    "logging_dir": _used("of older versions, as there"),
    "log_on_each_node": _used(_AS_BASE),
    "logging_nan_inf_filter": _used(_AS_BASE),
    "include_num_input_tokens_seen": _used(_AS_BASE),
    "log_level": _used(_AS_BASE),
    "log_level_replica": _used(_AS_BASE),
    "disable_tqdm": _used(_AS_BASE),
    "report_to": _used(_AS_BASE),
    "run_name": _used(_AS_BASE),
    "project": _used(_TRACKIO),
    "trackio_space_id": _used(_TRACKIO),
    "trackio_bucket_id": _used(_TRACKIO),
    "trackio_static_space_id": _used(_TRACKIO),
    "eval_strategy": _used(_AS_BASE),
    "eval_steps": _used(_AS_BASE),
    "eval_delay": _used(_AS_BASE),
    "per_device_eval_batch_size": _used(_AS_BASE),
    "prediction_loss_only": _used(_AS_BASE),
    "eval_on_start": _used(_AS_BASE),
    "eval_do_concat_batches": _used(_AS_BASE),
    "eval_use_gather_object": _used(_AS_BASE),
    "eval_accumulation_steps": _used(_AS_BASE),
    "include_for_metrics": _used(_AS_BASE),
    "batch_eval_metrics": _used(_AS_BASE),
    "save_only_model": _no_matter(
        "checkpoints are small and can always be resumed; nothing in them is pickled"
    ),
    "save_strategy": _used(_AS_BASE),
    "save_steps": _used(_AS_BASE),
    "save_on_each_node": _used(_AS_BASE),
    "save_total_limit": _used(_AS_BASE),
    "enable_jit_checkpoint": _refused(
        "SIGTERM ends a run after the step that is under way, and the log holds every step; leave "
        "it off and resume with resume_from_checkpoint=True"
    ),
    "push_to_hub": _refused(
        "the base class would upload checkpoints that are no models; call trainer.push_to_hub() "
        "after training"
    ),
    "hub_token": _used(_HUB),
    "hub_private_repo": _used(_HUB),
    "hub_model_id": _used(_HUB),
    "hub_strategy": _no_matter("belongs to push_to_hub, which is refused"),
    "hub_always_push": _no_matter("belongs to push_to_hub, which is refused"),
    "hub_revision": _used(_HUB),
    "load_best_model_at_end": _used(_AS_BASE),
    "metric_for_best_model": _used(_AS_BASE),
    "greater_is_better": _used(_AS_BASE),
    "ignore_data_skip": _refused(
        "a resumed run goes on with the data where it stopped, or it is another run; to begin the "
        "data anew, load the adapters and start a new run"
    ),
    "restore_callback_states_from_checkpoint": _used(_AS_BASE),
    "full_determinism": _used(_AS_BASE),
    "seed": _used("of data, directions and rounding"),
    "data_seed": _used("of the order of the data and of what is random in a batch"),
    "use_cpu": _used(
        "as in the base class; several processes on a machine without an accelerator have it on"
    ),
    "accelerator_config": _used(
        "leave split_batches, dispatch_batches and gradient_accumulation_kwargs out: batches are "
        "dealt as 'shard' says, and gradient_accumulation_steps is a setting; give the rest as a "
        "mapping",
        _deals_plainly,
    ),
    "parallelism_config": _refused(_DIVIDED),
    "dataloader_drop_last": _used(_AS_BASE),
    "dataloader_num_workers": _used(_AS_BASE),
    "dataloader_pin_memory": _used("as in the base class; off where there is no accelerator"),
    "dataloader_persistent_workers": _used(_AS_BASE),
    "dataloader_prefetch_factor": _used(_AS_BASE),
    "dataloader_multiprocessing_context": _used(_AS_BASE),
    "dataloader_in_order": _refused(
        "the order of the batches would depend on chance, and no run could be resumed or repeated; "
        "leave it on",
        lambda value, args: bool(value),
    ),
    "remove_unused_columns": _used(
        "off by default; refused with a loss_fn, which may need what the model's forward does not"
    ),
    "label_names": _used(_AS_BASE),
    "train_sampling_strategy": _used(
        "'random', 'sequential' and 'group_by_length'; 'batch_rebalance' deals batches to "
        "processes, which 'shard' does here",
        lambda value, args: value != "batch_rebalance",
    ),
    "group_by_length": _used("of older versions, as there"),
    "length_column_name": _used(_AS_BASE),
    "ddp_find_unused_parameters": _no_matter(_EXCHANGE),
    "ddp_bucket_cap_mb": _no_matter(_EXCHANGE),
    "ddp_broadcast_buffers": _no_matter(_EXCHANGE),
    "ddp_static_graph": _no_matter(_EXCHANGE),
    "ddp_backend": _used(_AS_BASE),
    "ddp_timeout": _used("also how long processes wait for each other"),
    "fsdp": _refused(_DIVIDED),
    "fsdp_config": _refused(_DIVIDED),
    "deepspeed": _refused(_DIVIDED),
    "debug": _used(_AS_BASE),
    "skip_memory_metrics": _used(_AS_BASE),
    "do_train": _no_matter("a flag of scripts; trainer.train() and 'adazeta train' train"),
    "do_eval": _no_matter("a flag of scripts; eval_strategy and test_data say what is evaluated"),
    "do_predict": _no_matter(
        "a flag of scripts; trainer.predict() and 'adazeta predict' predict ('adazeta train' "
        "refuses it)"
    ),
    "resume_from_checkpoint": _used("by 'adazeta train'; trainer.train() takes it as an argument"),
    "local_rank": _no_matter("torchrun says it by the environment"),
}
"""By name, in the order of ``transformers.TrainingArguments``."""


_NO_LOG = "set save_steps, and resume with resume_from_checkpoint=True"
_EVALUATION_MODE = "dropout and checkpointing are off, as both orders train the same function"
_BY_RULE = "choose how updates are made by 'rule' and 'rule_settings'"
_BY_ADAM = _used("by rules 'adamw' and 'lamb'", lambda value, args: args.rule in ("adamw", "lamb"))


def _not_fused(value: Any, args: Any) -> bool:
    """Whether all gradients of a step exist together."""
    return args.rule != "adalomo"


_FUSED = "rule 'adalomo' drops each gradient within the backward pass"

FIRST_ORDER: dict[str, Setting] = {
    **SETTINGS,
    "learning_rate": _used("a number; by default that of the 'rule'"),
    "optim": _refused(_BY_RULE),
    "optim_args": _refused(_BY_RULE),
    "adam_beta1": _BY_ADAM,
    "adam_beta2": _BY_ADAM,
    "adam_epsilon": _BY_ADAM,
    "gradient_accumulation_steps": _used(
        f"as in the base class; {_FUSED}, so there leave it at 1 and set a larger "
        "per_device_train_batch_size",
        _not_fused,
    ),
    "max_grad_norm": _used(
        f"as in the base class; {_FUSED}, so there leave it out, or set it to 0",
        lambda value, args: not value or _not_fused(value, args),
    ),
    "fp16": _refused("load the model in the precision you want, or set bf16"),
    "activation_checkpointing": _refused(_EVALUATION_MODE),
    "activation_checkpointing_kwargs": _refused(_EVALUATION_MODE),
    "gradient_checkpointing": _refused(_EVALUATION_MODE),
    "gradient_checkpointing_kwargs": _refused(_EVALUATION_MODE),
    "torch_compile": _refused("the model is trained as it is; leave it off"),
    "torch_compile_backend": _refused("the model is trained as it is; leave it off"),
    "torch_compile_mode": _refused("the model is trained as it is; leave it off"),
    "neftune_noise_alpha": _refused(
        "both orders train the same function, without noise; leave it off"
    ),
    "auto_find_batch_size": _refused(
        "a run begins once, with one batch size; set a smaller per_device_train_batch_size with "
        "more gradient_accumulation_steps"
    ),
    "enable_jit_checkpoint": _refused(_NO_LOG),
    "seed": _used("of data and new weights"),
    "parallelism_config": _refused("first-order training here is for one process"),
    "fsdp": _refused("first-order training here is for one process"),
    "fsdp_config": _refused("first-order training here is for one process"),
    "deepspeed": _refused("first-order training here is for one process"),
}
"""The same for first-order training, :class:`~adazeta.training.first_order.FOTrainer`."""


def check_settings(args: TrainingArguments, settings: Mapping[str, Setting] = SETTINGS) -> None:
    """Refuse settings of the base class that would be ignored.

    Args:
        args: before the base class has turned texts into enumerations.
        settings: what becomes of each.

    Raises:
        ValueError: naming the setting, its value and the remedy.
    """
    for field in dataclasses.fields(TrainingArguments):
        value = getattr(args, field.name)
        if _is_default(value, field):
            continue
        setting = settings.get(field.name)
        if setting is None:
            raise ValueError(
                f"{field.name}={value!r} is a setting of transformers {transformers.__version__} "
                "that this version of AdaZeta does not know; leave it at its default"
            )
        if setting.accepts is not None:
            fine = setting.accepts(value, args)
        else:
            fine = setting.kind != REFUSED or not value
        if not fine:
            raise ValueError(f"{field.name}={_shown(value)} is not supported: {setting.reason}")


def table() -> str:
    """Return the settings as a table in Markdown."""
    lines = ["| setting | what becomes of it | why |", "| --- | --- | --- |"]
    for name, setting in SETTINGS.items():
        kind = "refused where set" if setting.kind == REFUSED else setting.kind
        if setting.kind == USED and setting.accepts is not None:
            kind = "used, else refused"
        lines.append(f"| `{name}` | {kind} | {setting.reason} |")
    return "\n".join(lines)


def _is_default(value: Any, field: dataclasses.Field[Any]) -> bool:
    if field.default is not dataclasses.MISSING:
        return bool(value == field.default)
    assert field.default_factory is not dataclasses.MISSING
    return bool(value == field.default_factory())


def _shown(value: Any) -> str:
    return repr(getattr(value, "value", value))  # of an enumeration: its text
