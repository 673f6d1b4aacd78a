"""What each dial of completed rules does: a picture with the numbers beside it.

python -m experiments.dials                  the table to the terminal
python -m experiments.dials --write          and into docs/ablation.md, with docs/images/dials.png
python -m experiments.dials --models birds-vit
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

import omenn
from experiments.command import DOCS, Command
from experiments.figures import INK, figure, save
from experiments.report import environment, table
from omenn.data import birds
from omenn.data.photographs import PHOTOGRAPHS
from omenn.models import sources
from omenn.viz.heatmaps import scale_of, signed_rgb, smooth

LITE = "efficientnet-lite0"
MODELS = ("birds-resnet", "birds-vit", LITE)
SCENE, SIZE, SHARE = 3, 64, 90  # of the birds; σ of the smoothing is a ninetieth of the side
DIALS: Mapping[str, Mapping[str, Any]] = {
    "all as given": {},
    "gamma=0.1": {"gamma": 0.1},
    "beta=0": {"beta": 0.0},
    "gamma=0.1;beta=0": {"gamma": 0.1, "beta": 0.0},
    "gamma=0.1;beta=0;pointwise=identity": {"gamma": 0.1, "beta": 0.0, "pointwise": "identity"},
    "softmax=taylor": {"softmax": "taylor"},
    "norm=derivative": {"norm": "derivative"},
    "pointwise=tangent": {"pointwise": "tangent"},
    "residual=0.5": {"residual": 0.5},
}
COMMAND = Command("dials", __doc__, "threads", "write")
COMMAND.choose("model", MODELS, MODELS)
HEADER = ["model", "dials", "f", "sum less f", "kept", "for", "against", "differs"]


@dataclass(frozen=True)
class Shown:
    """One map, and what is said of it."""

    matrix: np.ndarray
    output: float
    off: float  # |f − ΣC| / (1 + Σ|C|)
    kept: float  # ΣD / f
    differs: float  # Σ|C − C of omenn| / Σ|C of omenn|

    @property
    def parts(self) -> tuple[float, float]:
        """The sums of what is positive, and of what is negative."""
        return float(self.matrix.clip(min=0).sum()), float(self.matrix.clip(max=0).sum())


def picture_of(model: str) -> Any:
    """A bird of the test split, or the first photograph."""
    if model == LITE:
        return PHOTOGRAPHS[0].picture()
    return birds.render(birds.sample_scene(SCENE, "test"), SIZE)


def maps(model: str) -> tuple[np.ndarray, dict[str, Shown]]:
    """The input as the model sees it, and the map of every setting, for the largest logit."""
    net = sources.load(model)
    x = net.preprocessing(picture_of(model))
    found: dict[str, Shown] = {}
    for name, options in DIALS.items():
        e = omenn.explain(net.model, x, method="rules", **options)
        c = e.matrix[0].detach().double().numpy()
        f, plain = float(e.output), next(iter(found.values())).matrix if found else c
        off = float((e.residual.abs() / (1 + e.magnitude)).max())
        differs = float(np.abs(c - plain).sum() / np.abs(plain).sum())
        found[name] = Shown(c, f, off, float(e.bias.double().sum()) / f, differs)
    return _seen(x), found


def _seen(x: torch.Tensor) -> np.ndarray:
    """A model's input as a picture, from its least to its largest value."""
    shown = x[0].permute(1, 2, 0).numpy()
    return (shown - shown.min()) / (shown.max() - shown.min())


def drawn(every: Mapping[str, tuple[np.ndarray, Mapping[str, Shown]]]) -> Any:
    """The figure: a row a model, a column a setting, each map on a scale of its own."""
    columns = 1 + len(DIALS)
    made = figure(1.5 * columns, 1.9 * len(every), dpi=80)
    axes = made.subplots(len(every), columns, squeeze=False)
    for line, (model, (image, found)) in zip(axes, every.items(), strict=True):
        line[0].imshow(image)
        line[0].set_ylabel(model, fontsize=8, color=INK)
        line[0].set_xlabel(f"f = {next(iter(found.values())).output:.2f}", fontsize=7, color=INK)
        for axis, shown in zip(line[1:], found.values(), strict=True):
            soft = smooth(shown.matrix, len(shown.matrix) / SHARE)
            axis.imshow(signed_rgb(soft, scale_of(soft)))
            words = f"ΣC = {shown.matrix.sum():.2f}, kept {shown.kept:.0%}"
            axis.set_xlabel(words, fontsize=7, color=INK)
    for axis, title in zip(axes[0], ["input", *DIALS], strict=True):
        axis.set_title(title.replace(";", "\n"), fontsize=8, loc="left", color=INK)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    return made


def rows(model: str, found: Mapping[str, Shown]) -> list[list[str]]:
    return [
        [
            model,
            f"`{name}`",
            f"{shown.output:.2f}",
            f"{shown.off:.0e}",
            f"{shown.kept:.0%}",
            *(f"{part:+.1f}" for part in shown.parts),
            f"{shown.differs:.0%}",
        ]
        for name, shown in found.items()
    ]


def main(words: Sequence[str] | None = None) -> None:
    a = COMMAND.parse(words)
    if a.write and tuple(a.models) != MODELS:
        COMMAND.fail("--write publishes all models: omit --models.")
    every = {model: maps(model) for model in a.models}
    lines = [line for model, (_, found) in every.items() for line in rows(model, found)]
    note = f"{COMMAND.written()}; {environment()}."
    if a.write:
        save(drawn(every), DOCS / "images" / "dials.png")
    COMMAND.publish(a, "ablation.md", dials=f"{table(HEADER, lines)}\n\n{note}")


if __name__ == "__main__":
    main()
