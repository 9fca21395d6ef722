import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from adazeta.adapters.attach import add_tt_adapters
from adazeta.adapters.attached import adapter_config, attached_adapters
from adazeta.adapters.config import TTAdapterConfig
from adazeta.adapters.files import CONFIG_NAME, WEIGHTS_NAME, save_pretrained
from adazeta.adapters.loading import from_pretrained
from tests.helpers.paths import ROOT
from tests.helpers.tiny_models import tiny_bert_cls, tiny_gpt2, tiny_llama

SMALL: dict[str, Any] = {"rank": 2, "bottleneck": 8, "init": "paper"}
IDS = torch.arange(24).reshape(2, 12) % 90 + 5


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def saved(folder: Path, model: nn.Module | None = None, **settings: Any) -> nn.Module:
    """Save adapters of a tiny model and return it."""
    model = add_tt_adapters(model or tiny_llama(), TTAdapterConfig(**{**SMALL, **settings}), seed=5)
    save_pretrained(model, folder)
    return model


def test_files_are_those_of_peft(tmp_path: Path) -> None:
    saved(tmp_path, task_type="CAUSAL_LM", modes={32: [4, 8]}, base_model_name_or_path="some/base")
    assert {path.name for path in tmp_path.iterdir()} == {CONFIG_NAME, WEIGHTS_NAME, "README.md"}
    text = (tmp_path / CONFIG_NAME).read_text()
    config = json.loads(text)
    assert text == json.dumps(config, indent=2, sort_keys=True) + "\n"
    assert config["peft_type"] == "ADAZETA"
    assert config["inference_mode"] is True
    assert config["target_modules"] == "block"
    assert config["modes"] == {"32": [4, 8]}
    state = load_file(tmp_path / WEIGHTS_NAME)
    path = "base_model.model.model.layers.0.mlp.down_proj.tt_adapter"
    assert f"{path}.down.cores.0" in state
    assert f"{path}.up.bias" in state
    assert all(".tt_adapter." in key for key in state)
    card = (tmp_path / "README.md").read_text()
    assert "base_model: some/base" in card
    assert "library_name: adazeta" in card


def test_round_trip_onto_a_model(tmp_path: Path) -> None:
    model = saved(tmp_path, modes={32: [4, 8]}, layers=[1], target_modules=["o_proj", "up_proj"])
    loaded = from_pretrained(tiny_llama(), tmp_path)
    assert torch.equal(logits(loaded), logits(model))
    assert not any(p.requires_grad for p in loaded.parameters())
    again = from_pretrained(tiny_llama(), tmp_path, trainable=True)
    assert {n for n, p in again.named_parameters() if p.requires_grad} == {
        n for n, p in model.named_parameters() if p.requires_grad
    }


def test_round_trip_of_views_into_one_buffer(tmp_path: Path) -> None:
    model = add_tt_adapters(tiny_llama(), TTAdapterConfig(**SMALL))
    parameters = [p for p in model.parameters() if p.requires_grad]
    buffer = torch.cat([p.detach().flatten() for p in parameters])
    for p, piece in zip(parameters, buffer.split([p.numel() for p in parameters]), strict=True):
        p.data = piece.view_as(p)
    save_pretrained(model, tmp_path)
    assert torch.equal(logits(from_pretrained(tiny_llama(), tmp_path)), logits(model))


def test_round_trip_of_heads(tmp_path: Path) -> None:
    variants: list[dict[str, Any]] = [{"modules_to_save": ["classifier"]}, {"tt_head_rank": 2}]
    for settings in variants:
        model = add_tt_adapters(tiny_bert_cls(num_labels=3), TTAdapterConfig(**SMALL, **settings))
        with torch.no_grad():
            for name, p in model.named_parameters():
                if p.requires_grad and "classifier" in name:
                    p.add_(0.1)
        save_pretrained(model, tmp_path)
        loaded = from_pretrained(tiny_bert_cls(num_labels=3), tmp_path)
        assert torch.equal(logits(loaded), logits(model))
    keys = load_file(tmp_path / WEIGHTS_NAME)
    assert "base_model.model.classifier.tt_adapter.cores.0" in keys
    assert "base_model.model.classifier.weight" not in keys


LOAD_IN_NEW_PROCESS = """
import sys, torch
from adazeta.adapters.loading import from_pretrained
for folder in sys.argv[1:]:
    model = from_pretrained(None, folder)
    with torch.no_grad():
        torch.save(model(torch.load(folder + "/ids.pt")).logits, folder + "/logits.pt")
"""


def test_round_trip_in_a_new_process(tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path / "base")
    # The class of the base model is found by its name, or by the task.
    models = {
        tmp_path / str(task): saved(
            tmp_path / str(task), task_type=task, base_model_name_or_path=str(tmp_path / "base")
        )
        for task in (None, "CAUSAL_LM")
    }
    for folder in models:
        torch.save(IDS, folder / "ids.pt")
    subprocess.run(
        [sys.executable, "-c", LOAD_IN_NEW_PROCESS, *map(str, models)],
        check=True,
        cwd=ROOT,
    )
    for folder, model in models.items():
        assert torch.equal(torch.load(folder / "logits.pt"), logits(model))


