"""The results of a benchmark as one HTML file: tables to sort, spider and bar plots, costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from omenn.viz.bench_table import Bench, Column, Line, Table, fewer, interval, short
from omenn.viz.compare_page import memory, seconds
from omenn.viz.document import DIALOG, document, symbols, warnings_of
from omenn.viz.spider import Shape, bars, colour_of, dash_of, spider
from omenn.viz.wording import PROMISES

AT_FIRST = 4  # methods that the spider shows until others are chosen
Group = tuple[str, str, Sequence[tuple[str, Column, Table]]]
"""What stands above columns, and what it means; of each column its words and where values are."""


def bench_page(bench: Bench) -> str:
    """The results as one HTML document: no other file, no network.

    Without script the tables cannot be sorted, and the models stand below each other.
    """
    body = [
        _header(bench),
        '<main id="main">',
        _tabs(bench),
        _switch(),
        _overview(bench),
        *(_model(bench, table, number) for number, table in enumerate(bench.tables)),
        _about(bench),
        "</main>",
        DIALOG,
    ]
    return document(_title(bench), body, ("page", "compare", "bench"))


def _title(bench: Bench) -> str:
    from omenn.methods.registry import distinct

    methods = [line.name for line in bench.tables[0].lines if not line.trivial]
    counts = (
        (len(distinct(methods)), "method"),
        (len(bench.tables), "model"),
        (len(bench.metrics), "metric"),
    )
    return ", ".join(f"{count} {word}{'s' * (count != 1)}" for count, word in counts)


def _header(bench: Bench) -> str:
    failed = f"{bench.failed} of the cells failed; their places say why." if bench.failed else ""
    warned = [f"{t.model}: {t.warning}" for t in bench.tables if t.warning]
    floor = """<li><span class="low">Grey and slanted</span>: not better than the best trivial map,
which knows no model. A protocol may reward maps for their form; only what is above counts.</li>"""
    if not bench.trivial:
        floor = "<li>There are no trivial maps to compare with.</li>"
    pictures = max(table.pictures for table in bench.tables)
    return f"""<a class="skip" href="#main">Skip to the results</a>
<header>
<h1>{escape(_title(bench))}</h1>
<p class="lead">How faithful maps are, by published protocols, on {pictures} pictures
({escape(bench.data)}).</p>
{warnings_of([failed, *warned])}
<div class="guide">
<h2>How to read this page</h2>
<ul>
<li><strong>Bold</strong>: the best method. An arrow ↓ says that less is better.</li>
{floor}
<li>In brackets: 95 % intervals, by bootstrap over the pictures (seed {bench.seed}). Where they
overlap, the order of two methods is not certain.</li>
<li>Click a heading to sort by it, the best first.</li>
</ul>
</div>
</header>"""


def _tabs(bench: Bench) -> str:
    if len(bench.tables) < 2:
        return ""
    buttons = "".join(
        f'<button type="button" id="tab-{k}" aria-controls="model-{k}">{escape(t.model)}</button>'
        for k, t in enumerate(bench.tables)
    )
    return f"""<div class="tabs" aria-label="Models" hidden>
<button type="button" id="tab-all" aria-controls="all">All models</button>{buttons}</div>"""


def _switch() -> str:
    return """<fieldset class="views"><legend>Measures</legend>
<label><input type="radio" name="measures" id="measures-few" checked> the main ones</label>
<label><input type="radio" name="measures" id="measures-all"> all</label></fieldset>"""


def _overview(bench: Bench) -> str:
    """Every method by the headlines of all models."""
    if len(bench.tables) < 2:
        return ""
    groups: list[Group] = [
        (
            _name(column),
            bench.metrics[column.metric],
            [(table.model, column, table) for table in bench.tables],
        )
        for column in bench.columns
    ]
    return f"""<section class="tab" id="all" data-tab="tab-all">
<h2>All models</h2>
{_sortable(groups, bench.tables[0].lines, ())}
</section>"""


def _model(bench: Bench, table: Table, number: int) -> str:
    facts = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{short(value.value)} "
        f"<small>{interval(value)}</small></dd></div>"
        for name, value in table.facts.items()
    )
    groups: list[Group] = [
        (name, what, [(c.measure, c, table) for c in bench.columns if c.metric == name])
        for name, what in bench.metrics.items()
    ]
    charts = "".join(
        f'<div class="chart{_minor(c)}"><h4>{escape(_name(c))}{_arrow(c)}</h4>{bars(table, c)}'
        "</div>"
        for c in bench.columns
    )
    legend = "The line is the best trivial map. " if bench.trivial else ""
    return f"""<section class="tab" id="model-{number}" data-tab="tab-{number}">
