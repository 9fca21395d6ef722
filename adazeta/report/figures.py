"""Curves as SVG, to stand inside a page; colours are classes that the page's style defines."""

import math
from collections.abc import Callable, Sequence
from html import escape

from adazeta.report.curves import Figure, Point, Series

COLOURS = 8
"""Number of the classes ``c0``, ``c1``, ...; later curves begin anew, with another dash."""

WIDTH, HEIGHT = 360, 210
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 10, 36
_MOST = 240  # points of a curve; of more, each stretch shows its lowest and highest
_MARKED = 30  # curves of no more points than this have a dot at each
_LOGARITHMIC = 100.0  # ratio of highest to lowest from which the axis is logarithmic

Position = Callable[[Point], int | None]


def by_step(point: Point) -> int | None:
    """Return where a point is on the axis of steps."""
    return point.step


def by_evaluations(point: Point) -> int | None:
    """Return where a point is on the axis of evaluations."""
    return point.evaluations


def draw(figure: Figure, axis: str, position: Position) -> str:
    """Draw a figure.

    Args:
        figure: the curves.
        axis: name of the horizontal axis.
        position: where a point is on it; a point that is nowhere is left out.

    Returns:
        An ``<svg>`` element; a paragraph that says so where no point has a place.
    """
    lines = [
        [(place, point.value) for point in series.points if (place := position(point)) is not None]
        for series in figure.series
    ]
    values = [value for line in lines for _, value in line]
    if not values:
        return f'<p class="none">Nothing is known by {escape(axis)}.</p>'
    values += figure.levels.values()
    far = _far_apart(lines) if figure.scales else None
    if far:
        lines = [[(place, value) for place, value in line if value >= far] for line in lines]
        values = [value for line in lines for _, value in line]
    farthest = max(place for line in lines for place, _ in line)
    across = Axis(0, max(farthest, 1), whole=True)
    logarithmic = far is not None or _spans(values)
    ends = _range(values, figure.counts, logarithmic)
    up = Axis(*ends, whole=figure.counts, logarithmic=logarithmic)

    def x(value: float) -> str:
        return f"{_LEFT + (WIDTH - _LEFT - _RIGHT) * across.share(value):.1f}"

    def y(value: float) -> str:
        return f"{HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * up.share(value):.1f}"

    right, floor = WIDTH - _RIGHT, HEIGHT - _BOTTOM
    parts = []
    for tick in up.ticks:
        parts.append(f'<path class="grid" d="M{_LEFT} {y(tick)}H{right}"/>')
        parts.append(f'<text x="{_LEFT - 5}" y="{y(tick)}" dy="4" text-anchor="end">'
                     f"{up.label(tick)}</text>")  # fmt: skip
    for tick in across.ticks:
        parts.append(f'<path class="tick" d="M{x(tick)} {floor}v4"/>')
        anchor = "end" if across.share(tick) > 0.97 else "middle"
        parts.append(f'<text x="{x(tick)}" y="{floor + 16}" text-anchor="{anchor}">'
                     f"{across.label(tick)}</text>")  # fmt: skip
    middle = (_LEFT + right) / 2
    parts.append(f'<text class="axis" x="{middle:g}" y="{HEIGHT - 3}" text-anchor="middle">'
                 f"{escape(axis)}</text>")  # fmt: skip
    parts.append(f'<path class="frame" d="M{_LEFT} {_TOP}V{floor}H{right}"/>')
    for number, level in enumerate(figure.levels.values()):
        parts.append(f'<path class="level l{number}" d="M{_LEFT} {y(level)}H{right}"/>')
    for number, line in enumerate(lines):
        shown = thinned(line)
        path = "L".join(f"{x(place)} {y(value)}" for place, value in shown)
        kind = colour(figure.series[number].colour)
        if len(shown) > 1:
            parts.append(f'<path class="line {kind}" d="M{path}"/>')
        if len(shown) <= _MARKED:
            label = escape(f"{figure.series[number].label}, {axis}")
            parts += [
                f'<circle class="dot {kind}" cx="{x(place)}" cy="{y(value)}" r="2.4">'
                f"<title>{label} {place:,}: {number_text(value)}</title></circle>"
                for place, value in shown
            ]
    spoken = escape(f"{figure.title} by {axis}")
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{spoken}">'
        f"{''.join(parts)}</svg>"
    )


