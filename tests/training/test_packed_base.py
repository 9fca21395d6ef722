"""Training on a base whose GGUF blocks stay packed: every part of a run, as on an ordinary base."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM

from adazeta import ZOTrainer, ZOTrainingArguments, add_tt_adapters, from_pretrained
from adazeta.adapters.config import TTAdapterConfig
from adazeta.adapters.files import adapter_state_dict
from adazeta.cli import main
from adazeta.forward.fingerprint import fingerprint, frozen_tensors
from adazeta.models.loading import load_model
from adazeta.models.packed import PackedLinear
from adazeta.recording.folder import LOG_NAME
from adazeta.recording.probe_log import read_log
from adazeta.recording.replay import rebuild
from adazeta.runs.inference import load_trained
from tests.helpers.gguf_files import llama_tensors, write_gguf

pytest.importorskip("gguf")

SMALL: dict[str, Any] = {"rank": 2, "bottleneck": 8, "init": "paper", "task_type": "CAUSAL_LM"}


@pytest.fixture
def path(monkeypatch, tmp_path) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tensors, fields = llama_tensors("Q4_1")
    return write_gguf(tmp_path / "tiny.gguf", "llama", tensors, fields, 96)


def rows(count: int = 12) -> list[dict[str, Tensor]]:
    widths = [6 + index % 5 for index in range(count)]
    ids = [(torch.arange(width) * 7 + index) % 80 + 5 for index, width in enumerate(widths)]
    return [{"input_ids": row, "labels": row.clone()} for row in ids]


def collate(batch: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    def padded(name: str, value: int) -> Tensor:
        found = [row[name] for row in batch]
        return torch.nn.utils.rnn.pad_sequence(found, batch_first=True, padding_value=value)

    ids = padded("input_ids", 0)
    return {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": padded("labels", -100)}


def model_of(path: Path, **config: Any) -> torch.nn.Module:
    model = load_model(path, dtype="float32", quantise="keep")
    return add_tt_adapters(model, TTAdapterConfig(**{**SMALL, **config}))


def trainer(model: torch.nn.Module, folder: Path, **settings: Any) -> ZOTrainer:
    options: dict[str, Any] = {
        "max_steps": 4, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "eps": 1e-2,
        "save_steps": 2, "report_to": "none", "use_cpu": True, "disable_tqdm": True,
        "logging_steps": 1, **settings,
    }  # fmt: skip
    arguments = ZOTrainingArguments(output_dir=str(folder), **options)
    return ZOTrainer(model, arguments, train_dataset=rows(), data_collator=collate)


def losses(run: ZOTrainer) -> list[float]:
    return [entry["loss"] for entry in run.state.log_history if "loss" in entry]


def test_a_run_trains_resumes_replays_and_loads(path, tmp_path):
    folder = tmp_path / "run"
    model = model_of(path)
    before = {n: b.clone() for n, b in model.named_buffers() if n.endswith("blocks")}
    run = trainer(model, folder, probes_per_forward=4, queries=2)
    run.train()
    run.save_model()
    trained = adapter_state_dict(model)
    blocks = dict(model.named_buffers())
    assert before and all(torch.equal(blocks[name], value) for name, value in before.items())
    header = read_log(folder / LOG_NAME).header
    assert header.base.quantise == "keep" and header.base.name_or_path == str(path)

    again = model_of(path)
    trainer(again, folder, probes_per_forward=4, queries=2, max_steps=6).train(
        resume_from_checkpoint=str(folder / "checkpoint-2")
    )
    ended = adapter_state_dict(again)
    rebuilt, _ = rebuild(read_log(folder / LOG_NAME))  # loads the file by itself
    found = adapter_state_dict(rebuilt)
    assert any(isinstance(module, PackedLinear) for module in rebuilt.modules())
    assert all(torch.equal(found[key], value) for key, value in ended.items())
    assert not all(torch.equal(trained[key], value) for key, value in ended.items())

    loaded = from_pretrained(load_model(path, dtype="float32", quantise="keep"), folder)
    saved = adapter_state_dict(loaded)
    assert all(torch.equal(saved[key], value) for key, value in trained.items())


def test_the_losses_are_those_of_the_unpacked_base(path, tmp_path):
    found = []
    for quantise in ("none", "keep"):
        if quantise == "keep":
            model = load_model(path, dtype="float32", quantise="keep")
        else:  # exactly: load_model would keep a copy in bfloat16
            where = {"gguf_file": path.name, "dtype": torch.float32}
            if hasattr(transformers, "GgufConfig"):
                where["quantization_config"] = transformers.GgufConfig(dequantize=True)
            model = AutoModelForCausalLM.from_pretrained(path.parent, **where).eval()
        add_tt_adapters(model, TTAdapterConfig(**SMALL))
        run = trainer(model, tmp_path / quantise, save_strategy="no")
        run.train()
        found.append(torch.tensor(losses(run)))
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {"padding_free": "true"},
        {"probes_per_forward": 4, "queries": 2},
        {"probes": "example"},
        {"perturbation": "streamed"},
        {"share_trunk": True, "cache_trunk": "disk", "padding_free": "false"},
    ],
)
def test_every_shortcut_gives_the_plain_losses(path, tmp_path, settings):
    layers = {"layers": "last:1"} if "share_trunk" in settings else {}
    plain = {"padding_free": "false", "probes_per_forward": 1, "share_trunk": False}
    kept = {key: settings[key] for key in ("queries", "probes") if key in settings}
    found = []
    for name, given in (("plain", {**plain, **kept}), ("short", {**plain, **settings})):
        run = trainer(model_of(path, **layers), tmp_path / name, save_strategy="no", **given)
        run.train()
        found.append(torch.tensor(losses(run)))
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)


def test_fingerprints_read_the_blocks(path):
    model = load_model(path, dtype="float32", quantise="keep")
    tensors = frozen_tensors(model)
    first = fingerprint(model, tensors)
    assert first == fingerprint(load_model(path, dtype="float32", quantise="keep"), tensors)
    model.model.layers[1].mlp.up_proj.weight[3, 7] ^= 1
    assert fingerprint(model, frozen_tensors(model)) != first


def test_a_run_from_the_command_line_is_scored_as_it_was_trained(path, tmp_path, capsys):
    data = tmp_path / "data.jsonl"
    lines = [{"text": "c d e" if k % 2 else "f g", "label": k % 2} for k in range(8)]
    data.write_text("\n".join(map(json.dumps, lines)) + "\n")
    folder = tmp_path / "run"
    flags = {
        "model": path, "quantise": "keep", "dtype": "float32", "train_data": data,
        "validation_data": data, "template": "{text} k:", "label_words": "{0: x, 1: y}",
        "output_dir": folder, "max_steps": 2, "per_device_train_batch_size": 4, "rank": 2,
        "bottleneck": 8, "report_to": "none", "use_cpu": "true", "save_strategy": "no",
    }  # fmt: skip
    assert main(["train", *(f"--{name}={value}" for name, value in flags.items())]) == 0
    assert any(isinstance(module, PackedLinear) for module in load_trained(folder).modules())
    capsys.readouterr()
    assert main(["eval", str(folder), "--data", str(data), "--dtype", "float32", "--json"]) == 0
    scored = json.loads(capsys.readouterr().out)
    metrics = json.loads((folder / "all_results.json").read_text())
    assert scored["loss"] == pytest.approx(metrics["validation_loss"], rel=1e-4)
    assert main(["replay", str(folder)]) == 0
