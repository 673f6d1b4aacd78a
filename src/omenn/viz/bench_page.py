"""The results of a benchmark as one HTML file: tables to sort, spider and bar plots, costs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from omenn.viz.bench_table import Bench, Column, Line, Table, fewer, interval, short
from omenn.viz.charts import AT_FIRST, Bars, Spider, bars, spider
from omenn.viz.document import rendered
from omenn.viz.wording import plural


@dataclass(frozen=True)
class Head:
    """A column of a sortable table: its words, the measure, and the table its values are from."""

    label: str
    column: Column
    table: Table


@dataclass(frozen=True)
class Group:
    """What stands above columns, and what it means."""

    name: str
    what: str
    heads: Sequence[Head]

    @property
    def few(self) -> int:
        """How many columns are shown at first."""
        return sum(head.column.headline for head in self.heads)


@dataclass(frozen=True)
class Grid:
    """Methods × columns; ``costs``: whether their time and memory are shown."""

    groups: Sequence[Group]
    rows: Sequence[tuple[Line, Sequence[Line]]]
    costs: bool = False


@dataclass(frozen=True)
class Model:
    """All that is shown of one model."""

    table: Table
    grid: Grid
    fewer: str
    spider: Spider | None
    charts: Sequence[Bars]
    failures: dict[str, str]


def bench_page(bench: Bench) -> str:
    """The results as one HTML document: no other file, no network.

    Without script the tables cannot be sorted, and the models stand below each other.
    """
    from omenn.attribution.registry import distinct

    methods = distinct([line.name for line in bench.tables[0].lines if not line.trivial])
    counts = (len(methods), "method"), (len(bench.tables), "model"), (len(bench.metrics), "metric")
    failed = f"{bench.failed} of the cells failed; their places say why." if bench.failed else ""
    return rendered(
        "bench.html.j2",
        parts=["page", "compare", "bench"],
        title=", ".join(plural(count, what) for count, what in counts),
        footer="",
        warnings=[failed, *(f"{t.model}: {t.warning}" for t in bench.tables if t.warning)],
        bench=bench,
        models=[_model(bench, table) for table in bench.tables],
        overview=_overview(bench) if len(bench.tables) > 1 else None,
        at_first=AT_FIRST,
        short=short,
        interval=interval,
    )


def _grid(groups: Sequence[Group], lines: Iterable[Line], costs: bool = False) -> Grid:
    """Of each method the line of every column's own table."""
    heads = [head for group in groups for head in group.heads]
    rows = [(line, [head.table.line(line) for head in heads]) for line in lines]
    return Grid(groups, rows, costs)


def _overview(bench: Bench) -> Grid:
    """Every method by each measure, on all models."""
    groups = [
        Group(
            column.name,
            bench.metrics[column.metric],
            [Head(table.model, column, table) for table in bench.tables],
        )
        for column in bench.columns
    ]
    return _grid(groups, bench.tables[0].lines)


def _model(bench: Bench, table: Table) -> Model:
    groups = [
        Group(name, what, [Head(c.measure, c, table) for c in bench.columns if c.metric == name])
        for name, what in bench.metrics.items()
    ]
    return Model(
        table=table,
        grid=_grid(groups, table.lines, costs=True),
        fewer=fewer(table, bench.columns),
        spider=spider(bench, table),
        charts=[bars(table, column) for column in bench.columns],
        failures=_failures(table),
    )


def _failures(table: Table) -> dict[str, str]:
    """Why cells failed → which."""
    reasons: dict[str, list[str]] = {}
    for line in table.lines:
        for metric, why in line.failures.items():
            reasons.setdefault(why, []).append(f"{line.name} ({metric})")
    return {why: ", ".join(names) for why, names in reasons.items()}