def colour(number: int) -> str:
    """Return the classes of a curve by its place."""
    return f"c{number % COLOURS}" + (" dashed" if number >= COLOURS else "")


def thinned(line: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """Return the points of a curve that a screen can show: the extremes of each stretch."""
    if len(line) <= _MOST:
        return list(line)
    stretches = _MOST // 2
    kept: list[tuple[int, float]] = []
    for number in range(stretches):
        stretch = line[number * len(line) // stretches : (number + 1) * len(line) // stretches]
        ends = {min(stretch, key=lambda p: p[1]), max(stretch, key=lambda p: p[1])}
        kept += sorted(ends)
    return [line[0], *(p for p in kept if p not in (line[0], line[-1])), line[-1]]


class Axis:
    """Where values are along an axis, and which are named.

    Args:
        low, high: the ends; they are moved outwards to ticks where values are not whole.
        whole: only whole numbers are named.
        logarithmic: equal ratios are equal distances; both ends are above 0.
    """

    def __init__(
        self, low: float, high: float, *, whole: bool = False, logarithmic: bool = False
    ) -> None:
        self.low, self.high, self.logarithmic = low, high, logarithmic
        if logarithmic:
            first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
            every = max(1, math.ceil((last - first) / 5))
            self.low, self.high = 10.0**first, 10.0**last
            self.ticks = [10.0**power for power in range(first, last + 1, every)]
            return
        step = _step((high - low) / 4)
        if whole:
            step = max(1, math.ceil(step)) if step < 1 or step == int(step) else step
        first = math.ceil(low / step - 1e-9)
        last = math.floor(high / step + 1e-9)
        self.ticks = [number * step for number in range(first, last + 1)]

    def share(self, value: float) -> float:
        """Return where a value is, from 0 to 1."""
        if self.logarithmic:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def label(self, tick: float) -> str:
        """Return the text of a tick."""
        return number_text(tick, short=True)


def _step(about: float) -> float:
    """Return the round number next above a distance: 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(about))
    return next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= about * (1 - 1e-9))


def _range(values: Sequence[float], counts: bool, logarithmic: bool) -> tuple[float, float]:
    low, high = min(values), max(values)
    if counts:
        return 0.0, max(high, 1.0)
    if logarithmic:
        return low, high
    room = 0.06 * (high - low) or abs(high) * 0.05 or 1.0
    return low - room, high + room


def _far_apart(lines: Sequence[Sequence[tuple[int, float]]]) -> float | None:
    """Return what is too small to be drawn beside other curves, if they differ by magnitudes.

    A rate that decays to zero would otherwise take all of a logarithmic axis.
    """
    tops = [max(value for _, value in line) for line in lines if line]
    if len(tops) < 2 or min(tops) <= 0 or max(tops) < 10 * min(tops):
        return None
    return max(min(tops) / 30, max(tops) / 1e9)


def _spans(values: Sequence[float]) -> bool:
    return min(values) > 0 and max(values) / min(values) >= _LOGARITHMIC


def number_text(value: float, *, short: bool = False) -> str:
    """Return a number for people: whole ones with commas, others with four digits."""
    if value == int(value) and abs(value) < 1e15 and (abs(value) >= 1 or value == 0):
        whole = int(value)
        if short and abs(whole) >= 10_000:
            for size, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
                if abs(whole) >= size:
                    return f"{whole / size:g}{unit}"
        return f"{whole:,}"
    if not short and 1000 <= abs(value) < 1e15:
        return f"{value:,.0f}"
    return f"{value:.3g}" if short else f"{value:.4g}"


def last_value(series: Series) -> str:
    """Return the last value of a curve, for the legend."""
    return number_text(series.points[-1].value) if series.points else "-"
