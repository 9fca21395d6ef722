"""Every kind of task from settings to predictions, and again from its log."""

import json

import pytest
import torch
import yaml
from safetensors.torch import load_file

from adazeta.cli import main
from tests.helpers.commands import TEXTS, fails, settings
from tests.helpers.tiny_models import (
    tiny_bert_mlm,
    tiny_gpt2,
    tiny_llama,
    tiny_opt,
    tiny_roberta,
    tiny_t5,
    tiny_tokenizer,
)

LONG = {0: "terrible film", 1: "great"}
PLAIN = {0: "bad", 1: "good"}
CASES = {
    "words of several tokens": (tiny_llama, {"label_words": LONG}),
    "packed candidates": (tiny_opt, {"label_words": LONG, "probes": "batch"}),
    "encoder-decoder": (tiny_t5, {"label_words": LONG}),
    "multiple choice": (tiny_gpt2, {"choices": "options", "label_column": "right"}),
    "likelihood of the right choice": (
        tiny_gpt2,
        {"choices": "options", "label_column": "right", "objective": "likelihood"},
    ),
    "choices of a decoder": (tiny_t5, {"choices": "options", "label_column": "right"}),
    "head of an encoder": (tiny_roberta, {"classes": [0, 1], "metrics": ["accuracy", "matthews"]}),
    "head of a decoder": (tiny_gpt2, {"classes": [0, 1]}),
    "answers": (tiny_gpt2, {"completion": " {answer}", "references": "answer"}),
    "answers of a decoder": (tiny_t5, {"completion": "{answer}", "references": "answer"}),
    "demonstrations": (tiny_gpt2, {"label_words": PLAIN, "shots": 1}),
}


def write(folder, build, options):
    build().save_pretrained(folder / "base")
    tiny_tokenizer().save_pretrained(folder / "base")
    rows = [
        {
            "text": text,
            "label": label,
            "options": ["great film", "bad", "dull story"],
            "right": [label, 2],
            "answer": ["great fun", "dull"][label:],
        }
        for text, label in TEXTS
    ]
    (folder / "data.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    values = {**settings(folder), "max_steps": 2, "save_steps": 2, **options}
    if "label_words" not in options:
        del values["label_words"]
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def last_json(capsys):
    return json.loads(capsys.readouterr().out.strip().splitlines()[-1])


@pytest.mark.parametrize("case", CASES)
def test_a_task_trains_and_its_log_gives_the_same_bits(tmp_path, capsys, case):
    build, options = CASES[case]
    assert main(["train", str(write(tmp_path, build, options))]) == 0
    out = tmp_path / "out"
    data = str(tmp_path / "data.jsonl")
    assert main(["replay", str(out), "--output", str(tmp_path / "again")]) == 0
    trained, again = (
        load_file(folder / "adapter_model.safetensors") for folder in (out, tmp_path / "again")
    )
    assert trained.keys() == again.keys()
    assert all(torch.equal(trained[name], again[name]) for name in trained)
    saved = json.loads((out / "all_results.json").read_text())
    capsys.readouterr()
    assert main(["eval", str(out), "--data", data, "--json"]) == 0
    found = last_json(capsys)
    # The same loss from the folder; batches are laid out otherwise.
    assert found["loss"] == pytest.approx(saved["validation_loss"], abs=1e-5)
    for name in ("accuracy", "f1", "matthews"):
        if f"validation_{name}" in saved:
            assert found[name] == pytest.approx(saved[f"validation_{name}"])
    if "accuracy" in found:
        low, high = found["interval"]
        assert low <= found["accuracy"] <= high
    if "choices" in options:
        assert "predict is for" in fails(capsys, "predict", out, "a film")
        return
    assert main(["predict", str(out), "a dull film", "--json"]) == 0
    assert last_json(capsys).keys() >= {"text", "answer" if "references" in options else "label"}
    assert main(["predict", str(out), "--data", data, "--json"]) == 0
    assert len(last_json(capsys)) == len(TEXTS)


def test_a_head_is_trained_and_saved_with_the_adapters(tmp_path, capsys):
    path = write(tmp_path, tiny_bert_mlm, {"classes": [0, 1], "template": "{text}"})
    assert main(["train", str(path)]) == 0
    out = tmp_path / "out"
    saved = load_file(out / "adapter_model.safetensors")
    names = {name for name in saved if "tt_adapter" not in name}
    # The checkpoint of a masked language model has no pooler, so that it is drawn and kept too.
    assert {name.removeprefix("base_model.model.") for name in names} == {
        *("classifier.weight", "classifier.bias"),
        *("bert.pooler.dense.weight", "bert.pooler.dense.bias"),
    }
    assert main(["replay", str(out), "--to-step", "0", "--output", str(tmp_path / "start")]) == 0
    start = load_file(tmp_path / "start" / "adapter_model.safetensors")
    assert all(not torch.equal(start[name], saved[name]) for name in names)
    assert start["base_model.model.classifier.bias"].abs().max() == 0
    assert 0 < start["base_model.model.classifier.weight"].std() < 0.1
    capsys.readouterr()
    assert "this one's head is trained" in (
        fails(capsys, "eval", out, "--data", tmp_path / "data.jsonl", "--base")
    )


def test_the_best_checkpoint_may_be_chosen_by_generated_answers(tmp_path):
    options = {
        **CASES["answers"][1],
        "eval_strategy": "steps", "eval_steps": 1, "save_steps": 1, "max_new_tokens": 3,
        "load_best_model_at_end": True, "metric_for_best_model": "f1",
    }  # fmt: skip
    assert main(["train", str(write(tmp_path, tiny_gpt2, options))]) == 0
    state = json.loads((tmp_path / "out" / "trainer_state.json").read_text())
    assert [entry["eval_f1"] for entry in state["log_history"] if "eval_f1" in entry]
    assert state["best_metric"] == max(
        entry["eval_f1"] for entry in state["log_history"] if "eval_f1" in entry
    )


def test_a_base_model_is_measured_before_training(tmp_path, capsys):
    path = write(tmp_path, tiny_gpt2, {"label_words": PLAIN})
    data = str(tmp_path / "data.jsonl")
    assert main(["eval", str(path), "--data", data, "--fit_bias", data, "--json"]) == 0
    before = last_json(capsys)
    assert before["model"] == "base" and before["bias_accuracy"] >= before["accuracy"]
    assert main(["train", str(path)]) == 0
    assert main(["eval", str(tmp_path / "out"), "--data", data, "--base", "--json"]) == 0
    base, _ = last_json(capsys)
    assert base["loss"] == pytest.approx(before["loss"], abs=1e-6)
    assert base["accuracy"] == before["accuracy"]


def test_what_cannot_be_measured_or_kept_is_refused(tmp_path, capsys):
    path = write(tmp_path, tiny_roberta, {"classes": [0, 1]})
    data = tmp_path / "data.jsonl"
    capsys.readouterr()
    assert "the head of classes is not trained" in fails(capsys, "eval", path, "--data", data)
    assert "cache_trunk='memory' keeps" in fails(capsys, "train", path, "--cache_trunk", "memory")
    folder = tmp_path / "t5"
    folder.mkdir()
    path = write(folder, tiny_t5, {"classes": [0, 1]})
    capsys.readouterr()
    assert "whose decoder writes label words" in fails(capsys, "train", path)
    assert "give texts, or a file" in fails(capsys, "predict", folder)
    folder = tmp_path / "shots"
    folder.mkdir()
    path = write(folder, tiny_gpt2, {"label_words": PLAIN, "shots": 9})
    capsys.readouterr()
    assert "shots=9 needs more training records" in fails(capsys, "train", path)
