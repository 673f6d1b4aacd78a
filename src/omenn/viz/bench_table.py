"""The results of a benchmark as tables: what is best, and what is better than a map that knows
nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from omenn.viz.wording import number


@dataclass(frozen=True)
class Value:
    """A measure of one method on one model, with its 95 % interval; NaN where there is none.

    ``values``: of each picture or mosaic, if there are such numbers. ``chance``: of a random map.
    """

    value: float
    low: float
    high: float
    images: int
    values: tuple[float, ...] | None = None
    chance: float | None = None


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


@dataclass(frozen=True)
class Line:
    """One method, or a trivial map, on one model. ``failures``: metric → why it has no value."""

    name: str
    trivial: bool
    promise: str = ""
    summary: str = ""
    values: Mapping[Column, Value] = field(default_factory=dict)
    failures: Mapping[str, str] = field(default_factory=dict)
    counted: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    seconds: float | None = None
    memory: int | None = None

    def found(self, column: Column) -> Value | None:
        """The value of a measure, None where there is no number."""
        found = self.values.get(column)
        return None if found is None or math.isnan(found.value) else found

    def value(self, column: Column) -> float:
        """NaN where there is none."""
        found = self.found(column)
        return math.nan if found is None else found.value


@dataclass(frozen=True)
class Table:
    """All methods on one model."""

    model: str
    weights: str
    warning: str
    pictures: int
    facts: Mapping[str, Value]
    lines: tuple[Line, ...]

    def line(self, like: Line) -> Line:
        """The line of the same name; ``like`` itself where there is none."""
        return next((line for line in self.lines if line.name == like.name), like)

    def floor(self, column: Column) -> float:
        """The best value of a trivial map; NaN if there is none."""
        return best_of((line.value(column) for line in self.lines if line.trivial), column.higher)

    def best(self, column: Column) -> float:
        """The best value of a method; NaN if none has one."""
        return best_of(
            (line.value(column) for line in self.lines if not line.trivial), column.higher
        )

    def good(self, line: Line, column: Column) -> bool:
        """Whether a value is better than that of every trivial map.

        >>> mean = Column("funnybirds", "mean")
        >>> lines = [Line(n, t, values={mean: Value(v, v, v, 1)}) for n, t, v in
        ...     (("omenn", False, 0.8), ("other", False, 0.5), ("constant", True, 0.5))]
        >>> table = Table("net", "", "", 1, {}, tuple(lines))
        >>> [table.good(line, mean) for line in lines]
        [True, False, False]
        """
        value, floor = line.value(column), self.floor(column)
        if line.trivial or math.isnan(value):
            return False
        return math.isnan(floor) or (value > floor if column.higher else value < floor)

    def first(self, line: Line, column: Column) -> bool:
        """Whether it is the best value of a method, and good."""
        return self.good(line, column) and line.value(column) == self.best(column)


@dataclass(frozen=True)
class Bench:
    """What a run found. ``metrics``: name → what it is and its source; ``plan``: as TOML."""

    data: str
    columns: tuple[Column, ...]
    metrics: Mapping[str, str]
    tables: tuple[Table, ...]
    plan: str
    versions: Mapping[str, str]
    seed: int

    @property
    def headlines(self) -> tuple[Column, ...]:
        """The measures that are shown first."""
        return tuple(column for column in self.columns if column.headline)

    @property
    def failed(self) -> int:
        """How many cells have no value."""
        return sum(len(line.failures) for table in self.tables for line in table.lines)

    @property
    def trivial(self) -> bool:
        """Whether there are trivial maps."""
        return any(line.trivial for table in self.tables for line in table.lines)


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


def interval(value: Value) -> str:
    """Its interval in few digits.

    >>> interval(Value(0.5, 0.25, 0.75, 4))
    '[0.25, 0.75]'
    """
    if math.isnan(value.low):
        return ""
    return f"[{_end(value.low)}, {_end(value.high)}]".replace("-", "−")


def fewer(table: Table, columns: Sequence[Column]) -> str:
    """The metrics that have not one number for each picture, such as mosaics, in a sentence.

    Empty where all have.
    """
    counts: dict[str, set[int]] = {}
    for column in columns:
        for line in table.lines:
            if column in line.values:
                counts.setdefault(column.metric, set()).add(line.values[column].images)
    said = [
        f"{metric} {least}" + (f" to {most}" if most > least else "")
        for metric, found in counts.items()
        if (least := min(found)) < table.pictures or max(found) != least
        for most in [max(found)]
    ]
    return f"Fewer numbers than pictures, of a row: {', '.join(said)}." if said else ""


def notes(table: Table, *, trivial: bool = True) -> dict[tuple[str, str], str]:
    """(Metric, what was counted) → how often, of which rows: maps that are constant, pictures that
    are left out, and the like. Without ``trivial`` those of the trivial maps are not listed.

    >>> lines = [Line(name, False, values={Column("m", "m"): Value(1, 1, 1, 1)},
    ...     counted={"m": {"constant maps": 2}}) for name in ("a", "b")]
    >>> notes(Table("net", "", "", 1, {}, tuple(lines)))
    {('m', 'constant maps'): '2 for every row'}
    """
    found: dict[tuple[str, str], dict[str, int]] = {}
    for line in table.lines:
        for metric, own in line.counted.items():
            for what, count in own.items():
                found.setdefault((metric, what), {})[line.name] = count
    rows = {line.name for line in table.lines if line.values}
    hidden = set() if trivial else {line.name for line in table.lines if line.trivial}
    said = {}
    for key, who in found.items():
        if len(set(who.values())) == 1 and set(who) >= rows:
            said[key] = f"{next(iter(who.values()))} for every row"
        elif named := [f"{name} {count}" for name, count in who.items() if name not in hidden]:
            said[key] = ", ".join(named)
    return said


def _end(end: float) -> str:
    """Three digits, and all of a whole number that is not long.

    >>> _end(-0.256), _end(15.33), _end(3929.4)
    ('-0.26', '15.3', '3929')
    """
    size = abs(end)
    if size >= 1e5:
        return number(end, digits=3)
    return f"{end:.{2 if size < 10 else 1 if size < 100 else 0}f}"
