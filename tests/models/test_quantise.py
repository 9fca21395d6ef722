"""Bases that a library quantises as they load: a stand-in, and the real ones where installed."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from adazeta import ZOTrainer, ZOTrainingArguments, add_tt_adapters, replay
from adazeta.adapters.config import TTAdapterConfig
from adazeta.adapters.files import adapter_state_dict
from adazeta.forward.fingerprint import fingerprint, frozen_tensors
from adazeta.models import quantise
from adazeta.models.loading import load_model
from adazeta.models.quantise import BACKENDS, Backend
from adazeta.recording.folder import LOG_NAME
from adazeta.recording.probe_log import read_log
from adazeta.recording.replay import rebuild


class RoundedLinear(nn.Linear):
    """A linear whose weight is kept as integers, made of the one that was loaded."""

    def round(self) -> None:
        weight = self.weight.data
        scale = weight.abs().amax(1, keepdim=True) / 127
        del self.weight
        self.register_buffer("weight", (weight / scale).round().to(torch.int8))
        self.register_buffer("scale", scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ (self.weight * self.scale).T.to(x.dtype)


@register_quantization_config("adazeta-stand-in")
class StandInConfig(QuantizationConfigMixin):
    def __init__(self, **kwargs: Any) -> None:
        self.quant_method = "adazeta-stand-in"


@register_quantizer("adazeta-stand-in")
class StandIn(HfQuantizer):
    requires_calibration = False

    def _process_model_before_weight_loading(self, model: nn.Module, **kwargs: Any) -> None:
        for module in model.model.modules():
            if type(module) is nn.Linear:
                module.__class__ = RoundedLinear

    def _process_model_after_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        for module in model.modules():
            if isinstance(module, RoundedLinear):
                module.round()
        return model

    def is_serializable(self, **kwargs: Any) -> bool:
        return False

    @property
    def is_trainable(self) -> bool:
        return False


STAND_IN = Backend("a stand-in", "transformers", lambda dtype: StandInConfig())


@pytest.fixture
def folder(tmp_path) -> Path:
    torch.manual_seed(0)
    sizes = {"vocab_size": 128, "hidden_size": 128, "intermediate_size": 256}
    config = LlamaConfig(
        **sizes, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, pad_token_id=0
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def trainer(model: nn.Module, folder: Path, **settings: Any) -> ZOTrainer:
    arguments = ZOTrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=4, learning_rate=1e-2, eps="0.01",
        save_steps=2, report_to="none", use_cpu=True, disable_tqdm=True, queries=2,
        probes_per_forward=4, cache_trunk="memory", **{"max_steps": 4, **settings},
    )  # fmt: skip
    ids = torch.arange(120).view(12, 10) % 90 + 5
    ones = torch.ones(10).long()
    data = [{"input_ids": row, "attention_mask": ones, "labels": row} for row in ids]
    return ZOTrainer(model, arguments, train_dataset=data)


def run_trains_resumes_and_replays(folder: Path, value: str, run: Path) -> None:
    def made() -> nn.Module:
        model = load_model(folder, dtype="float32", quantise=value)
        return add_tt_adapters(model, TTAdapterConfig(rank=2, bottleneck=8, task_type="CAUSAL_LM"))

    model = made()
    first = {key: value.clone() for key, value in adapter_state_dict(model).items()}
    trainer(model, run).train()
    assert not all(torch.equal(first[key], v) for key, v in adapter_state_dict(model).items())
    again = made()
    trainer(again, run, max_steps=6).train(resume_from_checkpoint=str(run / "checkpoint-2"))
    digests = {fingerprint(one, frozen_tensors(one)) for one in (model, again)}
    assert len(digests) == 1
    ended = adapter_state_dict(again)
    replayed = made()
    replay(run / LOG_NAME, replayed)
    rebuilt, _ = rebuild(read_log(run / LOG_NAME))
    assert rebuilt.quantised_as == value
    for other in (replayed, rebuilt):
        found = adapter_state_dict(other)
        assert all(torch.equal(found[key], value) for key, value in ended.items())


def test_a_base_that_a_library_quantises_trains_resumes_and_replays(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(BACKENDS, "stand-in", STAND_IN)
    monkeypatch.setattr(quantise, "CHOICES", (*quantise.CHOICES, "stand-in"))
    run_trains_resumes_and_replays(folder, "stand-in", tmp_path / "run")


@pytest.mark.filterwarnings("ignore")  # of the libraries, as they are
@pytest.mark.parametrize("value", [name for name in BACKENDS if "cpu" in BACKENDS[name].devices])
def test_the_real_libraries(folder, tmp_path, value):
    pytest.importorskip(BACKENDS[value].package)
    run_trains_resumes_and_replays(folder, value, tmp_path / "run")


@pytest.mark.parametrize("value", BACKENDS)
def test_a_library_that_is_missing_is_named_before_any_work(folder, monkeypatch, value):
    find = importlib.util.find_spec
    package = BACKENDS[value].package
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == package else find(name, *a)
    )
    with pytest.raises(ImportError, match=f"'{value}' needs {package}: pip install {package}"):
        load_model(folder, quantise=value)


def test_a_device_without_a_way_to_compute_is_refused(folder, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: True)
    monkeypatch.setattr(quantise, "device_type", lambda: "cpu")
    with pytest.raises(ValueError, match=r"'torchao-int4' .* works on cuda .* trains on cpu"):
        load_model(folder, quantise="torchao-int4")
