"""One picture of a result: input, maps with their colour bars, the sums, and what to know."""

from __future__ import annotations

import io
import textwrap
from typing import TYPE_CHECKING

from omenn.files.printable import printable
from omenn.viz.heatmaps import colours
from omenn.viz.panels import Case, Panel, View, panels, shortened
from omenn.viz.wording import is_omenn, number, sum_line, verdict

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, QUIET, WARNING = "#1d2433", "#5a6375", "#9a5b00"
SIDE = 2.35  # inches of one panel
STRIP = 0.4  # inches of the height of a row of entries
DPI = 150
_COLUMNS = 3  # at least as wide, for the words


def figure(case: Case, *, sigma: float = 0.0) -> Figure:
    """Draw a case as a matplotlib figure that belongs to no window (pyplot is not touched).

    One row of exact maps; with ``sigma`` > 0 a second row of the same maps, smoothed.

    Raises:
        InputError: the matrix of this explanation has no picture.
    """
    from matplotlib.figure import Figure

    shown = panels(case, sigma=sigma)
    rows: list[list[tuple[Panel, View, str]]]
    rows = [[(panel, panel.exact, panel.title) for panel in shown]]
    if sigma:
        over = [entry for entry in rows[0] if entry[0].key == "overlay"]
        rows[0] = [entry for entry in rows[0] if entry not in over]
        rows.append([(panel, view, f"{title}, smoothed") for panel, view, title in over])
        rows[1] += [(panel, panel.smoothed, "smoothed") for panel in shown if panel.smoothed]
    columns = max(_COLUMNS, *(sum(entry[1].form != "strip" for entry in row) for row in rows))
    width = columns * (SIDE + 0.2) + 0.3
    corners, low = _placed(rows, width)
    height = low + 0.8
    drawn = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    for (panel, view, title, told), (left, top, across) in zip(
        [(*entry, row is rows[0]) for row in rows for entry in row],
        corners,
        strict=True,
    ):
        draw(drawn, view, title, panel if told else None, (left, height - top), across)
    _words(drawn, case, height, sigma)
    return drawn


def _placed(
    rows: list[list[tuple[Panel, View, str]]], width: float
) -> tuple[list[tuple[float, float, float]], float]:
    """(left, top, width) of every picture in inches from the upper left; where they end.

    Strips have a line of their own each, as wide as the figure.
    """
    corners, top = [], 0.95
    for row in rows:
        column = 0
        for _, view, _ in row:
            if view.form == "strip":
                top += (SIDE + 0.75) * bool(column)
                corners.append((0.25, top, width - 0.5))
                top, column = top + STRIP + 0.95, 0
            else:
                corners.append((0.25 + column * (SIDE + 0.2), top, SIDE))
                column += 1
        top += (SIDE + 0.75) * bool(column)
    return corners, top - 0.5


def figure_png(case: Case, *, sigma: float = 0.0) -> bytes:
    """The figure of a case as a PNG file."""
    out = io.BytesIO()
    figure(case, sigma=sigma).savefig(out, format="png", metadata={"Software": "omenn"})
    return out.getvalue()


def draw(
    drawn: Figure,
    view: View,
    title: str,
    panel: Panel | None,
    corner: tuple[float, float],
    across: float = SIDE,
) -> None:
    """One picture, with the sum and the note of ``panel``; its upper left corner in inches."""
    left, top = corner
    width, height = drawn.get_size_inches()
    down = STRIP if view.form == "strip" else SIDE
    axes = drawn.add_axes(
        (left / width, (top - 0.25 - down) / height, across / width, down / height)
    )
    rows, columns = view.pixels.shape[:2]
    fits = view.scale is not None and rows <= down * DPI and columns <= across * DPI
    # with more entries than dots, each dot is the mean of its entries: none is passed over
    axes.imshow(
        view.pixels,
        interpolation="nearest" if fits else "auto",
        aspect="auto" if view.form else "equal",
    )
    axes.set_title(
        maths(shortened(title, int(across * 9.4))), fontsize=10, loc="left", color=INK, pad=4
    )
    bare(axes)
    if view.scale is not None:
        bar = drawn.add_axes(
            (left / width, (top - 0.36 - down) / height, across / width, 0.07 / height)
        )
        bar.imshow(colours()[None], aspect="auto")
        bare(bar)
        end, below = number(view.scale, digits=2), -1.4
        for place, text in ((0.0, f"−{end}"), (0.5, "0"), (1.0, end)):
            side = {0.0: "left", 0.5: "center", 1.0: "right"}[place]
            bar.text(
                place, below, text, transform=bar.transAxes, ha=side, va="center", fontsize=7.5,
                color=QUIET,
            )  # fmt: skip
    if panel is not None and panel.total is not None:
        drawn.text(
            left / width, (top - 0.57 - down) / height,
            textwrap.fill(panel.note, int(across * 19)), va="top", fontsize=7.5, color=INK,
        )  # fmt: skip
        axes.set_title(f"sum {number(panel.total)}", fontsize=9, loc="right", color=INK, pad=4)


def _words(drawn: Figure, case: Case, height: float, sigma: float) -> None:
    result, index = case.explanation, case.index
    width = drawn.get_size_inches()[0]
    left, letters = 0.25 / width, int(width * 16)
    by = "" if is_omenn(result) else f", by {result.method}"
    title = shortened(f"{case.name}: {case.target}{by}", int(width * 7))
    drawn.text(
        left, 1 - 0.2 / height, maths(title), fontsize=13, weight="bold", color=INK, va="top"
    )  # fmt: skip
    said = verdict(result)
    line = f" · {sum_line(result, index)} · "
    line += said.words.upper() if said.kind == "no" else said.words
    legend, room = " · red adds, blue takes away, white is zero", int(width * 12) - len(line)
    if room - len(legend) >= 16:  # on a narrow figure the colour bars must do
        line, room = line + legend, room - len(legend)
    line = shortened(case.model, min(48, int(width * 3), room)) + line
    drawn.text(left, 1 - 0.5 / height, maths(line), fontsize=9, color=QUIET, va="top")
    if case.warning:
        drawn.text(
            left, 1 - 0.7 / height, maths(textwrap.fill(case.warning, int(width * 11))), fontsize=9,
            weight="bold", color=WARNING, va="top",
        )  # fmt: skip
    notes = "Exact is not the same as faithful; where the constants are put is a choice."
    if not is_omenn(result):
        notes = "A map is no proof: compare it with what happens when a region is removed."
    if result.processing:
        notes = f"Changed afterwards: {', '.join(result.processing)}. {notes}"
    if sigma:
        notes = f"Smoothed by a Gaussian, σ = {sigma:g} entries, that keeps the sum. {notes}"
    drawn.text(
        left, 0.1 / height, textwrap.fill(notes, letters), fontsize=8, color=QUIET, va="bottom"
    )  # fmt: skip


def bare(axes: Axes) -> None:
    """Neither ticks nor numbers, and a thin pale frame."""
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color("#d5d9e0")
        spine.set_linewidth(0.6)


def maths(text: str) -> str:
    """The symbols of the page in matplotlib's notation; other dollar signs stay as they are."""
    text = printable(text).replace("$", r"\$")
    return text.replace("C_w", "$C_w$").replace("C_b", "$C_b$").replace("⊙", r"$\odot$")
