"""A trainer whose random draws do not depend on what was drawn before.

Directions and rounding never draw from the global generators, but collators that mask tokens, data
sets that augment and samplers do. Each batch has a seed of its own, so a run that skips the batches
it has done draws what it would have drawn; the generators that samplers use are kept for a run that
resumes, and whatever else draws leaves them as they were.
"""

import hashlib
import json
import math
import random
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset
from transformers import Trainer, TrainerControl
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PredictionOutput, TrainOutput
from transformers.utils import SAFE_WEIGHTS_NAME

from adazeta.adapters.attached import has_adapters
from adazeta.adapters.files import save_pretrained
from adazeta.directions.reparametrise import is_reparametrised, merged_state_dict
from adazeta.forward.batch_losses import BatchLosses
from adazeta.support.files import write_whole
from adazeta.support.tensor_files import save_tensors
from adazeta.training.loss import TrainingLoss
from adazeta.training.quantised import without_gradients


class ExactTrainer(Trainer):
    """A trainer whose random draws do not depend on what was drawn before.

    It is what training of both orders has in common: the loss, what is shared by evaluations, and
    what is saved. The states of generators, optimizer and schedule that the base class would
    unpickle from a checkpoint are the business of each order.

    Attributes:
        batch_losses: how the losses of a batch are computed.
        rollouts: how completions are written and scored; None without rewards.
    """

    batch_losses: BatchLosses
    rollouts: Any = None
    control: TrainerControl
    _loss: TrainingLoss

    def __init__(self, model: nn.Module, **kwargs: Any) -> None:
        with without_gradients(model):
            super().__init__(model=model, **kwargs)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Load as the base class does; what is random in a batch depends on the batch alone.

        Raises:
            ValueError: the data make no whole batch.
        """
        with seeded_batches(self, int(self.args.data_seed or 0)):
            loader = super().get_train_dataloader()
        if self.args.dataloader_drop_last and not isinstance(loader.dataset, IterableDataset):
            if len(loader) == 0:
                raise ValueError(
                    f"the {self.num_examples(loader)} training examples make no whole batch of "
                    f"{self.args.train_batch_size}, and dataloader_drop_last drops the rest; use a "
                    "smaller batch"
                )
        return loader

    @property
    def unwrapped(self) -> nn.Module:
        """The model, from under the wrappers of accelerate."""
        return self.accelerator.unwrap_model(self.model)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor | Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Mean loss of the examples, or the loss of the batch that is trained."""
        module = self.accelerator.unwrap_model(model)
        self._loss.check(module, inputs)
        if self.compute_loss_func is not None or self._loss.of_model:
            return super().compute_loss(module, dict(inputs), return_outputs, num_items_in_batch)
        losses, logits = self.batch_losses.examples(module, inputs)
        loss = losses.mean()
        return (loss, {"loss": loss, "logits": logits}) if return_outputs else loss

    def _groups(
        self, module: nn.Module, named: Iterable[tuple[str, nn.Parameter]]
    ) -> list[dict[str, Any]]:
        """Group parameters: weight decay applies to those that the base class decays."""
        named = list(named)
        if not self.args.weight_decay:
            return [{"params": [p for _, p in named], "weight_decay": 0.0}]
        decayed = set(self.get_decay_parameter_names(module))
        return [
            {"params": [p for n, p in named if n in decayed]},
            {"params": [p for n, p in named if n not in decayed], "weight_decay": 0.0},
        ]

    def final_weights(self) -> AbstractContextManager[None]:
        """Enter to compute with what is evaluated and saved in the end: here the parameters."""
        return nullcontext()

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate as the base class does, with the same random draws each time."""
        with self.final_weights(), seeded_generators(self.args.seed):
            return super().evaluate(*args, **kwargs)

    def predict(self, *args: Any, **kwargs: Any) -> PredictionOutput:
        """Predict as the base class does, by what is saved in the end."""
        with self.final_weights():
            return super().predict(*args, **kwargs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the adapters in PEFT's two-file format; a model without adapters as the base does.

        A model whose matrices are trained in subspaces or sparsely is saved as the plain model
        that it computes as.

        A checkpoint also holds the trainable parameters as ``model.safetensors`` (without a
        ``config.json``: it is not a model by itself), and the state of the run. It has the
        parameters themselves where all else has their average.
        """
        folder = Path(output_dir or str(self.args.output_dir))
        checkpoint = _internal_call and output_dir is not None and self.args.should_save
        if checkpoint:
            # Of an earlier run: its state is not this one's.
            (folder / TRAINER_STATE_NAME).unlink(missing_ok=True)
        with nullcontext() if checkpoint else self.final_weights():
            self._save_weights(output_dir, _internal_call, checkpoint=checkpoint)
        if checkpoint:
            self._write_state(folder)

    def _save_weights(self, output_dir: str | None, internal: bool, *, checkpoint: bool) -> None:
        module = self.unwrapped
        folder = Path(output_dir or str(self.args.output_dir))
        if not has_adapters(module):
            if checkpoint or not is_reparametrised(module):
                super().save_model(output_dir, internal)
            else:
                self._save(str(folder), state_dict=merged_state_dict(module))
        elif self.args.should_save:
            folder.mkdir(parents=True, exist_ok=True)
            save_pretrained(module, folder)
            kind = self.processing_class
            if kind is not None and hasattr(kind, "save_pretrained"):
                kind.save_pretrained(str(folder))
            if internal:
                tensors = {name: p.data.clone() for name, p in trained_parameters(module).items()}
                save_tensors(tensors, folder / SAFE_WEIGHTS_NAME, {"format": "pt"})

    def _write_state(self, folder: Path) -> None:
        """Add the state of the run to the folder of a checkpoint."""
        raise NotImplementedError

    def _restore_parameters(self, checkpoint: str) -> None:
        """Give the trained parameters the values of a checkpoint."""
        raise NotImplementedError

    def account(self) -> str:
        """Say what training took, in a few words."""
        raise NotImplementedError

    def _finished(self) -> TrainOutput:
        """End a run that had no step left to do, as the base class ends one."""
        best = self.state.best_model_checkpoint
        if self.args.load_best_model_at_end and best is not None:
            self._restore_parameters(best)
        self.control = self.callback_handler.on_train_end(self.args, self.state, self.control)
        self.is_in_train = False
        ends = [entry for entry in self.state.log_history if "train_loss" in entry]
        metrics = dict(ends[-1]) if ends else {}
        return TrainOutput(self.state.global_step, metrics.get("train_loss", math.nan), metrics)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        pass

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        pass

    def _load_scaler(self, checkpoint: str | None) -> None:
        pass


