import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from adazeta import FOTrainingArguments, TTAdapterConfig, ZOTrainingArguments
from adazeta.cli import main
from adazeta.cli.output import NOT_SET_BY_USERS
from adazeta.cli.train import MAIN
from adazeta.models.arguments import ModelArguments
from adazeta.recording.folder import claimed
from adazeta.support.settings import settings_of
from adazeta.tasks.arguments import TaskArguments
from adazeta.training.order import OrderArguments
from tests.helpers.commands import TEXTS, fails, settings
from tests.helpers.paths import ROOT
from tests.helpers.tiny_models import tiny_bert_mlm, tiny_gpt2, tiny_llama, tiny_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, data and a configuration."""
    folder = tmp_path_factory.mktemp("run")
    tiny_llama().save_pretrained(folder / "base")
    tiny_bert_mlm().save_pretrained(folder / "bert")
    for name in ("base", "bert"):
        tiny_tokenizer().save_pretrained(folder / name)
    rows = [json.dumps({"text": text, "label": label}) for text, label in TEXTS * 4]
    (folder / "data.jsonl").write_text("\n".join(rows))
    (folder / "config.yaml").write_text(yaml.safe_dump(settings(folder)))
    return folder


@pytest.fixture(scope="module")
def trained(folder: Path) -> Path:
    """The output of an uninterrupted run."""
    assert main(["train", str(folder / "config.yaml")]) == 0
    return folder / "out"


def test_train_leaves_everything_needed_to_go_on(trained):
    assert {path.name for path in trained.iterdir()} >= {
        "adapter_config.json",
        "adapter_model.safetensors",
        "all_results.json",
        "config.yaml",
        "task.json",
        "tokenizer.json",
        "checkpoint-3",
        "checkpoint-6",
    }
    task = json.loads((trained / "task.json").read_text())
    assert task["label_words"] == {"0": " terrible", "1": " great"}
    config = json.loads((trained / "adapter_config.json").read_text())
    assert Path(config["base_model_name_or_path"]).is_absolute()
    assert config["task_type"] == "CAUSAL_LM"
    assert yaml.safe_load((trained / "config.yaml").read_text())["rank"] == 2


def test_the_settings_are_written_before_the_first_step(folder, tmp_path, monkeypatch):
    from adazeta import ZOTrainer

    class Killed(BaseException):
        pass

    def die(*args, **kwargs):
        raise Killed

    command = ["train", str(folder / "config.yaml"), "--output_dir", str(tmp_path / "out")]
    monkeypatch.setattr(ZOTrainer, "training_step", die)
    with pytest.raises(Killed):
        main([*command, "--rank", "3"])
    written = tmp_path / "out" / "config.yaml"
    assert yaml.safe_load(written.read_text())["rank"] == "3"
    # A run that is refused leaves the file of the one before.
    with claimed(tmp_path / "out"):
        assert main([*command, "--rank", "1"]) == 2
    assert main([*command, "--rank", "1", "--resume_from_checkpoint", str(folder / "base")]) == 2
    assert yaml.safe_load(written.read_text())["rank"] == "3"


def test_a_run_that_was_done_before_writes_its_settings(trained, folder, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(trained, out)
    (out / "config.yaml").unlink()
    command = ["train", str(folder / "config.yaml"), "--output_dir", str(out)]
    assert main([*command, "--resume_from_checkpoint", "true"]) == 0
    assert yaml.safe_load((out / "config.yaml").read_text())["rank"] == 2


def test_train_says_what_it_did(folder, capsys):
    out = folder / "said"
    assert main(["train", str(folder / "config.yaml"), "--output_dir", str(out)]) == 0
    said = capsys.readouterr().out
    assert "6 steps" in said
    assert "validation: accuracy " in said
    assert f"adazeta predict {out}" in said


def test_training_moves_the_adapters(trained, folder):
    first = load_file(trained / "checkpoint-3" / "adapter_model.safetensors")
    last = load_file(trained / "adapter_model.safetensors")
    assert first.keys() == last.keys()
    assert any(not first[name].equal(last[name]) for name in last)


def test_a_resumed_run_ends_with_the_same_bits(trained, folder):
    out = folder / "resumed"
    command = ["train", str(folder / "config.yaml"), "--output_dir", str(out)]
    assert main([*command, "--max_steps", "3"]) == 0
    assert main([*command, "--resume_from_checkpoint", "true"]) == 0
    expected = load_file(trained / "adapter_model.safetensors")
    found = load_file(out / "adapter_model.safetensors")
    assert all(found[name].equal(expected[name]) for name in expected)


def test_replay_says_where_a_run_saved_another_step(folder, tmp_path, capsys):
    out, again = tmp_path / "out", tmp_path / "again"
    command = ["train", str(folder / "config.yaml"), "--output_dir", str(out), "--eps", "0.01"]
    best = ["--load_best_model_at_end", "true", "--metric_for_best_model", "loss"]
    every = ["--eval_strategy", "steps", "--eval_steps", "1", "--save_steps", "1"]
    assert main([*command, *best, *every, "--learning_rate", "0.5"]) == 0
    state = json.loads((out / "checkpoint-6" / "trainer_state.json").read_text())
    step = state["best_global_step"]
    assert step < 6, "the last step was the best; a larger rate would not be"
    capsys.readouterr()
    assert main(["replay", str(out), "--output", str(again)]) == 0
    assert f"holds other weights than those of the last step, which are in {again}" in (
        told := capsys.readouterr().err
    )
    assert f"--to-step {step} gives them" in told
    to_step = ["--to-step", str(step), "--output", str(tmp_path / "best")]
    assert main(["replay", str(out), *to_step]) == 0
    assert "other weights" not in capsys.readouterr().err
    found, saved = (
        load_file(place / "adapter_model.safetensors") for place in (tmp_path / "best", out)
    )
    assert all(found[name].equal(saved[name]) for name in saved)


def test_eval_agrees_with_the_validation_after_training(trained, folder, capsys):
    data = str(folder / "data.jsonl")
    command = ["eval", str(trained), "--data", data, "--base", "--fit_bias", data]
    assert main([*command, "--json"]) == 0
    base, adapters = json.loads(capsys.readouterr().out)
    results = json.loads((trained / "all_results.json").read_text())
    assert adapters["accuracy"] == results["validation_accuracy"]
    assert adapters["loss"] == pytest.approx(results["validation_loss"], rel=1e-4)
    assert base["loss"] != adapters["loss"]
    assert adapters["bias_accuracy"] >= adapters["accuracy"]
    assert main(command) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split() == [
        *("model", "data", "examples", "loss", "accuracy", "interval", "bias", "bias_accuracy")
    ]
    assert [line.split()[0] for line in lines] == ["base", "adapters"]


def test_a_share_of_the_adapters_is_measured_and_fitted(trained, folder, capsys):
    data = str(folder / "data.jsonl")
    command = ["eval", str(trained), "--data", data]
    assert main([*command, "--json"]) == 0
    plain = json.loads(capsys.readouterr().out)
    shares = ["--scale", "0", "--scale", "0.5", "--scale", "1", "--fit_scale", data]
    assert main([*command, "--base", *shares, "--json"]) == 0
    base, none, half, whole, fitted = json.loads(capsys.readouterr().out)
    assert [row["scale"] for row in (base, none, half, whole)] == [0, 0, 0.5, 1]
    assert none["loss"] == base["loss"] and whole["loss"] == plain["loss"]
    assert half["loss"] not in (none["loss"], whole["loss"]) and "scale" not in plain
    losses = {float(alpha): loss for alpha, loss in fitted["scale_losses"].items()}
    assert list(losses) == [0, 0.25, 0.5, 0.75, 1] and losses[0.5] == half["loss"]
    assert fitted["model"] == "fitted" and fitted["loss"] == min(losses.values())
    assert fitted["loss"] == losses[fitted["scale"]]
    assert main([*command, *shares]) == 0
    assert capsys.readouterr().out.splitlines()[0].split()[-2:] == ["scale", "scale_losses"]
    probabilities = []
    for alpha in ("1", "0"):
        assert main(["predict", str(trained), "dull", "--scale", alpha, "--json"]) == 0
        probabilities.append(json.loads(capsys.readouterr().out)["probability"])
    assert probabilities[0] != probabilities[1]
    for arguments in (command, ["predict", str(trained), "dull"]):
        assert "must be finite, got nan" in fails(capsys, *arguments, "--scale", "nan")
    settings = folder / "config.yaml"
    assert "are for a trained model" in fails(
        capsys, "eval", settings, "--data", data, "--scale", "0.5"
    )


def test_a_bias_is_fitted_for_any_number_of_labels(folder, capsys):
    rows = [{"text": text, "label": k % 3} for k, (text, _) in enumerate(TEXTS * 3)]
    data = folder / "three.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    out = folder / "three"
    words = yaml.safe_dump({0: "terrible", 1: "great", 2: "bad"}, default_flow_style=True)
    flags = ["--train_data", data, "--validation_data", data, "--label_words", words.strip()]
    flags += ["--output_dir", out, "--max_steps", "1", "--probes", "batch"]
    assert main(["train", str(folder / "config.yaml"), *map(str, flags)]) == 0
    capsys.readouterr()
    assert main(["eval", str(out), "--data", str(data), "--fit_bias", str(data), "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert list(row["bias"]) == ["0", "1", "2"] and row["bias"]["0"] == 0
    # Every third example has each label, and always saying one word is one of the biases.
    assert row["bias_accuracy"] >= max(row["accuracy"], 1 / 3)


def test_a_bias_without_labels_is_refused(folder, capsys):
    out, data = folder / "no_labels", folder / "data.jsonl"
    flags = ["--label_words", "null", "--completion", "{text}", "--template", ""]
    flags += ["--output_dir", str(out), "--max_steps", "1"]
    assert main(["train", str(folder / "config.yaml"), *flags]) == 0
    capsys.readouterr()
    assert "--fit_bias is for classification" in fails(
        capsys, "eval", out, "--data", data, "--fit_bias", data
    )


def test_predict(trained, capsys):
    assert main(["predict", str(trained), "a very good film", "dull", "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert first["text"] == "a very good film"
    assert first["word"] in ("terrible", "great")
    assert 0.5 <= second["probability"] <= 1


def test_flags_win_over_the_file(folder, capsys):
    out = folder / "flags"
    flags = ["--output-dir", str(out), "--max_steps=1", "--rank", "3", "--save_strategy", "no"]
    flags += ["--label_words", "{1: good, 0: bad}", "--target_modules", "q_proj", "v_proj"]
    assert main(["train", str(folder / "config.yaml"), *flags]) == 0
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["rank"] == 3
    assert config["target_modules"] == ["q_proj", "v_proj"]
    words = json.loads((out / "task.json").read_text())["label_words"]
    assert {label: word.strip() for label, word in words.items()} == {"1": "good", "0": "bad"}


def test_a_masked_language_model(folder, capsys):
    out = folder / "masked"
    flags = ["--model", str(folder / "bert"), "--template", "{text} it was {mask} ."]
    flags += ["--output_dir", str(out), "--max_steps", "1"]
    assert main(["train", str(folder / "config.yaml"), *flags]) == 0
    assert main(["eval", str(out), "--data", str(folder / "data.jsonl")]) == 0
    assert json.loads((out / "adapter_config.json").read_text())["task_type"] == "MASKED_LM"


def test_language_modelling(folder, capsys):
    out = folder / "lm"
    flags = ["--label_words", "null", "--completion", "{text}", "--template", ""]
    flags += ["--output_dir", str(out), "--max_steps", "1"]
    assert main(["train", str(folder / "config.yaml"), *flags]) == 0
    assert "validation: perplexity " in capsys.readouterr().out
    assert main(["eval", str(out), "--data", str(folder / "data.jsonl")]) == 0
    assert "perplexity" in capsys.readouterr().out
    assert "classification" in fails(capsys, "predict", out, "a film")


def test_prompts_longer_than_the_context_of_the_model_are_cut(folder, tmp_path):
    model = tiny_gpt2()  # with learned positions, of which there are 128
    model.save_pretrained(tmp_path / "base")
    tokenizer = tiny_tokenizer()
    tokenizer.model_max_length = 10**30
    tokenizer.save_pretrained(tmp_path / "base")
    long = tmp_path / "long.jsonl"
    rows = [json.dumps({"text": f"{text} film" * 300, "label": label}) for text, label in TEXTS]
    long.write_text("\n".join(rows))
    out = tmp_path / "out"
    flags = ["--model", str(tmp_path / "base"), "--train_data", str(long), "--max_steps", "1"]
    flags += ["--output_dir", str(out)]
    assert main(["train", str(folder / "config.yaml"), *flags]) == 0
    assert json.loads((out / "task.json").read_text())["max_length"] == 128
    assert main(["eval", str(out), "--data", str(long)]) == 0


def test_unknown_settings_name_the_nearest(folder, tmp_path, capsys):
    path = tmp_path / "config.yaml"
    path.write_text("learning_rat: 1\n")
    line = fails(capsys, "train", path)
    assert f"unknown setting 'learning_rat' in {path}; did you mean 'learning_rate'?" in line
    line = fails(capsys, "train", "--bottle-nek", "4")
    assert "unknown setting 'bottle_nek' in the command line; did you mean 'bottleneck'?" in line
    assert "did you mean 'train'?" in fails(capsys, "trian")
    assert "there are train, eval" in fails(capsys, "xyz")
    assert "unrecognized arguments: --dat" in fails(capsys, "eval", "x", "--data=y", "--dat=x")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": None}, "model is missing"),
        ({"train_data": None}, "train_data is missing"),
        ({"train_data": "none.jsonl"}, "No such file"),
        ({"model": "no/such/folder/at/all"}, "no/such/folder/at/all"),
        ({"template": "{sentence} it was"}, "data.jsonl, line 1: no column 'sentence'"),
        ({"label_column": "gold"}, "data.jsonl, line 1: no column 'gold' for the label"),
        ({"label_words": {0: "bad", 7: "good"}}, "data.jsonl, line 1: unknown label '1'"),
        ({"label_words": {0: "bad", 1: "splendid"}}, "label word ' splendid' is not one token"),
        ({"label_words": [False, True]}, "put words such as yes"),
        ({"label_words": None}, "set label_words for classification, completion"),
        ({"template": "it was"}, "template 'it was' has no column in braces"),
        ({"max_steps": 0}, "nothing to train with max_steps=0"),
        ({"max_steps": -1, "num_train_epochs": 0}, "and num_train_epochs=0"),
        ({"eval_strategy": "steps", "validation_data": None}, "there is no validation_data"),
        ({"rank": "many"}, "rank must be int or list[int], got 'many'"),
        ({"rank": [2, "x"]}, "rank must be int"),
        ({"max_length": 2.5}, "max_length must be int, got 2.5"),
        ({"eps": "tiny"}, "eps must be a positive number or 'auto', got 'tiny'"),
        ({"fp16": True}, "fp16=True cannot train without gradients"),
        ({"eval_strategy": "sometimes"}, "sometimes"),
        ({"init": "ones"}, "init must be 'zero' or 'paper'"),
        ({"resume_from_checkpoint": True}, "there is no checkpoint in"),
        ({"resume_from_checkpoint": "none"}, "there is no folder none"),
    ],
)
def test_mistakes_are_one_line(folder, tmp_path, capsys, change, message):
    path = tmp_path / "config.yaml"
    values = {**settings(folder), "output_dir": str(tmp_path / "out"), **change}
    path.write_text(yaml.safe_dump(values))
    assert message in fails(capsys, "train", path)


def test_odd_data_train(folder, tmp_path):
    """Fewer examples than the batch has rows, any script, numbers, no text at all."""
    path = tmp_path / "odd.jsonl"
    texts = ["ein schöner Film \U0001f3ac 日本", "\u202e\u0000x", 5, 2.5, ""]
    rows = [json.dumps({"text": text, "label": k % 2}) for k, text in enumerate(texts)]
    path.write_text("\n".join(rows), encoding="utf-8")
    flags = ["--train_data", str(path), "--per_device_train_batch_size", "64", "--max_steps", "1"]
    out = str(tmp_path / "out")
    assert main(["train", str(folder / "config.yaml"), *flags, "--output_dir", out]) == 0
    assert main(["predict", out, "\U0001f3ac", ""]) == 0


def test_data_that_make_no_whole_batch_are_refused(folder, tmp_path, capsys):
    flags = ["--per_device_train_batch_size", "32", "--dataloader_drop_last"]
    out = str(tmp_path / "out")
    assert main(["train", str(folder / "config.yaml"), *flags, "--output_dir", out]) == 2
    assert "16 training examples make no whole batch of 32" in capsys.readouterr().err


def test_data_of_one_class_are_warned_about(folder, tmp_path):
    path = tmp_path / "one.jsonl"
    path.write_text('{"text": "a film", "label": 1}\n' * 4)
    flags = ["--train_data", str(path), "--max_steps", "1", "--output_dir", str(tmp_path / "out")]
    with pytest.warns(UserWarning, match="all 4 training examples have the label '1'"):
        assert main(["train", str(folder / "config.yaml"), *flags]) == 0


def test_a_damaged_tokenizer_is_named(folder, tmp_path, capsys):
    shutil.copytree(folder / "base", tmp_path / "base")
    (tmp_path / "base" / "tokenizer.json").write_text('{"a')
    line = fails(capsys, "train", folder / "config.yaml", "--model", tmp_path / "base")
    assert f"a file of the tokenizer of {tmp_path}" in line


def test_a_malformed_line_is_named(folder, tmp_path, capsys):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"text": "a film", "label": 1}\n{"text": "a film, "label": 1}\n')
    line = fails(capsys, "train", folder / "config.yaml", "--train_data", path)
    assert "bad.jsonl, line 2: not valid JSON" in line


@pytest.mark.parametrize("text", ["a: [1", "just text", "- a\n- b"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path, capsys, text):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    assert str(path) in fails(capsys, "train", path)
    assert "No such file" in fails(capsys, "train", tmp_path / "none.yaml")


def test_a_folder_without_a_run_is_refused(folder, tmp_path, capsys):
    line = fails(capsys, "eval", tmp_path, "--data", folder / "data.jsonl")
    assert f"no task.json in {tmp_path}" in line


def test_debugging_raises(monkeypatch):
    monkeypatch.setenv("ADAZETA_DEBUG", "1")
    with pytest.raises(ValueError, match="unknown command 'trian'"):
        main(["trian"])


def test_info(capsys):
    assert main(["info", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert {"adazeta", "python", "torch", "transformers", "cpu"} <= facts.keys()
    assert main(["info"]) == 0
    assert "tensor-train layers: " in capsys.readouterr().out


def test_help_lists_every_setting(capsys):
    for command, words in {
        "train": ["--model", "--template", "--rank", "--eps", "--learning_rate", "--help-all"],
        "eval": ["--data", "--json"],
        "predict": ["TEXT"],
    }.items():
        with pytest.raises(SystemExit) as exit_info:
            main([command, "--help"])
        assert exit_info.value.code == 0
        shown = capsys.readouterr().out
        assert all(word in shown for word in words)
    assert main([]) == 0
    assert "commands:" in capsys.readouterr().out


def help_of_train(flag, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as exit_info:
        main(["train", flag])
    assert exit_info.value.code == 0
    return capsys.readouterr().out


def test_the_help_of_train_shows_the_main_settings_on_a_page(monkeypatch, capsys):
    shown = help_of_train("--help", monkeypatch, capsys)
    flags = re.findall(r"^  (--\w+) ", shown, re.MULTILINE)
    assert sorted(flags) == sorted(f"--{name}" for name in MAIN)
    assert len(shown.splitlines()) <= 70
    assert "--help-all shows all" in " ".join(shown.split())


def test_help_all_shows_every_setting_of_train(monkeypatch, capsys):
    shown = help_of_train("--help-all", monkeypatch, capsys)
    kinds = (
        ModelArguments, TaskArguments, TTAdapterConfig, OrderArguments, ZOTrainingArguments,
        FOTrainingArguments,
    )  # fmt: skip
    names = {name for kind in kinds for name in settings_of(kind, leave_out=NOT_SET_BY_USERS)}
    assert names >= MAIN.keys()
    flags = re.findall(r"^  --(\w+)", shown, re.MULTILINE)
    assert len(flags) == len(set(flags))
    assert set(flags) - {"help"} == names
    assert "--help shows the main ones" in " ".join(shown.split())
    assert "Where perturbed parameters are held: in a 'buffer' (a second copy of" in " ".join(
        shown.split()
    )


def test_settings_that_help_leaves_out_are_read_and_dashes_are_too(folder, tmp_path, capsys):
    flags = ["--weight-decay", "many"]
    assert "weight_decay must be float" in fails(capsys, "train", folder / "config.yaml", *flags)


def test_top_level_help_and_version_import_neither_torch_nor_transformers():
    code = (
        "import sys; from adazeta.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'transformers'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)
    command = [sys.executable, "-m", "adazeta", "--version"]
    run = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    assert run.stdout.startswith("adazeta ")


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda p: p.name)
def test_the_examples_are_valid(path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    line = fails(capsys, "train", path, "--model", "no/such/folder/at/all")
    assert "no/such/folder/at/all" in line  # it got as far as the model
