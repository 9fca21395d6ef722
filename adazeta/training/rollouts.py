"""What a run with rewards evaluates: completions of a population, and their scores.

A loss is a score with the other sign, so everything of the engine that follows is the same.
"""

import logging
import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from zlib import crc32

import numpy as np
import torch
from torch import Tensor, nn
from transformers import EvalPrediction

from adazeta.adapters.attach import disable_adapters
from adazeta.adapters.attached import has_adapters
from adazeta.estimation.shaping import ScoreSummary
from adazeta.forward.decode_check import check_decoding
from adazeta.forward.divergence import divergence_from_base
from adazeta.forward.prompt_states import PromptStates
from adazeta.parameters.space import ParameterSpace
from adazeta.support.batches import rows_of
from adazeta.support.seeds import SAMPLING_SEEDS, derive_seed
from adazeta.support.words import word_pairs
from adazeta.tasks.reward import PROMPT, RewardTask
from adazeta.training.guard import Guard
from adazeta.training.scores import Scores

logger = logging.getLogger(__name__)

EVALUATION = -1
"""Stands for the step, where noise belongs to an evaluation: the same in all of them."""

_SHOWN = 8  # prompts of an evaluation of which the completions are kept
_TOLD = 3  # times that a fault is told of


class RewardFunctions(Protocol):
    """Several reward functions with weights, as :class:`adazeta.rewards.calling.Rewards` is."""

    names: list[str]

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> Any:
        """Return ``total``, float64 (N,) with NaN where one is missing, ``each`` and ``faults``."""


@dataclass
class Shown:
    """One prompt of an evaluation, with what is written after it.

    Attributes:
        prompt: as the rewards see it.
        completion, reward: of the model as it is; a reward that is missing is None.
        before, reward_before: of the model without its adapters; None where it has none.
        rewards: of each function, by name.
    """

    prompt: Any
    completion: str
    reward: float | None
    before: str | None = None
    reward_before: float | None = None
    rewards: dict[str, float | None] = field(default_factory=dict)


@dataclass
class _Counts:
    """What was written since the last log."""

    tokens: int = 0
    completions: int = 0
    seconds: float = 0.0
    each: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))


