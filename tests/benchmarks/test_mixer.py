"""``mixer``: its arms, its rows, equal time, going on, and what its table says."""

import json

import pytest

from benchmarks.__main__ import main
from benchmarks.measure.harness import Cell, Options
from benchmarks.report.tables.mixer import ARMS, NO_MIXER, mixer_table
from benchmarks.subjects.learning_tasks import LearningTask
from benchmarks.suites import mixer, rates
from tests.helpers.made_up_texts import made_up
from tests.helpers.rows import check_rows
from tests.helpers.tiny_models import tiny_llama, tiny_tokenizer

METRICS = {
    "test_accuracy", "test_loss", "diverged", "rate", "seconds", "train_seconds",
    "processor_seconds", "evaluations", "trained_numbers", "kept_bytes",
}  # fmt: skip


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    tiny_llama(layers=11).save_pretrained(tmp_path / "model")
    tiny_tokenizer(add_special_tokens=False).save_pretrained(tmp_path / "model")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(rates, "model_file", lambda: tmp_path / "model")
    task = LearningTask(
        lambda: {name: made_up(8) for name in ("train", "dev", "test")},
        {"template": "{text} it was", "label_words": {0: "terrible", 1: "great"}},
    )
    monkeypatch.setitem(mixer.TASKS, "film", task)
    monkeypatch.setattr(mixer, "STEPS", 2)
    small = {"bottleneck": 8, "per_device_train_batch_size": 8, "disable_tqdm": True}
    monkeypatch.setattr(rates, "SETTINGS", {**rates.SETTINGS, **small})


def test_arms_are_trained_in_equal_evaluations_and_time_and_a_call_goes_on(
    tiny, tmp_path, monkeypatch
):
    file = tmp_path / "rows.json"
    command = ["mixer", "--seeds", "0,", "--json", str(file)]
    assert main([*command, "--only", "last_10"]) == 0
    assert main(command) == 0
    rows = json.loads(file.read_text())
    check_rows(rows)
    modes = [f"{arm}, {equal}" for arm in mixer.ARMS for equal in (mixer.EVALUATIONS, mixer.TIME)]
    modes.remove(f"{mixer.BASE}, {mixer.TIME}")
    by_gradients = [
        mixer.gradients(arm, rate) for arm in mixer.BY_GRADIENTS for rate in mixer.GRADIENT_RATES
    ]
    found = {}
    for row in rows:
        found.setdefault(row["mode"], {})[row["metric"]] = row
    assert sorted(found) == sorted([*modes, *by_gradients])
    assert all(set(found[mode]) == METRICS for mode in modes)
    settings = found["mixer, gradients at rate_0.02"]["rate"]["config"]["settings"]
    assert settings["order"] == "first" and settings["form"] == "mixer"
    plain, alone = (found[f"{arm}, equal evaluations"] for arm in ("mixer", "no_redundancy"))
    assert plain["test_loss"]["median"] != alone["test_loss"]["median"]
    first, *others = (found[f"{arm}, {mixer.EVALUATIONS}"] for arm in mixer.ARMS)
    for other in others:
        assert other["evaluations"]["median"] == first["evaluations"]["median"]
        assert 0 < other["kept_bytes"]["median"] < first["kept_bytes"]["median"]
        assert other["trained_numbers"]["median"] < first["trained_numbers"]["median"]
    for arm in list(mixer.ARMS)[1:]:
        timed = found[f"{arm}, {mixer.TIME}"]["test_accuracy"]["config"]
        own, base = (found[f"{name}, {mixer.EVALUATIONS}"] for name in (arm, mixer.BASE))
        seconds = own["processor_seconds"]["median"]
        more = base["processor_seconds"]["median"] / seconds - 1
        whole = found[f"{arm}, {mixer.TIME}"]["evaluations"]["median"]
        expected = own["evaluations"]["median"] * (1 + more)
        if 1 < timed["steps"] < 20:  # so many evaluations take the time, but for one step
            assert abs(whole - expected) <= 2
    assert "features" in found["no_features, equal time"]["rate"]["config"]["settings"]
    monkeypatch.setattr(rates, "trained", lambda *_, **__: pytest.fail("it was there already"))
    assert main(command) == 0
    assert json.loads(file.read_text()) == rows
    table = mixer_table(rows)
    assert "| mixer, last block |" in table and "The mixer: **" in table
    assert "- By gradients, 40 steps of AdamW: tensor trains, last ten blocks " in table


def test_arms_are_those_of_the_table_and_settings_those_of_rates():
    assert tuple(mixer.ARMS) == tuple(ARMS)
    assert rates.SETTINGS["layers"] == "last:10" and rates.SETTINGS["adapt"] == "suffix"


