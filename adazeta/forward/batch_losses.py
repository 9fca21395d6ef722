"""The losses of a batch at little cost: the one place that decides how they are computed.

For a batch it chooses a layout without padding (:mod:`adazeta.forward.packing`), computes what its
evaluations share once (:mod:`adazeta.forward.trunk`), and returns a function that is called at
perturbed parameters. What the first batch shows of these ways is a finding of the run.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adazeta.estimation.findings import Findings
from adazeta.forward.batch_evaluation import BatchEvaluation
from adazeta.forward.contexts import keep_contexts
from adazeta.forward.packing import Packing, choose_packing, packed
from adazeta.forward.shortcuts import findings
from adazeta.forward.trained_loss import TrainedLoss
from adazeta.forward.trunk import SharedTrunk
from adazeta.models.structure import coarsest_dtype, plain_head
from adazeta.support.batches import has_rows, rows_of, texts_of

# Among the findings that a run's state keeps.
_TRUNK = "shared trunk"
_EXAMPLES = "losses of the examples"


class BatchLosses:
    """Computes the losses of batches, sharing what does not depend on the trained parameters.

    Args:
        model: the model; None if it is not known yet.
        loss: what is computed.
        padding_free: lay batches out without most of their padding: True, False, or ``"auto"``
            where the model allows it.
        share_trunk: compute the frozen blocks below the first trainable one once per batch.
        cache: where the results of the frozen part are kept across batches: ``"none"``, in
            ``"memory"`` or on ``"disk"``. That is the output of the trunk or, where adapters act
            on the last tokens only, the context of these (:mod:`adazeta.forward.suffix`).
        cache_limit: size of the cache in GiB.
        cache_folder: of a cache on disk, see :func:`adazeta.forward.cache.open_cache`.

    Attributes:
        loss: what is computed.
        trunk: the trunk of the model met last; None before.
        records_any_loss: let evaluations of a user's loss function be recorded as graphs
            (:mod:`adazeta.estimation.graphs`); the caller promises that it reads the batch alone.
    """

    def __init__(
        self,
        model: nn.Module | None,
        loss: TrainedLoss,
        *,
        padding_free: bool | str = "auto",
        share_trunk: bool = True,
        cache: str = "none",
        cache_limit: float = 4.0,
        cache_folder: str | Path | None = None,
    ) -> None:
        self.loss = loss
        self.trunk: SharedTrunk | None = None
        self.records_any_loss = False
        self._padding_free, self._shares = padding_free, share_trunk
        self._cache, self._limit, self._folder = cache, cache_limit, cache_folder
        self._looked = False
        if model is not None:
            self._keep_contexts(model)

    def of(
        self,
        module: nn.Module,
        inputs: Mapping[str, Any],
        found: Findings,
        *,
        gives: str = "losses",
    ) -> BatchEvaluation:
        """Prepare the evaluations of a batch.

        Args:
            module: the model, in evaluation mode.
            inputs: the batch, B rows.
            found: the findings of the run: those of an earlier part are gone by, new ones added.
            gives: ``"losses"``; ``"logits"`` of the examples, whose cross entropy the loss is; or
                ``"outputs"``: the logits, whatever the loss makes of them.

        Returns:
            A function of the batch, whose rows may be repeated: it computes the losses of the
            examples, float32 ``(rows,)``, the loss of the batch, or the logits.

        Raises:
            ValueError: what was asked for cannot be had with this model or these inputs.
        """
        self._look(module, inputs, found)
        packing = self._packing(module, inputs, found, gives)
        hidden = self._trunk_states(module, inputs, packing)
        self._note(module, found)
        compute = {
            "losses": self.loss.losses, "logits": self.loss.logits, "outputs": self.loss.outputs,
        }[gives]  # fmt: skip
        return BatchEvaluation(
            module,
            compute,
            rows_of(inputs),
            self.trunk_of(module),
            hidden,
            packing,
            owner=self,
            objection=self._objection(gives),
            places=self.loss.is_default and gives == "losses",
        )

    def _objection(self, gives: str) -> str | None:
        """Say why the evaluations of a batch cannot be recorded as graphs; None if they can."""
        if gives != "losses":
            return "what is computed are logits, which are looked at on the host"
        if self.loss.batch is not None:
            return self.loss.batch
        if self._cache != "none":
            return f"what cache_trunk={self._cache!r} keeps is looked up on the host"
        if not (self.records_any_loss or self.loss.reads_only_the_batch):
            return "this loss_fn is not known to read nothing but the batch"
        return None

    def examples(self, module: nn.Module, inputs: Mapping[str, Any]) -> tuple[Tensor, Any]:
        """Compute the losses of a batch's examples once, ``(B,)``, and the logits, to evaluate.

        Args:
            module: the model, in evaluation mode.
            inputs: the batch.
        """
        with self.trunk_of(module).replay(self._trunk_states(module, inputs)):
            return self.loss.examples(module, inputs)

    def trunk_of(self, module: nn.Module) -> SharedTrunk:
        """Return the trunk of a model; a model that was not met before is looked at.

        Args:
            module: the model.
        """
        if self.trunk is None or self.trunk.model is not module:
            self._keep_contexts(module)
            self.trunk = SharedTrunk(
                module,
                cache=self._cache,
                cache_limit=self._limit,
                cache_folder=self._folder,
            )
        return self.trunk

    def _keep_contexts(self, module: nn.Module) -> None:
        keep_contexts(module, self._cache, limit=self._limit, folder=self._folder)

    @torch.no_grad()
    def _look(self, module: nn.Module, inputs: Mapping[str, Any], found: Findings) -> None:
        """Find out before the first step how logits can be computed.

        Two examples are enough for the default loss. What an earlier part of the run found is
        taken over.
        """
        if self._looked:
            self.loss.check(module, inputs)
            return
        self._looked = True
        known = dict(found.shortcuts)
        self.trunk_of(module).take_over(known.pop(_TRUNK, None))
        self.loss.take_over(known.pop(_EXAMPLES, None))
        findings(module).update(known)
        self.loss.check(module, inputs)
        if not known and self.loss.batch is None and plain_head(module) is not None:
            count = 2 if self.loss.is_default else rows_of(inputs)
            few = {name: x[:count] if has_rows(x) else x for name, x in inputs.items()}
            self.loss.losses(module, few)

    def _note(self, module: nn.Module, found: Findings) -> None:
        """Add what is known of the shortcuts to the findings of the run."""
        known, trunk = dict(findings(module)), self.trunk_of(module).finding
        if trunk is not None:
            known[_TRUNK] = trunk
        if self.loss.finding is not None:
            known[_EXAMPLES] = self.loss.finding
        found.shortcuts = known

    def _packing(
        self, module: nn.Module, inputs: Mapping[str, Any], found: Findings, gives: str
    ) -> Packing | None:
        """Layout of a batch without most of its padding, if that is wanted and possible."""
        # The default loss has a packed way to the losses, and none to all the logits.
        whole = self.loss.batch is not None or (gives != "losses" and self.loss.is_default)
        mode = False if whole else self._padding_free
        losses, dtype = partial(self.loss.losses, module), partial(coarsest_dtype, module)
        packing, found.packs = choose_packing(mode, losses, inputs, dtype, found.packs)
        return packing

    def _trunk_states(
        self, module: nn.Module, inputs: Mapping[str, Any], packing: Packing | None = None
    ) -> Tensor | None:
        """Output of the frozen lower blocks, if they are to be shared."""
        if not self._shares or self.loss.batch is not None:
            return None
        rows, texts = None, texts_of(inputs)
        if packing is not None:
            rows = len(packing.source)
        elif texts > rows_of(inputs):
            rows = texts
        with packed(packing):
            return self.trunk_of(module).run(partial(self.loss.losses, module), inputs, rows=rows)
