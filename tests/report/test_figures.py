"""Axes, thinned curves and settings, on values worked out by hand."""

import pytest

from adazeta.report.curves import Figure, Point, Series
from adazeta.report.figures import Axis, by_evaluations, by_step, draw, number_text, thinned
from adazeta.report.settings import same


@pytest.mark.parametrize(
    ("low", "high", "whole", "ticks"),
    [
        (0, 1, False, [0, 0.25, 0.5, 0.75, 1]),
        (0.13, 0.47, False, [0.2, 0.3, 0.4]),
        (0, 14, True, [0, 5, 10]),
        (0, 1, True, [0, 1]),
        (0, 3, True, [0, 1, 2, 3]),
        (0, 10_000, True, [0, 2500, 5000, 7500, 10_000]),
        (-3, 1, False, [-3, -2, -1, 0, 1]),
    ],
)
def test_ticks_are_round_numbers_within_the_axis(low, high, whole, ticks):
    assert Axis(low, high, whole=whole).ticks == pytest.approx(ticks)


def test_a_logarithmic_axis_ends_at_powers_of_ten():
    axis = Axis(0.002, 30, logarithmic=True)
    assert axis.ticks == pytest.approx([0.001, 0.01, 0.1, 1, 10, 100])
    assert axis.share(0.1) == pytest.approx(0.4)


def test_a_long_curve_keeps_its_ends_and_extremes():
    line = [(step, 0.0) for step in range(5000)]
    line[1234], line[4321] = (1234, 9.0), (4321, -9.0)
    kept = thinned(line)
    assert len(kept) < 260 and kept == sorted(kept)
    assert {line[0], line[1234], line[4321], line[-1]} <= set(kept)
    assert thinned(line[:200]) == line[:200]


def test_a_curve_whose_evaluations_are_not_known_says_so():
    points = [Point(1, None, 0.5), Point(2, None, 0.7)]
    figure = Figure("A <b>", [Series("x&y", points)])
    assert "<path" in draw(figure, "step", by_step) and "A &lt;b&gt; by step" in draw(
        figure, "step", by_step
    )
    assert "Nothing is known by evaluations" in draw(figure, "evaluations", by_evaluations)


@pytest.mark.parametrize("value", [0.0, 5.0, -3.0, 1e-9, 1e12])
def test_a_curve_of_one_value_is_drawn(value):
    figure = Figure("t", [Series("s", [Point(3, 6, value)])])
    assert 'class="dot c0"' in draw(figure, "step", by_step)


def test_rates_of_several_magnitudes_can_all_be_seen():
    high = Series("high", [Point(s, s, 1.0) for s in range(5)])
    low = Series("low", [Point(s, s, 1e-3 * (1 - s / 4)) for s in range(5)], 1)
    text = draw(Figure("Learning rate", [high, low], scales=True), "step", by_step)
    assert ">0.001<" in text and text.count('class="dot c1"') == 4  # not the zero at its end


def test_numbers_for_people():
    texts = [number_text(value) for value in (0.0, 12_345.0, 0.123456, 1234.56, 1e-7, -2.5)]
    assert texts == ["0", "12,345", "0.1235", "1,235", "1e-07", "-2.5"]
    assert number_text(20_000.0, short=True) == "20k"


def test_settings_mean_the_same_however_they_are_written():
    assert same("1e-2", 0.01) and same("true", True) and same("null", None) and same((1,), ["1"])
    assert same({0: "a"}, {0: "a"}) and not same({0: "a"}, {1: "a"})
    assert not same(1, True) and not same("a", "b") and not same([1], [1, 2])
