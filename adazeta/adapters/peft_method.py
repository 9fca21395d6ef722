"""Tensor-train adapters as a method of PEFT: ``peft.get_peft_model(model, TTConfig(...))``.

Importing this module registers the method, so that ``peft.PeftModel.from_pretrained`` loads what
this package or PEFT saved: the files are the same. Several adapters, ``set_adapter``,
``disable_adapter`` and ``delete_adapter`` are PEFT's own.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch
from peft import PeftConfig, TaskType
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, check_adapters_to_merge
from peft.utils import PeftType, register_peft_method
from torch import Tensor, nn

from adazeta.adapters.attach import build_adapters
from adazeta.adapters.attached import ADAPTER, Adapter
from adazeta.adapters.config import TTAdapterConfig
from adazeta.adapters.files import PEFT_TYPE, PREFIX
from adazeta.adapters.linear_form import TTLora
from adazeta.adapters.low_rank import dense_weight
from adazeta.adapters.placement import Placement


def _add_type() -> PeftType:
    """Add the method to PEFT's enumeration, which it asks before it registers one."""
    if PEFT_TYPE in PeftType.__members__:
        return PeftType[PEFT_TYPE]
    member = str.__new__(PeftType, PEFT_TYPE)
    member._name_ = member._value_ = PEFT_TYPE
    type.__setattr__(PeftType, PEFT_TYPE, member)
    PeftType._member_names_.append(PEFT_TYPE)
    PeftType._member_map_[PEFT_TYPE] = member
    PeftType._value2member_map_[PEFT_TYPE] = member
    return member


_TYPE = _add_type()


