"""What the journal, resuming and catching up need of the trainer that they serve."""

from typing import Any, Protocol

from torch import nn
from transformers import TrainerControl, TrainerState

from adazeta.estimation.distributed import Ranks
from adazeta.optim.optimizer import ZerothOrderOptimizer
from adazeta.recording.probe_log import LogWriter, ProbeLog
from adazeta.training.agreement import Agreement
from adazeta.training.arguments import ZOTrainingArguments


class Host(Protocol):
    """A trainer, as those see it that record its steps and bring it to where a run goes on.

    Attributes:
        args: its settings.
        state: the place in the run.
        control: what its callbacks ask for.
        lr_scheduler: the learning-rate schedule; None before training.
        eval_dataset: data of its evaluations, or a mapping of names to data.
        ranks: the processes that train together.
        agreement: what they make sure of.
        log_of_run: the log of the run; None without one.
    """

    args: ZOTrainingArguments
    state: TrainerState
    control: TrainerControl
    lr_scheduler: Any
    eval_dataset: Any
    ranks: Ranks
    agreement: Agreement
    log_of_run: ProbeLog | LogWriter | None

    @property
    def zo_optimizer(self) -> ZerothOrderOptimizer:
        """The optimizer, without what accelerate wraps it in."""

    @property
    def unwrapped(self) -> nn.Module:
        """The model, without what accelerate wraps it in."""

    def ready_optimizer(self) -> ZerothOrderOptimizer:
        """Return the optimizer; make it if need be."""

    def evaluate(self) -> dict[str, float]:
        """Evaluate, and log the metrics."""

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save what a checkpoint has of the model."""