def test_base_is_loaded_with_the_arguments_given(tmp_path: Path) -> None:
    base, adapters = tmp_path / "base", tmp_path / "adapters"
    tiny_llama().save_pretrained(base)
    saved(adapters, task_type="CAUSAL_LM")
    model = from_pretrained(base, adapters, dtype=torch.bfloat16)
    assert model.get_parameter("lm_head.weight").dtype == torch.bfloat16
    assert {p.dtype for _, a in attached_adapters(model) for p in a.parameters()} == {torch.float32}


def test_name_of_the_base_is_recorded(tmp_path: Path) -> None:
    base, adapters = tmp_path / "base", tmp_path / "adapters"
    tiny_llama().save_pretrained(base)
    saved(adapters, type(tiny_llama()).from_pretrained(base))
    config = json.loads((adapters / CONFIG_NAME).read_text())
    assert config["base_model_name_or_path"] == str(base)
    assert config["auto_mapping"]["base_model_class"] == "LlamaForCausalLM"
    assert adapter_config(from_pretrained(None, adapters)).inference_mode


def test_a_model_card_is_kept(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine")
    saved(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


def test_the_base_model_can_still_be_saved(tmp_path: Path) -> None:
    model = tiny_llama()
    add_tt_adapters(model, TTAdapterConfig(**SMALL))
    model.save_pretrained(tmp_path)
    assert any(".tt_adapter." in key for key in load_file(tmp_path / "model.safetensors"))


@pytest.mark.parametrize(
    ("base", "message"),
    [
        (
            lambda: tiny_llama(hidden=64),
            r"o_proj.tt_adapter.down.cores.0 is \(1, 2, 2\) in the file and \(1, 4, 2\) on this",
        ),
        (
            lambda: tiny_llama(layers=3),
            "model.layers.2.self_attn.o_proj.tt_adapter.down.bias is missing in the file",
        ),
        (
            lambda: tiny_llama(layers=1),
            "no place for model.layers.1.mlp.down_proj.tt_adapter.down.bias",
        ),
        (tiny_gpt2, "transformer.h.0.attn.c_proj.tt_adapter.down.bias is missing in the file"),
    ],
)
def test_wrong_base_is_named_and_left_as_it_was(
    tmp_path: Path, base: Callable[[], nn.Module], message: str
) -> None:
    saved(tmp_path, base_model_name_or_path="some/base")
    model = base()
    keys = list(model.state_dict())
    with pytest.raises(ValueError, match=message) as error:
        from_pretrained(model, tmp_path)
    assert "model that they were trained on (some/base)" in str(error.value)
    assert list(model.state_dict()) == keys
    assert all(p.requires_grad for p in model.parameters())


def test_base_of_another_width_is_refused_without_biases(tmp_path: Path) -> None:
    model = nn.ModuleDict({"linear": nn.Linear(4, 1009)})
    saved(tmp_path, model, target_modules=["linear"], bias=False)
    # Both widths are padded to the same modes.
    other = nn.ModuleDict({"linear": nn.Linear(4, 1010)})
    with pytest.raises(ValueError, match="1009.*1010"):
        from_pretrained(other, tmp_path)


def test_missing_and_surplus_tensors_are_named(tmp_path: Path) -> None:
    saved(tmp_path)
    state = load_file(tmp_path / WEIGHTS_NAME)
    key = "base_model.model.model.layers.1.mlp.down_proj.tt_adapter.up.cores.1"
    save_file({k: v for k, v in state.items() if k != key}, tmp_path / WEIGHTS_NAME)
    with pytest.raises(ValueError, match="down_proj.tt_adapter.up.cores.1 is missing"):
        from_pretrained(tiny_llama(), tmp_path)
    save_file({**state, "base_model.model.extra": torch.zeros(1)}, tmp_path / WEIGHTS_NAME)
    with pytest.raises(ValueError, match="no place for extra"):
        from_pretrained(tiny_llama(), tmp_path)


def test_loading_onto_adapters_is_an_error(tmp_path: Path) -> None:
    model = saved(tmp_path)
    with pytest.raises(ValueError, match=r"call remove_adapters\(model\) first"):
        from_pretrained(model, tmp_path)


def test_saving_without_adapters_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the model has no TT adapters"):
        save_pretrained(tiny_llama(), tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_folder_without_adapters(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="written by save_pretrained"):
        from_pretrained(tiny_llama(), tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "LORA"}, "peft_type 'LORA', not 'ADAZETA'"),
        ({"dropout": 0.1}, "does not know: dropout; upgrade adazeta"),
    ],
)
def test_foreign_configurations(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    saved(tmp_path)
    config = json.loads((tmp_path / CONFIG_NAME).read_text())
    (tmp_path / CONFIG_NAME).write_text(json.dumps({**config, **change}))
    with pytest.raises(ValueError, match=message):
        from_pretrained(tiny_llama(), tmp_path)


def test_base_that_cannot_be_found_out(tmp_path: Path) -> None:
    model = nn.ModuleDict({"linear": nn.Linear(4, 4)})
    saved(tmp_path, model, target_modules=["linear"])
    with pytest.raises(ValueError, match="does not name the base model"):
        from_pretrained(None, tmp_path)
    with pytest.raises(ValueError, match="does not tell the class of the base model"):
        from_pretrained("some/base", tmp_path)
