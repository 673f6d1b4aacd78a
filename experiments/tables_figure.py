"""The rows of a model as dots with intervals: a panel for each of a few measures."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.bench_results import OWN
from experiments.figures import INK, figure, save, tidy

OURS, OTHER, TRIVIAL, GROUND = "#c2410c", "#5f7893", "#9a9a9a", "#eeeeee"
PANELS = 5
LETTERS = 22  # of a line of a title
KEYS = (
    "funnybirds: mean",
    "funnybirds: correctness",
    "funnybirds: single deletion given area",
    "gae: gae",
    "insertion-deletion",
    "srg",
    "faithfulness-correlation",
    "road",
    "mprt",
    "sensitivity",
)
"""Measures (or their metrics) that are drawn if they are there, before all others."""


def chosen(rows: pd.DataFrame) -> list[str]:
    """The measures that are drawn, as they come in ``KEYS``."""
    there = list(dict.fromkeys(rows[rows.value.notna()].measure))
    order = {key: k for k, key in enumerate(KEYS)}
    there.sort(key=lambda name: min(order.get(n, len(KEYS)) for n in (name, name.split("[")[0])))
    return there[:PANELS]


def draw(rows: pd.DataFrame, name: str, path: Path) -> None:
    """A dot and its interval for each row; grey is what the best trivial row reaches."""
    rows = rows[rows.value.notna()]
    measures = chosen(rows)
    lead = rows[rows.measure == measures[0]]
    order = list(lead.sort_values("value", ascending=not lead.higher.iloc[0]).method)
    order += [m for m in rows.method.drop_duplicates() if m not in order]
    trivial = set(rows[rows.trivial].method)
    drawn = figure(2.2 + 2.3 * len(measures), 1.1 + 0.21 * len(order), dpi=130)
    panels = drawn.subplots(1, len(measures), squeeze=False)[0]
    for panel, measure in zip(panels, measures, strict=True):
        _panel(panel, rows[rows.measure == measure], order)
        panel.set_yticks(range(len(order)), [])
    labels = [f"{method} (trivial)" if method in trivial else method for method in order]
    panels[0].set_yticks(range(len(order)), labels)
    for text, method in zip(panels[0].get_yticklabels(), order, strict=True):
        text.set_color(colour(method, method in trivial))
    drawn.suptitle(
        f"{name}. Orange: omenn and omenn-focused; on grey: not better than the best trivial row",
        fontsize=9,
        color=INK,
    )
    save(drawn, path)


def _panel(panel: Any, rows: pd.DataFrame, order: list[str]) -> None:
    higher = bool(rows.higher.iloc[0])
    for row in rows.itertuples():
        k, tint = order.index(row.method), colour(row.method, row.trivial)
        if not pd.isna(row.low):
            panel.plot([row.low, row.high], [k, k], color=tint, lw=1.3, alpha=0.6)
        panel.plot([row.value], [k], "o", color=tint, ms=4, mfc=tint if row.good else "white")
    trivial = rows[rows.trivial].value
    if len(trivial):
        low, high = panel.get_xlim()
        floor = trivial.max() if higher else trivial.min()
        panel.axvspan(*((low, floor) if higher else (floor, high)), color=GROUND, lw=0, zorder=0)
        panel.set_xlim(min(low, floor), max(high, floor))
    panel.set_ylim(len(order) - 0.4, -0.6)
    panel.locator_params(axis="x", nbins=4)
    title = f"{rows.measure.iloc[0]}{' ↓' * (not higher)}"
    panel.set_title(broken(title), fontsize=9, color=INK, weight="bold")
    tidy(panel, size=7.5, grid="y")


def colour(method: str, trivial: bool) -> str:
    if trivial:
        return TRIVIAL
    return OURS if method.partition("[")[0] in OWN else OTHER


def broken(text: str) -> str:
    """In lines, broken at spaces and around the options of a measure; no arrow stands alone.

    >>> broken("idsds[pictures=500;epochs=3] ↓").split("\\n")
    ['idsds[pictures=500;', 'epochs=3] ↓']
    """
    lines = [""]
    for part in re.findall(r" ?\[?[^ ;\[]+;?", text):
        if len(lines[-1] + part) > LETTERS and lines[-1] and part != " ↓":
            lines.append(part.lstrip())
        else:
            lines[-1] += part
    return "\n".join(lines)
