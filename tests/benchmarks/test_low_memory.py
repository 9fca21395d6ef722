"""The suite of training all weights by gradients, on small models."""

import json

import pytest

from benchmarks.measure.harness import Cell, Options
from benchmarks.report.tables.low_memory import NO_ROWS, low_memory_table
from benchmarks.subjects import review_classifier
from benchmarks.subjects.workload import small_workload
from benchmarks.suites import low_memory
from tests.helpers.made_up_texts import made_up
from tests.helpers.rows import check_rows
from tests.helpers.tiny_models import tiny_bert_mlm, tiny_tokenizer


@pytest.mark.parametrize("rule", low_memory.RULES)
def test_each_rule_learns_and_holds_what_it_should(rule):
    rate = {"adamw": 1e-3, "fused_sgd": 0.02, "adalomo": 1e-2}[rule]
    work = small_workload()
    batch = work.batch(16)
    before = work.losses(work.base, batch)[0].mean()
    found = low_memory.trained(work, rule, rate, 6)
    assert work.losses(work.base, batch)[0].mean() < before
    state, parameters = found["state"], found["parameters"]
    if rule == "adamw":
        assert state == pytest.approx(2 * parameters, rel=1e-3)
        assert found["live_gradient"] == parameters
    else:
        assert state <= 0.1 * parameters
        assert found["live_gradient"] == found["largest"]


@pytest.fixture
def held(monkeypatch):
    """Stand in for the processes that measure memory, and list them."""
    made = []

    def measured(rule, options, *flags):
        made.append((rule, *flags))
        return {"state": 1.0, "parameters": 200.0, "live_gradient": 20.0, "largest": 20.0,
                "peak": 900.0, "peak_above_loading": 100.0}  # fmt: skip

    monkeypatch.setattr(low_memory, "measured", measured)
    return made


def test_memory_is_of_each_rule_and_without_embeddings(held):
    rows = low_memory.rows(Options(only="memory"))
    check_rows(rows)
    assert held == [*((rule,) for rule in low_memory.RULES), ("adalomo", "--frozen")]
    assert low_memory_table(rows).endswith("| 100 MiB | - | - | - | - |")
    assert low_memory_table([]) == NO_ROWS


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    tiny_bert_mlm().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    for module in (low_memory, review_classifier):
        monkeypatch.setattr(module, "encoder_folder", lambda: tmp_path / "model")
    monkeypatch.setattr(low_memory, "SIZES", {"train": 16, "dev": 16, "test": 8})
    monkeypatch.setattr(
        low_memory, "film_reviews", lambda sizes: {k: made_up(size) for k, size in sizes.items()}
    )


def test_every_rate_is_trained_and_a_call_goes_on(tiny, held, tmp_path, monkeypatch):
    file = tmp_path / "rows.json"
    memory = low_memory.rows(Options(only="memory"))
    file.write_text(json.dumps(memory))
    first = low_memory.rows(Options(only="accuracy adalomo", seeds=(0,), json=file))
    rows = low_memory.rows(Options(only="accuracy", seeds=(0, 1), json=file))
    check_rows(rows)
    assert json.loads(file.read_text()) == [*memory, *rows] and rows[: len(first)] == first
    assert {(row["mode"], row["provider"], row["x_value"]) for row in rows} == {
        (name, f"rate_{rate:g}", seed)
        for name, compared in low_memory.RULES.items()
        for rate in compared.rates
        for seed in (0, 1)
    }
    assert {row["metric"] for row in rows} == {
        "dev_loss", "dev_accuracy", "test_loss", "test_accuracy"
    }  # fmt: skip
    losses = [row["median"] for row in rows if row["metric"] == "dev_loss"]
    assert len(set(losses)) == len(losses)  # every run is another training
    assert all(row["config"]["steps"] == 3 for row in rows)
    monkeypatch.setattr(low_memory, "reached", lambda *_: pytest.fail("it was there already"))
    assert low_memory.rows(Options(only="accuracy", seeds=(0, 1), json=file)) == rows
    assert "- AdaLomo: **" in low_memory_table([*memory, *rows])


def rows_of(name, accuracy, rate=1e-3, dev=0.8):
    cell = Cell("low_memory", "reached", name, "seed", 0, "cpu")
    values = {"dev_loss": 0.5, "dev_accuracy": dev, "test_accuracy": accuracy}
    config = {"rate": rate, "steps": 3, "test": 200}
    return [cell.row(f"rate_{rate:g}", k, "1", [v], config) for k, v in values.items()]


def test_the_table_says_what_the_criterion_asks(held):
    memory = low_memory.rows(Options(only="memory"))

    def said(memory=memory, **accuracies):
        found = {"adamw": 0.8, "fused_sgd": 0.7, "adalomo": 0.78, **accuracies}
        rows = [row for name, value in found.items() for row in rows_of(name, value)]
        return low_memory_table([*memory, *rows, *rows_of("adalomo", 0.9, rate=3e-3, dev=0.7)])

    assert (
        "| AdaLomo, fused | 1.0 MiB, 0.50% of the weights | 20 MiB, 10% | 100 MiB | 0.001 (an end) "
        "| 80.0% | 78.0% | 1 |" in said()
    )
    assert "**works**. Its accuracy is -2.0 points from AdamW's" in said()
    assert "+8.0 from that of fused SGD" in said()
    assert "**no gain at this scale**" in said(fused_sgd=0.79)
    assert "**no gain at this scale**" in said(adalomo=0.75)  # below AdamW, above SGD
    assert "**worse**" in said(adalomo=0.6)
    wide = [{**row, "median": 30.0} if row["metric"] == "state" else row for row in memory]
    assert "**no gain at this scale**" in said(wide)
