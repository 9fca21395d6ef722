"""What a ``transformers.Trainer`` needs to be repeatable and to load nothing that is pickled."""

from typing import Any

from torch import nn
from torch.utils.data import DataLoader, IterableDataset
from transformers import Trainer

from adazeta.generators import seeded_generators
from adazeta.quantised import without_gradients
from adazeta.seeded_data import seeded_batches


class ExactTrainer(Trainer):
    """A trainer whose random draws do not depend on what was drawn before.

    The states of generators, optimizer and schedule that the base class would unpickle from a
    checkpoint are restored by :class:`adazeta.journal.Journal`.
    """

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

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate as the base class does, with the same random draws each time."""
        with seeded_generators(self.args.seed):
            return super().evaluate(*args, **kwargs)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        pass

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        pass

    def _load_scaler(self, checkpoint: str | None) -> None:
        pass
