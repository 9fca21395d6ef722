"""Small runs of the trainer that are stopped, resumed and compared."""

from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback

from adazeta import TTAdapterConfig, ZOTrainer, ZOTrainingArguments, add_tt_adapters
from adazeta.forward.losses import example_losses
from adazeta.recording.folder import LOG_NAME
from adazeta.recording.identity import fingerprint_of_state
from tests.helpers.bits import assert_same_bits, bits
from tests.helpers.tiny_models import tiny_llama

PLATEAU = {
    "lr_scheduler_type": "reduce_lr_on_plateau", "lr_scheduler_kwargs": {"patience": 0},
    "metric_for_best_model": "loss", "learning_rate": 0.5, "eval_strategy": "steps",
}  # fmt: skip
QUICK = {"probes": "example", "save_strategy": "steps", "save_steps": 2, "max_steps": 6}

CONFIG = {"rank": 2, "bottleneck": 8, "init": "paper", "layers": "last:1"}


def adapted(**config):
    return add_tt_adapters(tiny_llama(layers=1), TTAdapterConfig(**{**CONFIG, **config}))


def make(folder, model=None, losses=example_losses, **options):
    return ZOTrainer(
        model or adapted(),
        arguments(folder, **{**QUICK, **options}),
        train_dataset=causal_data(12),
        eval_dataset=causal_data(4),
        loss_fn=losses,
    )


class Crash(Exception):
    pass


class CrashAfter(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise Crash


def crash_after(trainer, step):
    """Train until a step is done, and end by an exception there."""
    trainer.add_callback(CrashAfter(step))
    with pytest.raises(Crash):
        trainer.train()


def stopped(folder, step=5, **options):
    trainer = make(folder, **options)
    crash_after(trainer, step)
    return trainer


def assert_same_run(trainer, whole):
    assert_same_bits(trainer.model, bits(whole.model))
    assert fingerprint_of_state(trainer.zo_optimizer) == fingerprint_of_state(whole.zo_optimizer)
    assert trainer.evaluations == whole.evaluations
    there, here = (Path(t.args.output_dir, LOG_NAME).read_bytes() for t in (whole, trainer))
    assert here == there


def causal_data(rows=16, tokens=6):
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 60, (rows, tokens), generator=generator)
    return [{"input_ids": row, "labels": row.clone()} for row in ids]


def class_data(rows=16, tokens=6):
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 60, (rows, tokens), generator=generator)
    return [{"input_ids": row, "labels": int(row[0] > 30)} for row in ids]


def arguments(folder, **options):
    defaults = {
        "output_dir": str(folder),
        "max_steps": 6,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "eps": "1e-2",
        "seed": 3,
    }
    return ZOTrainingArguments(**{**defaults, **options})


def trainer(folder, model=None, data=None, **options):
    if model is None:
        model = add_tt_adapters(tiny_llama(), TTAdapterConfig(**CONFIG))
    return ZOTrainer(model, arguments(folder, **options), train_dataset=data or causal_data())