<h2>{escape(table.model)}</h2>
<p class="quiet measure">{escape(table.weights)}; {table.pictures} pictures.</p>
<dl class="facts">{facts}</dl>
{_sortable(groups, table.lines, (table,))}
<p class="quiet measure">{escape(fewer(table, bench.columns))}</p>
{_spider(bench, table)}
<h3>Measure by measure</h3>
<p class="quiet measure">{legend}Thin: the 95 % interval.</p>
<div class="charts">{charts}</div>
{_notes(bench, table)}
</section>"""


def _sortable(groups: Sequence[Group], lines: Sequence[Line], costs: Sequence[Table]) -> str:
    """Methods × columns; with the costs of the methods where there is one table."""
    top, heads = [], []
    for name, what, columns in groups:
        few = sum(column.headline for _, column, _ in columns)
        every = len(columns)
        minor = "" if few else " minor"
        # the number of columns below it changes with the switch, and CSS cannot count
        if few and few < every:
            top.append(_group(name, what, few, "only-few"))
            top.append(_group(name, what, every, "only-all"))
        else:
            top.append(_group(name, what, every, minor.strip()))
        heads += [_head(label, column.higher, _minor(column)) for label, column, _ in columns]
    if costs:
        top.append('<th scope="colgroup" colspan="2" class="group">cost of a picture</th>')
        heads += [_head("time", False, ""), _head("memory", False, "")]
    rows = "".join(_row(line, groups, costs) for line in lines)
    return f"""<div class="scroll"><table class="bench">
<thead><tr><td></td>{"".join(top)}</tr>
<tr><th scope="col" class="text"><button type="button">method</button></th>{"".join(heads)}</tr>
</thead><tbody>
{rows}
</tbody></table></div>"""


def _group(name: str, what: str, count: int, kind: str) -> str:
    return (
        f'<th scope="colgroup" colspan="{count}" class="group {kind}" title="{escape(what)}">'
        f"{escape(name)}</th>"
    )


def _head(label: str, higher: bool, kind: str) -> str:
    order = "descending" if higher else "ascending"
    arrow = "" if higher else " ↓"
    return (
        f'<th scope="col" class="{kind.strip()}" data-first="{order}">'
        f'<button type="button">{escape(label)}{arrow}</button></th>'
    )


def _row(line: Line, groups: Sequence[Group], costs: Sequence[Table]) -> str:
    cells = []
    for _, _, columns in groups:
        for _, column, table in columns:
            own = next((other for other in table.lines if other.name == line.name), line)
            cells.append(_cell(table, own, column))
    if costs:
        cells += [
            f'<td data-value="{_plain(line.seconds)}">{seconds(line.seconds)}</td>',
            f'<td data-value="{_plain(line.memory)}">{memory(line.memory)}</td>',
        ]
    words = "trivial" if line.trivial else PROMISES.get(line.promise, "")
    head = f'<th scope="row"><b>{escape(line.name)}</b><span>{words}</span></th>'
    return f'<tr class="{"trivial" if line.trivial else "method"}">{head}{"".join(cells)}</tr>\n'


def _cell(table: Table, line: Line, column: Column) -> str:
    value = line.values.get(column)
    minor = _minor(column)
    if value is None or math.isnan(value.value):
        why = line.failures.get(column.metric, "")
        words = f'<span class="failed" title="{escape(why)}">failed</span>' if why else "–"
        return f'<td class="{minor.strip()}" data-value="">{words}</td>'
    kind = "" if line.trivial or table.good(line, column) else " low"
    text = short(value.value)
    if table.first(line, column):
        text = f"<strong>{text}</strong>"
    return (
        f'<td class="{f"{minor}{kind}".strip()}" data-value="{value.value!r}">{text}'
        f"<small>{interval(value)}</small></td>"
    )


def _plain(value: float | None) -> str:
    return "" if value is None else repr(value)


def _minor(column: Column) -> str:
    return "" if column.headline else " minor"


def _arrow(column: Column) -> str:
    return "" if column.higher else " ↓"


def _name(column: Column) -> str:
    """The measure, with its metric unless that has the same name."""
    same = column.metric.replace("-", " ") == column.measure.replace("-", " ")
    return column.measure if same else f"{column.metric}: {column.measure}"


def _axis(column: Column, axes: Sequence[Column]) -> str:
    """The measure alone, unless another axis has the same name."""
    names = [axis.measure for axis in axes]
    return column.measure if names.count(column.measure) == 1 else _name(column)


def _spider(bench: Bench, table: Table) -> str:
    axes = [column for column in bench.columns if column.axis]
    lines = [line for line in table.lines if not line.trivial and line.values]
    lines = [line for line in lines if any(column in line.values for column in axes)]
    if len(axes) < 3 or not lines:
        return ""

    def height(line: Line) -> float:
        there = [value for c in axes if not math.isnan(value := line.value(c))]
        return sum(there) / len(there) if there else 0.0

    first = sorted(lines, key=height, reverse=True)[:AT_FIRST]
    shapes = [Shape(x.name, tuple(x.value(c) for c in axes), x in first) for x in lines]
    floor = [table.floor(column) for column in axes] if bench.trivial else []
    drawn = spider([_axis(column, axes) for column in axes], shapes, floor)
    legend = "".join(
        f'<label><input type="checkbox" data-shape="{k}"{" checked" * shape.shown}>'
        f'<svg viewBox="0 0 30 8" aria-hidden="true"><path d="M0 4H30" stroke="{colour_of(k)}" '
        f'stroke-dasharray="{dash_of(k)}"/></svg> {escape(shape.name)}</label>'
        for k, shape in enumerate(shapes)
    )
    ground = "Grey ground: the best trivial map on each axis. " if bench.trivial else ""
    few = f" At first the {AT_FIRST} largest are shown." if len(shapes) > AT_FIRST else ""
    return f"""<h3>Spider</h3>
