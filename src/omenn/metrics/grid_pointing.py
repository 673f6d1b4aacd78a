"""The grid pointing game: how much of the map of a class lies on its own picture in a mosaic.

Source: Böhle, Fritz, Schiele 2021, "Convolutional Dynamic Alignment Networks", CVPR, arXiv
2104.00032; Rao, Böhle, Schiele 2022, "Towards Better Understanding Attribution Methods", CVPR,
arXiv 2205.10435.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from omenn.check import choose, real, whole, wrong
from omenn.errors import InputError, reason
from omenn.metrics.explainers import Explainer
from omenn.metrics.maps import (
    Model,
    checked_images,
    checked_targets,
    constant_maps,
    logits_of,
    maps_of,
    of_targets,
)
from omenn.metrics.metric_registry import Measure, metric
from omenn.metrics.score import Score

PERCENTILES = (25, 50, 75, 100)


@dataclass(frozen=True, eq=False)
class GridScore:
    """``score``: one value a mosaic, the mean over its cells, so that intervals are over mosaics.

    ``cells`` (M, n²) float64: the values of the cells, row by row. ``members`` (M, n²): which
    pictures they are.
    """

    score: Score
    cells: Tensor
    members: Tensor

    @property
    def scores(self) -> tuple[Score]:
        return (self.score,)

    @property
    def percentiles(self) -> dict[int, float]:
        """Of all cells, as published."""
        at = torch.tensor(PERCENTILES, dtype=torch.float64) / 100
        found = torch.quantile(self.cells.flatten(), at).tolist()
        return dict(zip(PERCENTILES, found, strict=True))

    def __repr__(self) -> str:
        return f"GridScore({self.score!r})"


@metric(
    "grid-pointing-game",
    Measure("grid pointing game", headline=True, axis=True),
    family="localisation",
    summary="the share of the map's positive part in the right cell of a mosaic",
    source="arXiv 2104.00032",
)
def grid_pointing_game(
    f: Model,
    explain: Explainer,
    images: Tensor,
    labels: Tensor,
    *,
    cells: int = 2,
    grids: int = 250,
    confidence: float = 0.95,
    certainty: Literal["softmax", "sigmoid"] = "softmax",
    size: Literal["full", "model"] = "full",
    smooth: int = 1,
    seed: int = 0,
    chunk: int = 16,
    tick: Callable[[], Any] = lambda: None,
) -> GridScore:
    """Mosaics of n × n pictures of distinct classes; each class is explained on the whole mosaic.

    A cell's value is the share of the map's positive part that lies in it, Σ_cell a⁺ / Σ a⁺, and 0
    for a map without one, which is counted. Chance is 1/n². Pictures are those that the model
    classifies correctly and with ``confidence``; of each class the most certain come first, classes
    are drawn by what is left of them, and no picture is used twice, so that fewer than ``grids``
    mosaics may come of it, which is counted.

    Args:
        f: images → logits; for ``size="full"`` of n times the side.
        explain: makes the maps of the mosaics.
        images: (B, C, H, W), as f takes them; labels: (B,).
        cells: n.
        certainty: what ``confidence`` is compared with: the label's probability by softmax, or by
            sigmoid, for models that were trained so.
        size: ``"full"``: mosaics (n·H, n·W), as published; convolutional networks take them.
            ``"model"``: mosaics (H, W), each picture reduced to 1/n by the mean over n × n pixels.
        smooth: side of the squares over which maps are averaged first, odd; 1 for none. Beyond the
            edge is 0.
        seed: of the draw.
        chunk: how many pictures f and mosaics ``explain`` gets at once, at most.
        tick: called after each chunk.

    Raises:
        InputError: not enough classes with confident pictures, a model that cannot take the
            mosaics, sides that n does not divide, unknown options, maps that do not fit.

    Example:
        >>> f = lambda x: x.mean((2, 3)) * 100
        >>> images = torch.eye(4)[:, :, None, None].repeat(1, 1, 8, 8)  # one colour each
        >>> explain = lambda x, targets: x[range(len(x)), targets]
        >>> game = grid_pointing_game(f, explain, images, torch.arange(4), confidence=0.9)
        >>> game.score.mean, game.score.images, game.score.chance
        (1.0, 1, 0.25)

    Source: the module's docstring.
    """
    images = checked_images(images)
    labels = checked_targets(labels, len(images), images.device)
    _check_options(images, certainty, size, cells=cells, grids=grids, smooth=smooth, chunk=chunk)
    count = cells**2
    real("confidence", confidence, 0, 1)
    candidates = _confident(logits_of(f, images, chunk), labels, confidence, certainty)
    _check_candidates(candidates, labels, count, confidence)
    members = _drawn(candidates, labels, count, grids, seed)
    values, notes = [], {"constant maps": 0, "maps without positive values": 0}
    for some in members.split(max(1, chunk // count)):
        mosaics = _mosaics(images[some.to(images.device)], cells, size)
        if not values and size == "full":
            _try(f, mosaics[:1])
        repeated = mosaics.repeat_interleave(count, 0)
        maps = maps_of(explain, repeated, labels[some.to(labels.device)].flatten(), chunk)
        own, total = _shares(maps, cells, smooth)
        notes["constant maps"] += int(constant_maps(maps).sum())
        notes["maps without positive values"] += int((total == 0).sum())
        values.append(own)
        tick()
    counted = {
        **notes,
        "pictures not classified with confidence": len(images) - len(candidates),
        "mosaics fewer than asked for": grids - len(members),
    }
    found = torch.cat(values).cpu()
    name = f"grid pointing game {cells}x{cells}"
    return GridScore(Score(name, found.mean(1), counted, chance=1 / count), found, members)


def _confident(logits: Tensor, labels: Tensor, confidence: float, certainty: str) -> Tensor:
    """The pictures that are classified correctly and with confidence, the most certain first."""
    chosen = of_targets(logits.softmax(1) if certainty == "softmax" else logits.sigmoid(), labels)
    fit = ((logits.argmax(1) == labels) & (chosen >= confidence)).cpu()
    order = chosen.cpu().argsort(descending=True, stable=True)
    return order[fit[order]].to(labels.device)


def _check_candidates(candidates: Tensor, labels: Tensor, count: int, confidence: float) -> None:
    there = len(labels[candidates].unique())
    if there < count:
        raise InputError(
            f"a mosaic needs {count} classes, but only {there} have a picture that is classified "
            f"correctly with a confidence of {confidence:g} ({len(candidates)} of {len(labels)} "
            "pictures).",
            argument="images",
            got=f"{there} classes",
            expected=f"{count} classes",
            remedy="Give more pictures, fewer cells=, or a lower confidence=.",
        )


def _drawn(candidates: Tensor, labels: Tensor, count: int, grids: int, seed: int) -> Tensor:
    """Which pictures make the mosaics, (M, count), of the candidates, the best first."""
    queues: dict[int, list[int]] = {}
    for index in candidates.tolist():
        queues.setdefault(int(labels[index]), []).append(index)
    generator = torch.Generator().manual_seed(seed)
    classes = sorted(queues)
    members: list[list[int]] = []
    while len(members) < grids:
        left = torch.tensor([float(len(queues[c])) for c in classes])
        if int((left > 0).sum()) < count:
            break
        picked = torch.multinomial(left, count, generator=generator).tolist()
        members.append([queues[classes[k]].pop(0) for k in picked])
    return torch.tensor(members)


def _mosaics(pictures: Tensor, n: int, size: str) -> Tensor:
    """(M, n², C, H, W) → (M, C, n·H, n·W), or (M, C, H, W) of the reduced pictures."""
    m, _, channels, height, width = pictures.shape
    if size == "model":
        height, width = height // n, width // n
        pictures = F.avg_pool2d(pictures.flatten(0, 1), n)
    grid = pictures.reshape(m, n, n, channels, height, width)
    return grid.permute(0, 3, 1, 4, 2, 5).reshape(m, channels, n * height, n * width)


def _try(f: Model, mosaic: Tensor) -> None:
    try:
        logits_of(f, mosaic)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # a model may raise anything
        raise InputError(
            f"the model cannot take mosaics of {mosaic.shape[2]} x {mosaic.shape[3]} pixels "
            f"({reason(error)}).",
            argument="size",
            remedy=(
                "Choose size='model', which makes them of the size of its own pictures, or "
                "give a model that takes other sizes (for a vision transformer with "
                "interpolated position embeddings)."
            ),
        ) from error


def _shares(maps: Tensor, n: int, smooth: int) -> tuple[Tensor, Tensor]:
    """Maps (m·n², H, W) of mosaics → (m, n²): the share of each cell's own class, and its total."""
    if smooth > 1:
        maps = F.avg_pool2d(maps[:, None], smooth, stride=1, padding=smooth // 2)[:, 0]
    height, width = (side // n for side in maps.shape[1:])
    cells = maps.clamp(min=0).reshape(-1, n * n, n, height, n, width)
    mass = cells.sum((3, 5)).flatten(2)
    total = mass.sum(2)
    return mass.diagonal(dim1=1, dim2=2) / torch.where(total > 0, total, 1.0), total


def _check_options(images: Tensor, certainty: str, size: str, **numbers: Any) -> None:
    for name, value in numbers.items():
        whole(name, value, 2 if name == "cells" else 1)
    if numbers["smooth"] % 2 == 0:
        raise wrong("smooth", numbers["smooth"], "odd, so that the squares have a middle")
    choose("certainty", certainty, ("softmax", "sigmoid"))
    choose("size", size, ("full", "model"))
    (height, width), cells = images.shape[2:], numbers["cells"]
    if size == "model" and (height % cells or width % cells):
        raise InputError(
            f"pictures of {height} x {width} pixels cannot be reduced to 1/{cells}: {cells} "
            "must divide the sides.",
            argument="cells",
            got=str(cells),
            remedy="Choose another cells=, or size='full'.",
        )
