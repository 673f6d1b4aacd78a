"""In-domain single deletion: does a map rank the cells of a 4 × 4 grid as their deletion does?

A picture with a grey square is not what a model was trained on, so what it says of one is half
about the square. The model is therefore trained on a little with such squares (``in_domain.py``);
then its own answers are the truth that maps of *that* model are compared with (:func:`idsds`).
Without that step it is :func:`single_deletion`.

Source: Hesse, Schaub-Meyer, Roth 2024, "Benchmarking the Attribution Quality of Vision Models",
NeurIPS, arXiv 2407.11910.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from omenn.check import choose, whole, wrong
from omenn.metrics.keep_remove import blurred
from omenn.metrics.maps import (
    Model,
    checked_images,
    checked_maps,
    checked_targets,
    constant_maps,
    logits_of,
    of_targets,
)
from omenn.metrics.metric_registry import Measure, metric
from omenn.metrics.perturbation import states
from omenn.metrics.ranking import spearman
from omenn.metrics.score import Score

CELLS = 4
Fill = Literal["zeros", "blur", "random"]


def idsds(
    f: Model,
    images: Tensor,
    targets: int | Tensor,
    maps: Tensor,
    *,
    cells: int = CELLS,
    fill: Fill = "zeros",
    published: bool = False,
    seed: int = 0,
    chunk: int = 64,
) -> Score:
    """Spearman's correlation, over the cells, of the map's sum and the fall of the target's logit.

    ``f`` and the maps are of the model after :func:`omenn.metrics.in_domain.fine_tune` with the
    same ``cells`` and ``fill``. Chance is 0; more is better.

    A constant map, or a picture whose logit falls by the same for every cell, has no correlation.
    It counts as 0; ``published=True`` leaves it out, as the published code does. Both are counted.
    With it the blurred picture of ``fill="blur"`` also has zeros beyond its edges, not its mirror.

    Args:
        f: images → logits, of a model in evaluation mode; called without gradients.
        images: (B, C, H, W), normalised as f takes them; ``cells`` must divide H and W.
        targets: class index of each image, (B,), or one for all; published are the true ones.
        maps: (B, H, W), or (B, C, H, W).
        fill: what a deleted cell holds: zeros (of the normalised picture), the blurred picture, or
            uniform numbers in [-1, 1].
        seed: of ``fill="random"``.
        chunk: how many pictures f gets at once, at most.

    Raises:
        InputError: sides that the cells do not divide, shapes that do not fit, unknown options.
        TargetError: a class that the logits do not have.

    Example:
        >>> f = lambda x: torch.stack([x.flatten(1).sum(1)] * 2, 1)
        >>> x = torch.rand(2, 1, 8, 8)
        >>> idsds(f, x, 0, x[:, 0]).mean, idsds(f, x, 0, -x[:, 0]).mean
        (1.0, -1.0)

    Source: the module's docstring.
    """
    images = checked_images(images)
    maps = checked_maps(maps, images)
    how: Any = {"cells": cells, "fill": fill, "published": published, "seed": seed}
    drops = falls(f, images, targets, chunk=chunk, **how)
    sums = cell_sums(maps, cells)
    values = spearman(sums, drops)
    level = {
        "constant maps": constant_maps(maps),
        "equal sums in all cells": (sums == sums[:, :1]).all(1) & ~constant_maps(maps),
        "logits that no cell changes more than another": (drops == drops[:, :1]).all(1),
    }
    counted = {what: int(rows.sum()) for what, rows in level.items()}
    undefined = int(torch.isnan(values).sum())
    if not published:
        values = values.nan_to_num(0.0)
    elif undefined:
        counted["skipped: no correlation"] = undefined
    name = "published idsds" if published else "idsds"
    return Score(name, values, counted, chance=0.0)


@metric(
    "cell-deletion",
    Measure("single deletion of cells", headline=True),
    family="faithfulness",
    summary="do the sums over the cells of a grid rank like the drops of the logit without them?",
    source="arXiv 2407.11910",
)
def single_deletion(
    f: Model,
    images: Tensor,
    targets: int | Tensor,
    maps: Tensor,
    *,
    cells: int = CELLS,
    fill: Fill = "zeros",
    published: bool = False,
    seed: int = 0,
    chunk: int = 64,
) -> Score:
    """:func:`idsds` of a model as it was trained, which has not seen deleted cells."""
    how: Any = {"cells": cells, "fill": fill, "published": published, "seed": seed, "chunk": chunk}
    found = idsds(f, images, targets, maps, **how)
    return replace(found, name=found.name.replace("idsds", "single deletion of cells"))


def falls(
    f: Model,
    images: Tensor,
    targets: int | Tensor,
    *,
    cells: int = CELLS,
    fill: Fill = "zeros",
    published: bool = False,
    seed: int = 0,
    chunk: int = 64,
) -> Tensor:
    """How far the target's logit falls without each cell, (B, cells²) float64, row by row.

    Maps do not matter for it: compute it once for many of them.
    """
    images = checked_images(images)
    targets = checked_targets(targets, len(images), images.device)
    _check(images, cells)
    instead = filling(images, fill, seed, published)

    def change(image: Tensor, cell: Tensor) -> Tensor:
        some = images[image]
        return torch.where(cell_mask(cell, some, cells), instead[image], some)

    before = of_targets(logits_of(f, images, chunk), targets)
    return before[:, None] - states(f, targets, cells**2, change, chunk=chunk)


def cell_sums(maps: Tensor, cells: int = CELLS) -> Tensor:
    """The sum of each cell, (B, H, W) → (B, cells²), row by row; equal ones for a constant map.

    >>> cell_sums(torch.arange(4.0).view(1, 2, 2), 2).tolist()
    [[0.0, 1.0, 2.0, 3.0]]
    """
    batch, height, width = maps.shape
    parts = maps.reshape(batch, cells, height // cells, cells, width // cells)
    sums = parts.sum((2, 4)).flatten(1)
    # Sums of the same numbers may differ in their last bit, and ranks would make that a difference.
    return torch.where(constant_maps(maps)[:, None], sums[:, :1], sums)


def filling(images: Tensor, fill: Fill, seed: int = 0, published: bool = False) -> Tensor:
    """What deleted cells hold, for whole pictures; the k-th has the same numbers in any batch.

    Raises:
        InputError: an unknown filling.
    """
    choose("fill", fill, get_args(Fill))
    if fill == "zeros":
        return torch.zeros_like(images)
    if fill == "blur":
        return blurred(images, border="zeros" if published else "reflect")
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.rand(images.shape[1:], generator=generator) for _ in range(len(images))]
    return (torch.stack(rows) * 2 - 1).to(images)


def cell_mask(chosen: Tensor, images: Tensor, cells: int = CELLS) -> Tensor:
    """(B, 1, H, W) bool: the pixels of one cell of each picture; −1 for none.

    >>> cell_mask(torch.tensor([1]), torch.zeros(1, 3, 2, 2), 2)[0, 0].int().tolist()
    [[0, 1], [0, 0]]
    """
    height, width = images.shape[2:]
    rows = torch.arange(height, device=images.device) // (height // cells)
    columns = torch.arange(width, device=images.device) // (width // cells)
    number = rows[:, None] * cells + columns[None, :]
    return (number[None] == chosen.to(images.device)[:, None, None])[:, None]


def _check(images: Tensor, cells: Any) -> None:
    height, width = images.shape[2:]
    if height % whole("cells", cells, 2) or width % cells:
        raise wrong("cells", cells, f"a divisor of the sides, {height} x {width} pixels")
