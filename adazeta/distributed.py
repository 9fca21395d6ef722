"""Several processes on one gradient estimate: only scalars travel.

Each process holds all parameters. Either the queries of a step are divided among the processes, or
the data are: then a process evaluates every query on its own micro-batch, and the losses are
averaged before the projected gradient is formed. The losses are gathered in the order of the ranks,
so every process computes the same coefficients from the same numbers and makes the same update, bit
for bit. :func:`same_everywhere` checks that this is so.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from adazeta.checksum import checksum


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together.

    Attributes:
        rank: index of this process, from 0.
        size: number of processes.
    """

    rank: int = 0
    size: int = 1

    def gather(self, values: Tensor) -> Tensor:
        """Collect a tensor of every process.

        Args:
            values: any shape and dtype, the same on every process.

        Returns:
            ``(size, *shape)`` in the order of the ranks, on the device of ``values``.

        Raises:
            RuntimeError: a process has died, or does not answer within the time limit of the
                process group.
        """
        if self.size == 1:
            return values[None]
        # The backend decides where tensors may lie: gloo takes the host's, nccl the device's.
        home = dist.get_backend() == "nccl" and not values.is_cuda
        sent = (values.cuda() if home else values).contiguous()
        received = [torch.empty_like(sent) for _ in range(self.size)]
        try:
            dist.all_gather(received, sent)
        except RuntimeError as error:
            raise RuntimeError(
                f"rank {self.rank} of {self.size} lost the others: one of them has died or hangs "
                f"({str(error).splitlines()[0]}); nothing of this step was applied, so restart "
                "all of them with resume_from_checkpoint=true"
            ) from error
        return torch.stack(received).to(values.device)

    def mine(self, count: int) -> range:
        """Return which of ``count`` jobs are this process's: every size-th, from its rank."""
        return range(self.rank, count, self.size)

    def gather_jobs(self, values: Tensor, count: int) -> Tensor:
        """Collect the results of jobs that were divided by :meth:`mine`.

        Args:
            values: ``(len(mine(count)), *shape)``; may be empty, with the right ``shape``.
            count: number of all jobs.

        Returns:
            ``(count, *shape)`` in the order of the jobs.
        """
        if self.size == 1:
            return values
        most = -(-count // self.size)
        padded = values.new_zeros(most, *values.shape[1:])
        padded[: len(values)] = values
        # Job k is the (k div size)-th of rank k mod size.
        return self.gather(padded).transpose(0, 1).flatten(0, 1)[:count]


def ranks() -> Ranks:
    """Return this process's place; a process by itself is rank 0 of 1."""
    if dist.is_available() and dist.is_initialized():
        return Ranks(dist.get_rank(), dist.get_world_size())
    return Ranks()


def same_everywhere(tensors: Sequence[Tensor], where: Ranks, step: int) -> None:
    """Check that all processes hold the same parameters, bit for bit.

    Args:
        tensors: this process's parameters.
        where: this process's place.
        step: named in the message.

    Raises:
        RuntimeError: they differ.
    """
    if where.size == 1:
        return
    # int64 holds what is below 2**63.
    sums = where.gather(torch.tensor([checksum(tensors) - 2**63])).flatten().tolist()
    if len(set(sums)) > 1:
        listed = ", ".join(f"rank {rank}: {value + 2**63:x}" for rank, value in enumerate(sums))
        raise RuntimeError(
            f"the processes hold different parameters after step {step}: checksums "
            f"{listed}; they "
            "must start from the same weights with the same settings, and all use one backend "
            "and one version of the package"
        )
