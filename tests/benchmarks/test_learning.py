"""``learning``: its tasks, its rows, and the share that it reports."""

import json

import pytest
import torch

from adazeta.demo import run as run_of_demo
from benchmarks.__main__ import main, parse
from benchmarks.measure.harness import Options, Refused
from benchmarks.report.tables.learning import NOT_LEARNT, learning_table
from benchmarks.subjects import learning_tasks
from benchmarks.subjects.learning_tasks import LearningTask, chosen_tasks, described
from benchmarks.suites import learning
from tests.helpers.rows import check_rows
from tests.helpers.tiny_models import WORDS, tiny_llama, tiny_tokenizer

WORDS_OF = {"a": "terrible", "b": "great", "c": "dull"}
SETTINGS = {"template": "{text} it was", "label_words": WORDS_OF}


def made_up():
    """Texts whose first word tells the class."""
    first = {"a": ["red", "cat"], "b": ["green", "dog"], "c": ["blue", "tree"]}
    every = [
        {"text": f"{first[label][k % 2]} {WORDS[-1 - k]} film", "label": label}
        for k in range(16)
        for label in first
    ]
    return {"train": every[:24], "dev": every[24:36], "test": every[36:]}


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    tiny_llama(layers=3).save_pretrained(tmp_path / "model")
    tiny_tokenizer(add_special_tokens=False).save_pretrained(tmp_path / "model")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(learning, "model_file", lambda: tmp_path / "model")
    small = {"components": 8, "per_device_train_batch_size": 8, "disable_tqdm": True}
    monkeypatch.setattr(run_of_demo, "SETTINGS", {**run_of_demo.SETTINGS, **small})
    for name, value in {"STEPS": 6, "CHECK": 3, "RATES": (0.03, 0.1, 0.3)}.items():
        monkeypatch.setattr(learning, name, value)
    monkeypatch.setattr(learning_tasks, "TASKS", {"film": LearningTask(made_up, SETTINGS)})


@pytest.fixture
def done(tiny, tmp_path):
    file = tmp_path / "rows.json"
    assert main(["learning", "--seeds", "0,2", "--json", str(file)]) == 0
    return file, json.loads(file.read_text())


def test_a_task_is_measured_in_four_ways_on_the_same_numbers(done):
    file, rows = done
    check_rows(rows)
    found = {(r["x_value"], r["provider"], r["metric"]): r for r in rows if r["op"] == "train"}
    for seed in (0, 2):
        for provider in ("zero_shot", "bias_only", "adazeta", "adamw"):
            row = found[seed, provider, "test_accuracy"]
            correct = learning.unpacked_bits(row)
            assert len(correct) == 12 and float(correct.double().mean()) == row["median"]
            assert row["config"]["ci95_low"] <= row["median"] <= row["config"]["ci95_high"]
        numbers = [found[seed, p, "trained_parameters"]["median"] for p in ("adazeta", "adamw")]
        assert numbers[0] == numbers[1] > 0
        assert found[seed, "adazeta", "evaluations"]["median"] > 8
        assert found[seed, "adamw", "evaluations"]["median"] == 18
        assert len(found[seed, "adamw", "test_accuracy"]["config"]["rates"]) >= 3
    # What is done is not done again.
    assert main(["learning", "--seeds", "0,2", "--json", str(file)]) == 0
    assert json.loads(file.read_text()) == rows


def test_rows_of_other_settings_are_measured_anew(done, monkeypatch):
    file, rows = done
    changed = {**run_of_demo.SETTINGS, "num_train_epochs": 1}
    monkeypatch.setattr(run_of_demo, "SETTINGS", changed)
    assert main(["learning", "--seeds", "1", "--json", str(file)]) == 0
    again = [row for row in json.loads(file.read_text()) if row["op"] == "train"]
    assert {row["x_value"] for row in again} == {0}
    few, many = (
        next(r["median"] for r in of if (r["provider"], r["metric"]) == ("adazeta", "evaluations"))
        for of in (again, rows)
    )
    assert few < many


