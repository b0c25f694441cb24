"""Charts as SVG text, drawn without a library, so that a report is one file that opens anywhere."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 420, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 26, 34
_MOST_TICKS = 6
_LABEL = 70
"""Room that a mark's text wants."""
_NAMES, _NAME_LETTERS, _ROW = 120, 18, 22
"""Room for names before intervals, letters that fit, and the height of a row."""
_DASHES = ("", "6 3", "2 3", "8 3 2 3")
"""Lines beyond six repeat the colours."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """A line: its name and its points (x, y), from left to right."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A value with the interval around it, and the single values that it is the mean of."""

    name: str
    value: float
    half_width: float | None
    """Half of the interval; none if there is none."""
    points: Sequence[float] = ()
    colour: int = 0
    """Number of its colour, as that of a line among others."""


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """Counts of values between consecutive edges; `mark` draws a line at a value, with its meaning."""

    title: str
    edges: Sequence[float]
    counts: Sequence[int]
    mark: tuple[float, str] | None = None


def histogram_svg(histogram: Histogram) -> str:
    """Bars, each with its range and count on hovering."""
    edges, counts = histogram.edges, histogram.counts
    frame = _Frame(low=edges[0], high=edges[-1], top=max([*counts, 1]))
    bars = []
    for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True):
        left, right = frame.x(low), frame.x(high)
        y = frame.y(count)
        hover = f"<title>{short_number(low)} to {short_number(high)}: {count:,}</title>"
        box = f'x="{left:.1f}" y="{y:.1f}" width="{max(right - left - 1, 0.5):.1f}" height="{frame.bottom - y:.1f}"'
        bars.append(f'<rect class="bar" {box}>{hover}</rect>')
    if histogram.mark and edges[0] <= histogram.mark[0] <= edges[-1]:
        x = frame.x(histogram.mark[0])
        bars.append(f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{frame.bottom}"/>')
        anchor = f'x="{x - 4:.1f}" text-anchor="end"' if x > WIDTH - _RIGHT - _LABEL else f'x="{x + 4:.1f}"'
        bars.append(f'<text class="mark" {anchor} y="{_TOP + 10}">{escape(histogram.mark[1])}</text>')
    return _svg(histogram.title, frame, bars)


def lines_svg(title: str, series: Sequence[Series], *, x_name: str = "", is_log: bool = False, from_zero: bool = True) -> str:
    """Lines with their points, each of which says its values on hovering; beyond six, lines are dashed. `is_log` is for
    positive x. Unless `from_zero`, the values' own range is shown, with the names to its right.
    """
    points = [point for line in series for point in line.points]
    if not points:
        return ""
    xs, ys = [x for x, _ in points], [y for _, y in points]
    floor = 0.0 if from_zero else min(ys) - 0.05 * (max(ys) - min(ys))
    right = _RIGHT if from_zero else _NAMES
    top = max([*ys, floor + max(1e-9, 1e-9 * abs(floor))])  # values that are all the same have a height too
    frame = _Frame(low=min(xs), high=max(xs), floor=floor, top=top, right=right, is_log=is_log)
    drawn = []
    for number, line in enumerate(series):
        path = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in line.points)
        dashes = f' stroke-dasharray="{_DASHES[number // 6 % len(_DASHES)]}"' if number >= 6 else ""
        drawn.append(f'<polyline class="line c{number % 6}"{dashes} points="{path}"/>')
        for x, y in line.points:
            hover = f"<title>{escape(line.name)}: {short_number(x)}, {short_number(y)}</title>"
            drawn.append(f'<circle class="c{number % 6}" cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="3">{hover}</circle>')
        if len(series) > 1:
            y = frame.bottom - 8 - 13 * number if from_zero else _TOP + 4 + 12 * number
            x = _LEFT + 8 if from_zero else WIDTH - right + 8
            drawn.append(f'<text class="legend c{number % 6}" x="{x}" y="{y}">{escape(_short_name(line.name))}</text>')
    if x_name:
        drawn.append(f'<text class="axis" x="{WIDTH - right}" y="{HEIGHT - 4}" text-anchor="end">{escape(x_name)}</text>')
    return _svg(title, frame, drawn)


