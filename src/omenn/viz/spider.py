"""Spider plots and bars with intervals, as SVG and HTML that need no script."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from omenn.viz.bench_table import Column, Line, Table, Value, interval, short

# Colours that also differ for those who see few of them (Okabe, Ito), darkened for white ground.
COLOURS = ("#0063a3", "#b34700", "#00734f", "#8e2f7f", "#6b5900", "#a0113a", "#39308f", "#3d5560")
DASHES = ("", "7 3", "2 3")
_WIDTH, _HEIGHT, _RADIUS = 640, 500, 180
_LETTERS = 17  # of a line of a name


@dataclass(frozen=True)
class Shape:
    """A line around the spider, one number from 0 to 1 an axis; NaN: the axis is passed over."""

    name: str
    values: tuple[float, ...]
    shown: bool = True


def spider(axes: Sequence[str], shapes: Sequence[Shape], floor: Sequence[float] = ()) -> str:
    """The shapes on their axes; ``floor``, a number an axis, is a grey ground below them.

    >>> axes = ["one", "two", "three"]
    >>> drawn = spider(axes, [Shape("omenn", (1.0, 0.5, 0.0))], [0.2, 0.2, 0.2])
    >>> drawn.count("<polygon"), drawn.count("<circle")
    (2, 4)
    """
    parts = [
        f'<svg class="spider" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{escape(", ".join(axes))}: the numbers are in the table">'
    ]
    for ring in (0.25, 0.5, 0.75, 1.0):
        parts.append(
            f'<circle class="ring" cx="{_WIDTH / 2}" cy="{_HEIGHT / 2}" r="{ring * _RADIUS}"/>'
        )
    if len(floor):
        parts.append(f'<polygon class="floor" points="{_points(floor)}"/>')
    for number, axis in enumerate(axes):
        x, y = _point(1.0, number, len(axes))
        parts.append(f'<path class="axis" d="M{_WIDTH / 2} {_HEIGHT / 2}L{x} {y}"/>')
        parts.append(_label(axis, number, len(axes)))
    for number, shape in enumerate(shapes):
        dash = dash_of(number)
        style = f'stroke="{colour_of(number)}"' + (f' stroke-dasharray="{dash}"' if dash else "")
        hidden = "" if shape.shown else " hidden"
        parts.append(
            f'<polygon class="shape{hidden}" data-shape="{number}" {style} '
            f'points="{_points(shape.values)}"><title>{escape(shape.name)}</title></polygon>'
        )
    for ring in ("0.5", "1"):
        y = _HEIGHT / 2 - float(ring) * _RADIUS
        parts.append(f'<text class="tick" x="{_WIDTH / 2 + 5}" y="{y + 12:.1f}">{ring}</text>')
    return "".join([*parts, "</svg>"])


def colour_of(number: int) -> str:
    """The colour of the n-th shape."""
    return COLOURS[number % len(COLOURS)]


def dash_of(number: int) -> str:
    """Its dashes, which tell shapes of one colour apart."""
    return DASHES[number // len(COLOURS) % len(DASHES)]


def _points(values: Sequence[float]) -> str:
    there = [
        _point(min(max(value, 0.0), 1.0), number, len(values))
        for number, value in enumerate(values)
        if not math.isnan(value)
    ]
    return " ".join(f"{x},{y}" for x, y in there)


def _point(value: float, number: int, count: int) -> tuple[float, float]:
    angle = 2 * math.pi * number / count - math.pi / 2
    x = _WIDTH / 2 + value * _RADIUS * math.cos(angle)
    return round(x, 1), round(_HEIGHT / 2 + value * _RADIUS * math.sin(angle), 1)


def _label(axis: str, number: int, count: int) -> str:
    x, y = _point(1.09, number, count)
    side = math.cos(2 * math.pi * number / count - math.pi / 2)
    anchor = "middle" if abs(side) < 0.1 else "start" if side > 0 else "end"
    lines = _lines(axis)
    y -= 8 * (len(lines) - 1)  # half of their height
    rows = "".join(
        f'<tspan x="{x}" dy="{1.15 * bool(k)}em">{escape(words)}</tspan>'
        for k, words in enumerate(lines)
    )
    return f'<text class="name" text-anchor="{anchor}" x="{x}" y="{y + 4:.1f}">{rows}</text>'


def _lines(axis: str) -> list[str]:
    """A name in lines that fit beside the spider, the metric in one of its own.

    >>> _lines("gae: gae"), _lines("relevance rank accuracy")
    (['gae', 'gae'], ['relevance rank', 'accuracy'])
    """
    return [line for part in axis.split(": ", 1) for line in textwrap.wrap(part, _LETTERS)]


def bars(table: Table, column: Column) -> str:
    """Every method by one measure, the best first, each with its interval.

    A line through all of them is the best trivial map.
    """
    there = [line for line in table.lines if not math.isnan(line.value(column))]
    if not there:
        return '<p class="quiet">No value.</p>'
    there.sort(key=lambda line: line.value(column), reverse=column.higher)
    scale = _Scale.over([line.values[column] for line in there])
    floor = table.floor(column)
    mark = "" if math.isnan(floor) else f'<i class="floor" style="left:{scale.at(floor)}"></i>'
    rows = "".join(_bar(table, line, column, scale, mark) for line in there)
    return f'<ol class="levels">{rows}</ol>'


def _bar(table: Table, line: Line, column: Column, scale: _Scale, mark: str) -> str:
    value = line.values[column]
    kind = "trivial" if line.trivial else "" if table.good(line, column) else "low"
    start, end = sorted((0.0, value.value))
    whisker = ""
    if not math.isnan(value.low):
        whisker = (
            f'<i class="whisker" style="left:{scale.at(value.low)};'
            f'width:{scale.width(value.low, value.high)}"></i>'
        )
    return (
        f'<li class="{kind}"><span class="who">{escape(line.name)}</span>'
        f'<span class="track"><i class="level" style="left:{scale.at(start)};'
        f'width:{scale.width(start, end)}"></i>{whisker}{mark}</span>'
        f'<span class="much">{short(value.value)} <small>{interval(value)}</small></span></li>'
    )


@dataclass(frozen=True)
class _Scale:
    """From numbers to shares of the width."""

    low: float
    high: float

    @classmethod
    def over(cls, values: Sequence[Value]) -> _Scale:
        ends = [end for v in values for end in (v.value, v.low, v.high) if not math.isnan(end)]
        low, high = min(0.0, *ends), max(0.0, *ends)
        return cls(low, high if high > low else low + 1.0)

    def at(self, value: float) -> str:
        return f"{100 * (value - self.low) / (self.high - self.low):.2f}%"

    def width(self, start: float, end: float) -> str:
        return f"{100 * (end - start) / (self.high - self.low):.2f}%"
