"""The test results as dots with intervals: a row of panels a model, a panel a protocol."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.ablation.board import PROTOCOLS, Board
from experiments.ablation.configurations import PEER, SMOOTHED, TRIVIAL, Row
from experiments.figures import INK, figure, save, tidy

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OWN, DEFAULT, OTHER, NONE = "#c2410c", "#d97706", "#5f7893", "#b5b5b5"


def draw(test: Board, chosen: Mapping[str, Row], default: Row, path: Path) -> None:
    """The figure, into a file."""
    save(figure_of(test, chosen, default), path)


def figure_of(test: Board, chosen: Mapping[str, Row], default: Row) -> Figure:
    """What was chosen, the default, the other methods and the trivial maps, best first."""
    shown = {m: _shown(test, m, chosen[m], default) for m in test.models}
    heights = [len(rows) for rows in shown.values()]
    drawn = figure(11, 1 + 0.2 * sum(heights), dpi=150)
    panels = drawn.subplots(len(shown), len(PROTOCOLS), squeeze=False, height_ratios=heights)
    for title, panel in zip(PROTOCOLS, panels[0], strict=True):
        panel.set_title(title, fontsize=10, color=INK, weight="bold")
    for line, (model, rows) in zip(panels, shown.items(), strict=True):
        for panel, protocol in zip(line, PROTOCOLS, strict=True):
            _panel(panel, test, model, protocol, rows)
        line[0].set_ylabel(model, fontsize=10, color=INK, weight="bold")
        names = [name for name, _, _ in rows]
        for panel in line:
            panel.set_yticks(range(len(rows)), names if panel is line[0] else [])
    return drawn


def _shown(test: Board, model: str, own: Row, default: Row) -> list[tuple[str, Row, str]]:
    rows = [("exact, chosen" + " = default" * (own == default), own, OWN)]
    if own != default:
        rows.append(("exact, default", default, DEFAULT))
    rows += [(row.label, row, OTHER) for row in test.there(model, PEER, SMOOTHED)]
    rows += [(f"{row.name} (trivial)", row, NONE) for row in test.there(model, TRIVIAL)]
    return sorted(rows, key=lambda entry: test.mean_rank(entry[1], [model]))


def _panel(
    panel: Any, test: Board, model: str, protocol: str, rows: list[tuple[str, Row, str]]
) -> None:
    for place, (_, row, colour) in enumerate(rows):
        cell = test.cell(model, row, protocol)
        panel.plot([cell.low, cell.high], [place, place], color=colour, lw=1.6)
        panel.plot(cell.value, place, "o", color=colour, ms=4)
    panel.set_ylim(len(rows) - 0.4, -0.6)
    tidy(panel, size=7)
