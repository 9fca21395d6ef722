"""The settings of :class:`~adazeta.trainer.ZOTrainer`."""

from dataclasses import dataclass, field

import torch
from transformers import TrainingArguments

from adazeta.schedule import QuerySchedule
from adazeta.space import PERTURBATIONS
from adazeta.state_cache import KINDS


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
    data_seed: int | None = field(
        default=None, metadata={"help": "Seed of the order of the data (default: seed)."}
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
    probes_per_forward: str = field(
        default="1",
        metadata={
            "help": "Perturbed evaluations of the batch that share one forward, or 'auto': what is "
            "fastest and fits, measured on the first batch."
        },
    )
    share_trunk: bool = field(
        default=True,
        metadata={"help": "Run the frozen blocks below the first trainable one once per batch."},
    )
    cache_trunk: str = field(
        default="none",
        metadata={
            "help": "Keep their output per example across epochs and evaluations: 'none', in "
            "'memory', or on 'disk', where later runs with the same model find it. Takes tokens x "
            "hidden size numbers an example."
        },
    )
    cache_trunk_limit: float = field(
        default=4.0, metadata={"help": "Size of that cache in GiB; what does not fit is computed."}
    )
    cache_trunk_folder: str | None = field(
        default=None,
        metadata={"help": "Folder of cache_trunk='disk'; by default in the user's cache folder."},
    )
    distribution: str = field(
        default="gaussian", metadata={"help": "Of the directions: 'gaussian' or 'rademacher'."}
    )
    momentum: float = field(default=0.0, metadata={"help": "Momentum of zo_optimizer='sgd'."})
    second_moment: str = field(
        default="scalar",
        metadata={
            "help": "Second moment of zo_optimizer='adam': one 'scalar' for all elements, or one "
            "per 'element'."
        },
    )
    rounding: str = field(
        default="stochastic",
        metadata={
            "help": "Of bfloat16 and float16 parameters after an update: 'stochastic' or "
            "'nearest', which loses small updates."
        },
    )
    perturbation: str = field(
        default="auto",
        metadata={
            "help": "How perturbed parameters are evaluated: 'buffer' (a second copy of the "
            "trainable parameters), 'streamed' (module by module, for whole models), 'in_place' "
            "(inexact, for comparison) or 'auto'."
        },
    )
    diagnostics_steps: int = field(
        default=50,
        metadata={
            "help": "Steps from one check for silent faults (parameters not restored, updates or "
            "loss differences lost in rounding) to the next; 0 turns them off."
        },
    )

    probe_log: bool = field(
        default=True,
        metadata={
            "help": "Write each step to output_dir/probes.log before it is applied: a killed run "
            "goes on at the last step, and 'adazeta replay' makes the adapters again."
        },
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
        if self.cache_trunk not in KINDS:
            raise ValueError(
                f"cache_trunk must be one of {', '.join(map(repr, KINDS))}, got "
                f"{self.cache_trunk!r}"
            )
        if not self.cache_trunk_limit > 0:
            raise ValueError(f"cache_trunk_limit must be above 0, got {self.cache_trunk_limit}")
        if self.perturbation not in PERTURBATIONS:
            raise ValueError(
                f"perturbation must be one of {', '.join(map(repr, PERTURBATIONS))}, got "
                f"{self.perturbation!r}"
            )
        if self.diagnostics_steps < 0:
            raise ValueError(f"diagnostics_steps must be 0 or more, got {self.diagnostics_steps}")
        self.perturbation_scale()
        self.probe_groups()
        self.stack_size()
        self.max_grad_norm = 0.0
        # The base class would pickle the optimizer's state; checkpoints hold it as safetensors.
        self.save_only_model = True
        if self.data_seed is None:
            self.data_seed = self.seed  # so that the data's order does not hang on global state
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

    def stack_size(self) -> int | str:
        """Return ``probes_per_forward`` as a number, or ``"auto"``."""
        if self.probes_per_forward == "auto":
            return "auto"
        try:
            return int(self.probes_per_forward)
        except ValueError:
            raise ValueError(
                "probes_per_forward must be a number of evaluations or 'auto', got "
                f"{self.probes_per_forward!r}"
            ) from None

    def query_plan(self) -> int | QuerySchedule:
        """Return the number of queries, or the schedule if ``query_schedule`` is set."""
        if not self.query_schedule:
            return self.queries
        return QuerySchedule(self.query_alpha, self.query_beta, self.query_max)
