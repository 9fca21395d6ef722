"""``robust``: its arms, its rows, going on, and what its table says."""

import json

import pytest

from adazeta.demo import data as demo_data
from benchmarks.__main__ import main
from benchmarks.measure.harness import Cell, Options
from benchmarks.report.tables.robust import ARMS, NO_ROBUST, robust_table
from benchmarks.suites import robust
from tests.helpers.made_up_texts import made_up
from tests.helpers.rows import check_rows
from tests.helpers.tiny_models import tiny_llama, tiny_tokenizer

SETS = ("film", "dev", "tweet", "amazon", "editorial")


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    tiny_llama(layers=3).save_pretrained(tmp_path / "model")
    tiny_tokenizer(add_special_tokens=False).save_pretrained(tmp_path / "model")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(robust, "model_file", lambda: tmp_path / "model")
    splits = {name: made_up(8) for name in ("train", "dev", "test")}
    monkeypatch.setattr(robust, "film_reviews", lambda sizes: splits)
    monkeypatch.setattr(robust, "opinions", lambda name, size: made_up(8))
    base = tmp_path / "base.yaml"
    base.write_text(
        "model: elsewhere\ntrain_data: elsewhere\ntemplate: '{text} it was'\n"
        "label_words: {0: terrible, 1: great}\nadapt: suffix\nrank: 2\nbottleneck: 8\n"
        "layers: last:1\nbias: false\nprobes: '4'\neps: 0.01\nlearning_rate: 0.02\n"
        "lr_scheduler_type: linear\nper_device_train_batch_size: 8\nreport_to: none\n"
        "load_best_model_at_end: true\ndisable_tqdm: true\noutput_dir: elsewhere\n"
    )
    monkeypatch.setattr(robust, "BASE", base)
    monkeypatch.setattr(robust, "STEPS", 2)


def test_arms_are_trained_and_tested_at_each_scale_and_a_call_goes_on(tiny, tmp_path, monkeypatch):
    file = tmp_path / "rows.json"
    command = ["robust", "--seeds", "0,", "--only", "all", "--json", str(file)]
    assert main(command) == 0
    rows = json.loads(file.read_text())
    check_rows(rows)
    assert [row["provider"] for row in rows] == [*SETS, "training"]
    for row in rows[:-1]:
        config = row["config"]
        assert len(config["accuracies"]) == len(config["scales"]) == 5 and config["texts"] == 8
        assert config["accuracies"][-1] == row["median"]
        settings = config["settings"]
        assert (settings["drop"], settings["average"]) == (0.2, 0.98)
        assert settings["lr_scheduler_type"] == "constant" and settings["activation"] == "linear"
    monkeypatch.setattr(robust, "measured", lambda *_: pytest.fail("it was there already"))
    assert main(command) == 0
    assert json.loads(file.read_text()) == rows


def test_settings_are_those_of_the_example():
    linear, relu = (robust.settings_of(arm, 200) for arm in ("linear", "relu"))
    assert relu == {**linear, "activation": "relu"} and relu["max_steps"] == 200
    assert linear["rank"] == 2 and linear["layers"] == "last:10" and linear["bias"] is False
    assert "load_best_model_at_end" not in linear and "train_data" not in linear
    assert tuple(robust.ARMS) == ARMS
    assert linear["eps"] == linear["learning_rate"] == "auto"
    fixed = robust.settings_of("average_fixed", 200)
    assert (fixed["eps"], fixed["learning_rate"], fixed["average"]) == (0.01, 0.02, 0.98)


def test_opinions_are_of_one_half_of_the_sentences(monkeypatch):
    lines = [f"{k}\t{(-1) ** k * 2}\tsentence {k}" for k in range(80)]
    monkeypatch.setattr(demo_data, "_ratings", lambda *names: ["\n".join(lines)])
    found = demo_data.opinions("tweet", 20)
    assert [record["label"] for record in found] == [0] * 10 + [1] * 10
    assert all(demo_data.hashed(record["text"]).hex()[0] in "01234567" for record in found)
    with pytest.raises(ValueError, match="give smaller sizes"):
        demo_data.opinions("tweet", 80)


def rows_of(arm, seed, film, others, dev=0.8):
    cell = Cell("robust", "train", arm, "seed", seed, "cpu")
    scales = [0.0, 0.25, 0.5, 0.75, 1.0]
    sets = {"film": film, "dev": [dev] * 5, **{name: others for name in SETS[2:]}}
    return [
        cell.row(name, "accuracy", "fraction", values[-1:],
                 {"accuracies": values, "scales": scales, "texts": 400})
        for name, values in sets.items()
    ]  # fmt: skip


def test_the_table_says_what_works_and_what_does_not():
    assert robust_table([]) == NO_ROBUST
    hill = [0.7, 0.75, 0.8, 0.78, 0.72]
    flat = [0.8, 0.7, 0.7, 0.7, 0.8]
    film = [0.6, 0.8, 0.85, 0.88, 0.9]
    rows = [
        *rows_of("linear", 0, film, hill, dev=0.8), *rows_of("linear", 1, film, hill, dev=0.8),
        *rows_of("drop", 0, film, [value + 0.1 for value in hill]),
        *rows_of("average", 0, film, flat, dev=0.797), *rows_of("average", 1, film, flat, dev=0.7),
        *rows_of("relu", 0, [*film[:4], 0.92], hill),
        *rows_of("fixed", 0, film, hill, dev=0.8),
        *rows_of("average_fixed", 0, film, hill, dev=0.796),
    ]  # fmt: skip
    table = robust_table(rows)
    assert "| linear | film reviews | 60.0% | 80.0% | 85.0% | 88.0% | 90.0% | 2 |" in table
    assert "| linear | others | 70.0% | 75.0% | 80.0% | 78.0% | 72.0% | 2 |" in table
    assert "Without an activation: **worse**, -2.0 points" in table
    assert "Re-scaling, linear: **works**, at 0.5 the others have +8.0 points" in table
    assert "Re-scaling, average: **no gain at this scale**" in table
    assert "Dropping: **works**, +10.0 points" in table
    assert "An average and a constant rate: **worse**, -0.3, -10.0 points" in table
    assert "An average and a constant rate of 0.02: **works**, -0.4 points" in table


def test_nothing_small_is_measured():
    with pytest.raises(robust.Refused, match="no small size"):
        robust.rows(Options(small=True))