class Rollouts(Scores):
    """Writes completions and scores them.

    Args:
        task: how prompts are completed.
        rewards: the reward functions.
        seed: of the run.
        cache: where the states of prompts are kept, for ``adapt="answer"``.
        limit: size of that cache in GiB.
        folder: of a cache on disk.

    Attributes:
        shown: prompts and completions of the last evaluation.
        state: of the trainer, for functions that ask for it.
        guard: measures given texts at each evaluation; None without.
    """

    remedies = (
        "use eps='auto' or a larger eps, temperature above 0, a reward that gives partial credit, "
        "or easier prompts"
    )

    def __init__(
        self,
        task: RewardTask,
        rewards: RewardFunctions,
        *,
        seed: int,
        cache: str = "none",
        limit: float = 4.0,
        folder: str | Path | None = None,
    ) -> None:
        super().__init__()
        self.task, self.rewards = task, rewards
        self.shown: list[Shown] = []
        self.state: Any = None
        self.guard: Guard | None = None
        self._guarded: dict[str, float] = {}
        self._seed = seed
        self._options: dict[str, Any] = {"cache": cache, "limit": limit, "folder": folder}
        self._states: tuple[nn.Module, PromptStates] | None = None
        self._checked: nn.Module | None = None
        self._counts, self._faults = _Counts(), Counter[str]()
        self._before: dict[bytes, tuple[str, float | None]] = {}
        self._evaluated: list[str] = []

    def of(
        self, module: nn.Module, space: ParameterSpace, step: int
    ) -> Callable[[Mapping[str, Any]], Tensor]:
        """Prepare the evaluations of a batch.

        Args:
            module: the model, in evaluation mode.
            space: its trainable parameters.
            step: of the optimizer; members and micro-batches of a step share their noise.

        Returns:
            A function of the batch, whose rows may be repeated: it completes the prompts and
            returns the scores with the other sign, float64 ``(rows,)``. Its method ``differs``
            serves the choice of eps.
        """
        return _Evaluations(self, module, space, step)

    def prompt_states(self, module: nn.Module) -> PromptStates:
        """Return what keeps the states of prompts, for ``adapt="answer"``."""
        if self._states is None or self._states[0] is not module:
            self._states = module, PromptStates(module, **self._options)
        return self._states[1]

    def write(
        self,
        module: nn.Module,
        batch: Mapping[str, Any],
        step: int,
        space: ParameterSpace | None = None,
    ) -> tuple[list[str], list[list[int]]]:
        """Write the completions of a batch; return the texts and their tokens."""
        began = time.perf_counter()
        options: dict[str, Any] = {}
        if space is not None and space.groups > 1:
            options = {"groups": space.groups, "keep_groups": space.keep_groups}
        if self.task.decoding.temperature:
            options["seeds"] = self._seeds(batch, step)
        if self.task.adapt == "answer":
            options["start"] = self.prompt_states(module)
        if self._checked is not module:
            self._checked = module
            ids, mask = batch["input_ids"], batch["attention_mask"]
            check_decoding(
                module, ids, mask, self.task.decoding, options.get("start"),
                stacked="groups" in options,
            )  # fmt: skip
        texts, tokens = self.task.complete(module, batch, **options)
        counts = self._counts
        counts.tokens += sum(map(len, tokens))
        counts.completions += len(tokens)
        counts.seconds += time.perf_counter() - began
        return texts, tokens

    def score(
        self, batch: Mapping[str, Any], texts: Sequence[str], tokens: Sequence[list[int]]
    ) -> Any:
        """Call the reward functions on completions; what fails is told of and has no score."""
        times = len(texts) // len(batch[PROMPT])
        prompts = list(batch[PROMPT]) * times
        completions = [
            text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
            for prompt, text in zip(prompts, texts, strict=True)
        ]
        columns: dict[str, Any] = {
            name: list(values) * times for name, values in batch["columns"].items()
        }
        if self.state is not None:
            columns["trainer_state"] = self.state
        scores = self.rewards(prompts, completions, completion_ids=list(tokens), **columns)
        for fault in scores.faults:
            self._faults[fault] += 1
            if self._faults[fault] <= _TOLD:
                logger.warning("%s", fault)
        for name, values in scores.each.items():
            self._counts.each[name] += values[~values.isnan()].tolist()
        return scores

    def logs(self, summaries: Sequence[ScoreSummary]) -> dict[str, float]:
        """Return the figures since the last time, for a log."""
        counts, self._counts = self._counts, _Counts()
        found = super().logs(summaries)
        if len(counts.each) > 1:
            for name, values in counts.each.items():
                if values:
                    found[f"rewards/{name}/mean"] = sum(values) / len(values)
        if counts.completions:
            found["completion_length"] = counts.tokens / counts.completions
            found["tokens_per_second"] = counts.tokens / max(counts.seconds, 1e-9)
        return found

    def begin_evaluation(self) -> None:
        """Forget the completions of the last evaluation."""
        self.shown, self._evaluated, self._guarded = [], [], {}

    @torch.no_grad()
    def predict(self, module: nn.Module, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Evaluate a batch.

        Returns:
            The mean loss (the score with the other sign), and float32 ``(B, 5 + R)``: the score,
            the tokens of the completion, the sum over them of the KL divergence from the base,
            their negative log likelihood under the base, and their number there; and what each of
            the R functions gave, NaN where that is missing.
        """
        if self.guard is not None and not self._guarded:
            self._guarded = self.guard(module)
        counts, self._counts = self._counts, _Counts()  # those of training are logged
        texts, tokens = self.write(module, batch, EVALUATION)
        scores = self.score(batch, texts, tokens)
        total = scores.total
        divergence, surprise = divergence_from_base(
            module, batch["input_ids"], batch["attention_mask"], tokens,
            answer_only=self.task.adapt == "answer",
        )  # fmt: skip
        self._evaluated += texts
        self._show(module, batch, texts, scores)
        self._counts = counts
        lengths = torch.tensor([len(row) for row in tokens], dtype=torch.float64)
        columns = [total.double().cpu(), lengths, divergence, surprise, lengths]
        columns += [scores.each[name].double().cpu() for name in self.rewards.names]
        loss = -total.nanmean()
        device = batch["input_ids"].device
        return loss.float().to(device), torch.stack(columns, 1).float().to(device)

    def metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        """Reduce what :meth:`predict` returned.

        Returns:
            ``reward`` and ``reward_std``, ``completion_length``, ``distinct_bigrams`` (share of
            different pairs of words among all of the completions), and, of a model with adapters,
            ``kl`` (mean over tokens of the divergence from the base) and ``base_perplexity`` (of
            the completions under the base); of several functions the mean and spread of each,
            ``rewards/NAME/mean`` and ``rewards/NAME/std``; beside them what :attr:`guard` measured.
        """
        found = np.asarray(prediction.predictions, dtype=np.float64)
        result = {**self.task.metrics(prediction), **self._guarded}
        if len(self.rewards.names) > 1:
            for name, values in zip(self.rewards.names, found[:, 5:].T, strict=True):
                if not np.isnan(values).all():
                    result[f"rewards/{name}/mean"] = float(np.nanmean(values))
                    result[f"rewards/{name}/std"] = float(np.nanstd(values))
        result["completion_length"] = float(found[:, 1].mean())
        if len(self._evaluated) == len(found):  # of this process alone
            result["distinct_bigrams"] = distinct_bigrams(self._evaluated)
        count = found[:, 4].sum()
        if count and not np.isnan(found[:, 2]).any():
            result["kl"] = float(found[:, 2].sum() / count)
            result["base_perplexity"] = math.exp(found[:, 3].sum() / count)
        return result

    def _show(
        self, module: nn.Module, batch: Mapping[str, Any], texts: Sequence[str], scores: Any
    ) -> None:
        """Keep some completions, and what the base writes instead."""
        few = min(_SHOWN - len(self.shown), len(texts))
        if few <= 0:
            return
        keys = [row.cpu().numpy().tobytes() for row in batch["input_ids"][:few]]
        if has_adapters(module) and any(key not in self._before for key in keys):
            part = {
                name: value[:few] if isinstance(value, Tensor | list) else value
                for name, value in batch.items()
            }
            part["columns"] = {n: values[:few] for n, values in batch["columns"].items()}
            with disable_adapters(module):
                written, tokens = self.write(module, part, EVALUATION)
            old = map(_known, self.score(part, written, tokens).total.tolist())
            self._before |= dict(zip(keys, zip(written, old, strict=True), strict=True))
        for index, key in enumerate(keys):
            before, reward_before = self._before.get(key, (None, None))
            reward = _known(float(scores.total[index]))
            each = {name: _known(float(values[index])) for name, values in scores.each.items()}
            prompt = batch[PROMPT][index]
            self.shown.append(Shown(prompt, texts[index], reward, before, reward_before, each))

    def _seeds(self, batch: Mapping[str, Any], step: int) -> Tensor:
        """Return the seed of each row's noise: of the run, the step and the prompt's tokens."""
        ids, mask = batch["input_ids"].cpu(), batch["attention_mask"].cpu().bool()
        seeds = [
            derive_seed(self._seed, SAMPLING_SEEDS, step, crc32(row[kept].numpy().tobytes()))
            for row, kept in zip(ids, mask, strict=True)
        ]
        return torch.tensor(seeds, dtype=torch.int64, device=batch["input_ids"].device)


class _Evaluations:
    """The evaluations of one batch, see :meth:`Rollouts.of`."""

    def __init__(
        self, rollouts: Rollouts, module: nn.Module, space: ParameterSpace, step: int
    ) -> None:
        self._rollouts, self._module, self._space, self._step = rollouts, module, space, step

    def __call__(self, batch: Mapping[str, Any]) -> Tensor:
        texts, tokens = self._rollouts.write(self._module, batch, self._step, self._space)
        total: Tensor = self._rollouts.score(batch, texts, tokens).total
        return -total.to(batch["input_ids"].device)

    def differs(self, batch: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], Tensor]:
        """Return a function that tells which completions are not those of the parameters.

        Args:
            batch: is completed at the parameters as they are.
        """
        rollouts, module = self._rollouts, self._module
        _, base = rollouts.write(module, batch, self._step)

        def evaluate(repeated: Mapping[str, Any]) -> Tensor:
            _, tokens = rollouts.write(module, repeated, self._step, self._space)
            times = rows_of(repeated) // len(base)
            changed = [a != b for a, b in zip(tokens, base * times, strict=True)]
            return torch.tensor(changed, dtype=torch.float64)

        return evaluate


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def distinct_bigrams(texts: Sequence[str]) -> float:
    """Return the share of different pairs of neighbouring words among all pairs; 0 without any."""
    pairs = [pair for text in texts for pair in word_pairs(text)]
    return len(set(pairs)) / len(pairs) if pairs else 0.0
