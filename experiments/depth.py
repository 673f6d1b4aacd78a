"""At which depth is an exact map faithful? The bundled networks, on training or on test scenes.

python -m experiments.depth                       training scenes: what `at="auto"` was chosen on
python -m experiments.depth --split test --write  test scenes, and the table into docs/depth.md
python -m experiments.depth --scenes 40 --models birds-vit
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from scipy.stats import rankdata
from torch import Tensor
from torch.nn import functional as F

import omenn
from experiments.command import Command
from experiments.report import environment, table
from omenn.data import birds
from omenn.data.funnybirds import MAP_COLOURS
from omenn.engine.depth import levels_of
from omenn.filters import gaussian_filter
from omenn.models import sources

MODELS = ("birds-resnet", "birds-vit", "birds-convnet")
SIZE, BATCH, STEPS = 64, 20, 32
COMMAND = Command("depth", __doc__, "scenes", "write", scenes=100)
COMMAND.choose("model", MODELS, MODELS)
COMMAND.add("--split", choices=["train", "test"], default="train")
HEADER = ["model", "map", "single deletion", "given area", "insertion − deletion"]


@dataclass(frozen=True)
class Scored:
    """One number a scene; ``ranks`` (scenes, 3, 5): importance, drop and area of the parts."""

    deletion: list[float]
    ranks: np.ndarray
    curve: list[float]


@dataclass(frozen=True)
class Batch:
    """Scenes with their parts removed one by one, as the network takes them."""

    x: Tensor
    target: Tensor
    without: Tensor  # (scenes, parts, 3, SIZE, SIZE)
    masks: Tensor  # (scenes, parts, SIZE, SIZE)


def scenes_of(split: Any, count: int) -> list[Any]:
    """The first scenes of a split whose birds have all parts."""
    found: list[Any] = []
    number = 0
    while len(found) < count:
        scene = birds.sample_scene(number, split)
        if len(scene.parts) == len(birds.PARTS):
            found.append(scene)
        number += 1
    return found


def batches(net: Any, scenes: list[Any]) -> list[Batch]:
    found = []
    for start in range(0, len(scenes), BATCH):
        part = scenes[start : start + BATCH]
        without = [
            torch.cat([net.preprocessing(birds.render(s, SIZE, without=[p])) for p in birds.PARTS])
            for s in part
        ]
        masks = [_masks(s) for s in part]
        x = torch.cat([net.preprocessing(birds.render(s, SIZE)) for s in part])
        target = torch.tensor([s.class_index for s in part])
        found.append(Batch(x, target, torch.stack(without), torch.stack(masks)))
    return found


def _masks(scene: Any) -> Tensor:
    pixels = np.asarray(birds.part_map(scene, SIZE))
    seen = [
        np.any([(pixels == colour).all(axis=2) for colour in MAP_COLOURS[part]], axis=0)
        for part in birds.PARTS
    ]
    masks = torch.from_numpy(np.stack(seen)).float()
    return F.max_pool2d(masks[None], 3, 1, 1)[0]  # as FunnyBirds widens them


def configurations(net: Any, x: Tensor) -> dict[str, Callable[[Batch], Tensor]]:
    """Name → maps (B, H, W) of a batch."""
    levels = list(levels_of(net.model, x))
    depths = ["input", *levels]

    def exact(at: Any, **options: Any) -> Callable[[Batch], Tensor]:
        def made(b: Batch) -> Tensor:
            e = omenn.explain(net.model, b.x, b.target, at=at, **options)
            assert e.exact
            return e.matrix

        return made

    found = {f"at {name}": exact(name) for name in depths}
    found["input, C_w ⊙ X alone"] = lambda b: omenn.explain(
        net.model, b.x, b.target
    ).contribution.sum(1)
    found["even mixture"] = exact(depths)
    found["**auto**"] = exact("auto")
    grid = torch.linspace(-1, 1, SIZE)
    blob = torch.exp(-(grid[:, None] ** 2 + grid**2) / 0.5)
    generator = torch.Generator().manual_seed(0)
    found["*constant*"] = lambda b: torch.ones(len(b.x), SIZE, SIZE)
    found["*centre blob*"] = lambda b: blob.expand(len(b.x), -1, -1)
    found["*random*"] = lambda b: torch.rand(len(b.x), SIZE, SIZE, generator=generator)
    return found


@torch.no_grad()
def score(net: Any, made: Callable[[Batch], Tensor], given: list[Batch]) -> Scored:
    deletion, ranks, curve = [], [], []
    for b in given:
        with torch.enable_grad():
            maps = made(b).detach().double()
        full = net.model(b.x).gather(1, b.target[:, None])
        logits = net.model(b.without.flatten(0, 1)).unflatten(0, b.without.shape[:2])
        drop = (
            full - logits.gather(2, b.target[:, None, None].expand(-1, logits.shape[1], 1))[..., 0]
        )
        importance = (maps[:, None] * b.masks).sum((2, 3))
        area = b.masks.sum((2, 3))
        for k in range(len(b.x)):
            rows = np.stack([rankdata(t[k].numpy().round(9)) for t in (importance, drop, area)])
            ranks.append(rows)
            varies = rows[:2].std(1).min() > 0
            rho = float(np.corrcoef(rows[:2])[0, 1]) if varies else 0.0
            deletion.append((rho + 1) / 2)
        curve += _insertion_minus_deletion(net, maps, b).tolist()
    return Scored(deletion, np.stack(ranks), curve)


def _insertion_minus_deletion(net: Any, maps: Tensor, b: Batch) -> Tensor:
    """Mean probability while the best pixels are put in, minus while they are taken out."""
    order = maps.flatten(1).argsort(1, descending=True)
    place = torch.empty_like(order).scatter_(
        1, order, torch.arange(order.shape[1]).expand_as(order)
    )
    place = place.unflatten(1, maps.shape[1:])[:, None]
    blurred = gaussian_filter(b.x, 5.0, 5, "reflect")
    total = torch.zeros(len(maps))
    for step in range(STEPS + 1):
        best = place < step * order.shape[1] / STEPS
        for start, end, sign in ((blurred, b.x, 1), (b.x, torch.zeros_like(b.x), -1)):
            p = net.model(torch.where(best, end, start)).softmax(1)
            weight = 0.5 if step in (0, STEPS) else 1.0
            total += sign * weight / STEPS * p.gather(1, b.target[:, None])[:, 0]
    return total


def given_area(ranks: np.ndarray) -> float:
    """Rank correlation of importance and drop of the parts of one image, given their area, pooled.

    Ranks are centred within an image; what area explains of either is taken away linearly.
    """
    centred = ranks - ranks.mean(2, keepdims=True)
    importance, drop, area = centred.transpose(1, 0, 2).reshape(3, -1)
    rest = [t - area * (t @ area) / (area @ area) for t in (importance, drop)]
    size = np.sqrt((rest[0] @ rest[0]) * (rest[1] @ rest[1]))
    return float(rest[0] @ rest[1] / size) if size > 1e-9 else 0.0


def _interval(values: list[float], of: Callable[[np.ndarray], float]) -> tuple[float, float]:
    """95 % bootstrap interval over scenes."""
    rng = np.random.default_rng(0)
    array = np.asarray(values)
    draws = [of(array[rng.integers(0, len(array), len(array))]) for _ in range(500)]
    return float(np.quantile(draws, 0.025)), float(np.quantile(draws, 0.975))


def row(model: str, name: str, s: Scored) -> list[str]:
    mean = lambda a: float(a.mean())  # noqa: E731
    cells = [(statistics.fmean(s.deletion), _interval(s.deletion, mean))]
    cells.append((given_area(s.ranks), _interval(s.ranks, given_area)))  # type: ignore[arg-type]
    cells.append((statistics.fmean(s.curve), _interval(s.curve, mean)))
    return [model, name, *(f"{v:.2f} ({low:.2f}–{high:.2f})" for v, (low, high) in cells)]


def main(words: Sequence[str] | None = None) -> None:
    a = COMMAND.parse(words)
    if a.write and a.split != "test":
        COMMAND.fail("--write publishes test scenes: add --split test")
    scenes = scenes_of(a.split, a.scenes)
    rows = []
    for model in a.models:
        net = sources.load(model)
        given = batches(net, scenes)
        made = configurations(net, given[0].x[:1])
        for name in track(made, description=model, console=Console(stderr=True)):
            rows.append(row(model, name, score(net, made[name], given)))
    note = (
        f"Means over {a.scenes} {a.split} scenes with 95 % bootstrap intervals over scenes. "
        f"{COMMAND.written('--split test')}; {environment()}."
    )
    COMMAND.publish(a, "depth.md", depth=f"{table(HEADER, rows)}\n\n{note}")


if __name__ == "__main__":
    main()
