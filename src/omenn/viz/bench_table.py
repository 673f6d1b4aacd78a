"""The results of a benchmark as one long table, of which every file, page and printed table is a
view."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

from omenn.viz.wording import number

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measure of one metric, of one method on one model; or the ``error`` of a failed cell.

    ``value`` has a 95 % interval from ``low`` to ``high`` over ``images`` numbers, ``values``; NaN
    where there is none. ``chance``: of a random map. ``above_trivial``: better than every map that
    does not depend on the model; ``best``: the best of the methods, and above those maps. A cell
    that failed is one row without a measure.
    """

    model: str
    method: str
    trivial: bool
    metric: str
    measure: str | None = None
    higher_is_better: bool = True
    value: float = math.nan
    low: float = math.nan
    high: float = math.nan
    images: int = 0
    values: tuple[float, ...] | None = None
    chance: float | None = None
    above_trivial: bool = False
    best: bool = False
    counted: Mapping[str, int] = field(default_factory=dict)
    error: str | None = None
    seconds_per_picture: float | None = None
    peak_memory_bytes: int | None = None

    @property
    def known(self) -> bool:
        """Whether there is a number."""
        return not math.isnan(self.value)

    @property
    def low_score(self) -> bool:
        """Whether it is the value of a method and not above every trivial map."""
        return self.known and not self.trivial and not self.above_trivial


@dataclass(frozen=True)
class Column:
    """A measure of a metric.

    ``higher``: more is better. ``headline``: shown first. ``axis``: of the spider, from 0 to 1.
    """

    metric: str
    measure: str
    higher: bool = True
    headline: bool = False
    axis: bool = False

    @property
    def name(self) -> str:
        """The measure, with its metric unless that has the same name."""
        same = self.metric.replace("-", " ") == self.measure.replace("-", " ")
        return self.measure if same else f"{self.metric}: {self.measure}"

    @property
    def label(self) -> str:
        """The measure, with an arrow where less is better."""
        return f"{self.measure}{'' if self.higher else ' ↓'}"


@dataclass(frozen=True)
class Results:
    """The long table of a run and what is said of its models, methods and metrics.

    ``models``: name → weights, warning, pictures and facts; ``methods``: name → promise and
    summary; ``metrics``: name → what it is and its source; ``plan``: as TOML.
    """

    rows: tuple[Row, ...]
    columns: tuple[Column, ...]
    models: Mapping[str, Mapping[str, Any]]
    methods: Mapping[str, Mapping[str, str]]
    metrics: Mapping[str, str]
    data: str
    plan: str
    versions: Mapping[str, str]
    seed: int

    @cached_property
    def _cells(self) -> Mapping[tuple[str, ...], Row]:
        return {(r.model, r.method, r.metric, r.measure or ""): r for r in self.rows}

    @property
    def headlines(self) -> tuple[Column, ...]:
        """The measures that are shown first."""
        return tuple(column for column in self.columns if column.headline)

    @property
    def trivial(self) -> bool:
        """Whether there are trivial maps."""
        return any(row.trivial for row in self.rows)

    def cell(self, model: str, method: str, column: Column) -> Row | None:
        """The row of a measure, or that which says why it failed; None where there is neither."""
        failed = self._cells.get((model, method, column.metric, ""))
        return self._cells.get((model, method, column.metric, column.measure), failed)

    def of(self, model: str) -> dict[str, list[Row]]:
        """Method → its rows on a model."""
        return grouped((row for row in self.rows if row.model == model), lambda row: row.method)


def grouped(rows: Iterable[Row], key: Callable[[Row], K]) -> dict[K, list[Row]]:
    """Key → its rows, both in the order of the table."""
    found: dict[K, list[Row]] = {}
    for row in rows:
        found.setdefault(key(row), []).append(row)
    return found


def floor(rows: Iterable[Row], higher: bool) -> float:
    """The best value of a trivial map; NaN if there is none."""
    return best_of((row.value for row in rows if row.trivial), higher)


def best_of(values: Iterable[float], higher: bool) -> float:
    """The largest or the smallest number; NaN if there is none.

    >>> best_of([1.0, float("nan"), 2.0], higher=False)
    1.0
    """
    there = [value for value in values if not math.isnan(value)]
    return (max if higher else min)(there, default=math.nan)


def short(value: float) -> str:
    """A value as tables have it.

    >>> short(0.8531), short(-12.3456), short(float("nan"))
    ('0.853', '−12.35', '–')
    """
    if math.isnan(value):
        return "–"
    return f"{value:.3f}".replace("-", "−") if abs(value) < 10 else number(value)


def interval(low: float, high: float) -> str:
    """The ends of an interval in few digits.

    >>> interval(0.25, 0.75)
    '[0.25, 0.75]'
    """
    if math.isnan(low):
        return ""
    return f"[{_end(low)}, {_end(high)}]".replace("-", "−")


def fewer(rows: Iterable[Row], pictures: int) -> str:
    """The metrics that have not one number for each picture, such as mosaics, in a sentence.

    Empty where all have.
    """
    said = []
    measured = (row for row in rows if row.measure)
    for metric, own in grouped(measured, lambda row: row.metric).items():
        images = [row.images for row in own]
        least, most = min(images), max(images)
        if least < pictures or most > least:
            said.append(f"{metric} {least}" + (f" to {most}" if most > least else ""))
    return f"Fewer numbers than pictures, of a row: {', '.join(said)}." if said else ""


def notes(rows: Iterable[Row], *, trivial: bool = True) -> dict[tuple[str, str], str]:
    """(Metric, what was counted) → how often, of which methods: constant maps, pictures that are
    left out, and the like. Without ``trivial`` those of the trivial maps are not listed.

    >>> notes([Row(model="net", method=name, trivial=False, metric="m", measure="m",
    ...     counted={"constant maps": 2}) for name in ("a", "b")])
    {('m', 'constant maps'): '2 for every row'}
    """
    measured = [row for row in rows if row.measure]
    found: dict[tuple[str, str], dict[str, int]] = {}
    for row in measured:
        for what, count in row.counted.items():
            found.setdefault((row.metric, what), {})[row.method] = count
    every = {row.method for row in measured}
    hidden = set() if trivial else {row.method for row in measured if row.trivial}
    said = {}
    for key, counts in found.items():
        if len(set(counts.values())) == 1 and set(counts) >= every:
            said[key] = f"{next(iter(counts.values()))} for every row"
        elif named := [f"{name} {n}" for name, n in counts.items() if name not in hidden]:
            said[key] = ", ".join(named)
    return said


def failures(rows: Iterable[Row]) -> dict[str, str]:
    """Why cells failed → which."""
    failed = grouped((row for row in rows if row.error), lambda row: row.error or "")
    return {why: ", ".join(f"{r.method} ({r.metric})" for r in own) for why, own in failed.items()}


def _end(end: float) -> str:
    """Three digits, and all of a whole number that is not long.

    >>> _end(-0.256), _end(15.33), _end(3929.4)
    ('-0.26', '15.3', '3929')
    """
    size = abs(end)
    if size >= 1e5:
        return number(end, digits=3)
    return f"{end:.{2 if size < 10 else 1 if size < 100 else 0}f}"
