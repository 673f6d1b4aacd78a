"""The Markdown of docs/benchmarks.md: who is first on a model, and every row of every measure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from experiments.report import table as written
from experiments.tables_read import Run, opened
from omenn.methods.registry import distinct
from omenn.viz.bench_table import Column, Line, Table, fewer, interval, notes, short

OWN = ("omenn", "omenn-focused")
GROUPS: Mapping[str, Sequence[str]] = {
    "FunnyBirds": ("funnybirds",),
    "What the model says of changed pictures": (
        "gae",
        "insertion-deletion",
        "pixel-flipping",
        "pixel-deletion",
        "srg",
        "keep-remove",
        "road",
    ),
    "Sums of the map against what the logit loses": (
        "faithfulness-correlation",
        "faithfulness-estimate",
        "sensitivity-n",
        "monotonicity-correlation",
        "cell-deletion",
        "idsds",
        "completeness",
    ),
    "Where the map is": (
        "energy-pointing-game",
        "pointing-game",
        "relevance-mass",
        "relevance-rank",
        "grid-pointing-game",
    ),
    "The form of the map": ("sparseness", "complexity", "effective-complexity"),
    "Other pictures, models and classes": (
        "sensitivity",
        "local-lipschitz",
        "mprt",
        "smooth-mprt",
        "efficient-mprt",
        "random-logit",
    ),
}
"""Measures that stand in one table, by protocol; what is in none comes last."""
MANY = 6  # names in a cell
WHOLE = ("gae",)  # a product that is often 0, beside its factors
LEGEND = (
    "**bold**: first of the methods · `≈`: not below the 95 % interval of the first · `†`: not "
    "better than the best trivial row, which knows no model · ↓: less is better · in brackets: "
    "95 % interval by bootstrap over pictures."
)


def block(run: Run, pictures: Mapping[str, str], level: int = 3) -> str:
    """Everything of a run: its command, then of each model a picture and its tables.

    ``pictures``: model → where its picture lies, as the page says it.
    """
    parts = [f"{'#' * level} {run.stem}", f"```sh\n{run.command}\n```", provenance(run)]
    for name, table in run.models.items():
        parts.append(f"{'#' * (level + 1)} {run.stem}: {name}")
        parts.append(subject(table))
        if name in pictures:
            parts.append(f"![{name}, {run.stem}]({pictures[name]})")
        parts += [in_words(run, table), winners(run, table), LEGEND, fewer(table, shown(run))]
        parts.append(folded("Every row of every measure", "\n\n".join(tables(run, table))))
        parts += [failures(table), counted(table), costs(table)]
    return "\n\n".join(filter(None, parts))


def provenance(run: Run) -> str:
    """Data, number of pictures, seed, versions, in a sentence or two."""
    versions = ", ".join(f"{name} {version}" for name, version in run.bench.versions.items())
    data = ", ".join([opened(run.plan.data.name), *run.bench.data.split(", ")[1:]])
    counts = sorted({table.pictures for table in run.bench.tables})
    pictures = " or ".join(map(str, counts))
    return f"Data: {data}; {pictures} pictures. Seed {run.plan.seed}. Versions: {versions}."


def subject(table: Table) -> str:
    """What is said of a model."""
    facts = ", ".join(f"{n} {short(v.value)} {interval(v)}" for n, v in table.facts.items())
    said = f"{table.weights}; {facts}." if table.weights else f"{facts}."
    said = said[:1].upper() + said[1:]
    return f"{said} **{table.warning}**" if table.warning else said


# --- who is first ------------------------------------------------------------------------------


def shown(run: Run) -> list[Column]:
    """The columns of the tables: the headlines of each protocol, and all of some protocols."""
    bases = {entry.name: entry.base for entry in run.plan.metrics}
    return [c for c in run.bench.columns if c.headline or bases[c.metric] in WHOLE]


def first(table: Table, column: Column) -> list[Line]:
    """The best methods, several if they are equal, whether or not they beat the trivial rows."""
    best = table.best(column)
    return [line for line in methods(table) if line.value(column) == best]


def near(table: Table, line: Line, column: Column) -> bool:
    """Whether a value is not worse than the whole interval of the first."""
    value, best = line.value(column), first(table, column)
    if not best or math.isnan(value):
        return False
    ends = [ln.values[column] for ln in best]
    if column.higher:
        return line in best or value >= min(v.low for v in ends)
    return line in best or value <= max(v.high for v in ends)


def methods(table: Table) -> list[Line]:
    """The rows that are no trivial maps."""
    return [line for line in table.lines if not line.trivial]


def below(table: Table, column: Column) -> list[Line]:
    """The methods that are not better than the best trivial map."""
    there = [line for line in methods(table) if not math.isnan(line.value(column))]
    return [line for line in there if not table.good(line, column)]


def place(table: Table, line: Line, column: Column) -> str:
    """``3 of 21``, among the methods; equal values share the best place."""
    value = line.value(column)
    if math.isnan(value):
        return "–"
    others = [v for v in (other.value(column) for other in methods(table)) if not math.isnan(v)]
    better = sum(v > value if column.higher else v < value for v in others)
    return f"{better + 1} of {len(others)}"


def winners(run: Run, table: Table) -> str:
    """Of each measure the first, who is near it, the best trivial map, who is below that."""
    own = [line for line in methods(table) if line.name.partition("[")[0] in OWN]
    header = ["measure", "first", "within its interval", "best trivial", "not better than that"]
    rows = []
    for column in shown(run):
        best = first(table, column)
        if not best:
            continue
        beside = [ln for ln in methods(table) if ln not in best and near(table, ln, column)]
        value = f"{short(table.best(column))}{mark(table, best[0], column)}"
        row = [
            head(column, run, whole=True),
            f"{some(best, methods(table))} {value}",
            some(beside, methods(table)),
            trivial_best(table, column),
            some(below(table, column), methods(table)),
        ]
        rows.append([*row, *(place(table, line, column) for line in own)])
    return written([*header, *(f"place of `{line.name}`" for line in own)], rows)


def in_words(run: Run, table: Table) -> str:
    """The measures on which no method is above the trivial maps, and the rows that never are."""
    columns = [column for column in shown(run) if first(table, column)]
    if not any(line.trivial for line in table.lines):
        return "There are no trivial rows in this run: nothing says what its numbers are worth."
    none = [c for c in columns if not any(table.good(line, c) for line in methods(table))]
    judged = [line for line in methods(table) if line.values]
    never = [ln for ln in judged if not any(table.good(ln, c) for c in columns)]
    count = len(distinct([line.name for line in judged]))
    twice = f", {len(judged) - count} of them under two names," if count < len(judged) else ""
    said = [
        f"{count} methods{twice} on {len(columns)} measures.",
        f"No method is better than the best trivial row on {names(none, run)}." if none else "",
        f"Better than it on no measure: {', '.join(line.name for line in never)}." if never else "",
    ]
    return " ".join(filter(None, said))


def names(columns: Iterable[Column], run: Run) -> str:
    return ", ".join(head(column, run, arrow=False, whole=True) for column in columns)


def trivial_best(table: Table, column: Column) -> str:
    """``constant 0.82``."""
    floor = table.floor(column)
    lines = [line.name for line in table.lines if line.trivial and line.value(column) == floor]
    return f"*{', '.join(lines)}* {short(floor)}" if lines else "–"


def some(lines: Sequence[Line], everyone: Sequence[Line]) -> str:
    """Names, or those that are left out where that is shorter."""
    if not lines:
        return "none"
    rest = [ln.name for ln in everyone if ln not in lines and ln.values]
    if not rest:
        return "all"
    if len(rest) < MANY <= len(lines):
        return f"all but {', '.join(rest)}"
    return ", ".join(line.name for line in lines)


# --- every row ---------------------------------------------------------------------------------


def tables(run: Run, table: Table) -> list[str]:
    """A table for each group of measures, methods in the order of its first column.

    What has another base than all groups (a metric of Quantus) comes last; a protocol that is there
    twice, with other options, has a table of its own each time.
    """
    found: dict[str, list[Column]] = {}
    for column in shown(run):
        if any(column in line.values for line in table.lines):
            found.setdefault(_group(column.metric, run), []).append(column)
    places = {title: k for k, title in enumerate(GROUPS)}
    order = sorted(found, key=lambda title: places.get(title.partition(": ")[0], len(places)))
    return [f"**{title}**\n\n{rows(run, table, found[title])}" for title in order]


def _group(metric: str, run: Run) -> str:
    base = next(entry.base for entry in run.plan.metrics if entry.name == metric)
    title = next((title for title, bases in GROUPS.items() if base in bases), "Others")
    first_of_base = next(entry.name for entry in run.plan.metrics if entry.base == base)
    return title if metric == first_of_base else f"{title}: {metric}"


def rows(run: Run, table: Table, columns: Sequence[Column]) -> str:
    """All rows that have a value, the trivial ones in italics."""
    lines = [ln for ln in table.lines if any(c in ln.values for c in columns)]
    lead = columns[0]

    def worst_last(line: Line) -> tuple[bool, float]:
        value = line.value(lead)
        return math.isnan(value), -value if lead.higher else value

    body = [
        [
            f"*{line.name}*" if line.trivial else f"`{line.name}`",
            *(cell(table, line, column) for column in columns),
        ]
        for line in sorted(lines, key=worst_last)
    ]
    # of one protocol alone the title of the table says which
    apart = len(columns) > 1 and len({column.metric for column in columns}) == 1
    heads = [(c.measure + " ↓" * (not c.higher)) if apart else head(c, run) for c in columns]
    return written(["method", *heads], body)


def cell(table: Table, line: Line, column: Column) -> str:
    """``**0.853** [0.81, 0.89]``, with what is said of it by the legend."""
    value = line.values.get(column)
    if value is None:
        return "failed" if column.metric in line.failures else "–"
    text = f"{short(value.value)}"
    if not line.trivial and line in first(table, column):
        text = f"**{text}**"
    return f"{text}{mark(table, line, column)} {interval(value)}".strip()


def mark(table: Table, line: Line, column: Column) -> str:
    """≈ and †, for methods."""
    if line.trivial or math.isnan(line.value(column)):
        return ""
    beside = line not in first(table, column) and near(table, line, column)
    return "≈" * beside + "†" * (not table.good(line, column))


def head(column: Column, run: Run, *, arrow: bool = True, whole: bool = False) -> str:
    """The measure; the name of its metric where that says more, such as options.

    ``whole``: before one of several measures of a metric its name, too.
    """
    base = next(entry.base for entry in run.plan.metrics if entry.name == column.metric)
    alone = sum(other.metric == column.metric for other in shown(run)) == 1
    title = column.measure
    if column.metric != base or (whole and not alone):
        title = column.metric if alone else f"{column.metric}: {title}"
    return title + " ↓" * (arrow and not column.higher)


# --- below the tables ---------------------------------------------------------------------------


def failures(table: Table) -> str:
    """Why there is no value, a line for each reason."""
    found: dict[str, dict[str, list[str]]] = {}
    for line in table.lines:
        for metric, why in line.failures.items():
            found.setdefault(why, {}).setdefault(line.name, []).append(metric)
    said = []
    for why, where in found.items():
        whole = all(not ln.values for ln in table.lines if ln.name in where)
        metrics = (
            "" if whole else f" ({', '.join(sorted({m for ms in where.values() for m in ms}))})"
        )
        said.append(f"No value: {', '.join(where)}{metrics}: {why}")
    return "\n\n".join(said)


def counted(table: Table) -> str:
    """What protocols counted on the way, folded up: how often, of which rows."""
    said = [f"- {metric}: {what}: {who}" for (metric, what), who in notes(table).items()]
    return folded("What was counted and not left out in silence", "\n".join(said))


def costs(table: Table) -> str:
    """Seconds and memory of the maps, folded up."""
    from omenn.viz.compare_page import memory, seconds

    lines = sorted((ln for ln in methods(table) if ln.seconds), key=lambda ln: ln.seconds or 0)
    body = [[f"`{ln.name}`", seconds(ln.seconds), memory(ln.memory)] for ln in lines]
    if not body:
        return ""
    return folded("Cost of a map", written(["method", "time a picture", "peak memory"], body))


def folded(title: str, text: str) -> str:
    """Text that is shown when its title is clicked on."""
    if not text:
        return ""
    return f"<details><summary>{title}</summary>\n\n{text}\n\n</details>"
