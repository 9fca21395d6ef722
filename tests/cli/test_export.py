"""adazeta export: a run in the formats of others, or the reason why not."""

import json
import shutil

import peft
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from adazeta.adapters.scaling import adapter_scale
from adazeta.cli import main
from adazeta.recording.probe_log import read_log
from adazeta.recording.replay import rebuild
from adazeta.runs.inference import load_trained
from tests.helpers.bits import same_bits
from tests.helpers.commands import TEXTS, fails, settings
from tests.helpers.tiny_models import tiny_llama, tiny_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

IDS = torch.arange(24).reshape(2, 12) % 90 + 5


@torch.no_grad()
def logits(model):
    return model(input_ids=IDS).logits


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a base model, data, and a trained run of the linear form in ``out``."""
    folder = tmp_path_factory.mktemp("export")
    tiny_llama().save_pretrained(folder / "base")
    tiny_tokenizer(add_special_tokens=False).save_pretrained(folder / "base")
    rows = [json.dumps({"text": text, "label": label}) for text, label in TEXTS * 4]
    (folder / "data.jsonl").write_text("\n".join(rows))
    values = {**settings(folder), "form": "lora"}
    del values["bottleneck"]
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    assert main(["train", str(folder / "config.yaml")]) == 0
    return folder


def exported(folder, to, place="out"):
    output = folder / f"{to}-{place.replace('/', '-')}"
    assert main(["export", str(folder / place), "--to", to, "--output", str(output)]) == 0
    return output


def test_a_run_and_a_checkpoint_become_loras_of_peft(folder, capsys):
    for place in ("out", "out/checkpoint-3"):
        output = exported(folder, "lora", place)
        base = AutoModelForCausalLM.from_pretrained(folder / "base")
        found = logits(peft.PeftModel.from_pretrained(base, output))
        expected = logits(load_trained(folder / place))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        assert (expected - logits(tiny_llama())).abs().max() > 1e-4
    head, row, *_ = capsys.readouterr().out.splitlines()
    assert head.split() == ["format", "linears", "rank", "saved", "in"]
    assert row.split()[:3] == ["lora", "4", "2"]


def test_a_merged_model_is_a_plain_one_with_its_tokenizer(folder, capsys):
    output = exported(folder, "merged")
    model = AutoModelForCausalLM.from_pretrained(output)
    expected = logits(load_trained(folder / "out"))
    torch.testing.assert_close(logits(model), expected, atol=1e-5, rtol=1e-5)
    text = "a great film"
    base = AutoTokenizer.from_pretrained(folder / "base")
    assert AutoTokenizer.from_pretrained(output)(text) == base(text)
    assert main(["export", str(folder / "out"), "--to", "merged", "--json",
                 "--output", str(folder / "again")]) == 0  # fmt: skip
    row = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert row["linears"] == 4 and row["error"] < 1e-5 < row["effect"]


def test_a_share_is_exported_as_it_acts(folder, capsys):
    with adapter_scale(trained := load_trained(folder / "out"), 0.5):
        expected = logits(trained)
    command = ["export", str(folder / "out"), "--scale"]
    for to in ("merged", "lora"):
        output = str(folder / f"{to}-half")
        assert main([*command, "0.5", "--to", to, "--output", output]) == 0
    merged = AutoModelForCausalLM.from_pretrained(folder / "merged-half")
    base = AutoModelForCausalLM.from_pretrained(folder / "base")
    for model in (merged, peft.PeftModel.from_pretrained(base, folder / "lora-half")):
        torch.testing.assert_close(logits(model), expected, atol=1e-5, rtol=1e-5)
    capsys.readouterr()  # what loading said
    new = folder / "none"
    line = fails(capsys, *command, "0", "--to", "lora", "--output", new)
    assert "leaves the base model" in line and not new.exists()


def test_a_gguf_file_is_written(folder):
    output = exported(folder, "gguf-lora")
    assert (output / "adapter_model.gguf").read_bytes()[:4] == b"GGUF"


def test_the_log_of_a_linear_form_replays_to_the_same_bits(folder):
    model, _ = rebuild(read_log(folder / "out" / "probes.log"))
    assert same_bits(logits(model), logits(load_trained(folder / "out")))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"to": "onnx"}, "to must be one of lora, merged, gguf-lora, got 'onnx'"),
        ({"folder": "base"}, "no adapter_config.json in"),
        ({"output": "base"}, "exists and is not an empty folder"),
    ],
)
def test_mistakes_are_one_line(folder, capsys, change, message):
    values = {"folder": "out", "to": "lora", "output": "new", **change}
    line = fails(capsys, "export", folder / values["folder"], "--to", values["to"],
                 "--output", folder / values["output"])  # fmt: skip
    assert message in line and not (folder / "new").exists()


def test_adapters_on_the_last_tokens_are_refused_by_what_the_run_left(folder, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(folder / "out", run)
    for left in ("task.json", "config.yaml"):
        if left == "task.json":
            task = json.loads((run / left).read_text())
            (run / left).write_text(json.dumps({**task, "adapt": "last"}))
        else:  # a run that was stopped has no task yet
            (run / "task.json").unlink()
            values = yaml.safe_load((run / left).read_text())
            (run / left).write_text(yaml.safe_dump({**values, "adapt": "suffix"}))
        for place in (run, run / "checkpoint-3"):
            line = fails(capsys, "export", place, "--to", "merged", "--output", tmp_path / "new")
            assert "act on the end of a prompt only" in line
    assert not (tmp_path / "new").exists()


def test_a_bottleneck_is_refused_with_the_reason(folder, tmp_path, capsys):
    output = tmp_path / "bottleneck"
    assert main(["train", str(folder / "config.yaml"), "--form", "bottleneck", "--max_steps", "1",
                 "--output_dir", str(output)]) == 0  # fmt: skip
    capsys.readouterr()
    for to in ("lora", "merged", "gguf-lora"):
        line = fails(capsys, "export", output, "--to", to, "--output", tmp_path / "new")
        assert "have the activation 'relu' between their tensor trains" in line
    assert not (tmp_path / "new").exists()
