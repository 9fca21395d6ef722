"""The settings of :class:`~adazeta.trainer.ZOTrainer`."""

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import TrainingArguments

from adazeta.methods import DEFAULT, method_named
from adazeta.schedule import QuerySchedule
from adazeta.space import PERTURBATIONS
from adazeta.state_cache import KINDS
from adazeta.training_settings import check_settings

_NO_SCALER = (
    "cannot train without gradients: its gradient scaler finds none. Load the model in the "
    "precision you want instead, e.g. dtype=torch.bfloat16, and leave fp16 off"
)


@dataclass
class ZOTrainingArguments(TrainingArguments):
    """``transformers.TrainingArguments`` plus the zeroth-order settings.

    Weight decay, ``adam_beta1``/``adam_beta2``, schedule, batch size, accumulation,
    logging, saving and ``seed`` keep their usual names and meaning; the learning rate has
    another default. What becomes of every setting of the base class stands in
    :data:`adazeta.training_settings.SETTINGS`.

    Raises:
        ValueError: a setting is given that would be ignored, e.g. ``fp16=True`` (its gradient
            scaler needs gradients), or a value is out of range.
    """

    learning_rate: float = field(
        default=1e-3,
        metadata={"help": "Initial rate; of 'zo-adam' about the root mean square of an update."},
    )
    remove_unused_columns: bool = field(
        default=False,
        metadata={"help": "Drop columns that the model's forward does not name."},
    )
    data_seed: int | None = field(
        default=None, metadata={"help": "Seed of the order of the data (default: seed)."}
    )
    method: str = field(
        default=DEFAULT,
        metadata={"help": "How directions become updates; 'adazeta methods' lists the methods."},
    )
    method_settings: dict[str, Any] | None = field(
        default=None,
        metadata={
            "help": "Settings of the method, e.g. {momentum: 0.9}; 'adazeta methods' lists them."
        },
    )
    queries: int | None = field(
        default=None,
        metadata={
            "help": "Directions per step (and example); by default the method's own: 1, for "
            "'fzoo' 8."
        },
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
    one_sided: bool | None = field(
        default=None,
        metadata={
            "help": "Q + 1 evaluations a step instead of 2 Q; by default as the method has it: "
            "no, for 'fzoo' yes."
        },
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
    padding_free: str = field(
        default="auto",
        metadata={
            "help": "Compute batches of texts without most of their padding, several texts in one "
            "row: 'true', 'false', or 'auto': where the model keeps such texts apart (causal "
            "models; one direction for the batch; without cache_trunk). The same losses up to "
            "rounding."
        },
    )
    distribution: str | None = field(
        default=None,
        metadata={
            "help": "Of the directions: 'gaussian' or 'rademacher'; by default as the method has "
            "it: 'gaussian', for 'fzoo' 'rademacher'."
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
    shard: str = field(
        default="data",
        metadata={
            "help": "What several processes (torchrun, accelerate launch) divide: the 'data' (each "
            "has its own batches, so a step sees per_device_train_batch_size x processes examples, "
            "as with any Trainer), the 'queries' (all see the same batches and each makes a part "
            "of the evaluations: the parameters of a single process, bit for bit), or both: the "
            "number of parts of the data, which must divide the number of processes."
        },
    )
    agreement_steps: int = field(
        default=50,
        metadata={
            "help": "Steps from one check that all processes hold the same parameters to the next; "
            "0: at the start and the end only."
        },
    )

    def __post_init__(self) -> None:
        """Check what the base class does not know."""
        if self.fp16:
            raise ValueError(f"fp16=True {_NO_SCALER}")
        method = method_named(self.method)
        method.with_settings(self.method_settings)
        check_settings(self)
        self._check_schedule_of_queries(method.default("queries"))
        for name in ("queries", "one_sided", "distribution"):
            if getattr(self, name) is None:
                setattr(self, name, method.default(name))
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
        if self.max_steps == 0 or (self.max_steps < 0 and not self.num_train_epochs > 0):
            raise ValueError(
                f"there is nothing to train with max_steps={self.max_steps} and "
                f"num_train_epochs={self.num_train_epochs}: set one of them above 0 (max_steps=-1 "
                "counts epochs)"
            )
        if self.diagnostics_steps < 0:
            raise ValueError(f"diagnostics_steps must be 0 or more, got {self.diagnostics_steps}")
        self.perturbation_scale()
        self.padding_mode()
        self.probe_groups()
        self.stack_size()
        if self.agreement_steps < 0:
            raise ValueError(f"agreement_steps must be 0 or more, got {self.agreement_steps}")
        if self.shard not in ("data", "queries") and not self.shard.isdecimal():
            raise ValueError(
                f"shard must be 'data', 'queries' or a number of parts of the data, got "
                f"{self.shard!r}"
            )
        self.max_grad_norm = 0.0
        # The base class would pickle the optimizer's state; checkpoints hold it as safetensors.
        self.save_only_model = True
        if self.data_seed is None:
            self.data_seed = self.seed  # so that the data's order does not hang on global state
        if not torch.accelerator.is_available():
            self.dataloader_pin_memory = False  # it would only warn
        super().__post_init__()
        if self.mixed_precision == "fp16":
            raise ValueError(f"mixed precision 'fp16', of accelerate launch, {_NO_SCALER}")

    def _check_schedule_of_queries(self, usual: int) -> None:
        """Refuse a number of queries beside a schedule, and a schedule that is not turned on."""
        if self.query_schedule and self.queries not in (None, usual):
            raise ValueError(
                f"queries={self.queries} and query_schedule=True exclude each other: the schedule "
                "gives the number of queries; set one of them"
            )
        fields = type(self).__dataclass_fields__
        for name in ("query_alpha", "query_beta", "query_max"):
            value = getattr(self, name)
            if not self.query_schedule and value != fields[name].default:
                raise ValueError(f"{name}={value} belongs to query_schedule=True; set that too")

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

    def padding_mode(self) -> bool | str:
        """Return ``padding_free`` as True, False or, where it is possible, ``"auto"``."""
        given = str(self.padding_free).lower()
        if given not in ("true", "false", "auto"):
            raise ValueError(
                f"padding_free must be 'true', 'false' or 'auto', got {self.padding_free!r}"
            )
        if given == "false":
            return False
        if self.probe_groups() != "batch":
            conflict = (
                "puts several examples into one row, which then has one direction; use "
                f"probes='batch', not {self.probes!r}"
            )
        elif self.cache_trunk != "none":
            conflict = (
                "puts several examples into one row, and "
                f"cache_trunk={self.cache_trunk!r} keeps the states of single ones; use one of "
                "the two"
            )
        else:
            return "auto" if given == "auto" else True
        if given == "true":
            raise ValueError(f"padding_free={self.padding_free!r} {conflict}")
        return False

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

    def data_shards(self) -> int | None:
        """Return into how many parts processes divide the data; None: as many as there are."""
        if self.shard == "data":
            return None
        return 1 if self.shard == "queries" else int(self.shard)

    def query_plan(self) -> int | QuerySchedule:
        """Return the number of queries, or the schedule if ``query_schedule`` is set."""
        if not self.query_schedule:
            assert self.queries is not None
            return self.queries
        return QuerySchedule(self.query_alpha, self.query_beta, self.query_max)
