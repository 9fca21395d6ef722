"""``adazeta train DATA.csv --labels COLUMN``, from a file to predictions."""

import csv
import json
import math
import re
from pathlib import Path

import pytest
import yaml

from adazeta.cli import main
from adazeta.cli.train import _with_data
from adazeta.models.loading import load_model
from adazeta.runs.baselines import wilson
from adazeta.runs.prompt_choice import prompt_losses
from adazeta.tasks.arguments import MAIN_SETTINGS
from adazeta.tasks.prompt import PromptTask
from adazeta.tasks.records import Records, load_records
from tests.helpers.commands import fails
from tests.helpers.tiny_models import tiny_bert_mlm, tiny_llama, tiny_tokenizer

GOOD, BAD = ("great", "good", "wonderful", "funny"), ("bad", "awful", "boring", "dull")
THINGS = ("film", "movie", "plot", "story", "music", "acting", "script", "ending")


def write(path: Path, header, rows) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def judged(n):
    word = (GOOD if n % 2 else BAD)[n // 2 % 4]
    return f"the {THINGS[n % 8]} was {word} and we was in the {THINGS[n // 3 % 8]} {n}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("file")
    for name, model in (("base", tiny_llama()), ("bert", tiny_bert_mlm())):
        model.save_pretrained(folder / name)
        tiny_tokenizer().save_pretrained(folder / name)
    write(folder / "two.csv", ("id", "text", "label"), [
        (n, judged(n), ("negative", "positive")[n % 2]) for n in range(80)
    ])  # fmt: skip
    write(folder / "pair.csv", ("first", "second", "same"), [
        (judged(n), judged(n + n // 2 % 2), str(n // 2 % 2 == 0)) for n in range(80)
    ])  # fmt: skip
    topics = ("red house", "blue river", "green tree", "bright dog", "terrible cat")
    write(folder / "five.csv", ("text", "topic"), [
        (f"we was in the {topics[n % 5].split()[1]} {n}", topics[n % 5]) for n in range(80)
    ])  # fmt: skip
    return folder


def train(folder, name, labels, *flags):
    command = ["train", str(folder / name), "--labels", labels, "--model", str(folder / "base")]
    return main([*command, "--cache_trunk", "none", "--disable_tqdm", "true", *map(str, flags)])


@pytest.mark.parametrize(
    ("name", "labels", "template", "words"),
    [
        ("two.csv", "label", "{text}\nLabel:", ["negative", "positive"]),
        ("five.csv", "topic", "{text}\nTopic:", ["river", "bright", "green", "house", "terrible"]),
        ("pair.csv", "same", "First: {first}\nSecond: {second}\nSame:", ["false", "true"]),
    ],
)
def test_a_file_and_the_name_of_its_labels_is_enough(
    folder, tmp_path, capsys, name, labels, template, words
):
    out = tmp_path / "out"
    assert train(folder, name, labels, "--output_dir", out) == 0
    printed = capsys.readouterr().out
    assert "80 rows" in printed.splitlines()[0] and repr(template) in printed.splitlines()[0]
    task = json.loads((out / "task.json").read_text())
    assert task["template"] == template and task["adapt"] == "last"
    assert [word.strip() for word in task["label_words"].values()] == words
    metrics = json.loads((out / "all_results.json").read_text())
    for row in ("zero_shot_", "bias_only_", ""):
        accuracy = metrics[f"{row}validation_accuracy"]
        low, high = (metrics[f"{row}validation_accuracy_{end}"] for end in ("low", "high"))
        assert 0 <= low <= accuracy <= high <= 1
    assert metrics["baseline_evaluations"] == 3  # 64 of a batch: two of training, one of the rest
    assert "zero-shot" in printed and "bias only" in printed
    settings = yaml.safe_load((out / "config.yaml").read_text())
    assert settings["template"] == template and settings["method"] == "newton"


def test_the_prompt_is_the_one_that_the_model_knows_most_with(folder):
    """Each loss is that of the prompt alone, and prompts that share a template share forwards."""
    tokenizer = tiny_tokenizer()
    model = load_model(folder / "base", dtype="float32").eval()
    pairs = (("bad", "good"), ("no", "yes"))
    tasks = [
        PromptTask(tokenizer, template, dict(zip(("negative", "positive"), pair, strict=True)))
        for template in ("{text} it was", "{text} the film was")
        for pair in pairs
    ]
    rows = load_records(folder / "two.csv")
    calls = []
    handle = model.register_forward_hook(lambda *_: calls.append(1))
    losses = prompt_losses(model, tasks, rows, 32)
    handle.remove()
    assert len(calls) == 2 * 3  # 80 rows by 32, for each template
    for task, loss in zip(tasks, losses, strict=True):
        (alone,) = prompt_losses(model, [task], rows, 80)
        assert loss == pytest.approx(alone, abs=1e-3)  # other shapes, other rounding
        assert loss < 0.8 * math.log(2)  # the words that decide are before the prompt's end
    blind = [{**row, "text": "the film"} for row in rows]
    for loss in prompt_losses(model, tasks, Records(blind, "blind"), 32):
        assert loss > 0.95 * math.log(2)  # there is nothing to know


def test_the_prompt_that_is_taken_is_told_with_the_others(folder, tmp_path, capsys):
    write(tmp_path / "marks.csv", ("text", "mark"), [(judged(n), n % 2) for n in range(80)])
    data = tmp_path / "marks.csv"
    assert train(folder, data, "mark", "--output_dir", tmp_path, "--max_steps", 1) == 0
    proposed, losses = capsys.readouterr().out.splitlines()[:2]
    found = re.findall(r"([\d.]+) '(\w+:)' (\{.*?\})", losses)
    assert len(found) == 5 * 2  # questions, and two pairs of words for 0 and 1
    assert [float(loss) for loss, _, _ in found] == sorted(float(loss) for loss, _, _ in found)
    assert found[0][1] in proposed and found[0][2] in proposed


def test_the_settings_that_came_of_it_repeat_the_run(folder, tmp_path):
    out = tmp_path / "out"
    assert train(folder, "two.csv", "label", "--output_dir", out, "--max_steps", 1) == 0
    again = tmp_path / "again"
    assert main(["train", str(out / "config.yaml"), "--output_dir", str(again)]) == 0
    for file in ("adapter_model.safetensors", "task.json"):
        assert (again / file).read_bytes() == (out / file).read_bytes()


def test_what_was_trained_predicts(folder, tmp_path, capsys):
    assert train(folder, "two.csv", "label", "--output_dir", tmp_path, "--max_steps", 1) == 0
    capsys.readouterr()
    assert main(["predict", str(tmp_path), "the film was great", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["label"] in ("negative", "positive")


def test_baselines_can_be_left_out(folder, tmp_path, capsys):
    flags = ("--output_dir", tmp_path, "--report_baselines", "false", "--max_steps", 1)
    assert train(folder, "two.csv", "label", *flags) == 0
    assert "zero-shot" not in capsys.readouterr().out
    assert not any("zero" in key for key in json.loads((tmp_path / "all_results.json").read_text()))


def test_baselines_are_those_of_eval(folder, tmp_path, capsys):
    """``adazeta eval --base --fit_bias`` computes the same numbers in another way."""
    data = folder / "two.csv"
    flags = ("--output_dir", tmp_path, "--validation_data", data, "--max_steps", 1)
    assert train(folder, "two.csv", "label", *flags) == 0
    metrics = json.loads((tmp_path / "all_results.json").read_text())
    capsys.readouterr()
    data = str(folder / "two.csv")
    assert (
        main(["eval", str(tmp_path), "--data", data, "--base", "--fit_bias", data, "--json"]) == 0
    )
    base, trained = json.loads(capsys.readouterr().out)
    assert metrics["zero_shot_validation_accuracy"] == pytest.approx(base["accuracy"])
    assert metrics["bias_only_validation_accuracy"] == pytest.approx(base["bias_accuracy"])
    assert metrics["validation_accuracy"] == pytest.approx(trained["accuracy"])
    low, high = wilson(base["accuracy"], 80)
    assert metrics["zero_shot_validation_accuracy_low"] == low
    assert metrics["zero_shot_validation_accuracy_high"] == high


def test_a_masked_model_gets_its_own_settings(folder, tmp_path, capsys):
    flags = ("--model", folder / "bert", "--max_steps", 1, "--output_dir", tmp_path, "--layers",
             "last:1", "--probes", "batch")  # fmt: skip
    assert train(folder, "two.csv", "label", *flags) == 0
    settings = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert settings["template"] == "{text}\nLabel: {mask}"
    assert "method" not in settings and settings["probes"] == "batch"


def test_a_method_of_ones_own_keeps_the_proposals(folder, tmp_path):
    flags = ("--method", "mezo", "--max_steps", 1, "--output_dir", tmp_path, "--rank", 2)
    assert train(folder, "two.csv", "label", *flags) == 0
    settings = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert settings["template"] == "{text}\nLabel:" and "form" not in settings


def test_a_file_of_settings_takes_labels_too(folder, tmp_path):
    values = {"train_data": str(folder / "two.csv"), "model": str(folder / "base"), "max_steps": 1,
              "output_dir": str(tmp_path / "out"), "cache_trunk": "none"}  # fmt: skip
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(values))
    assert main(["train", str(tmp_path / "run.yaml"), "--labels", "label"]) == 0
    assert json.loads((tmp_path / "out" / "task.json").read_text())["template"] == "{text}\nLabel:"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ("--labels", "lable"),
            "no column 'lable' for the labels; there are 'id', 'text', 'label'",
        ),
        ((), "which column of .* holds the labels: --labels COLUMN; there are id, text, label"),
        (("--labels", "label", "--train_data", "x.csv"), "give one of the two"),
        (("--labels", "label", "--completion", "{text}"), "exclude each other"),
        (("--labels", "label", "--label_column", "y"), "exclude each other"),
        (
            ("--labels", "id"),
            "column 'id' of .* has 80 different values in 80 rows.* it holds no labels",
        ),
        (("--labels", "label", "--validation_share", "1"), "at least 0 and below 1"),
        (
            ("--labels", "label", "--validation_share", "0.2", "--validation_data", "x.csv"),
            "exclude each other",
        ),
    ],
)
def test_mistakes_are_answered_with_the_remedy(folder, capsys, flags, message):
    model = ("--model", folder / "base")
    assert re.search(message, fails(capsys, "train", folder / "two.csv", *model, *flags))


def test_too_few_rows_are_refused(folder, tmp_path, capsys):
    data = write(tmp_path / "few.csv", ("text", "label"), [(judged(n), n % 2) for n in range(20)])
    error = fails(capsys, "train", data, "--labels", "label", "--model", folder / "base")
    assert "20 rows, too few to keep a tenth" in error and "--validation_share 0" in error


def test_python_is_told_who_fills_in_the_labels():
    from adazeta import TTAdapterConfig, ZOTrainingArguments
    from adazeta.models.arguments import ModelArguments
    from adazeta.runs.run import prepare
    from adazeta.tasks.arguments import TaskArguments

    task = TaskArguments(train_data="x.csv", labels="y")
    training = ZOTrainingArguments(report_to="none")
    with pytest.raises(ValueError, match="with_proposals"):
        prepare(ModelArguments(model="x"), task, TTAdapterConfig(), training)


@pytest.mark.parametrize("name", ["labels", *MAIN_SETTINGS])
def test_a_file_of_data_goes_with_every_kind_of_task(folder, name):
    path = str(folder / "two.csv")
    assert _with_data(path, {name: "x"}) == {name: "x", "train_data": path}
    with pytest.raises(ValueError, match="there are id, text, label"):
        _with_data(path, {})
