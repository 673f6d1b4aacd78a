"""Where things lie in the charts of the page of a benchmark: spiders and bars with intervals."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from omenn.viz.bench_table import Column, Results, Row, best_of, floor

# Colours that also differ for those who see few of them (Okabe, Ito), darkened for white ground.
COLOURS = ("#0063a3", "#b34700", "#00734f", "#8e2f7f", "#6b5900", "#a0113a", "#39308f", "#3d5560")
DASHES = ("", "7 3", "2 3")  # tell shapes of one colour apart
AT_FIRST = 4  # methods that the spider shows until others are chosen
_RADIUS = 180
_LETTERS = 17  # of a line of a name


@dataclass(frozen=True)
class Axis:
    """An axis of a spider: its end, and its name in lines from (x, y) of the label on."""

    end: str
    x: float
    y: float
    anchor: str
    lines: list[str]


@dataclass(frozen=True)
class Shape:
    """A method on a spider: its corners, and how its line is drawn."""

    name: str
    points: str
    colour: str
    dash: str
    shown: bool


@dataclass(frozen=True)
class Spider:
    """Methods on axes from 0 in the middle to 1; ``floor`` are the corners of the grey ground."""

    axes: list[Axis]
    shapes: list[Shape]
    floor: str


def spider(results: Results, model: str) -> Spider | None:
    """The methods of a model on the measures from 0 to 1; None for fewer than three of those."""
    axes = [column for column in results.columns if column.axis]
    trivial = {row.method for row in results.rows if row.trivial}
    values: dict[str, list[float]] = {}
    for method in results.of(model):
        cells = (results.cell(model, method, axis) for axis in axes)
        values[method] = [row.value if row else math.nan for row in cells]
    heights = {
        method: sum(known) / len(known)
        for method, own in values.items()
        if method not in trivial and (known := [value for value in own if not math.isnan(value)])
    }
    if len(axes) < 3 or not heights:
        return None
    first = sorted(heights, key=lambda method: heights[method], reverse=True)[:AT_FIRST]
    names = [column.measure for column in axes]
    labels = [c.measure if names.count(c.measure) == 1 else c.name for c in axes]
    shapes = [
        Shape(
            method,
            _points(values[method]),
            COLOURS[number % len(COLOURS)],
            DASHES[number // len(COLOURS) % len(DASHES)],
            method in first,
        )
        for number, method in enumerate(heights)
    ]
    floors = [
        best_of((own[k] for method, own in values.items() if method in trivial), axis.higher)
        for k, axis in enumerate(axes)
    ]
    ground = _points(floors) if trivial else ""
    return Spider([_axis(label, k, len(axes)) for k, label in enumerate(labels)], shapes, ground)


def _points(values: Sequence[float]) -> str:
    """The corners of a shape, in the notation of SVG; an axis without a number is passed over."""
    corners = [
        _point(min(max(value, 0.0), 1.0), number, len(values))
        for number, value in enumerate(values)
        if not math.isnan(value)
    ]
    return " ".join(f"{x},{y}" for x, y in corners)


def _point(value: float, number: int, count: int) -> tuple[float, float]:
    """A number on an axis, from the middle; the first axis points upward."""
    angle = 2 * math.pi * number / count - math.pi / 2
    distance = value * _RADIUS
    return round(distance * math.cos(angle), 1), round(distance * math.sin(angle), 1)


def _axis(label: str, number: int, count: int) -> Axis:
    end = _point(1.0, number, count)
    x, y = _point(1.09, number, count)
    anchor = "middle" if abs(x) < 0.11 * _RADIUS else "start" if x > 0 else "end"
    # the metric has a line of its own
    lines = [line for part in label.split(": ", 1) for line in textwrap.wrap(part, _LETTERS)]
    half = 8 * (len(lines) - 1)
    return Axis(f"{end[0]} {end[1]}", x, round(y - half + 4, 1), anchor, lines)


@dataclass(frozen=True)
class Level:
    """A method in a bar chart: from ``start`` on, ``width`` wide, in per cent of the track."""

    row: Row
    start: float
    width: float
    whisker: tuple[float, float] | None


@dataclass(frozen=True)
class Bars:
    """Every method by one measure, the best first; ``floor``: where the best trivial map lies."""

    column: Column
    levels: list[Level]
    floor: float | None


def bars(results: Results, model: str, column: Column) -> Bars:
    """The chart of a measure, empty where no method has a value."""
    cells = (results.cell(model, method, column) for method in results.of(model))
    rows = [row for row in cells if row and row.known]
    rows.sort(key=lambda row: row.value, reverse=column.higher)
    ends = [end for r in rows for end in (r.value, r.low, r.high) if not math.isnan(end)]
    low, high = min([0.0, *ends]), max([0.0, *ends])
    span = high - low or 1.0

    def share(value: float) -> float:
        return 100 * (value - low) / span

    levels = []
    for row in rows:
        start, end = sorted((share(0.0), share(row.value)))
        known = not math.isnan(row.low)
        whisker = (share(row.low), share(row.high) - share(row.low)) if known else None
        levels.append(Level(row, start, end - start, whisker))
    best = floor(rows, column.higher)
    return Bars(column, levels, None if math.isnan(best) else share(best))