def intervals_svg(title: str, intervals: Sequence[Interval]) -> str:
    """A row for each interval around its value, with the single values as dots, over a line at zero."""
    ends = [one.value + sign * (one.half_width or 0) for one in intervals for sign in (-1, 1)]
    ends += [0.0, *(point for one in intervals for point in one.points)]
    frame = _Frame(low=min(ends), high=max(ends) if max(ends) > min(ends) else 1.0, top=1.0, left=_NAMES)
    bottom = _TOP + _ROW * len(intervals)
    drawn = [f'<text class="title" x="8" y="14">{escape(title)}</text>']
    for value in frame.x_ticks:
        x = frame.x(value)
        drawn.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{bottom}"/>')
        drawn.append(f'<text class="axis" x="{x:.1f}" y="{bottom + 14}" text-anchor="middle">{short_number(value)}</text>')
    zero = frame.x(0.0)
    drawn.append(f'<line class="mark" x1="{zero:.1f}" x2="{zero:.1f}" y1="{_TOP}" y2="{bottom}"/>')
    for number, one in enumerate(intervals):
        drawn += _interval(one, frame, y=_TOP + _ROW * (number + 0.5))
    height = bottom + 22
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">{"".join(drawn)}</svg>'


def _interval(one: Interval, frame: "_Frame", *, y: float) -> list[str]:
    half, colour = one.half_width, f"c{one.colour % 6}"
    said = f"{one.name}: {short_number(one.value)}" + ("" if half is None else f" ± {short_number(half)}")
    drawn = [f'<text class="axis" x="8" y="{y + 4:.1f}">{escape(_short_name(one.name))}<title>{escape(said)}</title></text>']
    if half is not None:
        low, high = frame.x(one.value - half), frame.x(one.value + half)
        drawn.append(f'<line class="line {colour}" x1="{low:.1f}" x2="{high:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
    drawn += [f'<circle class="{colour}" fill-opacity="0.35" cx="{frame.x(x):.1f}" cy="{y:.1f}" r="2.5"/>' for x in one.points]
    hover = f"<title>{escape(said)}</title>"
    return [*drawn, f'<circle class="{colour}" cx="{frame.x(one.value):.1f}" cy="{y:.1f}" r="4">{hover}</circle>']


def _short_name(name: str) -> str:
    return name if len(name) <= _NAME_LETTERS else f"{name[: _NAME_LETTERS - 1]}…"


@dataclass(frozen=True, kw_only=True)
class _Frame:
    """Scale from values to positions in the picture."""

    low: float
    high: float
    top: float
    floor: float = 0.0
    left: float = _LEFT
    right: float = _RIGHT
    is_log: bool = False

    @property
    def bottom(self) -> float:
        return HEIGHT - _BOTTOM

    @property
    def x_ticks(self) -> list[float]:
        if not self.is_log:
            return _round_numbers(self.low, self.high)
        return [10.0**power for power in range(math.ceil(math.log10(self.low)), math.floor(math.log10(self.high)) + 1)]

    def x(self, value: float) -> float:
        low, high, position = (math.log(x) if self.is_log else x for x in (self.low, self.high, value))
        share = (position - low) / (high - low) if high > low else 0.5
        return self.left + share * (WIDTH - self.left - self.right)

    def y(self, value: float) -> float:
        return self.bottom - (value - self.floor) / (self.top - self.floor) * (self.bottom - _TOP)


def _svg(title: str, frame: _Frame, drawn: Sequence[str]) -> str:
    axes = []
    for value in _round_numbers(frame.floor, frame.top):
        y = frame.y(value)
        axes.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - frame.right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        axes.append(f'<text class="axis" x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{short_number(value)}</text>')
    for value in frame.x_ticks:
        x = min(frame.x(value), WIDTH - 16)  # so that the label stays inside
        axes.append(f'<text class="axis" x="{x:.1f}" y="{HEIGHT - 18}" text-anchor="middle">{short_number(value)}</text>')
    heading = f'<text class="title" x="{_LEFT}" y="14">{escape(title)}</text>'
    inside = heading + "".join([*axes, *drawn])
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{inside}</svg>'


def _round_numbers(low: float, high: float) -> list[float]:
    """Two to six multiples of 1, 2 or 5 times a power of ten between the two; where they are equal, that number."""
    if high <= low:
        return [low]
    power = 10.0 ** math.floor(math.log10((high - low) / (_MOST_TICKS - 1)))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor * (_MOST_TICKS - 1) >= high - low)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [step * number for number in range(first, last + 1)]


def short_number(value: float) -> str:
    """A number in at most seven characters."""
    if not math.isfinite(value):
        return "?"
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if letter == 'k' else size):.3g}{letter}"
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"
