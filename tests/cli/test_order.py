"""``order: first``: the same file of settings, trained by gradients."""

import json
import re
from pathlib import Path

import pytest
import yaml

from adazeta.cli import main
from adazeta.support.settings import settings_of
from adazeta.training.arguments import ZOTrainingArguments
from adazeta.training.first_order_arguments import FOTrainingArguments
from adazeta.training.order import training_arguments
from tests.helpers.commands import TEXTS, fails, settings
from tests.helpers.tiny_models import tiny_llama, tiny_tokenizer

ZEROTH = ("eps", "probes")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("order")
    tiny_llama().save_pretrained(folder / "base")
    tiny_tokenizer().save_pretrained(folder / "base")
    rows = [json.dumps({"text": text, "label": label}) for text, label in TEXTS * 4]
    (folder / "data.jsonl").write_text("\n".join(rows))
    values = {k: v for k, v in settings(folder).items() if k not in ZEROTH}
    (folder / "config.yaml").write_text(yaml.safe_dump({**values, "order": "first"}))
    return folder


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--adapt", "suffix", "--cache_trunk", "memory", "--layers", "last:1"],
        ["--adapt", "last", "--form", "informed", "--layers", "last:1"],
        ["--form", "lora", "--layers", "last:1"],
        ["--extrapolation", "local", "--adversarial_radius", "auto"],
    ],
    ids=["bottleneck", "suffix", "informed", "lora", "ahead and adversarial"],
)
def test_a_run_and_what_is_done_with_its_folder(folder, tmp_path, capsys, flags):
    out = tmp_path / "out"
    command = ["train", str(folder / "config.yaml"), "--output_dir", str(out), *flags]
    if "--form" in flags:
        values = yaml.safe_load((folder / "config.yaml").read_text())
        values.pop("bottleneck")
        if "informed" in flags:
            values.pop("rank")
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
        command[1] = str(tmp_path / "config.yaml")
    assert main(command) == 0
    assert "6 steps of adamw, forward and backward" in capsys.readouterr().out
    measured = json.loads((out / "all_results.json").read_text())
    assert measured["train_loss"] > 0
    assert main(["eval", str(out), "--data", str(folder / "data.jsonl"), "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    row = row[0] if isinstance(row, list) else row
    assert row["accuracy"] == pytest.approx(measured["validation_accuracy"])
    assert main(["predict", str(out), "a dull film"]) == 0
    if "lora" in flags:
        assert main(["export", str(out), "--to", "lora", "--output", str(tmp_path / "lora")]) == 0
    capsys.readouterr()
    assert "order='first': gradients leave no log" in fails(capsys, "replay", out)
    assert main([*command, "--resume_from_checkpoint", "true"]) == 0


@pytest.mark.parametrize(
    "name", sorted(set(settings_of(ZOTrainingArguments)) - set(settings_of(FOTrainingArguments)))
)
def test_every_setting_of_zeroth_order_is_refused_by_first(name, tmp_path):
    default = settings_of(ZOTrainingArguments)[name].default
    given = {"order": "first", "output_dir": str(tmp_path), name: default}
    with pytest.raises(ValueError, match=f"{name}=.* is a setting of order='zeroth'"):
        training_arguments(given)


def test_settings_of_first_order_are_refused_by_zeroth(folder, capsys):
    given = ("train", folder / "config.yaml", "--order", "zeroth", "--rule", "sgd")
    assert "rule='sgd' is a setting of order='first'" in fails(capsys, *given)
    assert "order must be 'zeroth' or 'first'" in fails(capsys, *given[:2], "--order", "second")
    assert "did you mean 'rule'" in fails(capsys, *given[:2], "--rul", "sgd")
    assert "learning_rate='auto'" in fails(capsys, *given[:2], "--learning_rate", "auto")
    refused = fails(capsys, *given[:2], "--objective", "accuracy")
    assert "right answers has none" in refused
    assert "labels='label' proposes" in fails(capsys, *given[:2], "--labels", "label")


def test_a_flag_turns_a_file_of_the_other_order_round(folder, tmp_path, capsys):
    whole = {**settings(folder), "learning_rate": 0.5, "max_steps": 2}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(whole))
    command = ["train", str(tmp_path / "config.yaml"), "--order", "first"]
    assert main([*command, "--output_dir", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    left = re.search(r"of the other order, and are left out: (.*)", said)
    assert left is not None and set(left[1].split(", ")) == {"learning_rate", *ZEROTH}
    assert "2 steps of adamw" in said
    kept = yaml.safe_load((tmp_path / "out/config.yaml").read_text())
    assert kept["order"] == "first" and not {"learning_rate", *ZEROTH} & kept.keys()
    # What a flag sets is never left out, and a file that contradicts itself is refused.
    assert "eps='auto' is a setting of order" in fails(capsys, *command, "--eps", "auto")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({**whole, "order": "first"}))
    assert "is a setting of order='zeroth'" in fails(capsys, *command)


def test_a_clipped_norm_beside_updates_within_the_backward_pass_is_refused(folder, capsys):
    command = ["train", str(folder / "config.yaml"), "--rule", "adalomo"]
    assert "max_grad_norm='1.0' needs all gradients at once" in fails(
        capsys, *command, "--max_grad_norm", "1.0"
    )
