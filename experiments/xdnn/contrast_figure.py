"""The curves of ``experiments.xdnn.contrast`` as one figure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from experiments.xdnn.networks import PAIRS
from omenn.files.atomic import replacing
from omenn.metrics.score import bootstrap_interval

INK = "#333333"
REGULAR, X = "#5f7893", "#c2410c"
LINES = dict(zip(PAIRS, ("-", "--", ":"), strict=True))


def draw(rows: Mapping[str, Any], path: Path) -> None:
    """Accuracy, and for X-Gradient how far the map turns and moves, over α; a line a network."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    from experiments.xdnn.contrast import ALPHAS

    figure = Figure(figsize=(11, 4.0), dpi=160, layout="constrained")
    panels = figure.subplots(1, 3)
    _curves(panels[0], ALPHAS, rows, lambda found: found["right"])
    _curves(panels[1], ALPHAS, rows, lambda found: found["turned"]["xgradient"])
    _curves(panels[2], ALPHAS, rows, lambda found: found["moved"]["xgradient"])
    titles = (
        "accuracy",
        "X-Gradient: 1 − cos(A(αx), A(x))",
        "X-Gradient: Σ|A(αx)/α − A(x)| / Σ|A(x)|",
    )
    for panel, title in zip(panels, titles, strict=True):
        panel.set_title(title, fontsize=10, color=INK, weight="bold")
        panel.set_xlabel("contrast α", fontsize=9, color=INK)
        panel.set_xlim(1.02, 0.08)
        panel.tick_params(labelsize=8, colors=INK)
        panel.grid(color="#e5e5e5", lw=0.7)
        for side in ("top", "right"):
            panel.spines[side].set_visible(False)
    panels[0].set_ylim(-0.02, 1.03)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=6, frameon=False, fontsize=9)
    with replacing(path) as beside:
        figure.savefig(beside, format="png")


def _curves(
    panel: Any,
    alphas: Sequence[float],
    rows: Mapping[str, Any],
    of: Callable[[Any], list[list[float]]],
) -> None:
    twins = {x: regular for regular, x in PAIRS.items()}
    for name, found in rows.items():
        colour, line = (X if name in twins else REGULAR), LINES[twins.get(name, name)]
        values = of(found)
        bounds = [bootstrap_interval(torch.tensor(v, dtype=torch.float64)) for v in values]
        low, high = zip(*bounds, strict=True)
        panel.fill_between(alphas, low, high, color=colour, alpha=0.12, lw=0)
        panel.plot(alphas, [fmean(v) for v in values], line, color=colour, lw=1.8, label=name)
