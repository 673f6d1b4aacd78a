"""What lower contrast does to accuracy and to attributions: α·x for α = 1, 0.9 … 0.1.

    python -m experiments.xdnn.contrast --short      one pair of networks, a few scenes
    python -m experiments.xdnn.contrast              500 test scenes; goes on if stopped
    python -m experiments.xdnn.contrast --weights runs/xdnn/twins --write

x is the normalised input, (pixel − mean) / std, so α·x fades towards the mean, a grey. Where
f(αx) = α f(x) the largest logit stays the largest, and A(αx) = α A(x) for X-Gradient and for omenn.
Finished networks are kept in runs/xdnn/contrast and used again as long as weights and code are the
same.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

import omenn
from experiments.command import DOCS
from experiments.figures import INK, REGULAR, X, figure, legend, save, tidy
from experiments.report import environment, interval, table
from experiments.store import version
from experiments.xdnn.networks import PAIRS, Network, Scenes, Trained, origin, scenes

COMMAND = Trained("contrast", __doc__, scenes=500, short=20)
BATCH = 50
ALPHAS = tuple(k / 10 for k in range(10, 0, -1))
METHODS = {"xgradient": "X-Gradient", "omenn": "omenn"}
SHOWN = (0.5, 0.1)  # of attributions, in the table
IMAGE = DOCS / "images" / "xdnn-contrast.png"
LINES = dict(zip(PAIRS, ("-", "--", ":"), strict=True))
PANELS = {
    "accuracy": lambda found: found["right"],
    "X-Gradient: 1 − cos(A(αx), A(x))": lambda found: found["turned"]["xgradient"],
    "X-Gradient: Σ|A(αx)/α − A(x)| / Σ|A(x)|": lambda found: found["moved"]["xgradient"],
}

# right: a row an α of 0 and 1 a scene; turned, moved: method → a row an α of numbers a scene
Found = dict[str, Any]


def turned(there: Tensor, here: Tensor) -> Tensor:
    """1 − cos of the angle between two maps, (B,): 0 at the same direction, 1 at a right angle.

    Two maps of zeros have the same direction, a map of zeros and another are at a right angle.
    """
    a, b = there.double().flatten(1), here.double().flatten(1)
    product = a.norm(dim=1) * b.norm(dim=1)
    cosine = (a * b).sum(1) / product.clamp_min(torch.finfo(torch.float64).tiny)
    both = (a == 0).all(1) & (b == 0).all(1)
    angle = (1 - torch.where(product > 0, cosine, 0.0)).clamp_min(0.0)
    return torch.where(both, 0.0, angle)


def moved(there: Tensor, here: Tensor, alpha: float) -> Tensor:
    """Σ|A(αx)/α − A(x)| / Σ|A(x)|, (B,): how far a map is from one that fades with its picture.

    For a map of zeros at x: 0 if it stays so, else 1.
    """
    a, b = there.double().flatten(1) / alpha, here.double().flatten(1)
    distance, size = (a - b).abs().sum(1), b.abs().sum(1)
    return torch.where(size > 0, distance / size, (distance > 0).double())


def measure(network: Network, given: Scenes) -> Found:
    """All α of one network."""
    found: Found = {
        "right": [],
        "turned": {m: [] for m in METHODS},
        "moved": {m: [] for m in METHODS},
    }
    here = {m: maps(network, given, m, 1.0) for m in METHODS}
    for alpha in ALPHAS:
        found["right"].append(right(network, given, alpha).tolist())
        for m in METHODS:
            there = here[m] if alpha == 1 else maps(network, given, m, alpha)
            found["turned"][m].append(turned(there, here[m]).tolist())
            found["moved"][m].append(moved(there, here[m], alpha).tolist())
    return found


@torch.no_grad()
def right(network: Network, given: Scenes, alpha: float) -> Tensor:
    """(N,) 1 where the scene's class has the largest logit."""
    parts = [(network.model(alpha * x).argmax(1) == y) for x, y in given.batches(BATCH)]
    return torch.cat(parts).double().cpu()


