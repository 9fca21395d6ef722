"""The settings of :class:`~adazeta.training.trainer.ZOTrainer`."""

import os
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import TrainingArguments

from adazeta.estimation.queries import QuerySchedule
from adazeta.estimation.shaping import check_shape
from adazeta.methods import DEFAULT, method_named
from adazeta.parameters.space import PERTURBATIONS
from adazeta.training.common_arguments import check_common, settle_common
from adazeta.training.graphs import check_graph_device, graph_mode
from adazeta.training.schedule import ABSOLUTE
from adazeta.training.settings import check_settings

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
    :data:`adazeta.training.settings.SETTINGS`.

    Raises:
        ValueError: a setting is given that would be ignored, e.g. ``fp16=True`` (its gradient
            scaler needs gradients), or a value is out of range.
    """

    learning_rate: float | str = field(  # type: ignore[assignment]
        default="auto",
        metadata={
            "help": "Initial learning rate, or 'auto', which measures it before the first step "
            "and shrinks it where the loss rises. With 'zo-adam' it is about the root mean square "
            "of an update; 'newton' needs none, and 'auto' is a factor of 1 there."
        },
    )
    lr_scheduler_type: str | None = field(  # type: ignore[assignment]
        default=None,
        metadata={
            "help": "How the learning rate changes in the course of training. By default the "
            "method's own: 'linear' to zero, and 'constant' for 'newton'."
        },
    )
    remove_unused_columns: bool = field(
        default=False,
        metadata={"help": "Drop columns of the data that the model's forward does not name."},
    )
    data_seed: int | None = field(
        default=None, metadata={"help": "Seed of the order of the data; by default 'seed'."}
    )
    method: str = field(
        default=DEFAULT,
        metadata={"help": "Method of training, by name; 'adazeta methods' lists them."},
    )
    method_settings: dict[str, Any] | None = field(
        default=None,
        metadata={
            "help": "Settings of the 'method', e.g. {momentum: 0.9}; 'adazeta methods' lists them."
        },
    )
    queries: int | None = field(
        default=None,
        metadata={
            "help": "Directions of a step (of each example with probes='example'). By default the "
            "method decides: 1, or 8 for 'fzoo'."
        },
    )
    query_schedule: bool = field(
        default=False,
        metadata={
            "help": "Let the number of queries grow with the epochs: floor(query_alpha * epoch ^ "
            "query_beta), at least 1 and at most query_max."
        },
    )
    query_alpha: float = field(
        default=0.85, metadata={"help": "Factor alpha of the 'query_schedule'."}
    )
    query_beta: float = field(
        default=0.45, metadata={"help": "Exponent beta of the 'query_schedule'."}
    )
    query_max: int = field(
        default=20, metadata={"help": "Most queries that the 'query_schedule' reaches."}
    )
    eps: str = field(
        default="auto",
        metadata={
            "help": "Scale of the perturbation, or 'auto', which measures it before the first step."
        },
    )
    probes: str = field(
        default="batch",
        metadata={
            "help": "Which examples share a direction: the whole 'batch', none ('example': each "
            "has its own), or those of a group (a number: so many groups)."
        },
    )
    one_sided: bool | None = field(
        default=None,
        metadata={
            "help": "Evaluate one side of each of Q directions, and the parameters themselves: "
            "Q + 1 evaluations a step instead of 2 Q. By default the method decides: no, or yes "
            "for 'fzoo'."
        },
    )
    probes_per_forward: str = field(
        default="1",
        metadata={
            "help": "How many perturbed evaluations of the batch share one forward, or 'auto', "
            "which measures on the first batch what is fastest and fits."
        },
    )
    share_trunk: bool = field(
        default=True,
        metadata={"help": "Run the frozen blocks below the first trainable one once per batch."},
    )
    cache_trunk: str = field(
        default="none",
        metadata={
            "help": "Cache the output of the frozen blocks per example, across epochs and "
            "evaluations: 'none', in 'memory', or on 'disk', where later runs with the same model "
            "find it. It takes tokens x hidden size numbers an example."
        },
    )
    cache_trunk_limit: float = field(
        default=4.0,
        metadata={
            "help": "Size limit of the 'cache_trunk' cache in GiB; examples beyond it are "
            "recomputed."
        },
    )
    cache_trunk_folder: str | None = field(
        default=None,
        metadata={
            "help": "Folder of the cache on disk (cache_trunk='disk'); by default one in the "
            "user's cache folder."
        },
    )
    padding_free: str = field(
        default="auto",
        metadata={
            "help": "Pack several texts into one row, so that most of the padding is not computed: "
            "'true', 'false', or 'auto', which does it where the model keeps such texts apart "
            "(causal models; one direction for the batch; without cache_trunk). The losses are the "
            "same up to rounding."
        },
    )
    distribution: str | None = field(
        default=None,
        metadata={
            "help": "Distribution of the directions: 'gaussian', 'pairs' (normals of fewer bits at "
            "half the cost) or 'rademacher'. By default 'rademacher' for 'fzoo', 'pairs' where no "
            "adapters are trained and directions are full, else 'gaussian'; a run that goes on "
            "keeps its own."
        },
    )
    rounding: str = field(
        default="stochastic",
        metadata={
            "help": "Rounding of bfloat16 and float16 parameters after an update: 'stochastic', or "
            "'nearest', which loses small updates."
        },
    )
    perturbation: str = field(
        default="auto",
        metadata={
            "help": "Where perturbed parameters are held: in a 'buffer' (a second copy of the "
            "trainable parameters), 'streamed' (module by module, for whole models), 'in_place' "
            "(inexact, for comparison), or 'auto', which chooses one of the first two."
        },
    )
    cuda_graphs: str = field(
        default="false",
        metadata={
            "help": "On a CUDA device: start each evaluation as one recorded graph, for each shape "
            "of a batch. 'auto' does where replays have the bits of plain evaluations, which is "
            "compared, and else goes on without; 'true' takes any loss_fn, which must read nothing "
            "but the batch, and stops where there can be no graphs. No card has run this yet."
        },
    )
    shaping: str = field(
        default="prompt",
        metadata={
            "help": "With rewards, or objective 'accuracy': what is made of the scores of a step "
            "before they are differenced. 'prompt': less the mean of the prompt, over one standard "
            "deviation; 'z-score': less the mean of all, over their deviation; 'rank': centred "
            "ranks among the members of a prompt; 'leave-one-out'; 'pass@K' (K a number): what a "
            "member adds to the best of K; or 'none'."
        },
    )
    eps_share: float = field(
        default=0.5,
        metadata={
            "help": "With scores and eps='auto': share of the completions that a perturbation is "
            "to change; of labels, in units of what labels drawn at random would change."
        },
    )
    anchored_decay: bool = field(
        default=False,
        metadata={
            "help": "Let 'weight_decay' pull the trained parameters towards their values at the "
            "start instead of zero."
        },
    )
    average: float = field(
        default=0.0,
        metadata={
            "help": "Share m of the past in a running average of what is trained, a <- m a + "
            "(1 - m) theta after each step, which is evaluated and saved in the end; 0 turns it "
            "off. Checkpoints keep what is trained. Use it with lr_scheduler_type='constant', "
            "e.g. 0.98; it takes 4 bytes a trained number."
        },
    )
    average_warmup: bool = field(
        default=True,
        metadata={
            "help": "Let the 'average' forget faster at first: m is at most (1 + t) / (10 + t) "
            "after t steps."
        },
    )
    diagnostics_steps: int = field(
        default=50,
        metadata={
            "help": "Steps between checks for silent faults (parameters not restored, updates or "
            "loss differences lost in rounding); 0 turns them off."
        },
    )

    probe_log: bool = field(
        default=True,
        metadata={
            "help": "Write each step to output_dir/probes.log before it is applied. A killed run "
            "then goes on after its last step, and 'adazeta replay' makes the adapters again."
        },
    )
    shard: str = field(
        default="data",
        metadata={
            "help": "What several processes (torchrun, accelerate launch) divide. 'data': each has "
            "its own batches, so a step sees per_device_train_batch_size x processes examples, as "
            "with any Trainer. 'queries': all see the same batches and each makes a part of the "
            "evaluations; the parameters are those of a single process, bit for bit. A number "
            "divides both: the data into so many parts, which must divide the number of processes, "
            "and the evaluations within each part."
        },
    )
    agreement_steps: int = field(
        default=50,
        metadata={
            "help": "Steps between checks that all processes hold the same parameters; with 0 they "
            "are checked at the start and the end only."
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
        self._check_rate(method.default("learning_rate"))
        for name in ("queries", "one_sided", "lr_scheduler_type"):
            if getattr(self, name) is None:
                setattr(self, name, method.default(name))
        self._check_schedule_of_rates()
        check_common(self)
        if self.perturbation not in PERTURBATIONS:
            raise ValueError(
                f"perturbation must be one of {', '.join(map(repr, PERTURBATIONS))}, got "
                f"{self.perturbation!r}"
            )
        if self.diagnostics_steps < 0:
            raise ValueError(f"diagnostics_steps must be 0 or more, got {self.diagnostics_steps}")
        check_shape(self.shaping)
        if not 0 < self.eps_share < 1:
            raise ValueError(f"eps_share must lie between 0 and 1, got {self.eps_share}")
        if self.anchored_decay and not self.weight_decay:
            raise ValueError("anchored_decay=True says where weight_decay pulls: set that above 0")
        self._check_average(method.drawn.folds or not method.perturbs)
        self.perturbation_scale()
        self.padding_mode()
        graph_mode(self)
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
        settle_common(self)
        launched = int(os.environ.get("WORLD_SIZE") or 1) if "LOCAL_RANK" in os.environ else 1
        if not torch.accelerator.is_available():
            # What is left is the CPU, but accelerate connects processes there only if told so.
            self.use_cpu |= launched > 1
        super().__post_init__()
        check_graph_device(self, self.device)
        if self.world_size < launched:
            raise ValueError(
                f"{launched} processes were started, but on {self.device} accelerate does not "
                "connect them: each would train alone. Start one process, or set use_cpu=True"
            )
        if self.mixed_precision == "fp16":
            raise ValueError(f"mixed precision 'fp16', of accelerate launch, {_NO_SCALER}")

    def _check_average(self, meaningless: bool) -> None:
        """Refuse an average where the method has none, or none is possible."""
        if not self.average:
            return
        if meaningless:
            raise ValueError(
                f"average={self.average} means nothing with method={self.method!r}, whose "
                "parameters are fitted, or folded into the weights, as a whole; leave it at 0, or "
                f"choose another method, e.g. {DEFAULT!r}"
            )
        if self.perturbation not in ("auto", "buffer"):
            raise ValueError(
                f"average={self.average} needs perturbation='buffer', got {self.perturbation!r}"
            )

    def _check_rate(self, own: Any) -> None:
        """Make the learning rate a number, or ``"auto"`` where the method measures it."""
        if self.learning_rate in (None, "auto"):
            self.learning_rate = own
            return
        try:
            self.learning_rate = float(self.learning_rate)
        except (TypeError, ValueError):
            raise ValueError(
                f"learning_rate must be a number or 'auto', got {self.learning_rate!r}"
            ) from None

    def _check_schedule_of_rates(self) -> None:
        """Refuse schedules that need the rate, where that is measured."""
        if self.learning_rate != "auto":
            return
        kind = getattr(self.lr_scheduler_type, "value", self.lr_scheduler_type)
        found = [name for name in ABSOLUTE if name in (self.lr_scheduler_kwargs or {})]
        if found or kind == "greedy":
            what = (
                f"lr_scheduler_kwargs have {found[0]}" if found else f"lr_scheduler_type={kind!r}"
            )
            raise ValueError(
                f"{what}, a rate, while learning_rate='auto' is measured before the first step; "
                "set learning_rate to a number, or use a schedule of factors (min_lr_rate)"
            )

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

    def needing_examples(self) -> list[str]:
        """Name the settings whose values need the losses of single examples."""
        fine = {
            "probes": self.probe_groups() == "batch",
            "probes_per_forward": self.stack_size() in (1, "auto"),
            "padding_free": self.padding_mode() is not True,
            "cache_trunk": self.cache_trunk == "none",
        }
        return [name for name, accepted in fine.items() if not accepted]

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
