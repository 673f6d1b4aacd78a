"""The accuracies of ``experiments.xdnn.twins`` as a figure: a dot a training, a bar their mean."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.xdnn.networks import PAIRS
from omenn.files.atomic import replacing

INK = "#333333"
COLOURS = ("#7f94ab", "#c2410c")  # regular, X
LABELS = ("regular", "without additive terms (X)")

Accuracies = Mapping[str, Mapping[int, float]]
"""Network → seed → top-1 in percent."""


def draw(panels: Mapping[str, Accuracies], goal: float, path: Path) -> None:
    """A panel each; dashed, where the first has the mean of the regular network minus ``goal``."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6 * len(panels), 3.7), dpi=160, layout="constrained")
    grid = figure.subplots(1, len(panels), squeeze=False)[0]
    for number, (panel, (title, found)) in enumerate(zip(grid, panels.items(), strict=True)):
        panel.set_title(title, fontsize=10, color=INK)
        _dots(panel, found, goal if number == 0 else None)
    for side in (0, 1):
        grid[0].plot([], [], "o-", color=COLOURS[side], lw=2.2, ms=6, label=LABELS[side])
    grid[0].plot([], [], "--", color=INK, lw=1, label=f"regular − {goal:g} points")
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False, fontsize=9)
    with replacing(path) as beside:
        figure.savefig(beside, format="png")


def _dots(panel: Any, found: Accuracies, goal: float | None) -> None:
    pairs = [pair for pair in PAIRS.items() if any(found.get(name) for name in pair)]
    for place, pair in enumerate(pairs):
        for side, name in enumerate(pair):
            values = [found[name][seed] for seed in sorted(found.get(name, ()))]
            if not values:
                continue
            middle, mean = place + 0.4 * (side - 0.5), statistics.fmean(values)
            steps = [middle + 0.08 * (k - (len(values) - 1) / 2) for k in range(len(values))]
            panel.plot(steps, values, "o", color=COLOURS[side], ms=5, mew=0, alpha=0.8)
            panel.hlines(mean, middle - 0.16, middle + 0.16, color=COLOURS[side], lw=2.2)
            panel.annotate(
                f"{mean:.1f}" if goal is None else f"{mean:.2f}",
                (middle, max(values)),
                xytext=(0, 6),
                textcoords="offset points",
                ha="center",
                fontsize=8.5,
                color=COLOURS[side],
            )
            if goal is not None and side == 0:
                panel.hlines(mean - goal, place - 0.4, place + 0.4, color=INK, lw=1, ls="--")
    panel.set_xticks(range(len(pairs)), [regular for regular, _ in pairs], color=INK)
    panel.set_xlim(-0.55, len(pairs) - 0.45)
    panel.margins(y=0.12)
    panel.set_ylabel("top-1, %", fontsize=9, color=INK)
    panel.tick_params(labelsize=9, colors=INK)
    panel.grid(axis="y", color="#e5e5e5", lw=0.7)
    panel.set_axisbelow(True)
    for edge in ("top", "right"):
        panel.spines[edge].set_visible(False)
