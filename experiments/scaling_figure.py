"""The curves of ``experiments.scaling`` as one figure."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments.axes import AXES, MODES, Axis
from experiments.figures import INK, figure, legend, save, tidy
from experiments.scaling import Curves, Point

COLOURS = {"gradient": "#a3b5c9", "explain": "#c2410c"}
# The plain gradient is a broad band, so that it is seen where the two are equal.
STYLES = {"gradient": {"lw": 5, "ms": 0}, "explain": {"lw": 1.6, "ms": 4}}
LABELS = {"gradient": "plain input gradient", "explain": "omenn, with bias"}


def draw(curves: Curves, path: Path) -> None:
    """Three axes in a band: seconds and their ratio, below them peak memory and its ratio."""
    columns = min(3, len(curves))
    bands = -(-len(curves) // columns)
    drawn = figure(3.4 * columns, 6.0 * bands)
    heights = [3.0, 1.1, 3.0, 1.1] * bands
    grid = drawn.subplots(
        len(heights), columns, squeeze=False, gridspec_kw={"height_ratios": heights}
    )
    cells = iter((4 * (k // columns), k % columns) for k in range(bands * columns))
    for (name, points), (top, column) in zip(curves.items(), cells, strict=False):
        _axis(AXES[name], points, [grid[top + k][column] for k in range(4)])
    for top, column in cells:
        for k in range(4):
            grid[top + k][column].set_visible(False)
    drawn.align_ylabels()
    legend(drawn, grid[0][0])
    save(drawn, path)


def _axis(axis: Axis, points: list[Point], panels: list[Any]) -> None:
    panels[0].set_title(f"\n{axis.title}", fontsize=10, color=INK, weight="bold")
    _lines(panels[0], points, lambda p, mode: p.seconds[mode], "seconds")
    _ratio(panels[1], points, [p.ratio for p in points])
    _lines(panels[2], points, lambda p, mode: p.megabytes[mode], "peak memory, MB")
    _ratio(panels[3], points, [(p.memory_ratio,) * 3 for p in points])
    panels[3].set_xlabel(axis.unit, fontsize=9, color=INK)
    for panel in panels:
        _dress(panel, [p.value for p in points], last=panel is panels[3])


def _lines(panel: Any, points: list[Point], of: Callable[[Point, str], float], label: str) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    x = [p.value for p in points]
    for mode in MODES:
        y = [max(of(p, mode), 1e-3) for p in points]
        panel.plot(x, y, "o-", color=COLOURS[mode], label=LABELS[mode], **STYLES[mode])
    panel.set_yscale("log")
    low, high = panel.get_ylim()
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 200 else (1,)))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.yaxis.set_minor_locator(NullLocator())
    panel.set_ylabel(label, fontsize=9, color=INK)


def _ratio(panel: Any, points: list[Point], ratios: list[tuple[float, float, float]]) -> None:
    from matplotlib.ticker import MaxNLocator

    x = [p.value for p in points]
    low, mid, high = zip(*ratios, strict=True)
    panel.axhline(1, color=COLOURS["gradient"], lw=3)
    panel.fill_between(x, low, high, color=COLOURS["explain"], alpha=0.18, lw=0)
    panel.plot(x, mid, "o-", color=COLOURS["explain"], ms=3, lw=1.4)
    panel.set_ylim(min(0.5, 0.9 * min(low)), max(1.25, 1.08 * max(high)))
    panel.yaxis.set_major_locator(MaxNLocator(3))
    panel.set_ylabel("ratio", fontsize=9, color=INK)


def _dress(panel: Any, values: list[int], last: bool) -> None:
    from matplotlib.ticker import FixedLocator, NullLocator

    panel.set_xscale("log")
    panel.xaxis.set_major_locator(FixedLocator(values))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.set_xticklabels([str(v) for v in values] if last else [])
    tidy(panel)
