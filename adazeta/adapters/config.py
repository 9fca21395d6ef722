"""What an adapter is and where it goes, as one dataclass that JSON and YAML can hold."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from adazeta.models.arguments import AUTO_CLASSES

FORMS = ("bottleneck", "lora", "informed", "mixer")


def _help(text: str) -> dict[str, str]:
    return {"help": text}


@dataclass
class TTAdapterConfig:
    """Settings of :func:`adazeta.adapters.attach.add_tt_adapters`.

    The defaults are those of AdaZeta (arXiv 2406.18060) but for two: the adapters sit after the
    attention and after the MLP of every block of any model (``target_modules="paper"`` places them
    as the authors' code does), and they start as the identity (``init="paper"`` draws them).

    Raises:
        ValueError: on a value outside its range; the message names it.
        TypeError: on a ``target_modules`` that is neither a string nor a list of strings.
    """

    form: str = field(
        default="bottleneck",
        metadata=_help(
            "'bottleneck': tensor trains down to a narrow width and up again, in every block; "
            "'lora': y = W x + s (x A) B on linears, A and B from one tensor train, which can be "
            "merged and exported; "
            "'informed': one small core at the output of a block, in a space that the prompts of "
            "the task choose (classification, adapt: last); "
            "'mixer': one module at the input of a late block, which mixes in the inputs of blocks "
            "of many depths (after SHERL)."
        ),
    )
    components: int = field(
        default=128,
        metadata=_help(
            "Informed adapters: principal components of the hidden states that they read."
        ),
    )
    read_layers: list[int] | None = field(
        default=None,
        metadata=_help(
            "Informed adapters: blocks whose hidden states they read beside those of their own, as "
            "far as these lie below it; null: one in ten, from two fifths of the height up (with "
            "'reward' none)."
        ),
    )
    answers: int = field(
        default=1,
        metadata=_help(
            "Informed adapters: directions in which they move the hidden states; the number of "
            "label words less one, 7 at most, where a run sets them up."
        ),
    )
    features: str | list[int] | None = field(
        default=None,
        metadata=_help(
            "Mixers: the blocks whose inputs are mixed in, 0 for the embeddings: 'every:N', or a "
            "list of indices, which may be empty; null: every fifth of the height."
        ),
    )
    late: int = field(
        default=1,
        metadata=_help(
            "Mixers: the blocks above, of which the lowest has its input mixed; all below are "
            "frozen and run once a batch."
        ),
    )
    rank: int | list[int] = field(
        default=5,
        metadata=_help(
            "Inner rank of the TT layers, or the list of ranks of the down-projection (form lora: "
            "of each layer); at the cut it is the rank of the LoRA."
        ),
    )
    bottleneck: int = field(default=64, metadata=_help("Width between the two TT layers."))
    activation: str = field(
        default="relu", metadata=_help("Activation between them: a name of transformers' ACT2FN.")
    )
    scale: float = field(
        default=1.0,
        metadata=_help("Factor s in y = x + s * Up(phi(Down(x))), or y = W x + s (x A) B."),
    )
    drop: float = field(
        default=0.0,
        metadata=_help(
            "Probability that an adapter is left out in training, each by itself and for all "
            "evaluations of a step alike; what the others add is divided by 1 - drop. Nothing is "
            "left out afterwards. R-Adapter has 0.2. It needs ZOTrainer or FOTrainer, or an "
            "optimizer made of the model."
        ),
    )
    bias: bool = field(default=True, metadata=_help("Whether both TT layers have a dense bias."))
    init: str = field(
        default="zero",
        metadata=_help(
            "'zero': last core and bias of the up-projection start at zero, so that the model is "
            "unchanged; 'paper': they are drawn like the others (form mixer: and a trained gate "
            "starts with the block's own input off, for order 'first' only)."
        ),
    )
    target_modules: str | list[str] = field(
        default="block",
        metadata=_help(
            "'block', 'paper', 'all-linear', a list of module-name suffixes, or a regular "
            "expression that matches whole module names. With form lora these are the linears that "
            "get the term; 'block': the last one of each attention and of each MLP."
        ),
    )
    layers: str | list[int] | None = field(
        default=None,
        metadata=_help("Blocks that get adapters: a list of indices, 'last:N', or null for all."),
    )
    experts: bool = field(
        default=True,
        metadata=_help(
            "Whether a mixture of experts counts as a linear, so that 'block' puts an adapter on "
            "what the experts make together; adapters of earlier versions have false."
        ),
    )
    modes: dict[int, list[int]] | None = field(
        default=None,
        metadata=_help(
            "TT modes of particular widths, e.g. {1024: [8, 8, 16], 64: [8, 8]}; other widths are "
            "split evenly. The up-projection has them in reverse order."
        ),
    )
    modules_to_save: list[str] | None = field(
        default=None,
        metadata=_help("Suffixes of base modules that are trained in full and saved as well."),
    )
    tt_head_rank: int | None = field(
        default=None,
        metadata=_help(
            "If set, each linear of the sequence-classification head (a module named 'classifier' "
            "or 'score') is replaced by a trained TT layer of this rank."
        ),
    )
    num_labels: int | None = field(
        default=None,
        metadata=_help("Outputs of a sequence-classification head, where a run gave it one."),
    )
    task_type: str | None = field(
        default=None, metadata=_help("Task of the base model, as in PEFT: CAUSAL_LM, SEQ_CLS, ...")
    )
    base_model_name_or_path: str | None = field(
        default=None, metadata=_help("Folder or hub id of the base model.")
    )
    revision: str | None = field(
        default=None, metadata=_help("Revision of the base model on the hub.")
    )
    auto_mapping: dict[str, Any] | None = field(
        default=None, metadata=_help("Class of the base model where task_type does not tell it.")
    )
    inference_mode: bool = field(
        default=False, metadata=_help("Whether the adapters were saved for inference, as in PEFT.")
    )

    def __post_init__(self) -> None:
        """Check the values and give the containers their JSON-independent types."""
        if isinstance(self.rank, Sequence):
            self.rank = list(self.rank)
        if self.modes is not None:
            # JSON has only string keys.
            self.modes = {int(width): list(modes) for width, modes in self.modes.items()}
        self._check_numbers()
        self._check_choices()

    @classmethod
    def saved(cls, values: dict[str, Any]) -> "TTAdapterConfig":
        """Make the configuration that a file or a log holds, also one of an earlier version.

        Args:
            values: the settings by name; those that came later have the values that give the
                same adapters as then.

        Raises:
            ValueError, TypeError: see the class.
        """
        return cls(**{"experts": False, **values})

    def modes_of(self, width: int) -> list[int] | None:
        """Return the modes asked for a width, or None for balanced ones."""
        return (self.modes or {}).get(width)

    def _check_numbers(self) -> None:
        ranks = self.rank if isinstance(self.rank, list) else [self.rank]
        for name, value in [
            *(("rank", rank) for rank in ranks),
            ("bottleneck", self.bottleneck),
            ("components", self.components),
            ("answers", self.answers),
            ("late", self.late),
            ("tt_head_rank", 1 if self.tt_head_rank is None else self.tt_head_rank),
        ]:
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
        if not math.isfinite(self.scale):
            raise ValueError(f"scale must be finite, got {self.scale!r}")
        if isinstance(self.drop, bool) or not 0 <= self.drop < 1:
            raise ValueError(f"drop must be 0 (off) or more and less than 1, got {self.drop!r}")

    def _check_choices(self) -> None:
        if self.form not in FORMS:
            raise ValueError(
                f"form must be {', '.join(map(repr, FORMS[:-1]))} or {FORMS[-1]!r}, got "
                f"{self.form!r}"
            )
        if self.form == "lora":
            self._refuse(
                ("bottleneck", "activation", "bias"),
                "which has two factors and nothing between them; leave it out, or set "
                "form='bottleneck'",
            )
        if self.form == "mixer":
            self._refuse(
                ("target_modules", "layers"),
                "which has one place; say where with late, or set form='bottleneck'",
            )
            self._check_features()
        else:
            self._refuse(
                ("features", "late"), "which is no mixer; leave it out, or set form='mixer'"
            )
        if self.form in ("informed", "mixer") and self.drop:
            one = "an informed one" if self.form == "informed" else "a mixer"
            raise ValueError(
                f"drop={self.drop} leaves adapters out that work beside others, and {one} works "
                "alone; leave it at 0, or choose another form"
            )
        if self.init not in ("zero", "paper"):
            raise ValueError(f"init must be 'zero' or 'paper', got {self.init!r}")
        if self.task_type is not None and self.task_type not in AUTO_CLASSES:
            raise ValueError(
                f"task_type must be one of {', '.join(AUTO_CLASSES)} or null, got "
                f"{self.task_type!r}"
            )
        if not isinstance(self.target_modules, str):
            self.target_modules = _strings("target_modules", self.target_modules)
        if self.modules_to_save is not None:
            self.modules_to_save = _strings("modules_to_save", self.modules_to_save)
        if isinstance(self.layers, str) and not re.fullmatch(r"last:[1-9]\d*", self.layers):
            raise ValueError(
                f"layers must be a list of block indices, 'last:N' or null, got {self.layers!r}"
            )

    def _refuse(self, names: tuple[str, ...], why: str) -> None:
        """Raise ValueError for settings that are not at their default."""
        for name in names:
            value, default = getattr(self, name), type(self).__dataclass_fields__[name].default
            if value != default:
                raise ValueError(f"{name}={value!r} means nothing with form={self.form!r}, {why}")

    def _check_features(self) -> None:
        wanted = self.features
        if wanted is None or (isinstance(wanted, str) and re.fullmatch(r"every:[1-9]\d*", wanted)):
            return
        whole = isinstance(wanted, Sequence) and all(type(index) is int for index in wanted)
        if isinstance(wanted, str) or not whole:
            raise ValueError(
                f"features must be a list of block indices, 'every:N' or null, got {wanted!r}"
            )
        self.features = list(wanted)


def _strings(name: str, values: Any) -> list[str]:
    if isinstance(values, str) or not all(isinstance(value, str) for value in values):
        raise TypeError(f"{name} must be a list of module names, got {values!r}")
    # A set would be saved in another order in each process.
    return sorted(values) if isinstance(values, set | frozenset) else list(values)
