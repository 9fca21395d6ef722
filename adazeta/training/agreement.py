"""What the processes of a training run make sure of together: the same start, the same end.

:mod:`adazeta.estimation.distributed` carries the numbers of a step. Here is what the trainer adds:
the check that all begin alike, the checksum of the parameters, and that all leave after the same
step.
"""

import hashlib
import json
from typing import Any

from accelerate.data_loader import BatchSamplerShard
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import TrainerState, TrainingArguments

from adazeta.estimation.distributed import Ranks, check_same
from adazeta.optim.optimizer import ZerothOrderOptimizer
from adazeta.recording.identity import identity
from adazeta.support.checksum import checksum

_SAME = ("max_steps", "gradient_accumulation_steps", "lr_scheduler_type", "warmup_steps")


class Agreement:
    """Keeps the processes of a run together.

    Args:
        where: the processes.
        every: steps from one comparison of the parameters to the next; 0: at the start and the
            end only.
    """

    def __init__(self, where: Ranks, every: int) -> None:
        self._ranks, self._every = where, every

    def start(
        self,
        model: nn.Module,
        optimizer: ZerothOrderOptimizer,
        args: TrainingArguments,
        state: TrainerState,
        batches: int | None,
    ) -> None:
        """Check that all processes begin alike.

        Args:
            model: the model.
            optimizer: its optimizer, in the state that training begins with.
            args: settings of the trainer.
            state: of the trainer.
            batches: micro-batches an epoch, None if they cannot be counted.

        Raises:
            RankError: they do not.
        """
        if self._ranks.size == 1:
            return
        about = identity(model, optimizer)
        held = [*optimizer.space.parameters, *_states(optimizer)]
        facts = {
            "the base model": str(about.base.fingerprint)[:16],
            "the layout of the trainable parameters": _digest(about.layout.to_json()),
            "the trainable parameters or the optimizer's state": f"{checksum(held):x}",
            "the optimizer's settings": _digest(about.optimizer.to_json()),
            "the estimator's settings": _digest([about.estimator, optimizer.space.perturbation]),
            "the seed": optimizer.estimator.seed,
            "the version": about.version,
            "the number of batches": batches,
            "the step": [state.global_step, optimizer.steps],
            **{name: str(getattr(args, name)) for name in _SAME},
        }
        check_same(self._ranks.exchange("the start of training", facts), "at the start")

    def after_step(self, optimizer: ZerothOrderOptimizer, leave: bool) -> bool:
        """Compare the parameters if that is due, and find out whether anyone wants to leave.

        Args:
            optimizer: after its step.
            leave: whether this process has to.

        Returns:
            Whether any has to: then all do, after this step.

        Raises:
            RankError: the parameters differ.
        """
        done = optimizer.steps
        due = self._every > 0 and (done - 1) % self._every == 0
        return self._agree(optimizer, leave, f"after step {done - 1}", due=due)

    def end(self, optimizer: ZerothOrderOptimizer, leave: bool) -> bool:
        """As :meth:`after_step`, once training has ended; the parameters are always compared."""
        return self._agree(optimizer, leave, "at the end of training", due=True)

    def _agree(self, optimizer: ZerothOrderOptimizer, leave: bool, when: str, *, due: bool) -> bool:
        if self._ranks.size == 1:
            return leave
        value = f"{checksum(optimizer.space.parameters):x}" if due else None
        found = self._ranks.exchange(f"the check {when}", (leave, value))
        check_same([{"the trainable parameters": value} for _, value in found], when)
        return any(asked for asked, _ in found)


def deal_batches(loader: DataLoader[Any], where: Ranks) -> None:
    """Deal batches to data shards, where accelerate has dealt them to processes.

    Args:
        loader: as accelerate has prepared it; changed in place.
        where: the processes.

    Raises:
        ValueError: the data set can only be read in order, and accelerate deals it out itself.
    """
    if where.sharers == 1:
        return
    sampler = loader.batch_sampler
    if not isinstance(sampler, BatchSamplerShard):
        raise ValueError(
            "processes can see the same batches of a data set with a length only; use "
            "shard='data' with an iterable one"
        )
    sampler.num_processes, sampler.process_index = where.shards, where.shard
    if where.shards == 1:
        sampler.even_batches = False  # the last batch stays as short as for a single process


def _states(optimizer: ZerothOrderOptimizer) -> list[Tensor]:
    """Return the tensors of an optimizer's state, in the order of the parameters."""
    return [
        value
        for parameter in optimizer.space.parameters
        for _, value in sorted(optimizer.state.get(parameter, {}).items())
        if isinstance(value, Tensor)
    ]


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
