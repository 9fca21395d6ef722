import json

from benchmarks.__main__ import main


def test_the_ops_suite_runs_and_writes_rows(tmp_path, capsys):
    file = tmp_path / "rows.json"
    assert main(["ops", "--small", "--repeats", "2", "--json", str(file)]) == 0
    rows = json.loads(file.read_text())
    keys = {
        "benchmark", "op", "provider", "mode", "dtype", "x_name", "x_value", "metric", "unit",
        "median", "p20", "p80", "device", "versions", "config",
    }  # fmt: skip
    assert all(set(row) == keys for row in rows)
    assert {row["op"] for row in rows} == {"add_noise_", "tt_linear"}
    assert all(row["p20"] <= row["median"] <= row["p80"] for row in rows)
    assert "add_noise_" in capsys.readouterr().out
