"""``host``: its rows, without a card."""

import json

import pytest

pytest.importorskip("triton")

from benchmarks.__main__ import main  # noqa: E402
from benchmarks.measure import stubbed  # noqa: E402
from benchmarks.measure.harness import Options, Refused  # noqa: E402
from benchmarks.suites import host  # noqa: E402
from tests.helpers.rows import check_rows  # noqa: E402


def test_host_measures_an_adapter_and_an_evaluation(tmp_path):
    file = tmp_path / "rows.json"
    assert main(["host", "--small", "--rounds", "2", "--json", str(file)]) == 0
    rows = json.loads(file.read_text())
    check_rows(rows)
    assert {(row["op"], row["provider"]) for row in rows} == {
        ("tt_adapter", "kernel[grid]"),
        ("tt_adapter", "adazeta"),
        ("evaluation", "forward"),
        ("evaluation", "perturbing"),
        ("evaluation", "copies"),
        ("evaluation", "evaluation"),
    }


def test_host_is_for_the_cpu():
    with pytest.raises(Refused, match="leave --device cpu"):
        host.rows(Options(device="cuda"))


def test_a_process_that_fails_says_why():
    with pytest.raises(RuntimeError, match="No module named"):
        stubbed.run("benchmarks.none_such")
