"""Tables of README.md and docs/: those of the registry and of the rows."""

import json

import pytest

from adazeta import METHODS
from benchmarks.__main__ import main
from benchmarks.report import evidence
from benchmarks.report.tables import costs
from benchmarks.report.tables import learning as learning_tables
from benchmarks.report.tables import methods as methods_tables
from benchmarks.subjects.accuracy_methods import methods


def test_the_table_of_methods_is_current():
    text = evidence.DOCUMENT.read_text(encoding="utf-8")
    assert evidence.filled(text, "methods", methods_tables.methods_table()) == text
    assert all(f"**{name}**" in text for name in METHODS)


def test_the_tables_of_measurements_are_those_of_the_committed_rows():
    assert main(["evidence", "--check"]) == 0
    committed = {row["provider"] for row in json.loads(evidence.ACCURACY.read_text())}
    assert committed - {"zero_shot"} == set(methods_tables.LABELS) == set(methods(16))


def test_evidence_is_filled_in_from_rows(tmp_path, monkeypatch):
    document, rows = tmp_path / "methods.md", tmp_path / "rows.json"
    document.write_text(
        "<!-- methods -->\nold\n<!-- end of methods -->\n\n"
        "<!-- reading -->\nold\n<!-- end of reading -->\n"
        "<!-- rates -->\nold\n<!-- end of rates -->\n"
        "<!-- evidence -->\nold\n<!-- end of evidence -->\nrest\n"
    )
    benchmarks, readme = tmp_path / "benchmarks.md", tmp_path / "README.md"
    learning, quantised = tmp_path / "learning.md", tmp_path / "quantised.md"
    related, rewards = tmp_path / "related.md", tmp_path / "rewards.md"
    sections = {
        learning: ("learning",),
        benchmarks: ("step", "stacked", "noise", "memory", "accuracy", "int8"),
        readme: ("memory", "learning", "orders"),
        quantised: ("quantised", "arithmetic"),
        related: (
            "orders",
            "low memory",
            "robust",
            "embedding",
            "mixer",
            "recovery",
            "zsaq",
            "extrapolation",
            "adversarial",
        ),
        rewards: ("rewards",),
    }
    for page, names in sections.items():
        marks = (f"<!-- {name} -->\nold\n<!-- end of {name} -->\n" for name in names)
        page.write_text("".join(marks))
    monkeypatch.setattr(evidence, "DOCUMENT", document)
    monkeypatch.setattr(evidence, "BENCHMARKS", benchmarks)
    monkeypatch.setattr(evidence, "README", readme)
    monkeypatch.setattr(evidence, "LEARNING", learning)
    monkeypatch.setattr(evidence, "QUANTISED", quantised)
    monkeypatch.setattr(evidence, "RELATED", related)
    monkeypatch.setattr(evidence, "REWARDS", rewards)
    config = {"trains": "tt", "learning_rate": 0.02, "values": [0.7, 0.8]}
    row = {"benchmark": "accuracy", "op": "fine_tune", "provider": "mezo", "x_value": 600}
    better = {
        **row,
        "provider": "helene",
        "config": {**config, "mean": 0.8, "ci95_low": 0.7, "ci95_high": 0.9},
    }
    rows.write_text(json.dumps([{**row, "config": {**config, "mean": 0.75}}, better]))
    assert main(["evidence", "--json", str(rows), "--check"]) == 1
    assert main(["evidence", "--json", str(rows)]) == 0
    text = document.read_text()
    assert text.index("`helene` | tt | 0.02 | 80.0% | 70.0 to 90.0 | 2 | 600") < text.index(
        "`mezo` | tt | 0.02 | 75.0% | - | 2 | 600"
    )
    assert text.endswith("<!-- end of evidence -->\nrest\n") and "old" not in text
    assert main(["evidence", "--json", str(rows), "--check"]) == 0
    named = {**better, "provider": "mezo_full"}
    rows.write_text(json.dumps([named, better]))
    main(["evidence", "--json", str(rows), "--accuracy", str(rows)])
    table = benchmarks.read_text()
    assert "| MeZO, all parameters | 0.02 | 80.0% | 70.0 to 90.0 |" in table
    assert "helene" not in table and "old" not in table + readme.read_text()
    rows.write_text("[]")
    main(["evidence", "--json", str(rows), "--learning", str(rows)])
    assert methods_tables.NOTHING in document.read_text()
    assert learning_tables.NOT_LEARNT in learning.read_text()
    with pytest.raises(ValueError, match="no section 'methods'"):
        evidence.filled("text", "methods", "")


def test_tables_of_times_and_memory_hold_the_rows():
    def row(benchmark, op, provider, metric, median, **rest):
        keys = ("mode", "dtype", "x_name")
        return {"benchmark": benchmark, "op": op, "provider": provider, "metric": metric,
                "median": median, **dict.fromkeys(keys, ""), **rest}  # fmt: skip

    step = {"mode": "batch_4", "x_name": "queries"}
    rows = [
        row("step", "adapters_all", "adazeta", "time", 3000.0, x_value=2, **step),
        row("step", "adapters_all", "adazeta_stacked", "time", 2000.0, x_value=2, **step),
    ]
    line = "| batch 4, queries 2 | 3.00 s | 2.00 s | **1.50 times** |"
    assert costs.stacked_table(rows).splitlines()[2:] == [line]
    passed = {"x_value": 1000, "dtype": "float32"}
    rows = [
        row("noise", "pass", name, "time", ms, **passed)
        for name, ms in (("reference", 9.0), ("adazeta", 3.0), ("floor", 1.0))
    ]
    rows.append(row("noise", "pass", "adazeta", "speedup_over_reference", 3.1, **passed))
    line = "| a pass | 1,000 | 9.0 ms | 3.0 ms, **3.1 times** | one: 1.0 ms |"
    assert costs.noise_table(rows).splitlines()[2:] == [line]
    rows = [
        row("memory", "train_step", "inference", "peak", 1000.4, x_value=128),
        row("memory", "train_step", "adazeta_full", "peak_over_inference", 1.014, x_value=128),
        row("memory", "train_step", "full_adamw", "peak_over_inference", 5.0, x_value=128),
    ]
    shown = ("inference", "adazeta_full")
    assert costs.memory_table(rows, shown).splitlines()[2:] == [
        "| inference | 1,000 MiB |",
        "| AdaZeta, all parameters | **1.01 times** |",
    ]


def test_what_the_methods_reach_is_said_from_the_rows():
    def summary(name, mean, width):
        ends = {"ci95_low": mean - width / 2, "ci95_high": mean + width / 2}
        config = {"trains": "blocks", "mean": mean, **(ends if width else {})}
        return {"provider": name, "config": config}

    found = [summary("zero_shot", 0.7, 0), summary("a", 0.8, 0.02), summary("b", 0.75, 0.1),
             summary("c", 0.6, 0.4)]  # fmt: skip
    del found[0]["config"]["trains"]
    pilots = [{"op": "pilot", "metric": "dev_loss", "median": loss} for loss in (0.5, 1.25)]
    text = methods_tables.reading(found, pilots)
    assert "reaches 70.0%. On `blocks`, 2 of 3 methods end above it" in text
    assert "within 5.0 points" in text and "2.0 to 10.0 points wide" in text
    assert text.endswith("from 0.50 to 1.25.")
