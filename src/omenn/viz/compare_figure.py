"""The maps of many methods on one picture file."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from omenn.viz.comparison import Comparison, Row, reference, views_of
from omenn.viz.figure import QUIET, SIDE, as_png, draw, framed, maths, placed, titled
from omenn.viz.panels import Panel, View, shortened
from omenn.viz.wording import PROMISES, memory, number, seconds, sentence

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLUMNS = 5
_HEIGHT = SIDE + 0.95  # inches of a picture with its words


def compare_figure(comparison: Comparison) -> Figure:
    """Input and maps as a matplotlib figure that belongs to no window (pyplot is not touched)."""
    from matplotlib.figure import Figure

    shown = views_of(comparison)
    pictured = comparison.image is not None
    count = len(comparison.rows) + pictured
    columns = min(_COLUMNS, max(count, 3))
    lines = -(-count // columns)
    width, height = columns * (SIDE + 0.2) + 0.3, lines * _HEIGHT + 1.45
    drawn = Figure(figsize=(width, height), dpi=150, facecolor="white")
    corners = [
        (0.25 + place % columns * (SIDE + 0.2), height - 0.95 - place // columns * _HEIGHT)
        for place in range(count)
    ]
    if comparison.image is not None:
        draw(drawn, View(comparison.image), "Input", None, corners[0])
    for row, corner in zip(comparison.rows, corners[pictured:], strict=True):
        view = shown.get(row.method)
        if view is None:
            _failed(drawn, row, corner)
        else:
            note = f"{PROMISES[row.promise]} · {seconds(row.seconds)} · {memory(row.memory)}"
            panel = Panel(
                row.method, row.method, "", view, total=row.cell.value("total"), note=note
            )
            draw(drawn, view, row.method, panel, corner)
    _words(drawn, comparison)
    return drawn


def compare_png(comparison: Comparison) -> bytes:
    """The figure as a PNG file."""
    return as_png(compare_figure(comparison))


def _failed(drawn: Figure, row: Row, corner: tuple[float, float]) -> None:
    axes = placed(drawn, corner[0], corner[1] - 0.25 - SIDE, SIDE, SIDE)
    titled(axes, row.method, 22)
    words = maths(textwrap.fill(shortened(f"No map. {sentence(row.cell.error)}", 320), 36))
    style = {"va": "top", "fontsize": 7.5, "color": QUIET}
    axes.text(0.04, 0.96, words, transform=axes.transAxes, **style)


def _words(drawn: Figure, comparison: Comparison) -> None:
    title = f"{comparison.name}: {comparison.target}, logit {number(comparison.logit)}"
    line = f"{shortened(comparison.model, 48)} · red supports it, blue opposes it, white is zero"
    first = reference(comparison.rows)
    notes = "Nothing here measures faithfulness."
    if first is not None and not comparison.common_scale:
        notes = (
            "Each map has a scale of its own, the numbers below it: compare where the colours are, "
            f"not how strong they are. {notes}"
        )
    elif first is not None:
        notes = (
            f"One scale, set by {first.method}; a map without a promised sum is rescaled to the "
            f"Σ|R| of {first.method}. {notes}"
        )
    framed(drawn, title, line, comparison.warning, notes)
