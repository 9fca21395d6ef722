"""A trainer whose evaluation also generates the answers of a task.

Apart from the generation itself, which needs no trainer.
"""

from typing import Any

from torch import nn
from torch.utils.data import DataLoader
from transformers.trainer_utils import EvalLoopOutput

from adazeta.runs.generation import answer_metrics
from adazeta.tasks.generation import GenerationTask
from adazeta.training.first_order import FOTrainer
from adazeta.training.reproducible import ExactTrainer
from adazeta.training.trainer import ZOTrainer


class _Answering(ExactTrainer):
    """Adds the metrics of generated answers to every evaluation.

    They can so be logged, and choose the best checkpoint (``metric_for_best_model="f1"``).

    Args:
        model: the model.
        args: the settings.
        task: the task, whose encoded examples the evaluation data are.
        **kwargs: of the trainer.
    """

    def __init__(self, model: nn.Module, args: Any, *, task: GenerationTask, **kwargs: Any) -> None:
        super().__init__(model, args=args, **kwargs)
        self._task = task

    def evaluation_loop(
        self,
        dataloader: DataLoader[Any],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Evaluate as the base class does, then generate."""
        output = super().evaluation_loop(
            dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
        )
        examples: Any = dataloader.dataset
        size = self.args.per_device_eval_batch_size
        model: Any = self.unwrapped
        found = answer_metrics(model, self._task, examples, batch_size=size)
        assert output.metrics is not None
        for name, values in found.items():
            output.metrics[f"{metric_key_prefix}_{name}"] = float(values.mean())
        return output


class AnsweringTrainer(_Answering, ZOTrainer):
    """Trains by losses alone."""


class AnsweringFOTrainer(_Answering, FOTrainer):
    """Trains by gradients."""
