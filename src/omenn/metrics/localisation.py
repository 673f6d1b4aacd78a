"""Where a map lies: inside boxes, or inside masks (``grid.py`` asks on which cell of a mosaic).

NOTE [where]
An object's place is a mask (B, H, W) of the pictures *as the model sees them*, which the
modality makes of masks of the pictures on disk. A picture in which nothing is marked is left out,
and counted. A map that does not depend on where the object is gets, on average, the
marked share of the picture, ``area_shares``: large objects are found by anything, so compare with
``Score.chance``, which is the mean of that.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from omenn.check import choose, real
from omenn.errors import InputError
from omenn.metrics.maps import checked_maps, constant_maps, descending, wrong_tensor
from omenn.metrics.metric_registry import Measure, metric
from omenn.metrics.score import Score

Mass = Literal["positive", "absolute"]
TOLERANCE, SIDE = 15, 224


@metric(
    "energy-pointing-game",
    Measure("energy pointing game", headline=True, axis=True),
    family="localisation",
    summary="the share of the map's positive part in the box around the subject",
    source="arXiv 1910.01279",
    of="labels",
)
def energy_pointing_game(
    maps: Tensor, masks: Tensor | None, boxes: Tensor | None = None, *, box: bool = True
) -> Score:
    """The share of a map's positive part that lies inside: Σ_inside a⁺ / Σ a⁺; more is better.

    0 for a map without a positive value, which is counted. ``maps`` (B, H, W), or (B, C, H, W) of
    which the mean over channels is taken; ``masks`` (B, H, W), see NOTE [where]. Where there are
    ``boxes`` as well, they are taken, as published, unless ``box`` is false.

    Raises:
        InputError: no masks, shapes that do not fit, maps that are not finite.

    Example:
        >>> maps = torch.tensor([[[3.0, 1.0], [-5.0, 0.0]]])
        >>> energy_pointing_game(maps, torch.tensor([[[1, 0], [1, 0]]])).mean
        0.75

    Source: Wang et al. 2020, "Score-CAM", arXiv 1910.01279.
    """
    inside = boxes if box and boxes is not None else masks
    return _mass("energy pointing game", maps, inside, "positive")


@metric(
    "relevance-mass",
    Measure("relevance mass accuracy", headline=True, axis=True),
    family="localisation",
    summary="the share of the map's mass on the subject, of birds the parts",
    source="arXiv 2003.07258",
    of="labels",
)
def relevance_mass_accuracy(
    maps: Tensor, masks: Tensor | None, *, mass: Mass = "positive"
) -> Score:
    """The share of a map's mass that lies inside the object; more is better.

    ``mass`` is what counts of a map with signs: its positive part or its magnitude. With the
    first this is :func:`energy_pointing_game` on masks in place of boxes. The rest is as there.

    Example:
        >>> maps = torch.tensor([[[3.0, 1.0], [-5.0, 0.0]]])
        >>> mask = torch.tensor([[[1, 0], [0, 0]]])
        >>> relevance_mass_accuracy(maps, mask, mass="absolute").values.tolist() == [3 / 9]
        True

    Source: Arras, Osman, Samek 2022, Information Fusion 81, arXiv 2003.07258.
    """
    return _mass("relevance mass accuracy", maps, masks, mass)


@metric(
    "relevance-rank",
    Measure("relevance rank accuracy", headline=True, axis=True),
    family="localisation",
    summary="how many of the largest values lie on the subject, of birds the parts",
    source="arXiv 2003.07258",
    of="labels",
)
def relevance_rank_accuracy(maps: Tensor, masks: Tensor | None, *, seed: int = 0) -> Score:
    """Of the K largest values of a map, how many lie inside the object, which has K pixels.

    Equal values come in random order, another for each map, from ``seed``. More is better; the
    rest is as in :func:`energy_pointing_game`.

    Example:
        >>> maps = torch.tensor([[[3.0, 1.0], [-5.0, 0.0]]])
        >>> relevance_rank_accuracy(maps, torch.tensor([[[1, 0], [1, 0]]])).mean
        0.5

    Source: Arras, Osman, Samek 2022, Information Fusion 81, arXiv 2003.07258.
    """
    maps, inside = _checked("relevance rank accuracy", maps, masks)
    order = descending(maps.flatten(1), seed)
    hits = inside.flatten(1).gather(1, order)
    size = inside.flatten(1).sum(1, keepdim=True)
    first = torch.arange(hits.shape[1], device=hits.device)[None] < size
    found = (hits & first).sum(1).double() / size[:, 0]
    return _score("relevance rank accuracy", found, maps, inside, area_shares(inside))


@metric(
    "pointing-game",
    Measure("pointing game", headline=True, axis=True),
    family="localisation",
    summary="does the largest value lie on the subject, or near it?",
    source="arXiv 1608.00507",
    of="labels",
)
def pointing_game(
    maps: Tensor, masks: Tensor | None, *, tolerance: float | None = None, seed: int = 0
) -> Score:
    """Whether the largest value of a map lies on the object, or not farther from it than allowed.

    1 if the distance from that pixel to the nearest marked one is at most ``tolerance`` pixels, 0
    if not; the mean is the accuracy. Published are 15 pixels of the picture on disk; by default
    they are in proportion to the shorter side, 15 for 224. Among several largest values
    one is drawn, from ``seed``. Chance is the share of the pixels that would be hits. The rest is
    as in :func:`energy_pointing_game`.

    Example:
        >>> maps = torch.tensor([[[3.0, 1.0], [-5.0, 0.0]]])
        >>> mask = torch.tensor([[[0, 1], [0, 0]]])
        >>> [pointing_game(maps, mask, tolerance=d).mean for d in (0, 1)]
        [0.0, 1.0]

    Source: Zhang et al. 2018, IJCV 126, arXiv 1608.00507.
    """
    maps, inside = _checked("pointing game", maps, masks)
    if tolerance is None:
        tolerance = TOLERANCE * min(maps.shape[1:]) / SIDE
    real("tolerance", tolerance, 0)
    hits = _grown(inside, min(tolerance, sum(maps.shape[1:])))  # farther apart are no two pixels
    largest = descending(maps.flatten(1), seed)[:, :1]
    found = hits.flatten(1).gather(1, largest)[:, 0].double()
    return _score("pointing game", found, maps, inside, area_shares(hits))


def area_shares(masks: Tensor) -> Tensor:
    """The marked share of each picture, (B,) float64: what a map gets by chance.

    >>> area_shares(torch.tensor([[[1, 0], [0, 0]]])).tolist()
    [0.25]
    """
    return masks.flatten(1).double().mean(1)


def boxed(masks: Tensor) -> Tensor:
    """(B, H, W) bool: the smallest box around all that is marked.

    >>> boxed(torch.tensor([[[1, 0, 0], [0, 0, 1], [0, 0, 0]]]) > 0).int().tolist()
    [[[1, 1, 1], [1, 1, 1], [0, 0, 0]]]
    """

    def between(line: Tensor) -> Tensor:
        line = line.long()
        return (line.cumsum(1) > 0) & (line.flip(1).cumsum(1).flip(1) > 0)

    return between(masks.any(2))[:, :, None] & between(masks.any(1))[:, None, :]


def _mass(name: str, maps: Tensor, masks: Tensor | None, mass: Mass) -> Score:
    choose("mass", mass, ("positive", "absolute"))
    maps, inside = _checked(name, maps, masks)
    part = maps.clamp(min=0) if mass == "positive" else maps.abs()
    total = part.flatten(1).sum(1)
    found = (part * inside).flatten(1).sum(1) / torch.where(total > 0, total, 1.0)
    score = _score(name, found, maps, inside, area_shares(inside))
    empty = int((total == 0).sum())
    what = "maps without positive values" if mass == "positive" else "maps of zeros"
    return replace(score, counted={**score.counted, what: empty})


def _score(name: str, values: Tensor, maps: Tensor, inside: Tensor, chance: Tensor) -> Score:
    """Pictures without a mark are left out, of the chance as well."""
    marked = inside.flatten(1).any(1)
    whole = inside.flatten(1).all(1)
    counted = {
        "constant maps": int(constant_maps(maps).sum()),
        "skipped: nothing is marked": int((~marked).sum()),
        "everything is marked": int(whole.sum()),
    }
    return Score(
        name,
        torch.where(marked, values, torch.nan),
        counted,
        chance=float(chance[marked].mean()) if bool(marked.any()) else None,
    )


def _checked(name: str, maps: Any, masks: Any) -> tuple[Tensor, Tensor]:
    """Maps (B, H, W) float64 and masks (B, H, W) bool."""
    if masks is None:
        raise InputError(
            f"the {name} needs to know where the objects are: give masks (B, H, W). Data "
            "without any can be judged by the grid pointing game.",
            argument="masks",
        )
    if not isinstance(maps, Tensor) or maps.ndim not in (3, 4):
        raise wrong_tensor("maps", maps, "(B, H, W) or (B, C, H, W)")
    size = (len(maps), *maps.shape[-2:])
    maps = checked_maps(maps, maps.new_empty((size[0], 1, *size[1:])))
    if not isinstance(masks, Tensor) or tuple(masks.shape) != size:
        raise wrong_tensor("masks", masks, f"of the shape {size}, one for each map")
    if not bool(((masks == 0) | (masks == 1)).all()):
        raise InputError(
            f"masks must be true or false (1 or 0), got values from {float(masks.min()):g} to "
            f"{float(masks.max()):g}.",
            argument="masks",
            remedy="Compare with the number of the class first.",
        )
    return maps, masks.to(maps.device) == 1


def _grown(inside: Tensor, tolerance: float) -> Tensor:
    """The pixels that have a marked one within a distance: row by row of the disc."""
    height, width = inside.shape[1:]
    upto = F.pad(inside.long().cumsum(2), (1, 0))  # (B, H, W + 1): how many are marked to the left
    columns = torch.arange(width, device=inside.device)
    grown = torch.zeros_like(inside)
    reach = min(int(tolerance), height - 1)
    for down in range(-reach, reach + 1):
        wide = min(math.floor(math.sqrt(tolerance**2 - down**2)), width)
        last, first = (columns + wide + 1).clamp(max=width), (columns - wide).clamp(min=0)
        top, bottom = max(0, -down), min(height, height - down)
        rows = upto[:, top + down : bottom + down]
        grown[:, top:bottom] |= rows[..., last] > rows[..., first]
    return grown