def trained_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that are trained, by name."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


@contextmanager
def seeded_generators(seed: int) -> Iterator[None]:
    """Seed Python's, NumPy's and torch's generators (of the CPU), and put them back in the end.

    Args:
        seed: in [0, 2**64).
    """
    before = random.getstate(), np.random.get_state(legacy=True), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed % (1 << 32))
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        _set(*before)


def _set(python: Any, numpy: Any, words: torch.Tensor) -> None:
    random.setstate(python)
    np.random.set_state(numpy)
    torch.set_rng_state(words)


def save_generators(path: Path, epoch: int) -> None:
    """Write the states of the generators to a file, as JSON."""
    kind, words, *rest = np.random.get_state(legacy=True)
    state = {
        "epoch": epoch,
        "python": random.getstate(),
        "numpy": [kind, np.asarray(words).tolist(), *rest],
        "torch": torch.get_rng_state().numpy().tobytes().hex(),
    }
    write_whole(path, f"{json.dumps(state)}\n".encode())


def restore_generators(path: Path, epochs: Container[int]) -> int | None:
    """Restore the generators from a file.

    Args:
        path: the file.
        epochs: those whose start will do.

    Returns:
        The epoch at whose start they were so; None, with nothing changed, if the file is missing,
        damaged or of another epoch.
    """
    try:
        state: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        epoch = int(state["epoch"])
        version, words, gauss = state["python"]
        kind, key, *rest = state["numpy"]
        python = (version, tuple(words), gauss)
        numpy = (kind, np.array(key, dtype=np.uint32), *rest)
        data = bytearray.fromhex(state["torch"])
        torch.Generator().set_state(torch.frombuffer(data, dtype=torch.uint8))  # a check
        random.Random().setstate(python)
        np.random.RandomState().set_state(numpy)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, RecursionError):
        return None
    if epoch not in epochs:
        return None
    _set(python, numpy, torch.frombuffer(data, dtype=torch.uint8))
    return epoch