def test_equal_time_needs_the_runs_that_tell_it(tiny, tmp_path, capsys):
    command = ["mixer", "--seeds", "0,", "--only", "mixer time"]
    assert main([*command, "--json", str(tmp_path / "rows.json")]) == 1
    assert "is not known before 'last_10, equal evaluations' has run" in capsys.readouterr().err


def test_steps_in_the_time_of_another():
    def run(arm, seconds):
        cell = Cell("mixer", "train", f"{arm}, {mixer.EVALUATIONS}", "seed", 0, "cpu")
        values = {"processor_seconds": seconds, "evaluations": 420}
        return [cell.row(arm, name, "1", [value], {}) for name, value in values.items()]

    rows = [*run("last_10", 100.0), *run("mixer", 25.0)]
    # 1680 evaluations fit, of which 20 measure; 420 were 200 steps and these.
    assert mixer.steps_in_time(rows, "mixer", 0, 200) == 830
    assert (
        mixer.steps_in_time([*run("last_10", 900.0), *run("mixer", 9.0)], "mixer", 0, 200) == 2000
    )
    assert mixer.steps_in_time([*run("last_10", 1.0), *run("mixer", 9.0)], "mixer", 0, 200) == 13


def rows_of(arm, seed, equal, time, cost):
    made = []
    for kind, accuracy, steps in ((mixer.EVALUATIONS, equal, 200), (mixer.TIME, time, 800)):
        if accuracy is None:
            continue
        cell = Cell("mixer", "train", f"{arm}, {kind}", "seed", seed, "cpu")
        values = {
            "test_accuracy": accuracy, "processor_seconds": 400 * cost, "evaluations": 400,
            "trained_numbers": 933, "kept_bytes": 2048,
        }  # fmt: skip
        config = {"steps": steps, "test": 1000}
        made += [cell.row(arm, name, "1", [value], config) for name, value in values.items()]
    return made


def said(mixed, last=0.8, none=0.81, cost=0.1):
    rows = []
    for seed in (0, 1):
        rows += rows_of("last_10", seed, 0.86, None, 0.5)
        rows += rows_of("last_1", seed, 0.78, last, 0.1)
        rows += rows_of("mixer", seed, 0.79, mixed, cost)
        rows += rows_of("no_features", seed, 0.77, none, 0.1)
    return mixer_table(rows)


def test_the_table_says_what_the_criterion_asks():
    assert mixer_table([]) == NO_MIXER
    table = said(0.82)
    assert (
        "| mixer, last block | 933 | 100 ms | 2 KiB | 79.0% | 82.0% | 800 | 2 |" in table
        and "| tensor trains, last ten blocks | 933 | 500 ms | 2 KiB | 86.0% | 86.0% | 200 | 2 |"
        in table
    )
    assert "**works**. An evaluation costs 0.20 of one" in table
    assert "+2.0 points over tensor trains in the last block, and +1.0 over itself" in table
    assert "At equal evaluations these are +1.0 and +2.0 points." in table
    assert "it has -7.0 points then, and -4.0 in equal time" in table
    assert "**no gain at this scale**" in said(0.805)  # half a point
    assert "**no gain at this scale**" in said(0.82, none=0.83)  # the features do nothing
    assert "**no gain at this scale**" in said(0.82, cost=0.2)  # dear
    assert "**worse**" in said(0.78)
    some = mixer_table(rows_of("last_10", 0, 0.86, None, 0.5) + rows_of("mixer", 0, 0.8, None, 0.1))
    assert "| mixer, last block | 933 | 100 ms | 2 KiB | 80.0% | - | - | 1 |" in some
    assert "**" not in some


def test_the_table_tells_the_better_rate_by_gradients():
    rows = rows_of("last_10", 0, 0.86, None, 0.5)
    for arm, rate, accuracies in (
        ("last_10", 0.005, (0.8, 0.9)), ("last_10", 0.02, (0.84, 0.85)), ("mixer", 0.02, (0.8,))
    ):  # fmt: skip
        for seed, accuracy in enumerate(accuracies):
            cell = Cell("mixer", "train", mixer.gradients(arm, rate), "seed", seed, "cpu")
            config = {"steps": 40, "test": 1000}
            rows.append(cell.row(arm, "test_accuracy", "1", [accuracy], config))
    assert (
        "- By gradients, 40 steps of AdamW: tensor trains, last ten blocks 85.0% (rate 0.005); "
        "mixer, last block 80.0% (rate 0.02)."
    ) in mixer_table(rows)


def test_nothing_small_is_measured():
    with pytest.raises(mixer.Refused, match="no small size"):
        mixer.rows(Options(small=True))
