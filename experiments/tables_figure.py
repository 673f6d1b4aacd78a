"""The rows of a table as dots with intervals: a panel for each of a few measures."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.tables_read import Run
from experiments.tables_text import OWN, head, shown
from omenn.files.atomic import replacing
from omenn.viz.bench_table import Column, Line, Table

INK, OURS, OTHER, TRIVIAL, GROUND = "#333333", "#c2410c", "#5f7893", "#9a9a9a", "#eeeeee"
PANELS = 5
LETTERS = 22  # of a line of a title
KEYS = (
    ("funnybirds", "mean"),
    ("funnybirds", "correctness"),
    ("funnybirds", "single deletion given area"),
    ("gae", "gae"),
    ("insertion-deletion", "insertion − deletion"),
    ("srg", "srg"),
    ("faithfulness-correlation", "faithfulness correlation"),
    ("road", "road"),
    ("mprt", "mprt"),
    ("sensitivity", "max-sensitivity"),
)
"""What is drawn if it is there, before whatever else is a headline."""


def chosen(run: Run, table: Table) -> list[Column]:
    """The measures that are drawn, as they come in ``KEYS``."""
    bases = {entry.name: entry.base for entry in run.plan.metrics}
    there = [c for c in shown(run) if any(not math.isnan(ln.value(c)) for ln in table.lines)]
    order = {key: k for k, key in enumerate(KEYS)}
    there.sort(key=lambda c: order.get((bases[c.metric], c.measure), len(KEYS)))
    return there[:PANELS]


def ordered(table: Table, columns: Sequence[Column]) -> list[Line]:
    """The rows that have a value, the best of the first measure first."""
    lines = [ln for ln in table.lines if any(c in ln.values for c in columns)]
    sign = -1 if columns[0].higher else 1
    return sorted(lines, key=lambda ln: (math.isnan(v := ln.value(columns[0])), sign * v))


def draw(run: Run, table: Table, name: str, path: Path) -> None:
    """A dot and its interval for each row; grey is what the best trivial row reaches."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    columns = chosen(run, table)
    lines = ordered(table, columns)
    size = (2.2 + 2.3 * len(columns), 1.1 + 0.21 * len(lines))
    figure = Figure(figsize=size, dpi=130, layout="constrained")
    panels = figure.subplots(1, len(columns), squeeze=False)[0]
    for panel, column in zip(panels, columns, strict=True):
        _panel(panel, table, column, lines)
        panel.set_title(_title(head(column, run, whole=True)), fontsize=9, color=INK, weight="bold")
    labels = [f"{ln.name} (trivial)" if ln.trivial else ln.name for ln in lines]
    panels[0].set_yticks(range(len(lines)), labels)
    for text, line in zip(panels[0].get_yticklabels(), lines, strict=True):
        text.set_color(_colour(line))
    for panel in panels[1:]:
        panel.set_yticks(range(len(lines)), [])
    figure.suptitle(
        f"{name}, {table.pictures} pictures. Orange: omenn and omenn-focused; on grey: not better "
        "than the best trivial row",
        fontsize=9,
        color=INK,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as beside:
        figure.savefig(beside, format="png")


def _panel(panel: Any, table: Table, column: Column, lines: Sequence[Line]) -> None:
    for k, line in enumerate(lines):
        found = line.values.get(column)
        if found is None or math.isnan(found.value):
            continue
        colour = _colour(line)
        if not math.isnan(found.low):
            panel.plot([found.low, found.high], [k, k], color=colour, lw=1.3, alpha=0.6)
        panel.plot([found.value], [k], "o", color=colour, ms=4, mfc=_inside(table, line, column))
    low, high = panel.get_xlim()
    floor = table.floor(column)
    if not math.isnan(floor):
        edges = (low, floor) if column.higher else (floor, high)
        panel.axvspan(*edges, color=GROUND, lw=0, zorder=0)
        panel.set_xlim(min(low, floor), max(high, floor))
    panel.set_ylim(len(lines) - 0.4, -0.6)
    panel.tick_params(labelsize=7.5, colors=INK, length=0)
    panel.locator_params(axis="x", nbins=4)
    panel.grid(axis="y", color="#f0f0f0", lw=0.6)
    panel.set_axisbelow(True)
    for side in ("top", "right", "left"):
        panel.spines[side].set_visible(False)


def _colour(line: Line) -> str:
    if line.trivial:
        return TRIVIAL
    return OURS if line.name.partition("[")[0] in OWN else OTHER


def _inside(table: Table, line: Line, column: Column) -> str:
    """Filled is a method that is better than the trivial rows."""
    return _colour(line) if table.good(line, column) else "white"


def _title(text: str) -> str:
    """In lines, broken at spaces and around the options of a measure; no arrow stands alone.

    >>> _title("idsds[pictures=500;epochs=3] ↓").split("\\n")
    ['idsds[pictures=500;', 'epochs=3] ↓']
    """
    lines = [""]
    for part in re.findall(r" ?\[?[^ ;\[]+;?", text):
        if len(lines[-1] + part) > LETTERS and lines[-1] and part != " ↓":
            lines.append(part.lstrip())
        else:
            lines[-1] += part
    return "\n".join(lines)
