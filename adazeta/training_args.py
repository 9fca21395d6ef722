"""The settings of :class:`~adazeta.trainer.ZOTrainer`."""

from dataclasses import dataclass, field

import torch
from transformers import TrainingArguments

from adazeta.schedule import QuerySchedule


@dataclass
class ZOTrainingArguments(TrainingArguments):
    """``transformers.TrainingArguments`` plus the zeroth-order settings.

    Weight decay, ``adam_beta1``/``adam_beta2``, schedule, batch size, accumulation,
    logging, saving and ``seed`` keep their usual names and meaning; the learning rate has
    another default. ``max_grad_norm`` is unused:
    there is no gradient to clip.

    Raises:
        ValueError: ``fp16=True`` (its gradient scaler needs gradients), or a value out of range.
    """

    learning_rate: float = field(
        default=1e-3,
        metadata={"help": "Initial rate; of 'adam' about the root mean square of an update."},
    )
    remove_unused_columns: bool = field(
        default=False,
        metadata={"help": "Drop columns that the model's forward does not name."},
    )
    zo_optimizer: str = field(
        default="adam", metadata={"help": "Update rule: 'adam' (ZOAdam) or 'sgd' (ZOSGD)."}
    )
    queries: int = field(
        default=1, metadata={"help": "Directions per step (and example); the first epochs' Q."}
    )
    query_schedule: bool = field(
        default=False,
        metadata={"help": "Grow the queries with the epochs: floor(alpha epoch^beta), capped."},
    )
    query_alpha: float = field(default=0.85, metadata={"help": "alpha of the query schedule."})
    query_beta: float = field(default=0.45, metadata={"help": "beta of the query schedule."})
    query_max: int = field(default=20, metadata={"help": "Cap of the query schedule."})
    eps: str = field(
        default="auto",
        metadata={"help": "Perturbation scale, or 'auto': measured before the first step."},
    )
    probes: str = field(
        default="batch",
        metadata={
            "help": "One direction for the 'batch', one per 'example', or a number of groups."
        },
    )
    one_sided: bool = field(
        default=False, metadata={"help": "Q + 1 evaluations a step instead of 2 Q."}
    )
    probes_per_forward: int = field(
        default=1, metadata={"help": "Perturbed evaluations of the batch that share one forward."}
    )
    share_trunk: bool = field(
        default=True,
        metadata={"help": "Run the frozen blocks below the first trainable one once per batch."},
    )
    cache_trunk: bool = field(
        default=False,
        metadata={
            "help": "Keep their output per example in memory across epochs and evaluations: "
            "tokens x hidden size numbers an example."
        },
    )
    distribution: str = field(
        default="gaussian", metadata={"help": "Of the directions: 'gaussian' or 'rademacher'."}
    )
    momentum: float = field(default=0.0, metadata={"help": "Momentum of zo_optimizer='sgd'."})
    second_moment: str = field(
        default="tensor",
        metadata={"help": "Second moment of zo_optimizer='adam': per 'tensor' or 'element'."},
    )

    def __post_init__(self) -> None:
        """Check what the base class does not know."""
        if self.fp16:
            raise ValueError(
                "fp16=True cannot train without gradients: its gradient scaler finds none. Load "
                "the model in the precision you want instead, e.g. dtype=torch.bfloat16, and "
                "leave fp16 off"
            )
        if self.zo_optimizer not in ("adam", "sgd"):
            raise ValueError(f"zo_optimizer must be 'adam' or 'sgd', got {self.zo_optimizer!r}")
        self.perturbation_scale()
        self.probe_groups()
        self.max_grad_norm = 0.0
        if not torch.accelerator.is_available():
            self.dataloader_pin_memory = False  # it would only warn
        super().__post_init__()

    def perturbation_scale(self) -> float | str:
        """Return ``eps`` as a number, or ``"auto"``."""
        if self.eps == "auto":
            return "auto"
        try:
            return float(self.eps)
        except ValueError:
            raise ValueError(f"eps must be a positive number or 'auto', got {self.eps!r}") from None

    def probe_groups(self) -> int | str:
        """Return ``probes`` as a number of groups, ``"batch"`` or ``"example"``."""
        if self.probes in ("batch", "example"):
            return self.probes
        try:
            return int(self.probes)
        except ValueError:
            raise ValueError(
                f"probes must be 'batch', 'example' or a number of groups, got {self.probes!r}"
            ) from None

    def query_plan(self) -> int | QuerySchedule:
        """Return the number of queries, or the schedule if ``query_schedule`` is set."""
        if not self.query_schedule:
            return self.queries
        return QuerySchedule(self.query_alpha, self.query_beta, self.query_max)
