"""The suite of training all weights by gradients, on the small model."""

import json

import pytest

from benchmarks.measure.harness import Options
from benchmarks.report.tables.low_memory import NO_ROWS, low_memory_table
from benchmarks.subjects.workload import small_workload
from benchmarks.suites import low_memory
from tests.helpers.rows import check_rows


def run(rule, rate, steps, *, frozen=False):
    work = small_workload()
    found = low_memory.trained(work, rule, rate, steps, frozen=frozen)
    return found if frozen else found | low_memory.evaluated(work)


@pytest.mark.parametrize("rule", low_memory.RULES)
def test_each_rule_learns_and_holds_what_it_should(rule):
    before = low_memory.evaluated(small_workload())
    found = run(rule, {"adamw": 1e-3, "fused_sgd": 0.1, "adalomo": 1e-2}[rule], 6)
    assert found["test_loss"] < before["test_loss"]
    state, parameters = found["state"], found["parameters"]
    if rule == "adamw":
        assert state == pytest.approx(2 * parameters, rel=1e-3)
        assert found["live_gradient"] == parameters
    else:
        assert state <= 0.1 * parameters
        assert found["live_gradient"] == found["largest"]


@pytest.fixture
def runs(monkeypatch):
    """Stand in for the runs, and list them."""
    made = []
    losses = {"adamw": 0.4, "fused_sgd": 0.6, "adalomo": 0.5}

    def measured(rule, rate, steps, options, *flags):
        made.append((rule, rate, *flags))
        if flags and flags[0] == "--evaluate":
            best = rate == low_memory.RULES[rule][2][1]
            loss = losses[rule] if best else 0.9
            accuracy = {"adamw": 0.8, "fused_sgd": 0.7, "adalomo": 0.78}[rule]
            return {"dev_loss": loss, "test_loss": loss, "test_accuracy": accuracy, "peak": 1.0}
        return {"state": 1.0, "parameters": 200.0, "live_gradient": 20.0, "largest": 20.0,
                "peak": 900.0, "peak_above_loading": 100.0}  # fmt: skip

    monkeypatch.setattr(low_memory, "measured", measured)
    return made


def test_the_rate_of_least_dev_loss_is_shown_and_a_call_goes_on(runs, tmp_path):
    file = tmp_path / "rows.json"
    memory = low_memory.rows(Options(only="memory"))
    assert len(runs) == 4 and runs[-1][2:] == ("--frozen",)
    assert low_memory_table(memory).endswith("| 100 MiB | - | - | - | - |")
    rows = low_memory.rows(Options(only="accuracy adalomo", seeds=(0, 1), json=file))
    assert runs[4:] == [
        ("adalomo", rate, "--evaluate", "--seed", seed)
        for seed in "01"
        for rate in low_memory.RULES["adalomo"][2]
    ]
    check_rows(rows)
    table = low_memory_table(memory + rows)
    assert (
        "| AdaLomo, fused | 1.0 MiB, 0.50% of the weights | 20 MiB, 10% | 100 MiB | 0.001 | 0.500 "
        "| 78.0% | 2 |"
        in table
        and "**" not in table
    )
    count = len(runs)
    file.write_text(json.dumps([*memory, *rows]))
    assert low_memory.rows(Options(only="accuracy adalomo", seeds=(0, 1), json=file)) == rows
    assert len(runs) == count
    assert low_memory_table([]) == NO_ROWS


def test_the_table_says_what_the_criterion_asks(runs):
    rows = low_memory.rows(Options(seeds=(0,)))

    def said(**accuracies):
        changed = [
            {**row, "median": accuracies[row["mode"]]}
            if row["metric"] == "test_accuracy" and row["mode"] in accuracies
            else row
            for row in rows
        ]
        return low_memory_table(changed)

    assert "**works**. Its accuracy is -2.0 points from AdamW's" in said()
    assert "+8.0 from that of fused SGD" in said()
    assert "**no gain at this scale**" in said(fused_sgd=0.79)
    assert "**no gain at this scale**" in said(adalomo=0.75)  # below AdamW, above SGD
    assert "**worse**" in said(adalomo=0.6)
    wide = [{**r, "median": 30.0} if r["metric"] == "state" else r for r in rows]
    assert "**no gain at this scale**" in low_memory_table(wide)


def test_each_seed_has_sentences_of_its_own(monkeypatch):
    taken = []
    monkeypatch.setattr(low_memory, "BATCH", 2)
    for seed in (0, 1):
        work = small_workload()

        def batch(size, *, first, whole=work.batch):
            taken.append(first)
            return whole(size, first=first)

        monkeypatch.setattr(work, "batch", batch)
        low_memory.trained(work, "fused_sgd", 1e-3, 3, seed)
    assert taken == [0, 2, 4, 6, 8, 10]
