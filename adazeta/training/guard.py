"""Texts that the model is not to forget: their loss at each evaluation, beside the base's.

A reward says nothing of what it does not look at. The guard measures, and does not train.
"""

from collections.abc import Sequence

import torch
from torch import nn

from adazeta.adapters.attach import disable_adapters
from adazeta.adapters.attached import has_adapters
from adazeta.tasks.causal_lm import CausalLMTask
from adazeta.tasks.examples import Example, collated

_ROWS = 8


class Guard:
    """Measures the loss of given texts.

    Args:
        task: of plain text, e.g. ``CausalLMTask(tokenizer, "{text}")``.
        examples: its encoded texts, one or more.
    """

    def __init__(self, task: CausalLMTask, examples: Sequence[Example]) -> None:
        self._task, self._examples = task, list(examples)
        self._base: float | None = None

    def __call__(self, module: nn.Module) -> dict[str, float]:
        """Return ``guard_loss`` and, of a model with adapters, ``guard_loss_base``.

        The mean over the texts of their cross entropy a token, the adapters acting on all tokens.

        Args:
            module: the model, in evaluation mode.
        """
        found = {"guard_loss": self._loss(module)}
        if has_adapters(module):
            if self._base is None:
                with disable_adapters(module):
                    self._base = self._loss(module)
            found["guard_loss_base"] = self._base
        return found

    @torch.no_grad()
    def _loss(self, module: nn.Module) -> float:
        device = next(module.parameters()).device
        losses: list[float] = []
        order = range(len(self._examples))
        for batch in collated(self._task.collate, self._examples, order, _ROWS, device):
            losses += self._task.losses(module, batch)[0].double().tolist()
        return sum(losses) / len(losses)
