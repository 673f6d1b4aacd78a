"""The results of a run: one long table of its cells, and the views of it.

NOTE [one table]
``collected`` makes the only form of the results, rows of one measure each, with what must be
compared between rows already decided. JSON, Markdown, parquet, the terminal and the page
(``omenn.viz.bench_page``) only choose from it and write.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields, replace
from typing import TYPE_CHECKING, Any

from omenn.bench.cell_store import Store
from omenn.bench.plan import Plan
from omenn.bench.plan_entries import Entry
from omenn.errors import MissingExtra
from omenn.files.json_text import as_json, finite
from omenn.metrics.score import Measured
from omenn.viz.bench_table import (
    Column,
    Results,
    Row,
    best_of,
    failures,
    fewer,
    floor,
    grouped,
    interval,
    notes,
    short,
)
from omenn.viz.wording import PROMISES, memory, seconds

if TYPE_CHECKING:
    from rich.table import Table as Printed

ABREAST = 6  # measures that stand beside each other in a terminal
LEGEND = (
    "Bold: the best method. In parentheses: not better than the best trivial map, which does not "
    "depend on the model."
)


# --- the long table ----------------------------------------------------------------------------


def collected(plan: Plan, store: Store) -> Results:
    """Everything that is stored of a run."""
    import omenn
    from omenn.metrics import metric_registry

    found = [(metric.name, metric_registry.find(metric.base)) for metric in plan.metrics]
    columns = tuple(
        Column(name, m.name, m.higher, m.headline, m.axis)
        for name, kind in found
        for m in kind.measures
    )
    known = {m.name: store.read(m.name) or {} for m in plan.models}
    kinds = {entry.name: omenn.methods().get(entry.base) for entry in plan.rows}
    rows = [
        row for m in plan.models for e in plan.rows for row in _rows(plan, store, m, e, columns)
    ]
    same = grouped(rows, _place)
    of = f", class {', '.join(map(str, plan.classes))}" if plan.classes else ""
    return Results(
        rows=tuple(_compared(row, same[_place(row)]) for row in rows),
        columns=columns,
        models={name: _model(stored) for name, stored in known.items()},
        methods={
            name: {
                "promise": kind.promise if kind else "",
                "summary": kind.summary if kind else "does not depend on the model",
            }
            for name, kind in kinds.items()
        },
        metrics={name: f"{kind.summary} ({kind.source})" for name, kind in found},
        data=f"{plan.data.name}, split {plan.split}{of}",
        plan=plan.toml(),
        versions=store.identity["versions"],
        seed=plan.seed,
    )


def _rows(
    plan: Plan, store: Store, model: Entry, method: Entry, columns: Sequence[Column]
) -> Iterator[Row]:
    """The rows of one method on one model, not yet compared with others."""
    from omenn.metrics.explainers import TRIVIAL

    cost = store.read(model.name, method.name) or {}
    for metric in plan.metrics:
        cell = store.read(model.name, method.name, metric.name) or {}
        row = Row(
            model=model.name,
            method=method.name,
            trivial=method.base in TRIVIAL,
            metric=metric.name,
            counted=cell.get("counted", {}),
            error=cell.get("error"),
            seconds_per_picture=cost.get("seconds"),
            peak_memory_bytes=cost.get("memory"),
        )
        if row.error:
            yield row
        measures = cell.get("measures", {})
        for c in columns:
            if c.metric == metric.name and c.measure in measures:
                measured = asdict(_measured(measures[c.measure]))
                yield replace(row, measure=c.measure, higher_is_better=c.higher, **measured)


def _place(row: Row) -> tuple[str, str, str | None]:
    """Rows of one place are compared."""
    return row.model, row.metric, row.measure


def _compared(row: Row, among: Sequence[Row]) -> Row:
    """The row with ``above_trivial`` and ``best``, among all methods of its measure.

    >>> rows = [Row(model="net", method=n, trivial=t, metric="m", measure="m", value=v) for n, t, v
    ...     in (("omenn", False, 0.8), ("other", False, 0.5), ("constant", True, 0.5))]
    >>> [(row.above_trivial, row.best) for row in (_compared(row, rows) for row in rows)]
    [(True, True), (False, False), (False, False)]
    """
    if row.trivial or not row.known:
        return row
    higher = row.higher_is_better
    bound = floor(among, higher)
    above = math.isnan(bound) or (row.value > bound if higher else row.value < bound)
    first = row.value == best_of((one.value for one in among if not one.trivial), higher)
    return replace(row, above_trivial=above, best=above and first)


def _model(stored: Mapping[str, Any]) -> dict[str, Any]:
    facts = {n.replace("_", " "): _measured(fact) for n, fact in stored.get("facts", {}).items()}
    return {
        "weights": stored.get("weights", ""),
        "warning": stored.get("warning", ""),
        "pictures": stored.get("pictures", 0),
        "facts": facts,
    }


def _measured(stored: Mapping[str, Any]) -> Measured:
    """From JSON, in which a NaN is null."""
    numbers = {name: _number(stored[name]) for name in ("value", "low", "high")}
    values = stored.get("values")
    each = None if values is None else tuple(map(_number, values))
    return Measured(**numbers, images=stored["images"], values=each, chance=stored.get("chance"))


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def without_results(results: Results) -> bool:
    """Whether no method could be judged, or nothing by one of the metrics.

    Trivial maps count where there are only those.
    """
    judged = [row for row in results.rows if not row.trivial] or results.rows
    return {row.metric for row in judged if row.measure} != set(results.metrics)


# --- JSON and parquet --------------------------------------------------------------------------


def files(results: Results) -> tuple[dict[str, bytes], list[str]]:
    """The results by file name, and why a file could not be made."""
    from omenn.viz.bench_page import bench_page

    made = {
        "results.json": (as_json(record(results)) + "\n").encode(),
        "results.md": markdown(results).encode(),
        "index.html": bench_page(results).encode(),
    }
    try:
        made["results.parquet"] = parquet(results)
    except MissingExtra as error:
        return made, [str(error)]
    return made, []


def record(results: Results) -> dict[str, Any]:
    """Every number but those of single pictures, which are in the parquet file and in the cells."""
    return finite(
        {
            "data": results.data,
            "versions": results.versions,
            "seed": results.seed,
            "plan": results.plan,
            "metrics": results.metrics,
            "models": [
                {
                    "model": model,
                    **about,
                    "facts": {name: _plain(fact) for name, fact in about["facts"].items()},
                    "methods": [
                        _method(rows, results.methods[name]["promise"])
                        for name, rows in results.of(model).items()
                    ],
                }
                for model, about in results.models.items()
            ],
        }
    )


def _method(rows: Sequence[Row], promise: str) -> dict[str, Any]:
    shown = ("metric", "measure", "higher_is_better")
    return {
        "method": rows[0].method,
        "trivial": rows[0].trivial,
        "promise": promise or None,
        "seconds_per_picture": rows[0].seconds_per_picture,
        "peak_memory_bytes": rows[0].peak_memory_bytes,
        "values": [
            {
                **{name: getattr(row, name) for name in shown},
                **_plain(row),
                "above_trivial": row.above_trivial,
                "best": row.best,
            }
            for row in rows
            if row.measure
        ],
        "counted": {row.metric: row.counted for row in rows if row.measure and row.counted},
        "failures": {row.metric: row.error for row in rows if row.error},
    }


def _plain(value: Row | Measured) -> dict[str, Any]:
    """A number and its interval, without those of single pictures."""
    return {f.name: getattr(value, f.name) for f in fields(Measured) if f.name != "values"}


def parquet(results: Results) -> bytes:
    """The long table as a parquet file, with the numbers of the single pictures.

    Raises:
        MissingExtra: pyarrow is not installed.
    """
    try:
        import pyarrow
        from pyarrow import parquet as writer
    except ImportError:
        raise MissingExtra("pyarrow", "bench", "results.parquet") from None
    text, real, flag = pyarrow.string(), pyarrow.float64(), pyarrow.bool_()
    costs = {"seconds_per_picture": real, "peak_memory_bytes": pyarrow.int64()}
    kinds = {
        **dict.fromkeys(("model", "method", "metric", "measure"), text),
        **{"value": real, "low": real, "high": real, "images": pyarrow.int64(), "chance": real},
        **dict.fromkeys(("higher_is_better", "above_trivial", "trivial"), flag),
        **costs,
        **{"counted": text, "error": text, "values": pyarrow.list_(real)},
    }
    failed = ("model", "method", "trivial", "metric", "error", *costs)
    flat = [
        asdict(row) | {"counted": json.dumps(row.counted)}
        if row.measure
        else {name: getattr(row, name) for name in failed}
        for row in results.rows
    ]
    out = io.BytesIO()
    writer.write_table(pyarrow.Table.from_pylist(flat, pyarrow.schema(list(kinds.items()))), out)
    return out.getvalue()


# --- Markdown and the terminal -----------------------------------------------------------------


def markdown(results: Results) -> str:
    """The results as Markdown: of each model the headlines, then every measure, then the costs."""
    versions = ", ".join(f"{name} {version}" for name, version in results.versions.items())
    said = [f"Data: {results.data}. Versions: {versions}. Seed {results.seed}.", LEGEND]
    for model, about in results.models.items():
        rows = [row for own in results.of(model).values() for row in own]
        facts = ", ".join(f"{name} {short(fact.value)}" for name, fact in about["facts"].items())
        known = filter(None, (about["weights"], f"{about['pictures']} pictures", facts))
        said += [f"## {model}", f"{'; '.join(known)}.", fewer(rows, about["pictures"])]
        said.append(f"**{about['warning']}**" if about["warning"] else "")
        said.append(_measures(results, model, results.headlines, intervals=False))
        counted = notes(rows)
        for metric, summary in results.metrics.items():
            said.append(f"### {model}: {metric}")
            said.append(f"{summary}. 95 % intervals in brackets.")
            own = [column for column in results.columns if column.metric == metric]
            said.append(_measures(results, model, own, intervals=True))
            said += [f"Counted: {w}: {who}." for (of, w), who in counted.items() if of == metric]
        said += [f"### {model}: cost", _costs(results, model)]
    return "\n\n".join(filter(None, said)) + "\n"


def _measures(results: Results, model: str, columns: Sequence[Column], *, intervals: bool) -> str:
    several = len({column.metric for column in columns}) > 1
    heads = [f"{f'{c.metric}: ' * (several and c.metric != c.measure)}{c.label}" for c in columns]
    found = [f"| method | {' | '.join(heads)} |", f"|---|{'---:|' * len(columns)}"]
    methods = results.of(model)
    for method, rows in methods.items():
        name = f"*{method}* (trivial)" if rows[0].trivial else method
        cells = [results.cell(model, method, column) for column in columns]
        marked = [_marked(row, "failed", "**{}**", "({})") for row in cells]
        if intervals:
            ends = [interval(row.low, row.high) if row else "" for row in cells]
            marked = [f"{text} {end}".strip() for text, end in zip(marked, ends, strict=True)]
        found.append(f"| {name} | {' | '.join(marked)} |")
    metrics = {column.metric for column in columns}
    failed = failures(row for own in methods.values() for row in own if row.metric in metrics)
    said = [f"Failed: {who}: {why}" for why, who in failed.items()]
    return "\n\n".join(["\n".join(found), *said])


def _marked(row: Row | None, failed: str, best: str, low: str) -> str:
    """The value of a row as a table has it; the forms say how each kind of value is marked."""
    if row is None or not row.known:
        return failed if row and row.error else short(math.nan)
    form = best if row.best else low if row.low_score else "{}"
    return form.format(short(row.value))


def _costs(results: Results, model: str) -> str:
    found = ["| method | sum | time a picture | peak memory |", "|---|---|---:|---:|"]
    for method, rows in results.of(model).items():
        promise = PROMISES.get(results.methods[method]["promise"], "–")
        found.append(f"| {method} | {promise} | {' | '.join(_cost(rows[0]))} |")
    return "\n".join(found)


def _cost(row: Row) -> tuple[str, str]:
    return seconds(row.seconds_per_picture), memory(row.peak_memory_bytes)


def printed(results: Results) -> list[Printed | str]:
    """The headlines of each model for the terminal, tables below a line of words."""
    tables: list[Printed | str] = []
    heads = results.headlines
    groups = [heads[k : k + ABREAST] for k in range(0, len(heads), ABREAST)]
    for model, about in results.models.items():
        title = f"{model}, {about['pictures']} pictures of {results.data}"
        tables.append(f"\n{title}" if tables else title)
        for columns in groups[:-1]:
            tables += [_printed(results, model, columns), ""]
        tables += [_printed(results, model, columns, costs=True) for columns in groups[-1:]]
    return tables


def _printed(
    results: Results, model: str, columns: Sequence[Column], costs: bool = False
) -> Printed:
    from rich.markup import escape
    from rich.table import Table as Printed

    shown = Printed(box=None, pad_edge=False, header_style="bold")
    shown.add_column("method", no_wrap=True)
    for column in columns:
        shown.add_column(column.label, justify="right")
    for name in ("time", "memory") if costs else ():
        shown.add_column(name, justify="right", no_wrap=True)
    for method, rows in results.of(model).items():
        cells = (results.cell(model, method, column) for column in columns)
        marked = [_marked(row, "[red]failed[/]", "[bold]{}[/]", "[dim]({})[/]") for row in cells]
        shown.add_row(escape(method), *marked, *(_cost(rows[0]) if costs else ()))
    return shown


def remarks(results: Results) -> list[str]:
    """The lines below the tables."""
    said = [f"{model}: {m['warning']}" for model, m in results.models.items() if m["warning"]]
    for model in results.models:
        methods = results.of(model)
        for method, rows in methods.items():
            failed = grouped((row for row in rows if row.error), lambda row: row.error)
            for why, own in failed.items():
                metrics = ", ".join(row.metric for row in own)
                said.append(f"failed: {model}, {method}, {metrics}: {why}")
        counted = notes((row for rows in methods.values() for row in rows), trivial=False)
        said += [f"counted: {model}, {of}: {what}: {who}" for (of, what), who in counted.items()]
    return [LEGEND, *said] if results.trivial else said
