"""The scores of ``experiments.xdnn.quality`` as one figure: a panel a metric."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from experiments.xdnn.networks import PAIRS
from omenn.files.atomic import replacing
from omenn.metrics import METRICS
from omenn.metrics.score import bootstrap_interval

INK = "#333333"
COLOURS = ("#7f94ab", "#c2410c")  # regular, X
TITLES = {
    "kpm": "keep positive",
    "knm": "keep negative",
    "kam": "keep absolute",
    "rpm": "remove positive",
    "rnm": "remove negative",
    "ram": "remove absolute",
}


def draw(rows: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """One pair of twins: the first that is complete, or the first network alone."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    pair = next((p for p in PAIRS.items() if set(p) <= set(rows)), (next(iter(rows)),))
    figure = Figure(figsize=(10.5, 6.8), dpi=160, layout="constrained")
    panels = figure.subplots(2, 3, sharey=True)
    for panel, metric in zip(panels.flat, METRICS, strict=True):
        _bars(panel, {name: rows[name] for name in pair}, metric)
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False, fontsize=10)
    with replacing(path) as beside:
        figure.savefig(beside, format="png")


def _bars(panel: Any, rows: Mapping[str, Mapping[str, Any]], metric: str) -> None:
    names = list(next(iter(rows.values())))
    height = 0.8 / len(rows)
    for number, (network, scores) in enumerate(rows.items()):
        values = [torch.tensor(scores[n]["areas"][metric], dtype=torch.float64) for n in names]
        means = [float(v.mean()) for v in values]
        bounds = [bootstrap_interval(v) for v in values]
        reach = [
            [m - low for m, (low, _) in zip(means, bounds, strict=True)],
            [high - m for m, (_, high) in zip(means, bounds, strict=True)],
        ]
        places = [k + (number - (len(rows) - 1) / 2) * height for k in range(len(names))]
        colour = COLOURS[network in PAIRS.values()]
        panel.barh(
            places,
            means,
            height,
            xerr=reach,
            color=colour,
            label=network,
            error_kw={"lw": 1, "ecolor": INK},
        )
    arrow = "higher is better →" if METRICS[metric].higher else "← lower is better"
    title = f"{metric.upper()}: {TITLES[metric]}"
    panel.set_title(title, fontsize=10, color=INK, weight="bold", pad=19)
    panel.text(0.5, 1.025, arrow, transform=panel.transAxes, ha="center", fontsize=9, color=INK)
    below = "accuracy" if METRICS[metric].sign == 0 else "logit of the class"
    panel.set_xlabel(f"area below the {below}", fontsize=8.5, color=INK)
    panel.set_yticks(range(len(names)), [n.strip("*") for n in names])
    panel.set_ylim(len(names) - 0.4, -0.6)
    panel.axvline(0, color=INK, lw=0.7)
    panel.tick_params(labelsize=8, colors=INK)
    panel.grid(axis="x", color="#e5e5e5", lw=0.7)
    panel.set_axisbelow(True)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)
