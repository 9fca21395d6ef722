import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from adazeta import ZOTrainer, ZOTrainingArguments, add_tt_adapters
from adazeta.adapters.attached import attached_adapters
from adazeta.adapters.config import TTAdapterConfig
from adazeta.adapters.files import adapter_state_dict
from adazeta.adapters.loading import from_pretrained
from adazeta.models.structure import coarsest_dtype
from adazeta.parameters.space import ParameterSpace
from adazeta.recording.folder import LOG_NAME
from adazeta.recording.replay import replay
from adazeta.training.quantised import quantised_linears
from tests.helpers.tiny_models import PAD, tiny_bert_cls, tiny_gpt2, tiny_llama

SMALL: dict[str, Any] = {"rank": 2, "bottleneck": 8, "init": "paper"}


class Int8Linear(nn.Module):
    """As bitsandbytes and torchao leave a linear: integers, both widths, a forward of its own."""

    def __init__(self, weight: Tensor, bias: Tensor | None, *, buffer: bool) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        scale = weight.abs().amax(1, keepdim=True) / 127
        whole = (weight / scale).round().to(torch.int8)
        if buffer:
            self.register_buffer("weight", whole)
        else:
            self.weight = nn.Parameter(whole, requires_grad=False)
        self.register_buffer("scale", scale)
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        y = x @ (self.weight * self.scale).T.to(x.dtype)
        return y if self.bias is None else y + self.bias


def quantised(model: PreTrainedModel, *, buffer: bool = True) -> PreTrainedModel:
    """Quantise the linears of the body, and mark the model as transformers does."""
    for path, module in list(model.base_model.named_modules()):
        if type(module) is nn.Linear or type(module).__name__ == "Conv1D":
            weight = module.weight.data if type(module) is nn.Linear else module.weight.data.T
            parent, _, name = path.rpartition(".")
            made = Int8Linear(weight.contiguous(), module.bias, buffer=buffer)
            setattr(model.base_model.get_submodule(parent), name, made)
    model.is_quantized = True
    # No gradient flows through it, and none is needed.
    model.hf_quantizer = SimpleNamespace(
        is_trainable=False, quantization_config=SimpleNamespace(quant_method="stand-in")
    )
    return model


def rows(count: int = 12) -> list[dict[str, Tensor]]:
    ids = torch.arange(count * 10).reshape(count, 10) % 90 + 5
    return [
        {"input_ids": row, "attention_mask": torch.ones(10).long(), "labels": row} for row in ids
    ]


def trainer(model: nn.Module, folder: Path, **settings: Any) -> ZOTrainer:
    options: dict[str, Any] = {
        "max_steps": 4, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "eps": 1e-2,
        "save_steps": 2, "report_to": "none", "use_cpu": True, "disable_tqdm": True, **settings,
    }  # fmt: skip
    arguments = ZOTrainingArguments(output_dir=str(folder), **options)
    return ZOTrainer(model, arguments, train_dataset=rows())


@pytest.mark.parametrize("build", [tiny_llama, tiny_gpt2])
@pytest.mark.parametrize("buffer", [True, False])
def test_adapters_on_a_quantised_base_train_resume_and_replay(
    tmp_path: Path, build, buffer: bool
) -> None:
    def made() -> nn.Module:
        return add_tt_adapters(quantised(build(), buffer=buffer), TTAdapterConfig(**SMALL))

    model = made()
    frozen = {k: v.clone() for k, v in model.state_dict().items() if "tt_adapter" not in k}
    first = adapter_state_dict(copy.deepcopy(model))
    run = trainer(model, tmp_path, probes_per_forward=4, queries=2)
    assert not model._hf_peft_config_loaded  # the mark is gone again
    run.train()
    run.save_model()
    trained = adapter_state_dict(model)
    assert not all(torch.equal(first[key], trained[key]) for key in first)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in frozen.items())

    again = made()
    trainer(again, tmp_path, probes_per_forward=4, queries=2, max_steps=6).train(
        resume_from_checkpoint=str(tmp_path / "checkpoint-2")
    )
    replayed = made()
    replay(tmp_path / LOG_NAME, replayed)
    ended = adapter_state_dict(again)
    found = adapter_state_dict(replayed)
    assert all(torch.equal(found[key], value) for key, value in ended.items())
    assert not all(torch.equal(trained[key], value) for key, value in ended.items())

    loaded = from_pretrained(quantised(build(), buffer=buffer), tmp_path)
    saved = adapter_state_dict(loaded)
    assert all(torch.equal(saved[key], value) for key, value in trained.items())