@dataclass
class TTConfig(TTAdapterConfig, PeftConfig):  # type: ignore[misc]  # task_type: str and an enum
    """Settings of tensor-train adapters under PEFT: those of :class:`TTAdapterConfig`.

    The first values are those that ``add_tt_adapters(model, config, seed=0)`` gives.

    Raises:
        ValueError: on a value outside its range, or one that PEFT's way of adding adapters has no
            place for: ``form="informed"``, ``form="mixer"``, ``tt_head_rank`` and ``drop``.
    """

    adazeta_version: str | None = field(
        default=None, metadata={"help": "Version of adazeta that saved the adapters."}
    )

    def __post_init__(self) -> None:
        """Check the values of both sides."""
        if self.form in ("informed", "mixer") or self.tt_head_rank is not None:
            name = "tt_head_rank" if self.tt_head_rank is not None else "form"
            raise ValueError(
                f"{name}={getattr(self, name)!r} is not possible under PEFT; use "
                "adazeta.add_tt_adapters, or form 'lora' or 'bottleneck'"
            )
        self._check_drop()
        TTAdapterConfig.__post_init__(self)
        # PEFT asks a configuration's "bias" which biases of the base model are trained: none.
        self.dense_bias, self.bias = self.bias, "none"  # type: ignore[assignment]
        if self.task_type is not None and self.task_type not in list(TaskType):
            self.task_type = None  # a kind that only this package tells apart
        PeftConfig.__post_init__(self)
        self.peft_type = _TYPE

    def settings(self) -> TTAdapterConfig:
        """Return the settings without those of PEFT."""
        self._check_drop()
        own = {setting.name: getattr(self, setting.name) for setting in fields(TTAdapterConfig)}
        return TTAdapterConfig(**{**own, "bias": self.dense_bias, "drop": 0.0})

    def _check_drop(self) -> None:
        """Refuse to train with adapters that are left out; what was trained so is fine."""
        if self.drop and not self.inference_mode:
            raise ValueError(
                f"drop={self.drop} is not possible under PEFT, which does not tell adapters when a "
                "step begins; set it to 0, or use adazeta.add_tt_adapters with ZOTrainer or "
                "FOTrainer"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return what ``adapter_config.json`` holds."""
        return {**asdict(self), "bias": self.dense_bias}


class TTLayer(nn.Module, BaseTunerLayer):
    """A module of the base with its adapters, by the name that PEFT knows them by.

    Args:
        base_layer: a linear, or a mixture of experts.
    """

    adapter_layer_names = (ADAPTER,)
    other_param_names = ("sides",)

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.tt_adapter = nn.ModuleDict()
        self.sides: dict[str, str] = {}
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self.register_state_dict_post_hook(_name_last)
        self.register_load_state_dict_pre_hook(_name_first)

    def add(self, name: str, adapter: Adapter, side: str, *, inference_mode: bool) -> None:
        """Add an adapter under a name; it acts as soon as the name is active."""
        self.tt_adapter[name], self.sides[name] = adapter, side
        self.set_adapter(self.active_adapters, inference_mode=inference_mode)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the module with the active adapters."""
        if self.disable_adapters or self.merged:
            if self.disable_adapters and self.merged:
                self.unmerge()
            return self.base_layer(*args, **kwargs)
        active = [name for name in self.active_adapters if name in self.tt_adapter]
        given = args[0] if args else None
        for name in active:
            if self.sides[name] == "input":
                args = (self.tt_adapter[name](args[0]), *args[1:])
        output = self.base_layer(*args, **kwargs)
        first, rest = (output[0], output[1:]) if isinstance(output, tuple) else (output, None)
        for name in active:
            if self.sides[name] == "weight":
                first = self.tt_adapter[name](first, given)
            elif self.sides[name] == "output":
                first = self.tt_adapter[name](first)
        return first if rest is None else (first, *rest)

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Write adapters of the linear form into the weight.

        Args:
            safe_merge: refuse a weight that would not be finite.
            adapter_names: the adapters; None for the active ones.

        Raises:
            ValueError: an adapter is a bottleneck, or the weight is quantised or not finite.
        """
        for name in check_adapters_to_merge(self, adapter_names):
            if name not in self.tt_adapter:
                continue
            weight = dense_weight("a layer", self.get_base_layer())
            merged = weight.float() + self._change(name)
            if safe_merge and not bool(merged.isfinite().all()):
                raise ValueError(f"adapter {name!r} would make the weight infinite")
            weight.copy_(merged)
            self.merged_adapters.append(name)

    @torch.no_grad()
    def unmerge(self) -> None:
        """Take merged adapters out of the weight again, to its rounding."""
        while self.merged_adapters:
            name = self.merged_adapters.pop()
            if name in self.tt_adapter:
                weight = dense_weight("a layer", self.get_base_layer())
                weight.copy_(weight.float() - self._change(name))

    def _change(self, name: str) -> Tensor:
        """Return ``s A B``, float32 ``(in_features, out_features)``."""
        adapter = self.tt_adapter[name]
        if not isinstance(adapter, TTLora):
            raise ValueError(
                f"adapter {name!r} is a bottleneck, which PEFT's merge has no place for; train "
                "with form='lora', or use adazeta.merge_adapters"
            )
        a, b, _ = adapter.current_factors()
        return adapter.scale * (a.float() @ b.float())


# PEFT takes the name of an adapter out of a key where it comes last, or next to last, and a train's
# cores have a number there. So it comes last in state dicts, and files have no name, as ours.
def _name_last(layer: TTLayer, state: dict[str, Tensor], prefix: str, _: Any) -> None:
    for name in layer.tt_adapter:
        start = f"{prefix}{ADAPTER}.{name}."
        for key in [key for key in state if key.startswith(start)]:
            state[f"{prefix}{ADAPTER}.{key.removeprefix(start)}.{name}"] = state.pop(key)


def _name_first(layer: TTLayer, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    for name in layer.tt_adapter:
        start, end = f"{prefix}{ADAPTER}.", f".{name}"
        for key in [key for key in state if key.startswith(start) and key.endswith(end)]:
            path = key.removeprefix(start).removesuffix(end)
            state[f"{start}{name}.{path}"] = state.pop(key)


class TTModel(BaseTuner):
    """A model with tensor-train adapters, as PEFT holds it."""

    prefix = ADAPTER
    tuner_layer_cls = TTLayer
    target_module_mapping: dict[str, list[str]] = {}

    def _prepare_adapter_config(self, peft_config: TTConfig, model_config: dict) -> TTConfig:
        return peft_config

    def _prepare_model(self, peft_config: TTConfig, model: nn.Module) -> None:
        """Choose the places and build the adapters, as :func:`add_tt_adapters` does."""
        with _unwrapped(model):
            built = build_adapters(model, peft_config.settings(), seed=0)
        self._built: dict[str, tuple[Placement, Adapter]] = {
            placement.name: (placement, adapter) for placement, adapter in built.items()
        }
        if peft_config.target_modules == "all-linear":
            # PEFT would choose by its own rules.
            peft_config.target_modules = sorted(self._built)

    def _check_target_module_exists(  # type: ignore[override]
        self, peft_config: TTConfig, key: str
    ) -> bool:
        return key in self._built

    def _create_and_replace(  # type: ignore[override]
        self,
        peft_config: TTConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        **kwargs: Any,
    ) -> None:
        placement, adapter = self._built[current_key]
        layer = target if isinstance(target, TTLayer) else TTLayer(target)
        if layer is not target:
            layer.set_adapter(self.active_adapters)
        layer.add(adapter_name, adapter, placement.side, inference_mode=peft_config.inference_mode)
        if adapter_name not in self.active_adapters:
            adapter.requires_grad_(False)  # a further adapter is not trained before it is active
        if layer is not target:
            self._replace_module(parent, target_name, layer, target)

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: TTConfig, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Put the name of the adapter into the keys of a file, as older versions of PEFT do."""
        wrapped = any(name.startswith(PREFIX) for name, _ in model.named_parameters())
        found = {}
        for key, tensor in state_dict.items():
            path = key if wrapped else key.removeprefix(PREFIX)
            layer, inside, rest = path.rpartition(f".{ADAPTER}.")
            found[f"{layer}{inside}{adapter_name}.{rest}" if inside else path] = tensor
        return found


@contextmanager
def _unwrapped(model: nn.Module) -> Iterator[None]:
    """Show the model without adapters that it has already, inside the context."""
    layers = [(name, m) for name, m in model.named_modules() if isinstance(m, TTLayer)]
    try:
        for name, layer in layers:
            _replace(model, name, layer.base_layer)
        yield
    finally:
        for name, layer in layers:
            _replace(model, name, layer)


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


if _TYPE not in PEFT_TYPE_TO_TUNER_MAPPING:
    register_peft_method(
        name=PEFT_TYPE.lower(), config_cls=TTConfig, model_cls=TTModel, prefix=ADAPTER
    )