def begin_epoch(batches: Any, epoch: int, resumed: Path | None = None) -> None:
    """Tell the data which epoch begins; where a run goes on, restore the generators for it.

    Args:
        batches: the data loader.
        epoch: that begins, or within which the run goes on.
        resumed: file of the generators' states, if the run goes on.
    """
    data = getattr(batches, "dataset", None)
    if isinstance(data, SeededDataset):
        data.set_epoch(epoch)
    if resumed is not None and restore_generators(resumed, (epoch - 1, epoch)) == epoch - 1:
        # The run stopped between two epochs: draw what the one before drew.
        if hasattr(batches, "set_epoch"):
            batches.set_epoch(epoch - 1)
        for _ in batches:
            pass


class SeededDataset(Dataset[Any]):
    """A map-style data set that fetches every batch under the batch's own seed.

    Args:
        dataset: the data set.
        seed: of the run.

    Attributes:
        batch_seed: of the batch that was fetched last in this process.
    """

    def __init__(self, dataset: Any, seed: int) -> None:
        self._dataset, self._seed = dataset, seed
        # In shared memory, for workers that outlive an epoch.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self.batch_seed = 0

    def set_epoch(self, epoch: int) -> None:
        """Tell the epoch, before its first batch is fetched."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self._dataset)

    def __getitem__(self, index: Any) -> Any:
        """Return one example."""
        return self._dataset[index]

    def __getitems__(self, indices: Sequence[Any]) -> Sequence[Any]:
        """Return the examples of a batch; torch's data loader calls it."""
        key = repr((self._seed, int(self._epoch), list(indices)))
        self.batch_seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:7], "little")
        fetch = getattr(self._dataset, "__getitems__", None)
        with seeded_generators(self.batch_seed):
            return fetch(indices) if fetch else [self._dataset[index] for index in indices]


class SeededCollator:
    """A collator that works under the seed of the batch that was just fetched.

    Args:
        dataset: it fetches in the process where this collates.
        collate: the collator.
    """

    def __init__(self, dataset: SeededDataset, collate: Callable[[Any], Any]) -> None:
        self._dataset, self._collate = dataset, collate

    def __call__(self, examples: Any) -> Any:
        """Collate."""
        with seeded_generators(self._dataset.batch_seed + 1):
            return self._collate(examples)


@contextmanager
def seeded_batches(trainer: Any, seed: int) -> Iterator[None]:
    """Let a trainer make its training data loader over a :class:`SeededDataset`.

    A stream (``IterableDataset``) stays as it is: a resumed run reads it from the start of the
    epoch, with the generators as they were then, and so draws the same.

    Args:
        trainer: has ``train_dataset`` and ``data_collator``, which are put back in the end.
        seed: of the run.
    """
    dataset, collator = trainer.train_dataset, trainer.data_collator
    if hasattr(dataset, "__getitem__") and not isinstance(dataset, IterableDataset):
        trainer.train_dataset = SeededDataset(dataset, seed)
        trainer.data_collator = SeededCollator(trainer.train_dataset, collator)
    try:
        yield
    finally:
        trainer.train_dataset, trainer.data_collator = dataset, collator


@contextmanager
def partial_checkpoints(model: nn.Module) -> Iterator[None]:
    """Let checkpoints leave out the frozen parameters without a warning about missing keys."""
    if not has_adapters(model):
        yield
        return
    trainable = trained_parameters(model)
    before = getattr(model, "_keys_to_ignore_on_save", None)
    model._keys_to_ignore_on_save = [k for k in model.state_dict() if k not in trainable]  # type: ignore[assignment]
    try:
        yield
    finally:
        model._keys_to_ignore_on_save = before  # type: ignore[assignment]