<p class="quiet measure">Measures from 0 in the middle to 1, more is better.
{ground}{few}</p>
<div class="web">{drawn}
<fieldset class="legend"><legend>Methods</legend>{legend}</fieldset></div>"""


def _notes(bench: Bench, table: Table) -> str:
    """What failed and why, and what was counted."""
    reasons: dict[str, list[str]] = {}
    for line in table.lines:
        for metric, why in line.failures.items():
            reasons.setdefault(why, []).append(f"{line.name} ({metric})")
    parts = []
    if reasons:
        items = "".join(
            f"<li><b>{escape(', '.join(names))}</b>: {escape(why)}</li>"
            for why, names in reasons.items()
        )
        parts.append(f'<h3>What failed</h3><ul class="measure failures">{items}</ul>')
    counted = "".join(
        f'<tr><th scope="row">{escape(line.name)}</th><td class="text">{escape(metric)}</td>'
        f'<td class="text">{escape(what)}</td><td>{count}</td></tr>'
        for line in table.lines
        for metric, counts in line.counted.items()
        for what, count in counts.items()
    )
    if counted:
        parts.append(
            '<details><summary>What was counted</summary><div class="scroll"><table><thead><tr>'
            '<th class="text" scope="col">method</th><th class="text" scope="col">metric</th>'
            '<th class="text" scope="col">what</th><th scope="col">how often</th></tr></thead>'
            f"<tbody>{counted}</tbody></table></div></details>"
        )
    return "".join(parts)


def _about(bench: Bench) -> str:
    metrics = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{symbols(what)}</dd></div>"
        for name, what in bench.metrics.items()
    )
    methods = "".join(
        f"<div><dt>{escape(line.name)}</dt><dd>{symbols(line.summary)}</dd></div>"
        for line in bench.tables[0].lines
    )
    versions = ", ".join(f"{name} {version}" for name, version in bench.versions.items())
    return f"""<section class="end"><h2>About these numbers</h2>
<dl class="about">{metrics}</dl>
<details><summary>The methods</summary><dl class="about">{methods}</dl></details>
<p class="measure">Time and peak memory are those of a map for the predicted class: the median over
the batches of the seconds a picture takes in its batch, and the most by which the process was seen
to grow in a batch (on a GPU, what torch had allocated).</p>
<details open><summary>The plan</summary><pre>{escape(bench.plan)}</pre>
<p>Run it again: <code>omenn bench plan.toml -o FOLDER</code>. The same plan gives the same numbers,
except for time and memory.</p></details>
<p class="quiet">{escape(versions)} · seed {bench.seed}</p>
</section>"""