def maps(network: Network, given: Scenes, method: str, alpha: float) -> Tensor:
    """(N, S, S), of the class of the scene."""
    parts = [
        omenn.explain(network.model, alpha * x, y, method=method).matrix.detach().cpu()
        for x, y in given.batches(BATCH)
    ]
    return torch.cat(parts)


def accuracies(rows: Mapping[str, Found]) -> str:
    header = ["accuracy, %", *(f"α = {alpha:g}" for alpha in ALPHAS)]
    cells = []
    for name, found in rows.items():
        means = [interval(each) for each in found["right"]]
        cells.append([name, *(f"{100 * mean:.1f}" for mean, *_ in means)])
    return table(header, cells)


def changes(rows: Mapping[str, Found]) -> str:
    what = ("1 − cos", "relative L1")
    header = ["attributions", "map", *(f"{w}, α = {alpha:g}" for w in what for alpha in SHOWN)]
    cells = []
    for name, found in rows.items():
        for m, label in METHODS.items():
            row = [name, label]
            for measure in ("turned", "moved"):
                for alpha in SHOWN:
                    mean, low, high = interval(found[measure][m][ALPHAS.index(alpha)])
                    row.append(f"{mean:.2g} [{low:.2g}, {high:.2g}]")
            cells.append(row)
    return table(header, cells)


def text_of(rows: Mapping[str, Found], a: argparse.Namespace, where: str) -> str:
    note = (
        f"{a.scenes} test scenes, the normalised input times α. *1 − cos*: of the angle between "
        "A(αx) and A(x). *Relative L1*: Σ|A(αx)/α − A(x)| / Σ|A(x)|. Means over scenes, 95 % "
        f"bootstrap intervals over scenes in brackets. {where}. "
        f"{COMMAND.made_by(a)}; {environment()}."
    )
    image = f"![Accuracy and X-Gradient against contrast](images/{IMAGE.name})"
    return "\n\n".join([accuracies(rows), changes(rows), image, note])


def draw(rows: Mapping[str, Found], path: Path) -> None:
    """Accuracy, and for X-Gradient how far the map turns and moves, over α; a line a network."""
    drawn = figure(11, 4.0)
    panels = drawn.subplots(1, len(PANELS))
    twins = {x: regular for regular, x in PAIRS.items()}
    for panel, (title, of) in zip(panels, PANELS.items(), strict=True):
        for name, found in rows.items():
            colour, line = (X if name in twins else REGULAR), LINES[twins.get(name, name)]
            bounds = [interval(values)[1:] for values in of(found)]
            panel.fill_between(ALPHAS, *zip(*bounds, strict=True), color=colour, alpha=0.12, lw=0)
            panel.plot(ALPHAS, list(map(fmean, of(found))), line, color=colour, lw=1.8, label=name)
        panel.set_title(title, fontsize=10, color=INK, weight="bold")
        panel.set_xlabel("contrast α", fontsize=9, color=INK)
        panel.set_xlim(1.02, 0.08)
        tidy(panel)
    panels[0].set_ylim(-0.02, 1.03)
    legend(drawn, panels[0], "lower center", 6)
    save(drawn, path)


def main(words: Sequence[str] | None = None) -> None:
    a = COMMAND.parse(words)
    found = COMMAND.networks(a)
    given = scenes("test", a.scenes, a.device, a.work.parent / "scenes")
    code = version(turned, moved, measure, right, maps)
    rows = COMMAND.each(a, found, f"{code}-{a.scenes}", lambda net: measure(net, given))
    if a.write:
        draw(rows, IMAGE)
    COMMAND.publish(a, "xdnn-experiments.md", contrast=text_of(rows, a, origin(found, a)))


if __name__ == "__main__":
    main()
