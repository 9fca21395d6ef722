"""A feature mixer from settings to predictions, in both orders, and again from its log."""

import json

import pytest
import yaml
from safetensors.torch import load_file

from adazeta.cli import main
from tests.helpers.commands import TEXTS, fails, settings
from tests.helpers.tiny_models import tiny_llama, tiny_t5, tiny_tokenizer

WAYS = {"all": {}, "suffix": {"adapt": "suffix", "cache_trunk": "disk"}, "last": {"adapt": "last"}}
ONLY_ZEROTH = ("eps", "probes")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tiny_llama(layers=4).save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    rows = [json.dumps({"text": text, "label": label}) for text, label in TEXTS]
    (tmp_path / "data.jsonl").write_text("\n".join(rows))
    return tmp_path


def write(folder, **changed):
    values = {**settings(folder), "form": "mixer", "features": [0, 2], "bias": False, **changed}
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in values.items() if v is not None}))
    return path


def weights(folder):
    return load_file(folder / "adapter_model.safetensors")


@pytest.mark.parametrize("way", WAYS)
def test_a_run_goes_on_replays_is_measured_and_predicts(folder, capsys, way):
    path = write(folder, **WAYS[way])
    assert main(["train", str(path)]) == 0
    out, again, parts = (folder / name for name in ("out", "again", "parts"))
    trained = weights(out)
    start = weights(out / "checkpoint-3")
    assert any(not start[name].equal(trained[name]) for name in trained)
    command = ["train", str(path), "--output_dir", str(parts)]
    assert main([*command, "--max_steps", "3"]) == 0
    assert main([*command, "--resume_from_checkpoint", "true"]) == 0
    assert main(["replay", str(out), "--output", str(again)]) == 0
    for other in (weights(again), weights(parts)):
        assert all(other[name].equal(trained[name]) for name in trained)
    capsys.readouterr()
    data = str(folder / "data.jsonl")
    assert main(["eval", str(out), "--data", data, "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    row = row[0] if isinstance(row, list) else row
    measured = json.loads((out / "all_results.json").read_text())
    assert row["loss"] == pytest.approx(measured["validation_loss"], rel=1e-4)
    assert main(["predict", str(out), "a dull film"]) == 0
    capsys.readouterr()
    line = fails(capsys, "export", out, "--to", "lora", "--output", folder / "lora")
    assert "no weight can stand for" in line or "act on the end of a prompt only" in line


@pytest.mark.parametrize("init", ["zero", "paper"])
def test_the_other_order_trains_the_same_file(folder, capsys, init):
    path = write(folder, init=init, adapt="suffix", cache_trunk="memory")
    assert main(["train", str(path), "--order", "first"]) == 0
    assert "6 steps of adamw" in capsys.readouterr().out
    assert main(["predict", str(folder / "out"), "a dull film"]) == 0


def test_what_cannot_go_together_is_refused(folder, capsys):
    line = fails(capsys, "train", write(folder, init="paper"))
    assert "init='paper' starts a mixer with the input of its block off" in line
    line = fails(capsys, "train", write(folder, layers="last:1"))
    assert "layers='last:1' means nothing with form='mixer'" in line
    line = fails(capsys, "train", write(folder, form=None))
    assert "features=[0, 2] means nothing with form='bottleneck'" in line
    # What only the model tells comes after its loading, which writes a bar.
    alone = {"probes": None, "learning_rate": None, "eps": None}
    assert main(["train", str(write(folder, method="newton", **alone))]) == 2
    assert "method 'newton' trains informed adapters and nothing" in capsys.readouterr().err
    tiny_t5(layers=4).save_pretrained(folder / "base")
    assert main(["train", str(write(folder))]) == 2
    assert "a feature mixer needs a model with one stack of blocks" in capsys.readouterr().err
    assert not (folder / "out" / "adapter_model.safetensors").exists()
