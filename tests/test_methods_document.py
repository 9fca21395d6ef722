"""Tables of docs/methods.md and README.md: those of the registry and of the rows."""

import json

import pytest

from adazeta import METHODS
from benchmarks.__main__ import main
from benchmarks.report import tables
from benchmarks.subjects.accuracy_methods import methods


def test_the_table_of_methods_is_current():
    text = tables.DOCUMENT.read_text(encoding="utf-8")
    assert tables.filled(text, "methods", tables.methods_table()) == text
    assert all(f"**{name}**" in text for name in METHODS)


def test_the_tables_of_measurements_are_those_of_the_committed_rows():
    assert main(["evidence", "--check"]) == 0
    committed = {row["provider"] for row in json.loads(tables.ACCURACY.read_text())}
    assert committed - {"zero_shot"} == set(tables.LABELS) == set(methods(16))


def test_evidence_is_filled_in_from_rows(tmp_path, monkeypatch):
    document, rows = tmp_path / "methods.md", tmp_path / "rows.json"
    document.write_text(
        "<!-- methods -->\nold\n<!-- end of methods -->\n\n"
        "<!-- evidence -->\nold\n<!-- end of evidence -->\nrest\n"
    )
    readme = tmp_path / "README.md"
    readme.write_text(
        "".join(f"<!-- {name} -->\nold\n<!-- end of {name} -->\n" for name in ("step", "accuracy"))
    )
    monkeypatch.setattr(tables, "DOCUMENT", document)
    monkeypatch.setattr(tables, "README", readme)
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
    table = readme.read_text()
    assert "| MeZO, all parameters | 0.02 | 80.0% | 70.0 to 90.0 |" in table
    assert "helene" not in table and "old" not in table
    rows.write_text("[]")
    main(["evidence", "--json", str(rows)])
    assert tables.NOTHING in document.read_text()
    with pytest.raises(ValueError, match="no section 'methods'"):
        tables.filled("text", "methods", "")
