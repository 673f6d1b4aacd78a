"""The results of a benchmark as one HTML file: tables to sort, spider and bar plots, costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from omenn.viz.bench_table import Column, Results, Row, failures, fewer, interval, short
from omenn.viz.charts import AT_FIRST, bars, spider
from omenn.viz.document import rendered
from omenn.viz.wording import plural


@dataclass(frozen=True)
class Group:
    """What stands above columns, and what it means; each column with its label and its model."""

    name: str
    what: str
    heads: Sequence[tuple[str, str, Column]]

    @property
    def few(self) -> int:
        """How many columns are shown at first."""
        return sum(column.headline for _, _, column in self.heads)


@dataclass(frozen=True)
class Grid:
    """Methods × columns; of each method a row that names it, and the row of each column.

    ``costs``: whether their time and memory are shown.
    """

    groups: Sequence[Group]
    rows: Sequence[tuple[Row, Sequence[tuple[Column, Row | None]]]]
    costs: bool = False


def bench_page(results: Results) -> str:
    """The results as one HTML document: no other file, no network.

    Without script the tables cannot be sorted, and the models stand below each other.
    """
    from omenn.attribution.registry import distinct

    methods = distinct(list(dict.fromkeys(r.method for r in results.rows if not r.trivial)))
    counts = (methods, "method"), (results.models, "model"), (results.metrics, "metric")
    failed = sum(row.error is not None for row in results.rows)
    warnings = [f"{failed} of the cells failed; their places say why." if failed else ""]
    warnings += [f"{name}: {m['warning']}" for name, m in results.models.items() if m["warning"]]
    return rendered(
        "bench.html.j2",
        parts=["page", "compare", "bench"],
        title=", ".join(plural(len(things), what) for things, what in counts),
        footer="",
        warnings=warnings,
        bench=results,
        models=[_model(results, name) for name in results.models],
        overview=_overview(results) if len(results.models) > 1 else None,
        at_first=AT_FIRST,
        short=short,
        interval=interval,
    )


def _grid(results: Results, model: str, groups: Sequence[Group], costs: bool = False) -> Grid:
    """The methods of a model, each in the columns of all groups."""
    heads = [head for group in groups for head in group.heads]
    rows = [
        (own[0], [(column, results.cell(of, method, column)) for _, of, column in heads])
        for method, own in results.of(model).items()
    ]
    return Grid(groups, rows, costs)


def _overview(results: Results) -> Grid:
    """Every method by each measure, on all models."""
    groups = [
        Group(c.name, results.metrics[c.metric], [(model, model, c) for model in results.models])
        for c in results.columns
    ]
    return _grid(results, next(iter(results.models)), groups)


def _model(results: Results, model: str) -> dict[str, Any]:
    """All that is shown of one model."""
    groups = [
        Group(name, what, [(c.measure, model, c) for c in results.columns if c.metric == name])
        for name, what in results.metrics.items()
    ]
    methods, about = results.of(model), results.models[model]
    rows = [row for own in methods.values() for row in own]
    counted = [(r.method, r.metric, what, n) for r in rows for what, n in r.counted.items()]
    return {
        "name": model,
        **about,
        "grid": _grid(results, model, groups, costs=True),
        "fewer": fewer(rows, about["pictures"]),
        "spider": spider(results, model),
        "charts": [bars(results, model, column) for column in results.columns],
        "failures": failures(rows),
        "counted": list(dict.fromkeys(counted)),
    }
