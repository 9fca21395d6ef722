"""``accuracy``: what the comparison of methods trains, and how it reports it."""

import json
from dataclasses import replace

import pytest
import torch

from adazeta.methods import METHODS
from adazeta.models.structure import blocks_with
from benchmarks.__main__ import main
from benchmarks.measure.harness import Options
from benchmarks.report import figures
from benchmarks.subjects.accuracy_methods import chosen_methods, methods
from benchmarks.subjects.accuracy_models import BLOCKS
from benchmarks.suites.accuracy import interval, next_rate, small_problem, train
from tests.helpers.rows import check_rows

OPTIONS = Options(small=True, rounds=2)


def test_accuracy_resumes_where_it_stopped(tmp_path):
    file = tmp_path / "rows.json"
    flags = ["accuracy", "--small", "--budget", "8", "--json", str(file), "--only"]
    assert main([*flags, "adazeta_pairs", "--seeds", "1"]) == 0
    first = json.loads(file.read_text())
    check_rows(first)
    assert main([*flags, "adazeta_pairs", "--seeds", "2"]) == 0
    both = json.loads(file.read_text())
    runs = [row for row in both if row["op"] != "fine_tune"]
    # What was there is kept as it was, times included.
    assert [row for row in first if row["op"] != "fine_tune"] == runs[: len(first) - 1]
    (summary,) = (row for row in both if row["op"] == "fine_tune")
    assert len(summary["config"]["values"]) == 2
    assert summary["config"]["ci95_low"] <= summary["config"]["mean"]


def test_every_method_trains_within_its_budget():
    problem = small_problem(OPTIONS)
    for name, method in methods(problem.batch).items():
        _, found, config = train(problem, method, 0, 6, method.rates[0], test=False)
        # A measurement of eps is one indivisible piece.
        assert found["evaluations"] >= 6
        assert found["evaluations"] <= 8 or name.endswith("auto")
        assert config["learning_rate"] == method.rates[0]


def test_methods_see_the_same_batches():
    problem = small_problem(OPTIONS)
    one, two = problem.batches(3), problem.batches(3)
    for _ in range(6):
        assert torch.equal(next(one)["input_ids"], next(two)["input_ids"])


def test_the_interval_is_students():
    found = interval([0.1, 0.2, 0.3])
    assert found["mean"] == pytest.approx(0.2)
    assert found["ci95_high"] - found["mean"] == pytest.approx(4.303 * 0.1 / 3**0.5)
    assert interval([0.5]) == {"mean": 0.5}


def test_every_registered_method_is_compared():
    problem = small_problem(OPTIONS)
    every = chosen_methods("all", problem.batch)
    blocks = {name.removesuffix(":blocks") for name in every if name.endswith(":blocks")}
    # Newton trains informed adapters, for which there is the suite "learning".
    assert blocks == set(METHODS) - {"newton"}
    for name, method in every.items():
        _, found, _ = train(problem, method, 0, 10, method.rates[0], test=False)
        assert 10 <= found["evaluations"] <= 18, name


@pytest.mark.parametrize("trains", ["tt", "lora", "blocks", "full", "nothing"])
def test_trainees_start_as_the_base_and_leave_it_alone(trains):
    problem = small_problem(OPTIONS)
    batch = next(problem.batches(0))
    whole = problem.work.losses(problem.work.base, batch)
    before = [parameter.clone() for parameter in problem.work.base.parameters()]
    trainee = problem.trainees.fresh(trains, seed=0)
    for _ in range(2):  # the second time with what was kept
        losses, logits = trainee.losses(batch)
        if trains == "tt":
            continue  # their initial values are the paper's, which are not zero
        torch.testing.assert_close(losses, whole[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(logits, whole[1], atol=1e-5, rtol=1e-5)
    trainable = [p for p in trainee.model.parameters() if p.requires_grad]
    if trains in ("blocks", "full"):
        count = {"blocks": BLOCKS, "full": 4}[trains]
        blocks, depth = blocks_with(trainee.model, trainable)
        assert len(blocks) - depth == count
    with torch.no_grad():
        for parameter in trainable:
            parameter.add_(1.0)
    for now, was in zip(problem.work.base.parameters(), before, strict=True):
        assert torch.equal(now, was)


def test_a_grid_goes_on_beyond_its_end():
    assert next_rate([0.01, 0.1, 1.0], 0.1) is None
    assert next_rate([0.01, 0.1, 1.0], 1.0) == 10.0
    assert next_rate([0.0003, 0.001, 0.003], 0.0003) == 9e-5


def test_budgets_are_summarised_apart(tmp_path):
    file = tmp_path / "rows.json"
    flags = ["accuracy", "--small", "--json", str(file), "--methods", "mezo:tt", "--seeds", "1"]
    assert main([*flags, "--budget", "8"]) == 0
    assert main([*flags, "--budget", "6"]) == 0
    rows = json.loads(file.read_text())
    summaries = {(row["provider"], row["x_value"]) for row in rows if row["op"] == "fine_tune"}
    assert summaries == {("mezo:tt", 8), ("mezo:tt", 6), ("zero_shot", 0)}
    assert figures.main(["--results", str(file), "--output", str(tmp_path)]) == 0
    assert [f.name for f in tmp_path.glob("*.svg")] == ["accuracy.svg"]


def test_runs_of_a_rate_that_is_no_longer_chosen_are_done_anew(tmp_path, monkeypatch):
    file = tmp_path / "rows.json"
    flags = ["accuracy", "--small", "--budget", "4", "--seeds", "2", "--json", str(file)]
    flags += ["--methods", "mezo_lora", "--only", "mezo_lora"]

    def with_rates(*rates: float) -> list[dict]:
        changed = replace(methods(4)["mezo_lora"], rates=rates)
        monkeypatch.setattr(
            "benchmarks.suites.accuracy.chosen_methods", lambda *_: {"mezo_lora": changed}
        )
        assert main(flags) == 0
        return json.loads(file.read_text())

    other = [row for row in with_rates(0.01) if row["op"] == "run"]
    rows = with_rates(0.02)
    rates = {row["config"]["learning_rate"] for row in rows}
    assert other and rates == {0.02} and len([r for r in rows if r["op"] == "run"]) == len(other)
    assert with_rates(0.02) == rows
