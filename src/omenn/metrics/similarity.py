"""How alike two maps are, pixel by pixel or by structure, and how many values a map takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from omenn.metrics.ranking import pearson

WINDOW, K1, K2 = 7, 0.01, 0.03  # of structural similarity, as published but for a square window


def rank_similarity(a: Tensor, b: Tensor) -> Tensor:
    """Spearman's correlation of two maps (B, H, W) pixel by pixel, (B,).

    Two constant maps have 1, a constant one and another 0.

    >>> rank_similarity(torch.ones(1, 2, 2), torch.eye(2)[None]).tolist()
    [0.0]
    """
    a, b = a.flatten(1), b.flatten(1)
    found = pearson(sorted_ranks(a), sorted_ranks(b))
    both = (a == a[:, :1]).all(1) & (b == b[:, :1]).all(1)
    return torch.where(both, 1.0, found.nan_to_num(0.0))


def structural_similarity(a: Tensor, b: Tensor) -> Tensor:
    """SSIM of two maps (B, H, W), each divided by its largest absolute value, (B,).

    The mean over all windows of 7 x 7 pixels (less where a map is smaller) of (2 μ_a μ_b + c₁)
    (2 σ_ab + c₂) / ((μ_a² + μ_b² + c₁)(σ_a² + σ_b² + c₂)), with c = (0.01 L)², (0.03 L)² and L the
    range of the values of both maps.

    >>> assert structural_similarity(torch.eye(9)[None], torch.eye(9)[None]).tolist() == [1.0]

    Source: Wang et al. 2004, IEEE Transactions on Image Processing 13(4).
    """
    a, b = by_largest(a)[:, None], by_largest(b)[:, None]
    side = min(WINDOW, *a.shape[2:])
    side -= 1 - side % 2
    both = torch.cat([a, b], 1).flatten(1)
    span = (both.amax(1) - both.amin(1)).view(-1, 1, 1, 1)
    mean = lambda x: F.avg_pool2d(x, side, 1)  # noqa: E731
    unbiased = side**2 / max(1, side**2 - 1)
    mean_a, mean_b = mean(a), mean(b)
    spread_a = (mean(a * a) - mean_a**2) * unbiased
    spread_b = (mean(b * b) - mean_b**2) * unbiased
    shared = (mean(a * b) - mean_a * mean_b) * unbiased
    c1, c2 = (K1 * span) ** 2, (K2 * span) ** 2
    above = (2 * mean_a * mean_b + c1) * (2 * shared + c2)
    below = (mean_a**2 + mean_b**2 + c1) * (spread_a + spread_b + c2)
    found = (above / below).flatten(1).mean(1)
    return torch.where((a == b).flatten(1).all(1), 1.0, found)


Similarity = Literal["spearman", "ssim"]
SIMILARITIES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = MappingProxyType(
    {"spearman": rank_similarity, "ssim": structural_similarity}
)
"""By name: two maps (B, H, W) → (B,)."""


def histogram_entropy(maps: Tensor, bins: int = 100) -> Tensor:
    """The entropy in nats of the histogram of each map, from its smallest to its largest value.

    >>> histogram_entropy(torch.tensor([[[0.0, 1.0]], [[2.0, 2.0]]]), 2).exp().tolist()
    [2.0, 1.0]
    """
    values = maps.flatten(1).double()
    low, span = values.amin(1, keepdim=True), values.amax(1, keepdim=True)
    span = span - low
    place = ((values - low) / torch.where(span > 0, span, 1.0) * bins).long().clamp(max=bins - 1)
    counts = torch.zeros(len(values), bins, dtype=torch.float64, device=values.device)
    counts.scatter_add_(1, place, torch.ones_like(values))
    shares = counts / values.shape[1]
    return -torch.xlogy(shares, shares).sum(1) + 0.0  # no negative zero


def by_largest(maps: Tensor) -> Tensor:
    """Each map divided by its largest absolute value; one of zeros stays.

    >>> by_largest(torch.tensor([[[1.0, -4.0]], [[0.0, 0.0]]])).tolist()
    [[[0.25, -1.0]], [[0.0, 0.0]]]
    """
    most = maps.abs().amax((1, 2), keepdim=True)
    return maps / torch.where(most > 0, most, 1.0)


def sorted_ranks(values: Tensor) -> Tensor:
    """Mean ranks of (B, N), times two and from 1, by sorting: N may be the pixels of a picture.

    >>> sorted_ranks(torch.tensor([[3.0, 1.0, 3.0]])).tolist()
    [[4.0, 1.0, 4.0]]
    """
    rising = values.sort(1).values
    below = torch.searchsorted(rising, values)
    upto = torch.searchsorted(rising, values, right=True)
    return (below + upto).double()
