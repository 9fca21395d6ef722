import copy
import pickle
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import LlamaForCausalLM, Trainer, TrainingArguments

from adazeta import ZOTrainer, ZOTrainingArguments
from adazeta.adapters.attach import add_tt_adapters, remove_adapters
from adazeta.adapters.config import TTAdapterConfig
from adazeta.adapters.files import CONFIG_NAME, WEIGHTS_NAME, save_pretrained
from adazeta.adapters.loading import from_pretrained
from adazeta.models.loading import load_configuration, load_model
from tests.helpers.tiny_models import tiny_bert_cls, tiny_llama

IDS = torch.arange(24).reshape(2, 12) % 90 + 5


def adapted(model: nn.Module | None = None, **settings: Any) -> Any:
    config = TTAdapterConfig(rank=2, bottleneck=8, init="paper", **settings)
    return add_tt_adapters(model or tiny_llama(), config, seed=5)


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(IDS).logits


def rows(count: int = 8) -> list[dict[str, torch.Tensor]]:
    return [{"input_ids": IDS[i % 2], "labels": IDS[i % 2]} for i in range(count)]


@pytest.mark.parametrize("settings", [{}, {"modules_to_save": ["classifier"]}])
def test_the_models_own_method_writes_the_adapters_files(tmp_path: Path, settings) -> None:
    build = tiny_bert_cls if settings else tiny_llama
    model = adapted(build(), **settings)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.01)
    model.save_pretrained(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert {CONFIG_NAME, WEIGHTS_NAME, "config.json", "model.safetensors"} <= names
    assert torch.equal(logits(from_pretrained(build(), tmp_path)), logits(model))


def test_what_it_writes_is_not_loaded_without_the_adapters(tmp_path: Path) -> None:
    model = adapted()
    model.save_pretrained(tmp_path)
    # In a process that does not know our method: PEFT, which transformers asks, says so.
    plain = (
        f"from transformers import AutoModelForCausalLM as A; A.from_pretrained({str(tmp_path)!r})"
    )
    run = subprocess.run([sys.executable, "-c", plain], capture_output=True, text=True)
    assert run.returncode and "KeyError" in run.stderr and "ADAZETA" in run.stderr
    for load in (load_model, load_configuration, lambda folder: from_pretrained(folder, folder)):
        with pytest.raises(ValueError, match=r"is no base model.*from_pretrained\(base, folder\)"):
            load(tmp_path)


def test_a_model_that_nothing_holds_cannot_be_saved_by_its_own_method(tmp_path: Path) -> None:
    with pytest.raises(ReferenceError, match="hold it in a variable"):
        adapted().save_pretrained(tmp_path)


def test_adapters_are_saved_by_the_trainer_of_transformers(tmp_path: Path) -> None:
    model = adapted()
    arguments = TrainingArguments(
        str(tmp_path), max_steps=1, report_to="none", use_cpu=True, disable_tqdm=True,
        save_strategy="no",
    )  # fmt: skip
    trainer = Trainer(model, arguments, train_dataset=rows())
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    assert torch.equal(logits(from_pretrained(tiny_llama(), tmp_path / "saved")), logits(model))


@pytest.mark.parametrize("again", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_and_pickles_save_their_own_adapters(tmp_path: Path, again) -> None:
    model = adapted()
    other = again(model)
    for parameter in other.parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.1)
    del model
    other.save_pretrained(tmp_path)
    assert torch.equal(logits(from_pretrained(tiny_llama(), tmp_path)), logits(other))


def test_the_method_keeps_no_model_alive() -> None:
    model = adapted()
    watched = weakref.ref(model)
    del model
    assert watched() is None


def test_without_adapters_the_method_is_the_classs_again(tmp_path: Path) -> None:
    model = remove_adapters(adapted())
    assert "save_pretrained" not in vars(model)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(LlamaForCausalLM.from_pretrained(tmp_path)), logits(tiny_llama()))


def test_pushing_by_the_flag_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"call model.push_to_hub\(name\)"):
        adapted().save_pretrained(tmp_path / "folder", push_to_hub=True)
    assert not (tmp_path / "folder").exists()


def test_pushing_uploads_the_adapters_files(tmp_path: Path, monkeypatch) -> None:
    model = adapted()
    found: set[str] = set()

    def upload(working_dir, *arguments, **options) -> None:
        found.update(path.name for path in Path(working_dir).iterdir())

    # The boundary: the network.
    monkeypatch.setattr(type(model), "_upload_modified_files", staticmethod(upload))
    monkeypatch.setattr(
        "huggingface_hub.HfApi.create_repo",
        lambda self, name, **_: type("Repository", (), {"repo_id": name}),
    )
    model.push_to_hub("some/name")
    assert {CONFIG_NAME, WEIGHTS_NAME} <= found


def compiled(model: nn.Module, part: str) -> Any:
    if part == "whole":
        return torch.compile(model, backend="eager")
    parent, _, name = part.rpartition(".")
    module = model.get_submodule(parent)
    setattr(module, name, torch.compile(getattr(module, name), backend="eager"))
    return model


@pytest.mark.parametrize("part", ["whole", "model", "model.layers.1"])
def test_a_compiled_model_has_the_files_of_a_plain_one(tmp_path: Path, part: str) -> None:
    plain, fast = adapted(), compiled(adapted(), part)
    save_pretrained(plain, tmp_path / "plain")
    save_pretrained(fast, tmp_path / "fast")
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        assert (tmp_path / "plain" / name).read_bytes() == (tmp_path / "fast" / name).read_bytes()
    onto = from_pretrained(compiled(tiny_llama(), part), tmp_path / "plain")
    assert torch.equal(logits(onto), logits(plain))


def test_a_model_compiled_before_the_trainer_is_saved_by_it(tmp_path: Path) -> None:
    model = adapted()
    arguments = ZOTrainingArguments(
        str(tmp_path), max_steps=1, report_to="none", use_cpu=True, disable_tqdm=True, eps=1e-2,
        learning_rate=1e-2, per_device_train_batch_size=2, diagnostics_steps=0,
    )  # fmt: skip
    trainer = ZOTrainer(torch.compile(model, backend="eager"), arguments, train_dataset=rows())
    trainer.train()
    for save in (trainer.save_model, trainer.model.save_pretrained):
        save(str(tmp_path / "saved"))
        assert torch.equal(logits(from_pretrained(tiny_llama(), tmp_path / "saved")), logits(model))
    assert not any("_orig_mod" in key for key in load_file(tmp_path / "saved" / WEIGHTS_NAME))


def test_a_state_dict_comes_back_onto_adapters_and_onto_nothing_else(tmp_path: Path) -> None:
    model = adapted()
    torch.save(model.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt")
    other = add_tt_adapters(tiny_llama(), TTAdapterConfig(rank=2, bottleneck=8))
    other.load_state_dict(state)
    assert torch.equal(logits(other), logits(model))
    with pytest.raises(RuntimeError, match="Unexpected key.*tt_adapter"):
        tiny_llama().load_state_dict(state)