def test_the_means_are_written_as_a_table(done):
    _, rows = done
    line = learning_table(rows).splitlines()[2]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    summary = {(r["provider"], r["metric"]): r["config"] for r in rows if r["op"] == "summary"}
    assert cells[0] == "film reviews" and cells[-1] == "2"
    mean = f"{100 * summary['adazeta', 'test_accuracy']['mean']:.1f}%"
    assert cells[3].startswith(f"{mean} (")
    few = learning_table(rows, brief=True).splitlines()[2]
    assert [cell.strip() for cell in few.strip("|").split("|")][3] == mean
    assert learning_table([]) == NOT_LEARNT


def test_first_order_starts_where_ours_did_and_leaves_its_result_alone(tiny, monkeypatch):
    seen = []

    def watched(run, start, seed):
        before = [p.detach().clone() for p in learning.trained(run)]
        found = learned(run, start, seed)
        after = learning.trained(run)
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
        assert any(bool(b.any()) for b in before)
        seen.extend(start)
        return found

    learned = learning.first_order
    monkeypatch.setattr(learning, "first_order", watched)
    learning.rows(Options(seeds=(0,)))
    assert seen and not any(bool(value.any()) for value in seen)


def test_the_share_is_of_the_gain_over_the_biases():
    bias = torch.tensor([1, 0, 0, 0] * 50).double()
    first = torch.tensor([1, 1, 1, 0] * 50).double()
    ours = torch.tensor([1, 1, 0, 0] * 50).double()
    found = learning.share(ours, bias, first)
    assert found["mean"] == pytest.approx(0.5)
    assert found["ci95_low"] < 0.5 < found["ci95_high"]
    assert learning.share(ours, bias, bias) is None
    gained = learning.gain(ours, bias)
    assert gained["mean"] == pytest.approx(0.25)
    assert 0.18 < gained["ci95_low"] < 0.25 < gained["ci95_high"] < 0.32


def test_bits_are_read_as_they_were_written():
    values = torch.tensor([False, False, True, False, True])
    row = {"config": {"right": learning.packed_bits(values)}}
    assert torch.equal(learning.unpacked_bits(row), values)


def test_an_index_of_packages_is_read():
    index = (
        "Package: a\nSection: contrib/games\nDescription-en: a game\n more\n\n"
        "Package: b\nSection: libs\nDescription: a library\n\n"
        "Package: c\nSection: math\nDescription: a game\n\n"
        "Package: d\nSection: math\nDescription: numbers\n"
    )
    assert described(index) == {"a game": "games", "numbers": "math"}


def test_what_a_task_lacks_is_said_before_any_work(monkeypatch, capsys):
    with pytest.raises(Refused, match="no task is named 'cats'; there are: film"):
        chosen_tasks("film,cats")
    monkeypatch.setattr(learning_tasks.shutil, "which", lambda _: None)
    assert main(["learning", "--tasks", "debian"]) == 1
    assert "there is no apt-cache here" in capsys.readouterr().err
    monkeypatch.setattr(learning_tasks.shutil, "which", lambda name: name)
    monkeypatch.setattr(
        learning_tasks.subprocess, "run", lambda *_, **__: type("Run", (), {"stdout": ""})
    )
    assert main(["learning", "--tasks", "debian"]) == 1
    assert "run 'apt-get update'" in capsys.readouterr().err
    monkeypatch.setattr(learning_tasks, "version", lambda _: "0.1.1")
    assert main(["learning", "--tasks", "syllogism"]) == 1
    assert "reasoning-gym==0.1.25" in capsys.readouterr().err
    assert main(["learning", "--small"]) == 1
    assert "no small size" in capsys.readouterr().err


def test_syllogisms_are_split_once_each_and_in_balance():
    drawn = [
        {"premise1": f"p{k // 2}", "premise2": "q", "conclusion": "r", "is_valid": k // 2 % 2 == 0}
        for k in range(80)
    ]
    splits = learning_tasks.split_syllogisms(drawn, {"train": 20, "dev": 10})
    texts = [r["premise1"] for records in splits.values() for r in records]
    assert len(texts) == len(set(texts)) == 30
    assert [r["label"] for r in splits["dev"]] == ["no"] * 5 + ["yes"] * 5


@pytest.mark.parametrize(("given", "seeds"), [("3", (0, 1, 2)), ("0,2", (0, 2)), ("5,", (5,))])
def test_seeds_are_given_by_number_or_by_name(given, seeds):
    options, _ = parse(["learning", "--seeds", given])
    assert options.seeds == seeds
