"""A process that has imported everything and forks a child for every training run.

Run as ``python -m tests.helpers.crash_server``: reads requests, one JSON object a line, answers
with one. A child runs in one thread, since a fork has no other; importing anew for every run would
take longer than the runs.

A child can be killed at an instant of its own choosing: every call that changes a file or the
parameters is an instant before and one after, and a write also one in the middle.
"""

import gc
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from transformers import TrainerState, default_data_collator
from transformers.utils import logging as hf_logging

import adazeta.recording.state_files
import adazeta.training.reproducible
from adazeta import TTAdapterConfig, ZOTrainer, ZOTrainingArguments, add_tt_adapters
from adazeta.optim.optimizer import ZerothOrderOptimizer
from adazeta.recording.folder import LOG_NAME
from adazeta.recording.identity import fingerprint_of_state
from tests.helpers.rewards import task
from tests.helpers.rewards import trainer as reward_trainer
from tests.helpers.tiny_models import tiny_llama

OPTIONS = {
    "adam": {
        "weight_decay": 0.1, "queries": 2, "eps": "auto", "probes": "example",
        "lr_scheduler_type": "reduce_lr_on_plateau", "lr_scheduler_kwargs": {"patience": 0},
        "metric_for_best_model": "loss", "eval_strategy": "steps", "eval_steps": 2,
    },
    "sgd": {
        "method": "zo-momentum", "probes": "2", "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2, "lr_scheduler_type": "cosine", "query_schedule": True,
        "query_alpha": 1.6,
    },
    "rewards": {
        "probes": "example", "weight_decay": 0.5, "anchored_decay": True, "logging_steps": 2,
        "save_steps": 3, "max_steps": 7, "eval_strategy": "steps", "eval_steps": 4,
    },
}  # fmt: skip


class Instants:
    """Counts the instants of a run, and dies at one of them."""

    def __init__(self, last, seed):
        self.count, self.last, self.random = 0, last, random.Random(seed)

    def pass_one(self):
        self.count += 1
        if self.count == self.last:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(self, owner, name, torn=None):
        function = getattr(owner, name)

        def wrapper(*args, **kwargs):
            self.pass_one()
            if torn is not None:
                self.count += 1
                if self.count == self.last:
                    torn(function, *args, **kwargs)
                    os.kill(os.getpid(), signal.SIGKILL)
            result = function(*args, **kwargs)
            self.pass_one()
            return result

        setattr(owner, name, wrapper)

    def install(self):
        def half_a_write(write, handle, data, place):
            write(handle, data[: self.random.randrange(1, len(data))], place)

        def half_a_file(save, content, path, *args, **kwargs):
            save(content, path, *args, **kwargs)
            os.truncate(path, self.random.randrange(os.path.getsize(path)))

        for name in ("fsync", "replace", "rename", "ftruncate"):
            self.around(os, name)
        self.around(os, "pwrite", half_a_write)
        self.around(adazeta.recording.state_files, "save_tensors", half_a_file)
        self.around(adazeta.training.reproducible, "save_tensors", half_a_file)
        self.around(TrainerState, "save_to_json", half_a_file)
        self.around(ZOTrainer, "evaluate")
        self.around(ZerothOrderOptimizer, "apply")
        self.around(ZerothOrderOptimizer, "update")


def make_trainer(folder, kind):
    if kind == "rewards":
        return reward_trainer(folder, reward_task=task(temperature=0.8), **OPTIONS[kind])
    model = add_tt_adapters(
        tiny_llama(hidden=16, layers=1), TTAdapterConfig(rank=2, bottleneck=8, init="paper")
    )
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 60, (12, 4), generator=generator)
    arguments = {
        "output_dir": str(folder), "max_steps": 7, "per_device_train_batch_size": 4,
        "learning_rate": 1e-2, "logging_steps": 2, "save_strategy": "steps", "save_steps": 3,
        "report_to": "none", "use_cpu": True, "disable_tqdm": True, "eps": "1e-2", "seed": 3,
    }  # fmt: skip
    rows = [{"input_ids": row, "labels": row.clone()} for row in ids]
    return ZOTrainer(
        model,
        ZOTrainingArguments(**{**arguments, **OPTIONS[kind]}),
        train_dataset=rows,
        eval_dataset=rows[:4],
        data_collator=masked,
    )


def masked(examples):
    """Mask tokens at random, as collators of masked language modelling do."""
    batch = default_data_collator(examples)
    ids = batch["input_ids"]
    return {**batch, "input_ids": ids.masked_fill(torch.rand(ids.shape) < 0.3, 4)}


def train(request, report):
    folder = Path(request["folder"])
    instants = Instants(request.get("instant"), request.get("seed", 0))
    instants.install()
    trainer = make_trainer(folder, request["kind"])
    apply = ZerothOrderOptimizer.apply

    def told(optimizer, probes):
        report(f"step {optimizer.steps}")
        apply(optimizer, probes)

    def begin(*args, **kwargs):
        report(f"start {trainer.state.global_step}")
        ZerothOrderOptimizer.apply = told

    trainer.callback_handler.callbacks[0].on_train_begin = begin
    trainer.train(resume_from_checkpoint=(folder / LOG_NAME).exists())
    report(f"state {fingerprint_of_state(trainer.zo_optimizer)}")
    report(f"evaluations {trainer.evaluations}")
    report(f"instants {instants.count}")


def serve(request):
    """Fork a child, kill it after a while if asked, and return what it said and how it ended."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reader)
            log = os.open(request["folder"] + ".txt", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            train(request, lambda line: os.write(writer, f"{line}\n".encode()))
            os._exit(0)
        except SystemExit as leaving:
            os._exit(leaving.code)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            sys.stderr.flush()
            os._exit(1)
    os.close(writer)
    began = time.monotonic()
    if "after" in request:
        time.sleep(request["after"])
        os.kill(child, request.get("signal", signal.SIGKILL))
    with os.fdopen(reader) as lines:
        said = [line.split(maxsplit=1) for line in lines.read().splitlines()]
    _, status = os.waitpid(child, 0)
    return {"status": status, "said": said, "seconds": time.monotonic() - began}


def main():
    torch.set_num_threads(1)
    hf_logging.set_verbosity_error()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    gc.freeze()  # what is loaded now needs no collection in the children
    for line in sys.stdin:
        answers.write(json.dumps(serve(json.loads(line))) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
