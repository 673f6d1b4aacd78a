"""What every figure of the experiments shares: a canvas without a screen, plain panels, a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from omenn.files.atomic import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, GRID = "#333333", "#e5e5e5"
REGULAR, X = "#7f94ab", "#c2410c"  # a network, and its twin without additive terms


def figure(width: float, height: float, dpi: int = 160) -> Figure:
    """An empty figure, in inches, whose parts are laid out by matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(width, height), dpi=dpi, layout="constrained")
    FigureCanvasAgg(drawn)
    return drawn


def tidy(panel: Any, size: float = 8, grid: str = "both") -> None:
    """Small ticks, a light grid behind the data, no frame on top and on the right."""
    panel.tick_params(labelsize=size, colors=INK)
    panel.grid(axis=grid, color=GRID, lw=0.7)
    panel.set_axisbelow(True)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)


def legend(drawn: Figure, panel: Any, place: str = "upper center", columns: int = 2) -> None:
    """The labels of one panel for the whole figure, outside of its panels."""
    handles, labels = panel.get_legend_handles_labels()
    drawn.legend(handles, labels, loc=f"outside {place}", ncols=columns, frameon=False, fontsize=9)


def save(drawn: Figure, path: Path) -> None:
    """A PNG file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as beside:
        drawn.savefig(beside, format="png", metadata={"Software": "omenn"})
