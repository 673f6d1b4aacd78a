"""What the cells of a run say together: JSON, Markdown, parquet, and a table in the terminal."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from omenn.bench.cell_store import Store
from omenn.bench.plan import Plan
from omenn.bench.plan_entries import Entry
from omenn.errors import MissingExtra
from omenn.files.json_text import as_json, finite
from omenn.viz.bench_table import (
    Bench,
    Column,
    Line,
    Table,
    Value,
    fewer,
    interval,
    notes,
    short,
)
from omenn.viz.wording import PROMISES

if TYPE_CHECKING:
    from rich.table import Table as Printed

ABREAST = 6  # measures that stand beside each other in a terminal


def collected(plan: Plan, store: Store) -> Bench:
    """Everything that is stored of a run."""
    from omenn.metrics import metric_registry

    found = [(metric.name, metric_registry.find(metric.base)) for metric in plan.metrics]
    columns = tuple(
        Column(name, m.name, m.higher, m.headline, m.axis)
        for name, kind in found
        for m in kind.measures
    )
    of = f", class {', '.join(map(str, plan.classes))}" if plan.classes else ""
    return Bench(
        data=f"{plan.data.name}, split {plan.split}{of}",
        columns=columns,
        metrics={name: f"{kind.summary} ({kind.source})" for name, kind in found},
        tables=tuple(_table(plan, store, model, columns) for model in plan.models),
        plan=plan.toml(),
        versions=store.identity["versions"],
        seed=plan.seed,
    )


def _table(plan: Plan, store: Store, model: Entry, columns: Sequence[Column]) -> Table:
    known = store.read(model.name) or {}
    return Table(
        model=model.name,
        weights=known.get("weights", ""),
        warning=known.get("warning", ""),
        pictures=known.get("pictures", 0),
        facts={
            name.replace("_", " "): _value(value) for name, value in known.get("facts", {}).items()
        },
        lines=tuple(_line(plan, store, model, method, columns) for method in plan.rows),
    )


def _line(plan: Plan, store: Store, model: Entry, method: Entry, columns: Sequence[Column]) -> Line:
    import omenn
    from omenn.metrics.explainers import TRIVIAL

    cells = {m.name: store.read(model.name, method.name, m.name) or {} for m in plan.metrics}
    cost = store.read(model.name, method.name) or {}
    kind = omenn.methods().get(method.base)
    measures = {name: cell.get("measures", {}) for name, cell in cells.items()}
    return Line(
        name=method.name,
        trivial=method.base in TRIVIAL,
        promise=kind.promise if kind else "",
        summary=kind.summary if kind else "knows no model",
        values={
            column: _value(measures[column.metric][column.measure])
            for column in columns
            if column.measure in measures[column.metric]
        },
        failures={name: cell["error"] for name, cell in cells.items() if cell.get("error")},
        counted={name: cell["counted"] for name, cell in cells.items() if cell.get("counted")},
        seconds=cost.get("seconds"),
        memory=cost.get("memory"),
    )


def _value(stored: Mapping[str, Any]) -> Value:
    """From JSON, in which a NaN is null."""
    values = stored.get("values")
    return Value(
        value=_number(stored["value"]),
        low=_number(stored["low"]),
        high=_number(stored["high"]),
        images=stored["images"],
        values=None if values is None else tuple(_number(value) for value in values),
        chance=stored.get("chance"),
    )


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def files(bench: Bench) -> tuple[dict[str, bytes], list[str]]:
    """The results by file name, and what could not be made and why."""
    from omenn.viz.bench_page import bench_page

    made = {
        "results.json": (as_json(record(bench)) + "\n").encode(),
        "results.md": markdown(bench).encode(),
        "index.html": bench_page(bench).encode(),
    }
    try:
        made["results.parquet"] = parquet(bench)
    except MissingExtra as error:
        return made, [str(error)]
    return made, []


def record(bench: Bench) -> dict[str, Any]:
    """Every number but those of single pictures, which are in the parquet file and in the cells."""
    return finite(
        {
            "data": bench.data,
            "versions": bench.versions,
            "seed": bench.seed,
            "plan": bench.plan,
            "metrics": bench.metrics,
            "models": [
                {
                    "model": table.model,
                    "weights": table.weights,
                    "warning": table.warning,
                    "pictures": table.pictures,
                    "facts": {name: _plain(value) for name, value in table.facts.items()},
                    "methods": [_line_record(table, line) for line in table.lines],
                }
                for table in bench.tables
            ],
        }
    )


def _line_record(table: Table, line: Line) -> dict[str, Any]:
    return {
        "method": line.name,
        "trivial": line.trivial,
        "promise": line.promise or None,
        "seconds_per_picture": line.seconds,
        "peak_memory_bytes": line.memory,
        "values": [
            {
                "metric": column.metric,
                "measure": column.measure,
                "higher_is_better": column.higher,
                **_plain(value),
                "above_trivial": table.good(line, column),
                "best": table.first(line, column),
            }
            for column, value in line.values.items()
        ],
        "counted": line.counted,
        "failures": line.failures,
    }


def _plain(value: Value) -> dict[str, Any]:
    return {key: entry for key, entry in asdict(value).items() if key != "values"}


def rows(bench: Bench) -> list[dict[str, Any]]:
    """One row for each measure of each cell, with the numbers of the single pictures; of a cell
    that failed one row with the reason."""
    found = []
    for table in bench.tables:
        for line in table.lines:
            own = {
                "model": table.model,
                "method": line.name,
                "trivial": line.trivial,
                "seconds_per_picture": line.seconds,
                "peak_memory_bytes": line.memory,
            }
            for column, value in line.values.items():
                found.append(
                    {
                        **own,
                        "metric": column.metric,
                        "measure": column.measure,
                        "higher_is_better": column.higher,
                        **asdict(value),
                        "above_trivial": table.good(line, column),
                        "counted": json.dumps(line.counted.get(column.metric, {})),
                    }
                )
            for metric, reason in line.failures.items():
                found.append({**own, "metric": metric, "error": reason})
    return found


def parquet(bench: Bench) -> bytes:
    """The rows as a parquet file.

    Raises:
        MissingExtra: pyarrow is not installed.
    """
    try:
        import pyarrow
        from pyarrow import parquet as writer
    except ImportError:
        raise MissingExtra("pyarrow", "bench", "results.parquet") from None
    text, real, flag = pyarrow.string(), pyarrow.float64(), pyarrow.bool_()
    names = {
        **dict.fromkeys(("model", "method", "metric", "measure"), text),
        **{"value": real, "low": real, "high": real, "images": pyarrow.int64(), "chance": real},
        **dict.fromkeys(("higher_is_better", "above_trivial", "trivial"), flag),
        **{"seconds_per_picture": real, "peak_memory_bytes": pyarrow.int64()},
        **{"counted": text, "error": text, "values": pyarrow.list_(real)},
    }
    lists = {name: [row.get(name) for row in rows(bench)] for name in names}
    schema = pyarrow.schema(list(names.items()))
    out = io.BytesIO()
    writer.write_table(pyarrow.table(lists, schema=schema), out)
    return out.getvalue()


LEGEND = (
    "Bold: the best method. In parentheses: not above the best trivial map, which knows no model."
)


def markdown(bench: Bench) -> str:
    """The results as Markdown: of each model the headlines, then every measure, then the costs."""
    said = [f"Data: {bench.data}. Versions: {_versions(bench)}. Seed {bench.seed}.", LEGEND]
    for table in bench.tables:
        facts = [f"{name} {short(value.value)}" for name, value in table.facts.items()]
        about = [table.weights, f"{table.pictures} pictures", ", ".join(facts)]
        said.append(f"## {table.model}")
        said.append(f"{'; '.join(filter(None, about))}.")
        if few := fewer(table, bench.columns):
            said.append(few)
        if table.warning:
            said.append(f"**{table.warning}**")
        said.append(_lines(table, bench.headlines, intervals=False))
        counted = notes(table)
        for metric, summary in bench.metrics.items():
            said.append(f"### {table.model}: {metric}")
            said.append(f"{summary}. 95 % intervals in brackets.")
            own = [column for column in bench.columns if column.metric == metric]
            said.append(_lines(table, own, intervals=True))
            said += [
                f"Counted: {w}: {who}." for (name, w), who in counted.items() if name == metric
            ]
        said.append(f"### {table.model}: cost")
        said.append(_costs(table))
    return "\n\n".join(said) + "\n"


def _lines(table: Table, columns: Sequence[Column], *, intervals: bool) -> str:
    several = len({column.metric for column in columns}) > 1
    heads = [
        f"{f'{c.metric}: ' * (several and c.metric != c.measure)}{c.measure}{' ↓' * (not c.higher)}"
        for c in columns
    ]
    found = [f"| method | {' | '.join(heads)} |", f"|---|{'---:|' * len(columns)}"]
    for line in table.lines:
        cells = [_cell(table, line, column, intervals) for column in columns]
        name = f"*{line.name}* (trivial)" if line.trivial else line.name
        found.append(f"| {name} | {' | '.join(cells)} |")
    failed: dict[str, list[str]] = {}
    for line in table.lines:
        for metric, why in line.failures.items():
            if any(column.metric == metric for column in columns):
                failed.setdefault(why, []).append(f"{line.name} ({metric})")
    said = [f"Failed: {', '.join(who)}: {why}" for why, who in failed.items()]
    return "\n\n".join(["\n".join(found), *said])


def _cell(table: Table, line: Line, column: Column, intervals: bool) -> str:
    value = line.values.get(column)
    if value is None:
        return "failed" if column.metric in line.failures else "–"
    text = short(value.value)
    if table.first(line, column):
        text = f"**{text}**"
    elif not line.trivial and not math.isnan(value.value) and not table.good(line, column):
        text = f"({text})"
    return f"{text} {interval(value)}".strip() if intervals else text


def _costs(table: Table) -> str:
    from omenn.viz.wording import memory, seconds

    found = ["| method | sum | time a picture | peak memory |", "|---|---|---:|---:|"]
    for line in table.lines:
        promise = PROMISES.get(line.promise, "–")
        cost = f"{seconds(line.seconds)} | {memory(line.memory)}"
        found.append(f"| {line.name} | {promise} | {cost} |")
    return "\n".join(found)


def _versions(bench: Bench) -> str:
    return ", ".join(f"{name} {version}" for name, version in bench.versions.items())


def printed(bench: Bench) -> list[Printed | str]:
    """The headlines of each model for the terminal, tables below a line of words."""
    from rich.markup import escape
    from rich.table import Table as Printed

    from omenn.viz.wording import memory, seconds

    tables: list[Printed | str] = []
    heads = bench.headlines
    groups = [heads[k : k + ABREAST] for k in range(0, len(heads), ABREAST)]
    for table in bench.tables:
        title = f"{table.model}, {table.pictures} pictures of {bench.data}"
        tables.append(f"\n{title}" if tables else title)
        for columns in groups:
            last = columns is groups[-1]
            shown = Printed(box=None, pad_edge=False, header_style="bold")
            shown.add_column("method", no_wrap=True)
            for column in columns:
                shown.add_column(f"{column.measure}{' ↓' * (not column.higher)}", justify="right")
            for name in ("time", "memory") if last else ():
                shown.add_column(name, justify="right", no_wrap=True)
            for line in table.lines:
                cells = [_marked(table, line, column) for column in columns]
                costs = (seconds(line.seconds), memory(line.memory)) if last else ()
                shown.add_row(escape(line.name), *cells, *costs)
            tables += [shown] if last else [shown, ""]
    return tables


def _marked(table: Table, line: Line, column: Column) -> str:
    if column.metric in line.failures:
        return "[red]failed[/]"
    text = short(line.value(column))
    if table.first(line, column):
        return f"[bold]{text}[/]"
    return text if line.trivial or table.good(line, column) else f"[dim]({text})[/]"


def remarks(bench: Bench) -> list[str]:
    """What is said below the tables."""
    said = list(dict.fromkeys(f"{t.model}: {t.warning}" for t in bench.tables if t.warning))
    for table in bench.tables:
        for line in table.lines:
            for reason in dict.fromkeys(line.failures.values()):
                metrics = [name for name, words in line.failures.items() if words == reason]
                said.append(f"failed: {table.model}, {line.name}, {', '.join(metrics)}: {reason}")
        for (metric, what), who in notes(table, trivial=False).items():
            said.append(f"counted: {table.model}, {metric}: {what}: {who}")
    return [LEGEND, *said] if bench.trivial else said


def in_vain(bench: Bench) -> bool:
    """Whether no method could be judged, or nothing by one of the metrics.

    Trivial maps count where there are only those.
    """
    lines = [line for table in bench.tables for line in table.lines]
    judged = [line for line in lines if not line.trivial] or lines
    found = {column.metric for line in judged for column in line.values}
    return found != set(bench.metrics)
