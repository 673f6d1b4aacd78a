"""Sets of pixels are replaced, and the map's sum over each is compared with the drop of the output.

Faithfulness correlation and sensitivity-n take random sets, faithfulness estimate and monotonicity
correlation take those that follow one another in the order of the map.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from omenn.check import real, whole, wrong
from omenn.metrics.maps import (
    Model,
    checked_images,
    checked_maps,
    checked_targets,
    constant_maps,
    descending,
)
from omenn.metrics.metric_registry import Measure, metric
from omenn.metrics.perturbation import Outcome, answers
from omenn.metrics.ranking import pearson, spearman
from omenn.metrics.removal import Features, Fill, Removal, filled
from omenn.metrics.score import Score

LARGEST = 0.8  # sensitivity-n looks at sets of up to this share


@metric(
    "faithfulness-correlation",
    Measure("faithfulness correlation", headline=True),
    family="faithfulness",
    summary="do sums over random sets of pixels correlate with the drop of the logit?",
    source="arXiv 2005.00631",
)
def faithfulness_correlation(
    f: Model,
    images: Tensor,
    targets: int | Tensor,
    maps: Tensor,
    *,
    subset: int | None = None,
    runs: int = 100,
    fill: Fill = "black",
    features: Features = "pixels",
    outcome: Outcome = "logit",
    seed: int = 0,
    chunk: int = 64,
) -> Score:
    """Pearson's correlation of Σ_{i∈S} a_i and f(x) − f(x with S replaced), over random sets S.

    Chance is 0, an additive model's exact map has 1. A constant map and a model that never answers
    have no correlation: they get chance, and are counted.

    Args:
        subset: how many features a set has. By default a 224th of them all, as many as the
            published 224 are of 224 x 224 pixels; give 224 for pictures of another size.
        runs: how many sets an image has, at least 2.
        fill: see :data:`~omenn.metrics.removal.Fill`; "black" is the smallest value of the picture.
        features: "pixels", or "values" as other libraries count where maps have no channels.
        outcome: ``"logit"`` or ``"probability"`` (softmax).
        seed: of the sets; the k-th image has the same ones in any batch.
        chunk: how many pictures f gets at once, at most.

    Raises:
        InputError: shapes that do not fit, maps that are not finite, options that are not known.
        TargetError: a class that the logits do not have.

    Example:
        >>> weight, images = torch.randn(3, 8, 8), torch.randn(2, 3, 8, 8)
        >>> f = lambda x: (x * weight).flatten(1).sum(1, keepdim=True)
        >>> exact = (weight * images).sum(1)
        >>> found = faithfulness_correlation(f, images, 0, exact, subset=9, fill="zero")
        >>> assert found.mean > 0.999

    Source: Bhatt, Weller, Moura 2020, arXiv 2005.00631.
    """
    how: Any = {"fill": fill, "features": features, "outcome": outcome, "chunk": chunk}
    game = Removal.of(f, images, targets, maps, **how)
    size = game.size if subset is None else subset
    whole("subset", size, 1, game.count)
    return game.score("faithfulness correlation", _random_sets(game, [size], runs, seed)[:, 0])


@metric(
    "sensitivity-n",
    Measure("sensitivity-n", headline=True),
    family="faithfulness",
    summary="faithfulness-correlation with random sets of many sizes",
    source="arXiv 1711.06104",
)
def sensitivity_n(
    f: Model,
    images: Tensor,
    targets: int | Tensor,
    maps: Tensor,
    *,
    sizes: Sequence[int] | None = None,
    runs: int = 100,
    fill: Fill = "zero",
    features: Features = "pixels",
    outcome: Outcome = "logit",
    seed: int = 0,
    chunk: int = 64,
) -> Score:
    """The mean of :func:`sensitivity_curve` over the sizes, image by image; chance is 0.

    Where a size has no correlation it counts as chance.

    Source: Ancona et al. 2018, arXiv 1711.06104.
    """
    how: Any = {"fill": fill, "features": features, "outcome": outcome, "chunk": chunk}
    game = Removal.of(f, images, targets, maps, **how)
    found = _random_sets(game, _sizes(game, sizes), runs, seed)
    means = torch.where(found.isnan().all(1), torch.nan, found.nan_to_num(0.0).mean(1))
    return game.score("sensitivity-n", means)


def sensitivity_curve(
    f: Model,
    images: Tensor,
    targets: int | Tensor,
    maps: Tensor,
    *,
    sizes: Sequence[int] | None = None,
    runs: int = 100,
    fill: Fill = "zero",
    features: Features = "pixels",
    outcome: Outcome = "logit",
    seed: int = 0,
    chunk: int = 64,
) -> Tensor:
    """:func:`faithfulness_correlation` with sets of several sizes: (B, sizes), float64.

    NaN where there is no correlation. ``sizes``: by default eight, in equal ratios from 1 % to 80 %
    of the features. The rest is as there, but that pixels become zero, as published.

    Example:
        >>> f = lambda x: x.flatten(1).sum(1, keepdim=True)
        >>> images = torch.randn(2, 1, 8, 8)
        >>> curve = sensitivity_curve(f, images, 0, images[:, 0], sizes=[1, 9, 40])
        >>> assert curve.shape == (2, 3) and curve.min() > 0.999

    Source: Ancona et al. 2018, arXiv 1711.06104.
    """
    how: Any = {"fill": fill, "features": features, "outcome": outcome, "chunk": chunk}
    game = Removal.of(f, images, targets, maps, **how)
    return _random_sets(game, _sizes(game, sizes), runs, seed).cpu()


@metric(
    "faithfulness-estimate",
    Measure("faithfulness estimate", headline=True),
    family="faithfulness",
    summary="faithfulness-correlation with sets of pixels in the order of the map",
    source="arXiv 1806.07538",
)
def faithfulness_estimate(
    f: Model,
    images: Tensor,
    targets: int | Tensor,
    maps: Tensor,
    *,
    step: int | None = None,
    fill: Fill = "black",
    features: Features = "pixels",
    outcome: Outcome = "logit",
    seed: int = 0,
    chunk: int = 64,
) -> Score:
    """Pearson's correlation of Σ_{i∈S} a_i and f(x) − f(x with S replaced), S by falling value.

    The first set has the ``step`` largest values (a 224th of all by default), the next one those
    that follow, and so on; each is replaced in the whole picture. Equal values come in random
    order, from ``seed``. The rest is as in :func:`faithfulness_correlation`.

    Source: Alvarez-Melis, Jaakkola 2018, arXiv 1806.07538.
    """
    how: Any = {"fill": fill, "features": features, "outcome": outcome, "chunk": chunk}
    game = Removal.of(f, images, targets, maps, **how)
    size = game.size if step is None else step
    whole("step", size, 1, max(1, game.count // 2))
    whole("seed", seed, 0)
    sets = _consecutive(descending(game.values, seed), size)
    sums = torch.stack([game.sums(k, each) for k, each in enumerate(sets)])
    drops = torch.stack([game.drops(k, each) for k, each in enumerate(sets)])
    return game.score("faithfulness estimate", game.correlations(pearson(sums, drops)))


@metric(
    "monotonicity-correlation",
    Measure("monotonicity correlation", headline=True),
    family="faithfulness",
    summary="does the uncertainty of the output grow with the relevance of the replaced pixels?",
    source="arXiv 2007.07584",
)
def monotonicity_correlation(
    f: Model,
    images: Tensor,
    targets: int | Tensor,
    maps: Tensor,
    *,
    step: int | None = None,
    samples: int = 10,
    low: float | None = None,
    high: float | None = None,
    features: Features = "pixels",
    outcome: Outcome = "logit",
    seed: int = 0,
    chunk: int = 64,
) -> Score:
    """Spearman's correlation of Σ_{i∈S} |a_i| and E[(f(x) − f(x with S replaced))²].

    Sets follow one another by rising |a| and have ``step`` features (a 224th of all by default).
    The mean is over ``samples`` numbers drawn between ``low`` and ``high`` (by default the smallest
    and the largest value of the picture), each of which takes the place of a whole set; the same
    ones for all sets of an image. The rest is as in :func:`faithfulness_correlation`.

    Source: Nguyen, Martínez 2020, arXiv 2007.07584.
    """
    how: Any = {"fill": "zero", "features": features, "outcome": outcome, "chunk": chunk}
    game = Removal.of(f, images, targets, maps, **how)
    strength = game.values.abs()
    game = replace(game, values=strength, constant=constant_maps(strength))
    size = game.size if step is None else step
    whole("step", size, 1, max(1, game.count // 2))
    whole("seed", seed, 0)
    whole("samples", samples, 1)
    generator = torch.Generator().manual_seed(seed)
    found = []
    for k, sets in enumerate(_consecutive(descending(-game.values, seed), size)):
        x = game.images[k]
        least, most = (x.min() if low is None else low), (x.max() if high is None else high)
        numbers = least + (most - least) * torch.rand(samples, generator=generator).to(x)
        squares = game.drops(k, sets, numbers.view(-1, 1, 1, 1)).square().mean(1)
        found.append(spearman(game.sums(k, sets)[None], squares[None]))
    return game.score("monotonicity correlation", game.correlations(torch.cat(found)))


@metric(
    "completeness",
    Measure("adds up", headline=True, axis=True),
    family="faithfulness",
    summary="does the map add up to the logit?",
    source="arXiv 1703.01365",
    hidden=("fill",),
)
def completeness(
    f: Model,
    images: Tensor,
    targets: int | Tensor,
    maps: Tensor,
    *,
    fill: Fill | None = None,
    tolerance: float = 1e-3,
    chunk: int = 64,
) -> Score:
    """Does the map add up: |Σ a − (f(x) − f(fill))| ≤ tolerance · |f(x) − f(fill)|, 1 or 0.

    Without ``fill`` the logit f(x) itself is what has to be reached, the bias and all; with it, the
    difference to that picture (:func:`~omenn.metrics.removal.filled`). Channels are summed.

    Example:
        >>> f = lambda x: x.flatten(1).sum(1, keepdim=True) + 1
        >>> images = torch.rand(2, 1, 4, 4)
        >>> exact = images[:, 0] + 1 / 16
        >>> completeness(f, images, 0, exact).values.tolist()
        [1.0, 1.0]
        >>> completeness(f, images, 0, exact, fill="zero").values.tolist()
        [0.0, 0.0]

    Source: Sundararajan, Taly, Yan 2017, arXiv 1703.01365.
    """
    images = checked_images(images)
    targets = checked_targets(targets, len(images), images.device)
    if real("tolerance", tolerance, 0) >= 1:
        raise wrong("tolerance", tolerance, "a share from 0 to below 1")
    maps = summed_maps(maps, images)
    change = answers(f, images, targets, "logit", chunk)
    if fill is not None:
        change = change - answers(f, filled(images, fill), targets, "logit", chunk)
    right = (maps.sum((1, 2)) - change).abs() <= tolerance * change.abs()
    return Score("completeness", right, {"constant maps": int(constant_maps(maps).sum())})


def summed_maps(maps: Tensor, images: Tensor) -> Tensor:
    """Checked maps (B, H, W), float64, whose channels are summed.

    >>> float(summed_maps(torch.ones(1, 3, 2, 2), torch.ones(1, 3, 2, 2)).sum())
    12.0
    """
    channels = maps.shape[1] if isinstance(maps, Tensor) and maps.ndim == 4 else 1
    return checked_maps(maps, images) * channels


def _random_sets(game: Removal, sizes: Sequence[int], runs: int, seed: int) -> Tensor:
    """(B, sizes): the correlation over ``runs`` random sets of each size."""
    whole("runs", runs, 2)
    whole("seed", seed, 0)
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for k in range(len(game)):
        row = []
        for size in sizes:
            drawn = torch.rand(runs, game.count, generator=generator)
            sets = drawn.topk(size, dim=1).indices.to(game.images.device)
            row.append(pearson(game.sums(k, sets)[None], game.drops(k, sets)[None]))
        rows.append(torch.cat(row))
    return game.correlations(torch.stack(rows))


def _sizes(game: Removal, sizes: Sequence[int] | None) -> list[int]:
    if sizes is None:
        low, high = max(1.0, 0.01 * game.count), max(1.0, LARGEST * game.count)
        return sorted({round(low * (high / low) ** (k / 7)) for k in range(8)})
    if not len(sizes):
        raise wrong("sizes", sizes, "a list of how many features the sets have")
    for size in sizes:
        whole("a size of sizes", size, 1, game.count)
    return list(sizes)


def _consecutive(order: Tensor, size: int) -> Tensor:
    """(B, F) → (B, sets, size): what follows one another; the last set repeats its last feature."""
    short = -order.shape[1] % size
    whole = torch.cat([order, order[:, -1:].expand(-1, short)], 1)
    return whole.view(len(order), -1, size)
