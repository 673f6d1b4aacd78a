"""Where the constants go: every choice on the bundled networks, a picture and a table.

python -m experiments.bias                  the table to the terminal
python -m experiments.bias --write          and into docs/bias.md, with docs/images/bias.png
python -m experiments.bias --scenes 20
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

import omenn
from experiments.command import DOCS, Command
from experiments.figures import figure, save
from experiments.report import environment, table
from omenn.data import birds
from omenn.models import sources
from omenn.viz.heatmaps import scale_of, signed_rgb

MODELS = ("birds-vit", "birds-resnet", "birds-convnet")
SHOWN = (3, 11, 27)  # scenes of the test split in the picture
SIZE, BATCH = 64, 25
COMMAND = Command("bias", __doc__, "scenes", "write", scenes=100)
HEADER = ["model", "bias=", "located", "along attention", "evenly", "on the bird"]


@dataclass(frozen=True)
class Found:
    """Shares of Σ|constants| for a batch, and for each scene the share of Σ|C_b| on the bird."""

    located: float
    attention: float
    even: float
    on_bird: list[float]


def bird_mask(scene: Any) -> np.ndarray:
    """Where the bird is, (SIZE, SIZE): background objects have two equal channels of 204."""
    pixels = np.asarray(birds.part_map(scene, SIZE).convert("RGB")).astype(int)
    backdrop = (pixels[..., 0] == 204) & (pixels[..., 1] == 204)
    return (pixels.sum(-1) > 0) & ~backdrop


def measure(name: str, bias: str, scenes: list[Any]) -> list[Found]:
    """One entry for each batch of scenes."""
    net, found = sources.load(name), []
    for start in range(0, len(scenes), BATCH):
        batch = scenes[start : start + BATCH]
        x = torch.cat([net.preprocessing(birds.render(scene, SIZE)) for scene in batch])
        target = torch.tensor([scene.class_index for scene in batch])
        e = omenn.explain(net.model, x, target, bias=bias)
        assert e.exact
        places = e.bias.abs().double()
        mask = torch.from_numpy(np.stack([bird_mask(scene) for scene in batch]))
        on_bird = (places * mask).sum((1, 2)) / places.sum((1, 2))
        routed = e.reasons.get("attention", 0.0)
        found.append(Found(e.located, routed, 1 - e.located - routed, on_bird.tolist()))
    return found


def cells(name: str, bias: str, found: list[Found]) -> list[str]:
    """Means over the scenes; for the share on the bird, with the quartiles."""
    shares = [
        f"{statistics.fmean(getattr(f, key) for f in found):.0%}"
        for key in ("located", "attention", "even")
    ]
    on_bird = [share for f in found for share in f.on_bird]
    low, _, high = statistics.quantiles(on_bird, n=4)
    return [
        name,
        f"`{bias}`",
        *shares,
        f"{statistics.fmean(on_bird):.0%} ({low:.0%}–{high:.0%})",
    ]


def picture(path: Any) -> None:
    """C_b of the bundled ViT for some birds under two options, and what the second one moves."""
    net = sources.load("birds-vit")
    titles = ["input", "$C_b$, spatial", "$C_b$, attention", "their difference", "C, attention"]
    drawn = figure(2.0 * len(titles), 2.2 * len(SHOWN), dpi=110)
    axes = drawn.subplots(len(SHOWN), len(titles))
    for row, number in zip(axes, SHOWN, strict=True):
        image = birds.render(birds.sample_scene(number, "test"), SIZE)
        x = net.preprocessing(image)
        spatial, routed = (
            omenn.explain(net.model, x, bias=bias) for bias in ("spatial", "attention")
        )
        before, after, whole = (
            t[0].detach().numpy() for t in (spatial.bias, routed.bias, routed.matrix)
        )
        scale, moved = scale_of(before, after), scale_of(after - before)
        maps = [(before, scale), (after, scale), (after - before, moved), (whole, scale_of(whole))]
        row[0].imshow(image)
        for axis, (values, limit) in zip(row[1:], maps, strict=True):
            axis.imshow(signed_rgb(values, limit))
        row[3].set_xlabel(f"enlarged {scale / moved:.0f} times", fontsize=8)
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=10, loc="left")
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    save(drawn, path)


def main(words: Sequence[str] | None = None) -> None:
    a = COMMAND.parse(words)
    scenes = [birds.sample_scene(k, "test") for k in range(a.scenes)]
    area = statistics.fmean(float(bird_mask(s).mean()) for s in scenes)
    runs = [(m, b) for m in MODELS for b in ("spatial", "attention", "uniform")]
    runs.remove(("birds-resnet", "attention"))  # without attention it is the same as spatial
    runs.remove(("birds-convnet", "attention"))
    rows = [
        cells(m, b, measure(m, b, scenes)) for m, b in track(runs, console=Console(stderr=True))
    ]
    note = (
        f"The bird covers {area:.0%} of the picture. {COMMAND.written()}: means over {a.scenes} "
        f"test scenes (quartiles), the class of the scene; {environment()}."
    )
    if a.write:
        picture(DOCS / "images" / "bias.png")
    COMMAND.publish(a, "bias.md", bias=f"{table(HEADER, rows)}\n\n{note}")


if __name__ == "__main__":
    main()
