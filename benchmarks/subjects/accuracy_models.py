"""The models that ``accuracy`` trains, each with the cheapest exact way to its losses."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from adazeta.adapters.attach import add_tt_adapters, remove_adapters
from adazeta.adapters.attached import has_adapters
from adazeta.adapters.config import TTAdapterConfig
from adazeta.forward.packing import packed, packing_of
from adazeta.forward.trunk import SharedTrunk
from adazeta.models.structure import blocks_with
from benchmarks.subjects.steps import lora_model
from benchmarks.subjects.workload import Batch, Workload

# How many blocks "blocks" trains: few enough that many evaluations are affordable on a CPU.
BLOCKS = 2

Losses = Callable[[nn.Module, Mapping[str, Any]], tuple[Tensor, Tensor]]


@dataclass
class Trainee:
    """A model to train.

    Attributes:
        model: in evaluation mode.
        losses: of a batch's examples, (B,), and the label words' logits.
    """

    model: nn.Module
    losses: Callable[[Batch], tuple[Tensor, Tensor]]


class Trainees:
    """Gives each run its model; adapters of different runs share one model and what is kept for it.

    Args:
        work: the workload whose base is trained.
        adapters: the tensor-train adapters.
        losses: of a model and a batch.
        prepare: called with the shared model once it has its first adapters.
        cache: where the states below trained blocks are kept, see
            :class:`~adazeta.forward.trunk.SharedTrunk`.
    """

    def __init__(
        self,
        work: Workload,
        adapters: TTAdapterConfig,
        losses: Losses,
        prepare: Callable[[nn.Module], None] | None = None,
        cache: str = "memory",
    ) -> None:
        self._work = work
        self._adapters = adapters
        self._losses = losses
        self._adapted = work.model("bare")
        self._prepare = prepare
        self._cache = cache

    def fresh(self, trains: str, seed: int) -> Trainee:
        """Return a model as it is before training.

        Args:
            trains: ``"tt"``: tensor-train adapters; ``"lora"``: in as many of the last blocks;
                ``"blocks"``: every weight of the last ``BLOCKS`` blocks; ``"full"``: every
                weight; ``"nothing"``.
            seed: of adapters.
        """
        if trains == "tt":
            return self._with_adapters(seed)
        if trains == "blocks":
            return self._with_trainable_blocks()
        if trains == "lora":
            last = int(str(self._adapters.layers).removeprefix("last:"))
            return self._on_trunk(lora_model(self._work, seed=seed, last=last))
        return self._packed(self._work.model("full" if trains == "full" else "bare"))

    def _with_adapters(self, seed: int) -> Trainee:
        model = self._adapted
        if has_adapters(model):
            remove_adapters(model)
        add_tt_adapters(model, copy.deepcopy(self._adapters), seed=seed)
        if self._prepare is not None:
            self._prepare(model)
            self._prepare = None
        return Trainee(model.eval(), lambda batch: self._losses(model, batch))

    def _with_trainable_blocks(self) -> Trainee:
        base = self._work.base
        blocks, _ = blocks_with(base, base.parameters())
        own = [parameter for block in blocks[-BLOCKS:] for parameter in block.parameters()]
        return self._on_trunk(self._work.twin(own))

    def _on_trunk(self, model: nn.Module) -> Trainee:
        model.eval()
        trunk = SharedTrunk(model, cache=self._cache)

        def losses(batch: Batch) -> tuple[Tensor, Tensor]:
            hidden = trunk.run(lambda inputs: self._losses(model, inputs), batch)
            with trunk.replay(hidden):
                return self._losses(model, batch)

        return Trainee(model, losses)

    def _packed(self, model: nn.Module) -> Trainee:
        model.eval()

        def losses(batch: Batch) -> tuple[Tensor, Tensor]:
            with packed(packing_of(batch)):
                return self._losses(model, batch)

        return Trainee(model, losses)
