"""The suite ``quantised``: its rows, and the tables of docs/quantised.md."""

from benchmarks.measure.harness import KEYS, Options
from benchmarks.report.tables.quantised import (
    BASES,
    NOT_HELD,
    arithmetic_table,
    quantised_table,
)
from benchmarks.suites import quantised

FIGURES = {
    "base": 500.0, "peak": 900.0, "time": 2.0, "test_accuracy": 0.75, "test_loss": 0.5,
    "train_loss": 0.6,
}  # fmt: skip


def test_every_provider_has_a_row_or_a_reason(monkeypatch):
    def measured(provider, seed, steps, tested):
        if provider == "torchao_int4":
            return None, "ValueError: works on cuda"
        share = 0.2 if provider == "gguf_kept" else 1.0
        return {**FIGURES, "base": share * FIGURES["base"], "time": 2.0 + seed}, ""

    monkeypatch.setattr(quantised, "measured", measured)
    found = quantised.rows(Options(seeds=(0, 1)))
    assert {row["op"] for row in found} == set(quantised.PROVIDERS) == set(BASES)
    assert all(set(KEYS) <= set(row) for row in found)
    table = quantised_table(found).splitlines()
    assert len(table) == 2 + len(BASES)
    kept = next(line for line in table if "computed in float32" in line)
    assert kept.endswith("| 100 | 0.20 | 900 | 2.50 | 1.00 | 75.0% | 0.500 | 2 |")
    assert any("does not run here: ValueError: works on cuda" in line for line in table)
    assert quantised_table([]) == NOT_HELD


def test_one_provider_can_be_chosen(monkeypatch):
    monkeypatch.setattr(quantised, "measured", lambda *given: (dict(FIGURES), ""))
    found = quantised.rows(Options(only="bnb_nf4", seeds=(0,), small=True))
    assert {(row["op"], row["x_value"]) for row in found} == {("bnb_nf4", 2)}


def test_a_process_that_fails_gives_its_reason(monkeypatch):
    monkeypatch.setattr(quantised.sys, "executable", "/bin/false")
    assert quantised.measured("float32", 0, 1, 1) == (None, "no message")


def test_the_arithmetic_is_parameters_times_bits():
    lines = arithmetic_table().splitlines()
    assert "| 7B | Q4_1 (20 bytes of 32 weights: 5) | 7 x 5 / 8 = 4.4 | 3.6 left" in "\n".join(
        lines
    )
    assert any(line.startswith("| 70B | bfloat16") and line.endswith("| no |") for line in lines)
    assert len(lines) == 2 + 5 * 5
