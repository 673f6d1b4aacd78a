"""One picture of a result: input, maps with their colour bars, the sums, and what to know."""

from __future__ import annotations

import io
import textwrap
from typing import TYPE_CHECKING

from omenn.show.maps import colours
from omenn.show.panels import Case, Panel, View, panels, shortened
from omenn.show.wording import is_omenn, number, sum_line, verdict

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, QUIET, WARNING = "#1d2433", "#5a6375", "#9a5b00"
SIDE = 2.35  # inches of one panel
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
    columns, height = max(_COLUMNS, *map(len, rows)), len(rows) * (SIDE + 0.75) + 1.25
    drawn = Figure(figsize=(columns * (SIDE + 0.2) + 0.3, height), dpi=150, facecolor="white")
    for number_, row in enumerate(rows):
        top = height - 0.95 - number_ * (SIDE + 0.75)
        for column, (panel, view, title) in enumerate(row):
            corner = (0.25 + column * (SIDE + 0.2), top)
            draw(drawn, view, title, panel if number_ == 0 else None, corner)
    _words(drawn, case, height, sigma)
    return drawn


def figure_png(case: Case, *, sigma: float = 0.0) -> bytes:
    """The figure of a case as a PNG file."""
    out = io.BytesIO()
    figure(case, sigma=sigma).savefig(out, format="png", metadata={"Software": "omenn"})
    return out.getvalue()


def draw(
    drawn: Figure, view: View, title: str, panel: Panel | None, corner: tuple[float, float]
) -> None:
    """One picture, with the sum and the note of ``panel``; its upper left corner in inches."""
    left, top = corner
    width, height = drawn.get_size_inches()
    axes = drawn.add_axes((left / width, (top - 0.25 - SIDE) / height, SIDE / width, SIDE / height))
    axes.imshow(
        view.pixels, interpolation="nearest" if view.scale is not None else "auto", aspect="equal"
    )
    axes.set_title(maths(shortened(title, 22)), fontsize=10, loc="left", color=INK, pad=4)
    bare(axes)
    if view.scale is not None:
        bar = drawn.add_axes(
            (left / width, (top - 0.36 - SIDE) / height, SIDE / width, 0.07 / height)
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
        axes.text(
            0, -0.135, panel.note, transform=axes.transAxes, va="top", fontsize=7.5, color=INK
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
            left, 1 - 0.7 / height, maths(case.warning), fontsize=9, weight="bold",
            color=WARNING, va="top",
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
    text = text.replace("$", r"\$")
    return text.replace("C_w", "$C_w$").replace("C_b", "$C_b$").replace("⊙", r"$\odot$")
