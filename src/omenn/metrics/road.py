"""ROAD: pixels that go are painted in from their neighbours, so that their shape is not seen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from omenn.check import real, wrong
from omenn.errors import InputError
from omenn.metrics.maps import Model, checked_images, checked_maps, constant_maps, descending
from omenn.metrics.metric_registry import Measure, metric
from omenn.metrics.perturbation import curve
from omenn.metrics.score import Score

TOLERANCE = 1e-10  # of the equations, relative; ten units in the last place where that is more


def road(
    f: Model,
    images: Tensor,
    targets: int | Tensor,
    maps: Tensor,
    *,
    percentages: Sequence[float] = tuple(range(10, 100, 10)),
    least_first: bool = False,
    noise: float = 0.01,
    seed: int = 0,
    chunk: int = 64,
) -> Score:
    """The share of steps at which the target still has the largest logit as pixels go.

    The first ``int(p · H·W / 100)`` pixels of the order are replaced by :func:`painted` ones, for
    each percentage p. The most relevant go first, and less is better; with ``least_first`` the
    least relevant do, and more is better. Equal values are in random order, from ``seed``.

    Args:
        percentages: above 0 and below 100.
        noise: deviation of the normal noise on what is painted in.
        chunk: how many pictures are painted and shown to f at once, at most.

    Raises:
        InputError: shapes that do not fit, maps that are not finite, options out of range.
        TargetError: a class that the logits do not have.

    Example:
        >>> images = torch.zeros(2, 1, 8, 8)
        >>> images[:, :, 2:5, 2:5] = 1.0
        >>> f = lambda x: torch.stack([x.flatten(1).sum(1), torch.full((len(x),), 4.0)], 1)
        >>> good, bad = (road(f, images, 0, m) for m in (images[:, 0], -images[:, 0]))
        >>> assert good.mean < bad.mean

    Source: Rong et al. 2022, arXiv 2202.00449.
    """
    images = checked_images(images)
    maps = checked_maps(maps, images)
    shares = list(percentages)
    if not shares or not all(isinstance(p, (int, float)) and 0 < p < 100 for p in shares):
        raise wrong("percentages", shares, "numbers above 0 and below 100")
    real("noise", noise, 0)
    values = maps.flatten(1)
    order = descending(-values if least_first else values, seed)
    generator = torch.Generator().manual_seed(seed)

    def fill(image: Tensor, gone: Tensor) -> Tensor:
        drawn = [torch.randn(images.shape[1:], generator=generator) for _ in image]
        return painted(images[image], gone) + noise * torch.stack(drawn).to(images)

    counts = [int(p * values.shape[1] / 100) for p in shares]
    options: Any = {"outcome": "accuracy", "chunk": chunk}
    found = curve(f, images, targets, order, fill, counts, **options).mean(1)
    name = "road, least first" if least_first else "road"
    counted = {"constant maps": int(constant_maps(maps).sum())}
    return Score(name, found, counted, higher=least_first)


@metric(
    "road",
    Measure("road", higher=False, headline=True),
    Measure("road, least first", axis=True),
    family="faithfulness",
    summary="how often the prediction stays as pixels are imputed, the most relevant first",
    source="arXiv 2202.00449",
)
def road_both_ways(
    f: Model,
    images: Tensor,
    targets: int | Tensor,
    maps: Tensor,
    *,
    noise: float = 0.01,
    seed: int = 0,
    chunk: int = 64,
) -> tuple[Score, Score]:
    """:func:`road` with the most relevant pixels first, and with the least relevant."""
    options: Any = {"noise": noise, "seed": seed, "chunk": chunk}
    most = road(f, images, targets, maps, **options)
    return most, road(f, images, targets, maps, least_first=True, **options)


def painted(images: Tensor, gone: Tensor) -> Tensor:
    """Pictures whose missing pixels are the weighted mean of their neighbours, missing or not.

    Pixels at a side weigh 1/6 and at a corner 1/12; at the edge of the picture the weights of those
    that there are count. This is one linear system a picture, symmetric and positive definite, and
    solved by conjugate gradients for all of them at once.

    Args:
        images: (B, C, H, W).
        gone: (B, 1, H, W) bool; at least one pixel of each picture stays.

    Raises:
        InputError: a picture of which nothing is left.

    Example:
        >>> images = torch.arange(5.0).expand(1, 1, 5, 5).clone()
        >>> gone = torch.zeros(1, 1, 5, 5, dtype=torch.bool)
        >>> gone[0, 0, 2, 2] = True
        >>> assert torch.allclose(painted(images, gone), images)
    """
    if bool(gone.flatten(1).all(1).any()):
        raise InputError(
            "nothing is left of a picture, so it cannot be painted in.",
            argument="percentages",
            remedy="Keep a pixel.",
        )
    x = _solved(images.to(torch.promote_types(images.dtype, torch.float32)), gone)
    return torch.where(gone, x.to(images.dtype), images)


def _around(x: Tensor) -> Tensor:
    """The weighted sum of the eight neighbours, without those beyond the edge: 1/12 of what a
    kernel (1 2 1) along rows and columns gives, but for the 4/12 that it gives the pixel."""
    wide = F.pad(x, (1, 1))
    rows = wide[..., :-2] + 2 * x + wide[..., 2:]
    high = F.pad(rows, (0, 0, 1, 1))
    return (high[..., :-2, :] + 2 * rows + high[..., 2:, :] - 4 * x) / 12


def _solved(images: Tensor, gone: Tensor) -> Tensor:
    """Σ_q w_pq (x_p − x_q) = 0 for the missing p."""
    weight = _around(torch.ones_like(images[:1, :1]))
    known = torch.where(gone, 0.0, images)
    start = known.sum((2, 3), keepdim=True) / (~gone).sum((2, 3), keepdim=True)
    x = torch.where(gone, start, 0.0)
    target = torch.where(gone, _around(known), 0.0)
    rest = torch.where(gone, target - weight * x + _around(x), 0.0)
    direction, size = rest, rest.square().sum((2, 3), keepdim=True)
    tolerance = max(TOLERANCE, 10 * torch.finfo(images.dtype).eps)
    enough = tolerance**2 * (size + target.square().sum((2, 3), keepdim=True))
    for _ in range(2 * images[0, 0].numel()):
        if not bool((size > enough).any()):
            break
        moved = torch.where(gone, weight * direction - _around(direction), 0.0)
        along = (direction * moved).sum((2, 3), keepdim=True)
        step = torch.where(size > enough, size / along, 0.0)
        x, rest = x + step * direction, rest - step * moved
        before, size = size, rest.square().sum((2, 3), keepdim=True)
        direction = rest + torch.where(before > 0, size / before, 0.0) * direction
    return x