@pytest.mark.parametrize("perturbation", ["buffer", "streamed", "in_place"])
def test_every_way_to_perturb_gives_the_same_first_loss(tmp_path: Path, perturbation) -> None:
    losses = []
    for mode in ("buffer", perturbation):
        model = add_tt_adapters(quantised(tiny_llama()), TTAdapterConfig(**SMALL))
        run = trainer(
            model, tmp_path / mode, perturbation=mode, probes_per_forward=1, max_steps=1,
            save_strategy="no", diagnostics_steps=0,
        )  # fmt: skip
        run.train()
        losses.append(run.zo_optimizer.last.loss)
    # Factors and chains of cores round differently in float32.
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_the_shared_trunk_changes_nothing(tmp_path: Path) -> None:
    found = []
    for shared in (False, True):
        model = quantised(tiny_llama(layers=3))
        add_tt_adapters(model, TTAdapterConfig(**SMALL, layers="last:1"))
        trainer(model, tmp_path / str(shared), share_trunk=shared, cache_trunk="memory").train()
        found.append(adapter_state_dict(model))
    pairs = zip(found[0].values(), found[1].values(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize("buffer", [True, False])
def test_training_a_quantised_base_in_full_is_refused(tmp_path: Path, buffer: bool) -> None:
    for marked in (True, False):
        model = quantised(tiny_llama(), buffer=buffer)
        model.is_quantized = marked
        with pytest.raises(ValueError, match=r"14 linears .*int8.*add_tt_adapters"):
            trainer(model, tmp_path)


@pytest.mark.parametrize("method", ["sparse-mezo", "subzero", "lozo"])
def test_a_method_that_does_not_reach_quantised_weights_is_refused(tmp_path, method) -> None:
    settings = None if method == "sparse-mezo" else {"rank": 2, "refresh": 0}
    with pytest.raises(ValueError, match="are quantised") as caught:
        trainer(quantised(tiny_llama()), tmp_path, method=method, method_settings=settings).train()
    assert ("'frozen': True" in str(caught.value)) == (settings is not None)
    if settings is not None:
        frozen = {**settings, "frozen": True}
        run = trainer(
            quantised(tiny_llama()), tmp_path, method=method, method_settings=frozen,
            max_steps=1, save_strategy="no",
        )  # fmt: skip
        run.train()
        assert any("_subspace" in name for name in run.zo_optimizer.space.names)


def test_a_head_alone_can_be_trained_on_a_quantised_base(tmp_path: Path) -> None:
    model = quantised(tiny_bert_cls()).requires_grad_(False)
    model.classifier.requires_grad_(True)
    data = [{**row, "labels": torch.tensor(index % 2)} for index, row in enumerate(rows())]
    before = model.classifier.weight.clone()
    run = trainer(model, tmp_path, save_strategy="no")
    run.train_dataset = data
    run.train()
    assert not torch.equal(before, model.classifier.weight)


def test_another_error_of_the_trainer_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    model = add_tt_adapters(quantised(tiny_llama()), TTAdapterConfig(**SMALL))
    arguments = ZOTrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True)
    with pytest.raises(ValueError, match="(?s).*"):
        ZOTrainer(model, arguments, model_init=tiny_llama)
    assert "_hf_peft_config_loaded" not in vars(model)


def test_integer_weights_are_no_dtype_that_rounds() -> None:
    model = add_tt_adapters(quantised(tiny_llama(), buffer=False), TTAdapterConfig(**SMALL))
    assert coarsest_dtype(model) == torch.float32
    assert len(quantised_linears(model)) == 14
    assert ParameterSpace(model).stackable
    assert len(list(attached_adapters(model))) == 4
    assert PAD == 0 and not quantised_linears(tiny_llama())
