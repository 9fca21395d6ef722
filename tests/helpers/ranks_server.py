"""A process that has imported everything and forks the processes of a distributed training run.

Run as ``python -m tests.helpers.ranks_server``: reads requests, one JSON object a line, answers
with one. Importing anew for each process of each run would take longer than the runs. A child
trains in one thread, over gloo, as if torchrun had started it.
"""

import gc
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path

import torch
from transformers.utils import logging as hf_logging

from adazeta import TTAdapterConfig, ZOTrainer, ZOTrainingArguments, add_tt_adapters
from adazeta.forward.losses import losses_only
from adazeta.optim.optimizer import ZerothOrderOptimizer
from tests.helpers.rewards import task
from tests.helpers.rewards import trainer as reward_trainer
from tests.helpers.tiny_models import tiny_llama

LIMIT = 60  # seconds after which a run that hangs is killed


def make_model():
    config = TTAdapterConfig(rank=2, bottleneck=8, init="paper")
    return add_tt_adapters(tiny_llama(hidden=16, layers=1), config)


def make_trainer(folder, rows=12, rewards=None, **options):
    if rewards is not None:
        quiet = {"logging_steps": 2, "max_steps": 4, "agreement_steps": 2, "seed": 3}
        return reward_trainer(folder, reward_task=task(**rewards), rows=rows, **quiet, **options)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 60, (rows, 4), generator=generator)
    arguments = {
        "output_dir": str(folder), "max_steps": 5, "per_device_train_batch_size": 4,
        "learning_rate": 1e-2, "logging_steps": 2, "save_strategy": "steps", "save_steps": 3,
        "report_to": "none", "use_cpu": True, "disable_tqdm": True, "eps": "1e-2", "seed": 3,
        "agreement_steps": 2,
    }  # fmt: skip
    return ZOTrainer(
        make_model(),
        ZOTrainingArguments(**{**arguments, **options}),
        train_dataset=[{"input_ids": row, "labels": row.clone()} for row in ids],
    )


class Mischief:
    """What goes wrong on one rank of a run."""

    def __init__(self, trainer, kind, step=2):
        self.trainer, self.step = trainer, step
        getattr(self, kind)()

    @property
    def now(self):
        return self.trainer.zo_optimizer.steps == self.step

    def before_evaluation(self, do):
        losses = self.trainer.batch_losses.loss.losses

        def wrapper(module, batch):
            if self.now:
                do(batch)
            return losses(module, batch)

        self.trainer.batch_losses.loss.losses = wrapper

    def killed(self):
        self.before_evaluation(lambda batch: os.kill(os.getpid(), signal.SIGKILL))

    def terminated(self):
        self.before_evaluation(lambda batch: os.kill(os.getpid(), signal.SIGTERM))

    def terminated_after_the_update(self):
        rate = self.trainer._get_learning_rate

        def after_the_optimizer():
            if self.now:
                os.kill(os.getpid(), signal.SIGTERM)
            return rate()

        self.trainer._get_learning_rate = after_the_optimizer

    def raises(self):
        def fail(batch):
            raise ValueError("no such word: 'mischief'")

        self.before_evaluation(fail)

    def disk_full(self):
        pwrite = os.pwrite

        def full(*arguments):
            if self.trainer.optimizer is not None and self.now:
                raise OSError(28, "No space left on device")
            return pwrite(*arguments)

        os.pwrite = full

    def drifts(self):
        apply = ZerothOrderOptimizer.apply

        def wrapper(optimizer, probes):
            last = self.now
            apply(optimizer, probes)
            if last:
                optimizer.space.parameters[-1].data.view(-1)[-1] += 1e-6

        ZerothOrderOptimizer.apply = wrapper

    def out_of_memory(self):
        def allocate(batch):
            if len(batch["input_ids"]) > 8:
                raise torch.OutOfMemoryError("out of memory")

        self.before_evaluation(allocate)

    def other_start(self):
        with torch.no_grad():
            next(p for p in self.trainer.model.parameters() if p.requires_grad).add_(1e-3)

    def other_base(self):
        with torch.no_grad():
            next(p for p in self.trainer.model.parameters() if not p.requires_grad).add_(1e-3)

    def other_data(self):
        self.trainer.train_dataset = self.trainer.train_dataset[:4]

    def other_batch(self):
        self.trainer.train_dataset = self.trainer.train_dataset[::-1]

    def other_rate(self):
        self.trainer.args.learning_rate = 0.5


def not_finite(trainer):
    """Give losses that are not finite at some of the perturbed parameters, on every rank alike."""

    def losses(module, batch):
        found = losses_only(module, batch)
        wrong = found.double().mul(1e4).long() % 5 == 0
        return torch.where(wrong & (trainer.zo_optimizer.steps > 0), torch.nan, found)

    trainer.batch_losses.loss.losses = losses


def train(request, rank):
    trainer = make_trainer(request["folder"], **request["options"])
    trouble = request.get("mischief")
    if request.get("nan"):
        not_finite(trainer)
    if trouble is not None and rank == trouble.pop("rank"):
        Mischief(trainer, **trouble)
    trainer.train(resume_from_checkpoint=request.get("resume", False))
    values = [p.detach().reshape(-1) for p in trainer.zo_optimizer.space.parameters]
    return {
        "parameters": torch.cat(values).view(torch.int32).tolist(),
        "together": trainer._together,
        "wrapped": type(trainer.model_wrapped).__name__,
        "batch": trainer.get_total_train_batch_size(trainer.args),
    }


def child(request, rank, size, port):
    output = os.open(f"{request['folder']}-{rank}.txt", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    if size > 1:
        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size),
            "LOCAL_WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        }  # fmt: skip
    try:
        found = train(request, rank)
        Path(f"{request['folder']}-{rank}.json").write_text(json.dumps(found))
        status = 0
    except SystemExit as leaving:
        status = leaving.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def serve(request):
    size = request["size"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = {}
    for rank in range(size):
        process = os.fork()
        if process == 0:
            child(request, rank, size, port)
        children[process] = rank
    statuses, ended, began = [None] * size, [0.0] * size, time.monotonic()
    while children:
        process, status = os.waitpid(-1, os.WNOHANG)
        if process:
            rank = children.pop(process)
            statuses[rank] = os.waitstatus_to_exitcode(status)
            ended[rank] = time.monotonic() - began
        elif time.monotonic() - began > LIMIT:
            for process in children:
                os.kill(process, signal.SIGKILL)
            began = float("inf")
        else:
            time.sleep(0.01)
    return {"statuses": statuses, "seconds": ended}


def main():
    torch.set_num_threads(1)
    hf_logging.set_verbosity_error()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    gc.freeze()
    for line in sys.stdin:
        answers.write(json.dumps(serve(json.loads(line))) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
