"""Pixels are removed or restored in the order of a map, and the model is run after each step.

Deletion and insertion (RISE), pixel flipping, and the symmetric relevance gain: what the model says
as the least relevant patches go, minus what it says as the most relevant ones do.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from omenn.check import real, whole, wrong
from omenn.filters import gaussian_filter
from omenn.metrics.maps import (
    Model,
    checked_images,
    checked_maps,
    constant_maps,
    descending,
    ranks,
)
from omenn.metrics.metric_registry import Measure, metric
from omenn.metrics.perturbation import Outcome, curve, mean_height
from omenn.metrics.score import Score

POINTS = 224  # published: 224 pixels a step, of 224 rows
SIDE = 224  # of the pictures that a published blur is for


def deletion(
    f: Model,
    images: Tensor,
    targets: int | Tensor,
    maps: Tensor,
    *,
    step: int | None = None,
    fill: Tensor | None = None,
    outcome: Outcome = "probability",
    seed: int = 0,
    chunk: int = 64,
) -> Score:
    """The area below the target's probability as pixels go, the most relevant first: low is good.

    The mean over the points but half of the first and the last (trapezoids over the number of
    steps). Pixels become zero, in the space of the model's input, unless ``fill`` is given.

    Args:
        step: pixels a step; by default a 224th of them all.
        outcome: ``"probability"`` (softmax) or ``"logit"``.
        seed: of the order among equal values.

    Raises:
        InputError: shapes that do not fit, a map that is not finite, a step or an outcome that
            cannot be, logits that are not finite.
        TargetError: a class that the logits do not have.

    Source: Petsiuk, Das, Saenko 2018, arXiv 1806.07421.
    """
    images = checked_images(images)
    maps = checked_maps(maps, images)
    fill = torch.zeros_like(images) if fill is None else fill.to(images)
    order, counts = descending(maps.flatten(1), seed), _counts(maps, step)
    line = curve(f, images, targets, order, fill, counts, outcome=outcome, chunk=chunk)
    return Score("deletion", mean_height(line), _constant(maps), higher=False)


def insertion(
    f: Model,
    images: Tensor,
    targets: int | Tensor,
    maps: Tensor,
    *,
    step: int | None = None,
    fill: Tensor | None = None,
    outcome: Outcome = "probability",
    seed: int = 0,
    chunk: int = 64,
) -> Score:
    """The area below the target's probability as pixels come back, the most relevant first.

    One starts from the blurred picture (kernel 11, σ = 5) unless ``fill`` is given; more is better.
    The rest is as in :func:`deletion`.

    Source: Petsiuk, Das, Saenko 2018, arXiv 1806.07421.
    """
    images = checked_images(images)
    maps = checked_maps(maps, images)
    start = softened(images) if fill is None else fill.to(images)
    order, counts = descending(maps.flatten(1), seed), _counts(maps, step)
    options: Any = {"restore": True, "outcome": outcome, "chunk": chunk}
    line = curve(f, images, targets, order, start, counts, **options)
    return Score("insertion", mean_height(line), _constant(maps))


@metric(
    "insertion-deletion",
    Measure("insertion − deletion", headline=True),
    Measure("insertion", axis=True),
    Measure("deletion", higher=False),
    family="faithfulness",
    summary="the probability as pixels are restored minus removed, the most relevant first",
    source="arXiv 1806.07421",
)
def insertion_deletion(
    f: Model,
    images: Tensor,
    targets: int | Tensor,
    maps: Tensor,
    *,
    step: int | None = None,
    outcome: Outcome = "probability",
    seed: int = 0,
    chunk: int = 64,
) -> tuple[Score, Score, Score]:
    """:func:`insertion` minus :func:`deletion`, image by image, and the two.

    More of the difference is better. A random order has a value of its own, which depends on the
    model: compare with that.
    """
    options: Any = {"step": step, "outcome": outcome, "seed": seed, "chunk": chunk}
    up = insertion(f, images, targets, maps, **options)
    down = deletion(f, images, targets, maps, **options)
    return Score("insertion − deletion", up.values - down.values, up.counted), up, down


@metric(
    "pixel-flipping",
    Measure("pixel flipping", higher=False, headline=True),
    family="faithfulness",
    summary="the logit as pixels are removed, the most relevant first",
    source="PLOS ONE 10(7), 2015",
)
def pixel_flipping(
    f: Model,
    images: Tensor,
    targets: int | Tensor,
    maps: Tensor,
    *,
    step: int | None = None,
    fill: Tensor | None = None,
    seed: int = 0,
    chunk: int = 64,
) -> Score:
    """:func:`deletion` with the target's logit, as pixel flipping has it; less is better.

    Source: Bach et al. 2015, PLOS ONE 10(7).
    """
    options: Any = {"step": step, "fill": fill, "outcome": "logit", "seed": seed, "chunk": chunk}
    return replace(deletion(f, images, targets, maps, **options), name="pixel flipping")


@metric(
    "pixel-deletion",
    Measure("pixel deletion", headline=True),
    family="faithfulness",
    summary="the probability as pixels are blurred, the least relevant first",
    source="arXiv 2602.06613",
)
def pixel_deletion(
    f: Model,
    images: Tensor,
    targets: int | Tensor,
    maps: Tensor,
    *,
    points: int = 128,
    share: float = 0.9,
    kernel: int | None = None,
    sigma: float | None = None,
    seed: int = 0,
    chunk: int = 64,
) -> Score:
    """The target's probability as pixels are blurred, the least relevant first: high is good.

    The area below it up to ``share`` of the pixels, over that share, by trapezoids between
    ``points`` counts that are evenly apart.

    Args:
        kernel, sigma: of the blur (:func:`softened`); published are 31 and 7 for a side of 224, and
            by default they are in proportion to the shorter side.
        seed: of the order among equal values.

    Raises:
        InputError: shapes that do not fit, a map that is not finite, fewer than two points, a share
            that is not above 0 and up to 1, logits that are not finite.
        TargetError: a class that the logits do not have.

    Example:
        >>> f = lambda images: torch.stack([images.flatten(1).sum(1)] * 2, 1)
        >>> pixel_deletion(f, torch.rand(2, 1, 8, 8), 0, torch.rand(2, 8, 8)).values.tolist()
        [0.5, 0.5]

    Source: Wróbel et al. 2026, arXiv 2602.06613, the evaluation of DAVE.
    """
    images = checked_images(images)
    maps = checked_maps(maps, images)
    whole("points", points, 2)
    if real("share", share, 0, 1) == 0:
        raise wrong("share", share, "above 0, as no pixel is replaced otherwise")
    scale = min(images.shape[2:]) / SIDE
    width = max(3, 2 * round((31 * scale - 1) / 2) + 1) if kernel is None else kernel
    fill = softened(images, width, 7 * scale if sigma is None else sigma)
    last = share * maps[0].numel()
    counts = [round(last * k / (points - 1)) for k in range(points)]
    order = descending(-maps.flatten(1), seed)
    line = curve(f, images, targets, order, fill, counts, chunk=chunk)
    return Score("pixel deletion", mean_height(line), _constant(maps))


@metric(
    "srg",
    Measure("srg", headline=True),
    family="faithfulness",
    summary="the logit as patches are removed, least relevant first minus most relevant first",
    source="arXiv 2401.06654",
)
def symmetric_relevance_gain(
    f: Model,
    images: Tensor,
    targets: int | Tensor,
    maps: Tensor,
    *,
    patch: int | None = None,
    seed: int = 0,
    chunk: int = 64,
) -> Score:
    """Area below the logit with the least relevant patches first, minus the most relevant first.

    Patches are squares of ``patch`` pixels (a 14th of the side by default, 16 of 224) ordered by
    their sum; a patch that is gone has the picture's mean colour. Chance is 0; more is better.

    Source: Blücher, Vielhaben, Strodthoff 2024, arXiv 2401.06654 (the mean colour is our choice).

    Raises:
        InputError: a patch that does not divide the sides.
    """
    images = checked_images(images)
    maps = checked_maps(maps, images)
    height, width = images.shape[2:]
    side = max(1, round(height / 14)) if patch is None else patch
    while patch is None and (height % side or width % side):
        side -= 1
    if height % whole("patch", side, 1) or width % side:
        raise wrong("patch", patch, f"a divisor of both sides, {height} x {width} pixels")
    cells = F.avg_pool2d(maps[:, None], side)[:, 0]
    order = descending(cells.flatten(1), seed)
    fill = images.mean((2, 3), keepdim=True).expand_as(images)
    areas = []
    for one in (order.flip(1), order):
        place = ranks(one).view(-1, *cells.shape[1:])
        pixels = place.repeat_interleave(side, 1).repeat_interleave(side, 2).flatten(1)
        counts = [k * side * side for k in range(cells[0].numel() + 1)]
        by_patch = torch.argsort(pixels, dim=1, stable=True)
        line = curve(f, images, targets, by_patch, fill, counts, outcome="logit", chunk=chunk)
        areas.append(mean_height(line))
    return Score("srg", areas[0] - areas[1], _constant(maps), chance=0.0)


def softened(images: Tensor, kernel: int = 11, sigma: float = 5.0) -> Tensor:
    """The pictures after a Gaussian of this many pixels, edges reflected; insertion starts from it.

    exp(−d²/2σ²), cut off and made to add up to 1. The published blur has zeros beyond the edges,
    which darken them, and folds the Gaussian's tails back into the kernel.

    >>> assert torch.allclose(softened(torch.ones(1, 1, 16, 16)), torch.ones(1, 1, 16, 16))
    """
    reach = min(kernel // 2, min(images.shape[2:]) - 1)
    return gaussian_filter(images, sigma, reach, "reflect")


def _counts(maps: Tensor, step: int | None) -> list[int]:
    """How many pixels are changed at each point: ``step`` more at a time, a 224th by default."""
    pixels = maps[0].numel()
    size = max(1, round(pixels / POINTS)) if step is None else whole("step", step, 1, pixels)
    return [*range(0, pixels, size), pixels]


def _constant(maps: Tensor) -> dict[str, int]:
    return {"constant maps": int(constant_maps(maps).sum())}
