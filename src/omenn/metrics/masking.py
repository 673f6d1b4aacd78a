"""Pixels go, or come back, in the order of a map, and the model is asked after each step.

Deletion and insertion (RISE), pixel flipping, and the symmetric relevance gain: what the model says
as the least relevant patches go, minus what it says as the most relevant ones do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from omenn.errors import InputError
from omenn.filters import gaussian_filter
from omenn.metrics.maps import (
    Model,
    checked_images,
    checked_maps,
    checked_targets,
    checked_whole,
    constant_maps,
    descending,
    logits_of,
    of_targets,
    ranks,
)
from omenn.metrics.registry import Measure, metric
from omenn.metrics.score import Score

Outcome = Literal["probability", "logit"]
POINTS = 224  # published: 224 pixels a step, of 224 rows
SIDE = 224  # of the pictures that a published blur is for


def curve(
    f: Model,
    images: Tensor,
    targets: int | Tensor,
    order: Tensor,
    fill: Tensor,
    counts: Sequence[int],
    *,
    restore: bool = False,
    outcome: Outcome = "probability",
    chunk: int = 64,
) -> Tensor:
    """What the model says as the first pixels of an order are replaced: (B, len(counts)), float64.

    ``order`` (B, H·W): indices of the pixels. ``fill`` (B, C, H, W): what they are replaced by;
    with ``restore`` it is what one starts from, and the picture is put back. ``counts``: how many
    pixels are changed at each point.

    Raises:
        InputError: an outcome that is not known, shapes that do not fit, what the model returns.
        TargetError: a class that the logits do not have.

    Example:
        >>> f = lambda images: torch.stack([images.flatten(1).sum(1)] * 2, 1)
        >>> x = torch.tensor([[[[1.0, 2.0]]]])
        >>> order = torch.tensor([[1, 0]])
        >>> curve(f, x, 0, order, x * 0, [0, 1, 2], outcome="logit").tolist()
        [[3.0, 1.0, 0.0]]
    """
    if outcome not in ("probability", "logit"):
        raise InputError(f"outcome={outcome!r} is not known. Choose 'probability' or 'logit'.")
    images = checked_images(images)
    targets = checked_targets(targets, len(images), images.device)
    pixels = images[0, 0].numel()
    if order.shape != (len(images), pixels):
        raise InputError(
            f"order has the shape {tuple(order.shape)}, images {tuple(images.shape)}. Give the "
            f"indices of all pixels for each image, {(len(images), pixels)}."
        )
    if fill.shape != images.shape:
        raise InputError(
            f"fill has the shape {tuple(fill.shape)}, the images {tuple(images.shape)}. Give one "
            "picture for each image."
        )
    checked_whole("chunk", chunk, 1)
    lines = []
    # some pictures at a time, so that memory beside the arguments does not grow with their number
    for x, y, z, own in zip(*(t.split(chunk) for t in (images, targets, fill, order)), strict=True):
        place, found = ranks(own).view(-1, 1, *images.shape[2:]), []
        for count in counts:
            logits = logits_of(f, torch.where((place < count) ^ restore, z, x), chunk)
            logits = logits.softmax(1) if outcome == "probability" else logits
            found.append(of_targets(logits, y))
        lines.append(torch.stack(found, 1))
    return torch.cat(lines)


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
    return _area("deletion", f, images, targets, maps, step, fill, False, outcome, seed, chunk)


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
    start = softened(checked_images(images)) if fill is None else fill
    return _area("insertion", f, images, targets, maps, step, start, True, outcome, seed, chunk)


@metric(
    "insertion-deletion",
    Measure("insertion − deletion", headline=True),
    Measure("insertion", axis=True),
    Measure("deletion", higher=False),
    family="faithfulness",
    summary="the probability as pixels come back, minus as they go, the most relevant first",
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
    summary="the logit as pixels go, the most relevant first",
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
    return _area(
        "pixel flipping", f, images, targets, maps, step, fill, False, "logit", seed, chunk
    )


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
    checked_whole("points", points, 2)
    if not isinstance(share, (int, float)) or not 0 < share <= 1:
        raise InputError(f"share={share!r} must be a number above 0 and up to 1.")
    scale = min(images.shape[2:]) / SIDE
    width = max(3, 2 * round((31 * scale - 1) / 2) + 1) if kernel is None else kernel
    fill = softened(images, width, 7 * scale if sigma is None else sigma)
    last = share * maps[0].numel()
    counts = [round(last * k / (points - 1)) for k in range(points)]
    order = descending(-maps.flatten(1), seed)
    line = curve(f, images, targets, order, fill, counts, chunk=chunk)
    return Score("pixel deletion", _mean_height(line).cpu(), _counts(maps))


@metric(
    "srg",
    Measure("srg", headline=True),
    family="faithfulness",
    summary="the logit as the least relevant patches go, minus as the most relevant ones do",
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
    whole = isinstance(side, int) and not isinstance(side, bool)
    if not whole or side < 1 or height % side or width % side:
        raise InputError(
            f"patch={patch!r} does not divide pictures of {height} x {width} pixels. Choose a "
            "divisor of both sides."
        )
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
        areas.append(_mean_height(line))
    return Score("srg", (areas[0] - areas[1]).cpu(), _counts(maps), chance=0.0)


def softened(images: Tensor, kernel: int = 11, sigma: float = 5.0) -> Tensor:
    """The pictures after a Gaussian of this many pixels, edges reflected; insertion starts from it.

    exp(−d²/2σ²), cut off and made to add up to 1. The published blur has zeros beyond the edges,
    which darken them, and folds the Gaussian's tails back into the kernel.

    >>> assert torch.allclose(softened(torch.ones(1, 1, 16, 16)), torch.ones(1, 1, 16, 16))
    """
    reach = min(kernel // 2, min(images.shape[2:]) - 1)
    return gaussian_filter(images, sigma, reach, "reflect")


def _area(
    name: str,
    f: Model,
    images: Tensor,
    targets: int | Tensor,
    maps: Tensor,
    step: int | None,
    fill: Tensor | None,
    restore: bool,
    outcome: Outcome,
    seed: int,
    chunk: int,
) -> Score:
    images = checked_images(images)
    maps = checked_maps(maps, images)
    pixels = maps[0].numel()
    size = max(1, round(pixels / POINTS)) if step is None else step
    if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= pixels:
        raise InputError(f"step={step!r} must be a whole number of pixels from 1 to {pixels}.")
    fill = torch.zeros_like(images) if fill is None else fill.to(images)
    counts = [*range(0, pixels, size), pixels]
    order = descending(maps.flatten(1), seed)
    options = {"restore": restore, "outcome": outcome, "chunk": chunk}
    line = curve(f, images, targets, order, fill, counts, **options)  # type: ignore[arg-type]
    return Score(name, _mean_height(line).cpu(), _counts(maps), higher=restore)


def _mean_height(line: Tensor) -> Tensor:
    """Trapezoids of points that are one apart, over their number of steps."""
    return torch.trapezoid(line, dim=1) / (line.shape[1] - 1)


def _counts(maps: Tensor) -> dict[str, int]:
    count = int(constant_maps(maps).sum())
    return {"constant maps": count} if count else {}
