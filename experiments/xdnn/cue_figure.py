"""The figure of the experiment with the spurious cue: accuracy against time, and maps."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from experiments.figures import INK, figure, save, tidy
from experiments.xdnn.cue_conditions import ROWS
from experiments.xdnn.cue_training import Condition
from omenn.viz.heatmaps import scale_of, signed_rgb

PLAIN, LIMIT, PRIOR, CONTROL = "#7f94ab", "#3a7d44", "#c2410c", "#b0a39a"


def colour_of(condition: Condition) -> str:
    if condition.treatment is not None:
        return CONTROL
    if condition.method is not None:
        return PRIOR
    return PLAIN if condition.cue == "true" else LIMIT


COLOURS = {name: colour_of(row.condition) for name, row in ROWS.items()}


@dataclass(frozen=True)
class Point:
    """A condition: time as a multiple of that without a prior, accuracy of every seed in %."""

    label: str
    ratio: float
    accuracies: Sequence[float]


@dataclass(frozen=True)
class Strip:
    """Maps (N, S, S) of one network, and what it says of each picture."""

    label: str
    maps: Tensor
    says: Sequence[str]


def draw(
    points: Mapping[str, Point],
    ratio: float,
    images: Tensor | None,
    strips: Sequence[Strip],
    path: Path,
) -> None:
    """``images`` (N, 3, S, S) uint8, above the strips of their maps; None: no maps are drawn."""
    lines = 0 if images is None else 1 + len(strips)
    drawn = figure(10, 4.2 + 1.25 * lines)
    heights = [4.2, 1.25 * lines] if lines else [4.2]
    parts: Any = drawn.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)
    _scatter(parts[0, 0].subplots(), points, ratio)
    if images is not None:
        _maps(parts[1, 0], images, strips)
    save(drawn, path)


def _scatter(panel: Any, points: Mapping[str, Point], ratio: float) -> None:
    order = sorted(points, key=lambda name: statistics.fmean(points[name].accuracies))
    for number, name in enumerate(order):
        point, colour = points[name], COLOURS[name]
        mean = statistics.fmean(point.accuracies)
        error = statistics.stdev(point.accuracies) if len(point.accuracies) > 1 else 0.0
        panel.errorbar(point.ratio, mean, error, fmt="o", color=colour, ms=7, capsize=3)
        panel.annotate(
            str(number + 1),
            (point.ratio, mean),
            xytext=(7, 5),
            textcoords="offset points",
            fontsize=8.5,
            color=colour,
        )
        panel.plot([], [], "o", color=colour, ms=5, label=f"{number + 1}  {point.label}")
    panel.axvline(ratio, color=INK, lw=1, ls="--")
    panel.annotate(
        f" {ratio:g} ×", (ratio, 0.02), xycoords=("data", "axes fraction"), fontsize=8, color=INK
    )
    panel.set_xlim(left=0)
    panel.set_ylim(-4, 106)
    panel.set_xlabel("time of a step, × that with cue and no prior", fontsize=9, color=INK)
    panel.set_ylabel("accuracy with lying marks, %", fontsize=9, color=INK)
    tidy(panel, size=8.5)
    handles, labels = panel.get_legend_handles_labels()
    panel.legend(
        handles[::-1], labels[::-1], loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False,
        fontsize=8.5,
    )  # fmt: skip


def _maps(below: Any, images: Tensor, strips: Sequence[Strip]) -> None:
    grid = below.subplots(1 + len(strips), len(images), squeeze=False)
    for axes, image in zip(grid[0], images, strict=True):
        axes.imshow(image.permute(1, 2, 0).numpy())
    for line, strip in zip(grid[1:], strips, strict=True):
        scale = scale_of(*strip.maps)
        for axes, matrix, says in zip(line, strip.maps, strip.says, strict=True):
            axes.imshow(signed_rgb(matrix, scale))
            axes.set_title(says, fontsize=7.5, color=INK, pad=2)
    for line, label in zip(grid, ["lying marks", *(s.label for s in strips)], strict=True):
        line[0].set_ylabel(
            label.replace(", ", ",\n").replace(" prior", "\nprior"),
            fontsize=8, color=INK, rotation=0, ha="right", va="center",
        )  # fmt: skip
        for axes in line:
            axes.set_xticks([])
            axes.set_yticks([])
            for spine in axes.spines.values():
                spine.set_color("#cccccc")
