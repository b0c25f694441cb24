"""Charts as SVG text, drawn without a library, so that a report is one file that opens anywhere."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 420, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 26, 34
_TICKS = 5


@dataclass(frozen=True, kw_only=True)
class Series:
    """A line: its name and its points (x, y), from left to right."""

    name: str
    points: Sequence[tuple[float, float]]


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
        place = f'x="{left:.1f}" y="{y:.1f}" width="{max(right - left - 1, 0.5):.1f}" height="{frame.bottom - y:.1f}"'
        bars.append(f'<rect class="bar" {place}>{hover}</rect>')
    if histogram.mark and edges[0] <= histogram.mark[0] <= edges[-1]:
        x = frame.x(histogram.mark[0])
        bars.append(f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{frame.bottom}"/>')
        bars.append(f'<text class="mark" x="{x + 4:.1f}" y="{_TOP + 10}">{escape(histogram.mark[1])}</text>')
    return _svg(histogram.title, frame, bars)


def lines_svg(title: str, series: Sequence[Series], *, x_name: str = "") -> str:
    """Lines with their points, from zero upwards; each point says its values on hovering."""
    points = [point for line in series for point in line.points]
    if not points:
        return ""
    xs = [x for x, _ in points]
    frame = _Frame(low=min(xs), high=max(xs), top=max([*(y for _, y in points), 1e-9]))
    drawn = []
    for number, line in enumerate(series):
        path = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in line.points)
        drawn.append(f'<polyline class="line c{number % 6}" points="{path}"/>')
        for x, y in line.points:
            hover = f"<title>{escape(line.name)}: {short_number(x)}, {short_number(y)}</title>"
            drawn.append(f'<circle class="c{number % 6}" cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="3">{hover}</circle>')
        if len(series) > 1:
            y = frame.bottom - 8 - 13 * number
            drawn.append(f'<text class="legend c{number % 6}" x="{_LEFT + 8}" y="{y}">{escape(line.name)}</text>')
    if x_name:
        drawn.append(f'<text class="axis" x="{WIDTH - _RIGHT}" y="{HEIGHT - 4}" text-anchor="end">{escape(x_name)}</text>')
    return _svg(title, frame, drawn)


@dataclass(frozen=True, kw_only=True)
class _Frame:
    """From values to places in the picture."""

    low: float
    high: float
    top: float

    @property
    def bottom(self) -> float:
        return HEIGHT - _BOTTOM

    def x(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5
        return _LEFT + share * (WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        return self.bottom - value / self.top * (self.bottom - _TOP)


def _svg(title: str, frame: _Frame, drawn: Sequence[str]) -> str:
    axes = []
    for tick in range(_TICKS):
        value = frame.top * tick / (_TICKS - 1)
        y = frame.y(value)
        axes.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        axes.append(f'<text class="axis" x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{short_number(value)}</text>')
        place = frame.low + (frame.high - frame.low) * tick / (_TICKS - 1)
        x = frame.x(place)
        anchor = "end" if tick == _TICKS - 1 else "middle"
        axes.append(f'<text class="axis" x="{x:.1f}" y="{HEIGHT - 18}" text-anchor="{anchor}">{short_number(place)}</text>')
    heading = f'<text class="title" x="{_LEFT}" y="14">{escape(title)}</text>'
    inside = heading + "".join([*axes, *drawn])
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{inside}</svg>'


def short_number(value: float) -> str:
    """A number in at most seven characters."""
    if not math.isfinite(value):
        return "?"
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if letter == 'k' else size):.3g}{letter}"
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"
