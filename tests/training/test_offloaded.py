"""Models of which a part is not in memory: by a device map they train, else they are refused."""

from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from adazeta import ZOTrainer, ZOTrainingArguments, add_tt_adapters
from adazeta.adapters.config import TTAdapterConfig
from adazeta.adapters.files import adapter_state_dict
from tests.helpers.tiny_models import tiny_llama

SMALL: dict[str, Any] = {"rank": 2, "bottleneck": 8, "init": "paper"}


def trainer(model: nn.Module, folder: Path) -> ZOTrainer:
    arguments = ZOTrainingArguments(
        output_dir=str(folder), max_steps=2, per_device_train_batch_size=4, learning_rate=1e-2,
        eps="0.01", save_strategy="no", report_to="none", use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    ids = torch.arange(80).view(8, 10) + 5
    ones = torch.ones(10).long()
    data = [{"input_ids": row, "attention_mask": ones, "labels": row} for row in ids]
    return ZOTrainer(model, arguments, train_dataset=data)


def test_weights_on_disk_by_a_device_map_change_nothing(tmp_path):
    tiny_llama().save_pretrained(tmp_path / "base")
    places = {name: "cpu" for name in ("model.embed_tokens", "lm_head", "model.norm")}
    places |= {"model.rotary_emb": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk"}
    found = []
    for name, options in (
        ("whole", {}),
        ("parted", {"device_map": places, "offload_folder": str(tmp_path / "parts")}),
    ):
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "base", **options)
        add_tt_adapters(model, TTAdapterConfig(**SMALL))
        assert any(p.is_meta for p in model.parameters()) == bool(options)
        trainer(model, tmp_path / name).train()
        found.append(adapter_state_dict(model))
    assert all(torch.equal(found[1][key], value) for key, value in found[0].items())


@pytest.mark.parametrize("where", ["cpu", "disk"])
def test_weights_that_hooks_have_offloaded_are_refused(tmp_path, where):
    def offload(model: nn.Module) -> None:
        cpu = torch.device("cpu")
        if where == "cpu":
            accelerate.cpu_offload(model, execution_device=cpu)
        else:
            accelerate.disk_offload(model, str(tmp_path / "parts"), execution_device=cpu)

    model = tiny_llama()
    offload(model)
    add_tt_adapters(model, TTAdapterConfig(**SMALL))
    with pytest.raises(ValueError, match=r"offloaded by hooks.*device_map"):
        trainer(model, tmp_path)
    model = add_tt_adapters(tiny_llama(), TTAdapterConfig(**SMALL))
    offload(model)
    with pytest.raises(ValueError, match=r"tt_adapter.* is to be trained .*add adapters after"):
        trainer(model, tmp_path)
