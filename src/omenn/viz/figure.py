"""A result as one figure: input, maps with their colour bars, sums, and caveats."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from omenn.files.printable import printable
from omenn.viz.heatmaps import colours
from omenn.viz.panels import Case, Panel, View, shortened
from omenn.viz.wording import divided, is_omenn, number, sum_line, verdict

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Entry = tuple[Panel, View, str]
INK, QUIET, WARNING = "#1d2433", "#5a6375", "#9a5b00"
SIDE = 2.35  # inches of one panel
LARGE = 2 * SIDE + 0.75  # of the readable map: as high as two panels with their words
TOP = 0.95  # where the pictures begin
STRIP = 0.4  # inches of the height of a row of entries
DPI = 150
_COLUMNS = 3  # the least width, for the text


def figure(case: Case, *, sigma: float = 0.0) -> Figure:
    """Draw a case as a matplotlib figure that belongs to no window (pyplot is not touched).

    One row of exact maps, or two beside the readable map, which is large; with ``sigma`` > 0
    another row of the same maps, smoothed.

    Raises:
        InputError: the matrix of this explanation has no picture.
    """
    from matplotlib.figure import Figure

    shown = list(case.views(sigma))
    large = shown.pop(0) if _is_large(shown) else None
    rows = _rows(shown, sigma, split=large is not None)
    columns = max(_COLUMNS, *(sum(entry[1].form != "strip" for entry in row) for row in rows))
    indent = 0.0 if large is None else LARGE + 0.2
    width = columns * (SIDE + 0.2) + 0.3 + indent
    corners, low = _placed(rows, width, indent)
    height = low + 0.8
    drawn = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    for (panel, view, title), (left, top, across) in zip(
        [entry for row in rows for entry in row], corners, strict=True
    ):
        told = None if view is panel.smoothed else panel
        draw(drawn, view, title, told, (left, height - top), across)
    if large is not None:
        draw(drawn, large.exact, large.title, large, (0.25, height - TOP), LARGE)
        _difference(drawn, case, 0.25 + indent + len(rows[0]) * (SIDE + 0.2))
    _words(drawn, case, sigma)
    return drawn


def _is_large(shown: Sequence[Panel]) -> bool:
    """Whether the first panel is the readable map, and the others are no strips."""
    return shown[0].key == "readable" and not any(panel.exact.form for panel in shown)


def _rows(shown: Sequence[Panel], sigma: float, split: bool) -> list[list[Entry]]:
    """The pictures in rows; ``split``: what is drawn over the input, then the maps, in two."""
    exact = [(panel, panel.exact, panel.title) for panel in shown]
    rows = [exact]
    if split:
        pictured = [entry for entry in exact if entry[1].over or entry[1].scale is None]
        rows = [pictured, [entry for entry in exact if entry not in pictured]]
    if sigma:
        over = [entry for entry in rows[0] if entry[0].key == "overlay"]
        rows[0] = [entry for entry in rows[0] if entry not in over]
        soft = [(panel, view, f"{title}, smoothed") for panel, view, title in over]
        soft += [(panel, panel.smoothed, "smoothed") for panel in shown if panel.smoothed]
        rows.append(soft)
    return rows


def _placed(
    rows: list[list[Entry]], width: float, indent: float
) -> tuple[list[tuple[float, float, float]], float]:
    """(left, top, width) of every picture in inches from the upper left; and the lower end.

    Every strip has a separate line, as wide as the figure. The first two rows are indented.
    """
    corners, top = [], TOP
    for line, row in enumerate(rows):
        column, start = 0, 0.25 + indent * (line < 2)
        for _, view, _ in row:
            if view.form == "strip":
                top += (SIDE + 0.75) * bool(column)
                corners.append((0.25, top, width - 0.5))
                top, column = top + STRIP + 0.95, 0
            else:
                corners.append((start + column * (SIDE + 0.2), top, SIDE))
                column += 1
        top += (SIDE + 0.75) * bool(column)
    return corners, top - 0.5


def _difference(drawn: Figure, case: Case, left: float) -> None:
    """The sentence on two maps of one sum, in the free place of the first row."""
    width, height = drawn.get_size_inches()
    words = maths(textwrap.fill(divided(case.explanation, case.readable), 37))
    y = 1 - (TOP + 0.25) / height
    drawn.text(left / width, y, words, va="top", fontsize=8.5, color=INK, linespacing=1.4)


def figure_png(case: Case, *, sigma: float = 0.0) -> bytes:
    """The figure of a case as a PNG file."""
    return as_png(figure(case, sigma=sigma))


def as_png(drawn: Figure) -> bytes:
    """A figure as a PNG file."""
    out = io.BytesIO()
    drawn.savefig(out, format="png", metadata={"Software": "omenn"})
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
    down = STRIP if view.form == "strip" else across
    axes = placed(drawn, left, top - 0.25 - down, across, down)
    rows, columns = view.pixels.shape[:2]
    entries = view.scale is not None and not view.over
    fits = entries and rows <= down * DPI and columns <= across * DPI
    # with more entries than dots, each dot is the mean of its entries: none is skipped
    axes.imshow(
        view.pixels,
        interpolation="nearest" if fits else "auto",
        aspect="auto" if view.form else "equal",
    )
    titled(axes, title, int(across * 9.4))
    if view.scale is not None:
        _colour_bar(placed(drawn, left, top - 0.36 - down, across, 0.07), view.scale)
    if panel is not None and panel.total is not None:
        axes.set_title(f"sum {number(panel.total)}", fontsize=9, loc="right", color=INK, pad=4)
        width, height = drawn.get_size_inches()
        note = textwrap.fill(panel.note, int(across * 19))
        x, y = left / width, (top - 0.57 - down) / height
        drawn.text(x, y, note, va="top", fontsize=7.5, color=INK)


def placed(drawn: Figure, left: float, bottom: float, across: float, down: float) -> Axes:
    """Axes without ticks and with a thin pale frame; all lengths in inches."""
    width, height = drawn.get_size_inches()
    axes = drawn.add_axes((left / width, bottom / height, across / width, down / height))
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color("#d5d9e0")
        spine.set_linewidth(0.6)
    return axes


def titled(axes: Axes, title: str, letters: int) -> None:
    """A title of at most ``letters`` characters above a picture."""
    axes.set_title(maths(shortened(title, letters)), fontsize=10, loc="left", color=INK, pad=4)


def _colour_bar(axes: Axes, scale: float) -> None:
    axes.imshow(colours()[None], aspect="auto")
    end, style = number(scale, digits=2), {"va": "center", "fontsize": 7.5, "color": QUIET}
    for x, text, side in ((0.0, f"−{end}", "left"), (0.5, "0", "center"), (1.0, end, "right")):
        axes.text(x, -1.4, text, transform=axes.transAxes, ha=side, **style)


def framed(drawn: Figure, title: str, line: str, warning: str, notes: str) -> None:
    """The text above the pictures (title, a grey line, a warning) and below them."""
    width, height = drawn.get_size_inches()
    left = 0.25 / width

    def above(inches: float, text: str, **style: Any) -> None:
        drawn.text(left, 1 - inches / height, maths(text), va="top", **style)

    above(0.2, shortened(title, int(width * 7)), fontsize=13, weight="bold", color=INK)
    above(0.5, line, fontsize=9, color=QUIET)
    words = textwrap.fill(warning, int(width * 11))
    above(0.7, words, fontsize=9, weight="bold", color=WARNING)
    below = maths(textwrap.fill(notes, int(width * 16)))
    drawn.text(left, 0.1 / height, below, fontsize=8, color=QUIET, va="bottom")


def _words(drawn: Figure, case: Case, sigma: float) -> None:
    result = case.explanation
    width = drawn.get_size_inches()[0]
    by = "" if is_omenn(result) else f", by {result.method}"
    said = verdict(result)
    line = f" · {sum_line(result, case.index)} · "
    line += said.words.upper() if said.kind == "no" else said.words
    legend, room = " · red adds, blue subtracts, white is zero", int(width * 12) - len(line)
    if room - len(legend) >= 16:  # on a narrow figure the colour bars are enough
        line, room = line + legend, room - len(legend)
    line = shortened(case.model, min(48, int(width * 3), room)) + line
    notes = "Exact is not the same as faithful; the location of the constants is a choice."
    if not is_omenn(result):
        notes = "A map is not a proof: compare it with the effect of removing a region."
    if result.changed:
        notes = f"Processed afterwards: {', '.join(result.changed)}. {notes}"
    if sigma:
        notes = f"Smoothed by a Gaussian, σ = {sigma:g} entries, that keeps the sum. {notes}"
    framed(drawn, f"{case.name}: {case.target}{by}", line, case.warning, notes)


def maths(text: str) -> str:
    """The symbols of the page in matplotlib's notation; other dollar signs are escaped."""
    text = printable(text).replace("$", r"\$")
    return text.replace("C_w", "$C_w$").replace("C_b", "$C_b$").replace("⊙", r"$\odot$")
