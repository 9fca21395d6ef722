"""``int8``: its linears, its rows, and what its table says."""

import json

import pytest
import torch
from torch import nn

from benchmarks.__main__ import main
from benchmarks.measure.harness import Cell
from benchmarks.report.tables.int8 import NO_INT8, int8_table
from benchmarks.subjects.integers import LEVELS, IntegerProduct, multiply_in_integers
from tests.helpers.rows import check_rows


@pytest.mark.parametrize("shape", [(37, 24), (1, 24), (3, 5, 24)])
def test_products_are_those_of_rounded_weights_and_activations(shape):
    torch.manual_seed(0)
    linear, x = nn.Linear(24, 16), torch.randn(shape)
    x[0] = 0  # a token of zeros has no scale
    steps = x.abs().amax(-1, keepdim=True) / LEVELS, linear.weight.abs().amax(1) / LEVELS
    rounded = (x / steps[0]).nan_to_num().round() * steps[0]
    weight = (linear.weight / steps[1][:, None]).round() * steps[1][:, None]
    expected = nn.functional.linear(rounded, weight, linear.bias)
    torch.testing.assert_close(IntegerProduct(linear)(x), expected, atol=1e-6, rtol=1e-5)
    none = nn.Linear(24, 16, bias=False)
    none.weight = linear.weight
    torch.testing.assert_close(
        IntegerProduct(none)(x), expected - linear.bias, atol=1e-6, rtol=1e-5
    )


def test_frozen_linears_alone_change_and_hooks_stay():
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    model[0].weight.requires_grad_(False)
    seen = []
    model[0].register_forward_hook(lambda *_: seen.append(1))
    assert multiply_in_integers(model) == ["0"]
    model(torch.randn(20, 8))
    assert seen == [1]


def test_rows_at_every_scale_and_of_an_evaluation(tmp_path):
    file = tmp_path / "rows.json"
    command = ["int8", "--small", "--quick", "--rounds", "2", "--json", str(file)]
    assert main(command) == 0
    rows = json.loads(file.read_text())
    check_rows(rows)
    found = {(row["provider"], row["op"]) for row in rows}
    assert found == {
        (name, op)
        for name in ("float32", "int8", "int8_last10")
        for op in ("gradients", "evaluation")
    }
    own = [r["median"] for r in rows if (r["provider"], r["metric"]) == ("float32", "correlation")]
    assert max(own) == pytest.approx(1)
    assert "in the same time." in int8_table(rows)


def test_the_table_says_what_integers_are_worth():
    assert int8_table([]) == NO_INT8

    def said(best, speed):
        rows = []
        for eps, r in ((0.01, 0.5), (0.1, best)):
            cell = Cell("int8", "gradients", "seed 0", "eps", eps, "cpu")
            for name, value in (("float32", 1.0), ("int8", r), ("int8_last10", 0.25)):
                rows.append(cell.row(name, "correlation", "1", [value], {}))
        cell = Cell("int8", "evaluation", "inference", "batch", 8, "cpu")
        for name, value in (("int8", speed), ("int8_last10", 1.0)):
            rows.append(cell.row(name, "speedup_over_float32", "times", [value], {}))
        return int8_table(rows)

    table = said(0.6, 2.0)
    assert "| 0.1 | 1.000 | 0.600 | 0.250 |" in table
    assert "all blocks, they **do not do**: an evaluation is 2.00 times as fast" in table
    assert "at the best scale, 0.1, the correlation is 0.600, which is worth 0.72 of" in table
    assert "all blocks, they **do**" in said(0.99, 2.0)
    assert "all blocks, they **do not do**" in said(0.99, 0.9)
