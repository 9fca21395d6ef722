"""The suite of training all weights by gradients, on the small model."""

import pytest

from benchmarks.measure.harness import Options
from benchmarks.report.tables.low_memory import NO_ROWS, low_memory_table
from benchmarks.subjects.workload import small_workload
from benchmarks.suites import low_memory


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


def test_the_rate_of_least_dev_loss_is_reported(monkeypatch):
    runs = []

    def measured(rule, rate, steps, options, *flags):
        runs.append((rule, rate, *flags))
        if flags == ("--evaluate",):
            loss = {3e-4: float("nan"), 1e-3: 0.5, 3e-3: 0.7}[rate]
            return {"dev_loss": loss, "test_loss": loss, "test_accuracy": 0.75, "peak": 1.0}
        return {"state": 1.0, "parameters": 200.0, "live_gradient": 20.0, "largest": 20.0,
                "peak": 900.0, "peak_above_loading": 100.0}  # fmt: skip

    monkeypatch.setattr(low_memory, "measured", measured)
    rows = low_memory.rows(Options(only="memory"))
    assert len(runs) == 4 and runs[-1][2:] == ("--frozen",)
    rows += low_memory.rows(Options(only="accuracy adalomo"))
    assert runs[4:] == [("adalomo", rate, "--evaluate") for rate in (3e-4, 1e-3, 3e-3)]
    _, _, first, second = low_memory_table(rows).splitlines()[2:]
    assert first == (
        "| AdaLomo, fused | 1.0 MiB, 0.50% of the weights | 20 MiB, 10% | 100 MiB | 0.001 | 0.500 "
        "| 75.0% |"
    )
    assert second.endswith("| 100 MiB | - | - | - |")
    assert low_memory_table([]) == NO_ROWS
