"""How few pixels a map uses: sparseness, complexity, effective complexity.

These look at maps alone, by absolute value; what they prefer need not be what the model looks at.
A map of zeros rates all pixels the same, so it is scored like any other constant map.
"""

from __future__ import annotations

import torch
from torch import Tensor

from omenn.check import wrong
from omenn.metrics.maps import checked_maps, constant_maps, wrong_tensor
from omenn.metrics.metric_registry import Measure, metric
from omenn.metrics.score import Score


@metric(
    "sparseness",
    Measure("sparseness", headline=True, axis=True),
    family="complexity",
    summary="Gini index of the absolute values",
    source="arXiv 1810.06583",
)
def sparseness(maps: Tensor) -> Score:
    """The Gini coefficient of |a|: 0 for a constant map, 1 − 1/n where one of n pixels has all.

    With the values in rising order, Σ_i (2i − n − 1) |a|_(i) / (n Σ |a|). More is better; normal
    numbers have √2 − 1. ``maps``: (B, H, W), or with channels, which are averaged.

    Raises:
        InputError: not maps, or maps that are not finite.

    Example:
        >>> found = sparseness(torch.tensor([[[0.0, 0.0], [0.0, 3.0]], [[2.0, 2.0], [2.0, 2.0]]]))
        >>> found.values.tolist(), dict(found.counted)
        ([0.75, 0.0], {'constant maps': 1})

    Source: Chalasani et al. 2020, arXiv 1810.06583.
    """
    values, counted = _strengths(maps)
    count = values.shape[1]
    weight = 2 * torch.arange(1, count + 1).to(values) - count - 1
    found = (values.sort(1).values * weight).sum(1) / (count * values.sum(1))
    level = values.amax(1) == values.amin(1)
    return Score("sparseness", torch.where(level, 0.0, found), counted)


@metric(
    "complexity",
    Measure("complexity", higher=False, headline=True),
    family="complexity",
    summary="entropy of the absolute values",
    source="arXiv 2005.00631",
)
def complexity(maps: Tensor) -> Score:
    """The entropy of |a| / Σ |a| in nats: log n for a constant map of n pixels, 0 for a single one.

    Less is better. The rest is as in :func:`sparseness`.

    Example:
        >>> found = complexity(torch.tensor([[[0.0, 0.0], [0.0, 3.0]], [[2.0, 2.0], [0.0, 0.0]]]))
        >>> found.values.exp().tolist()
        [1.0, 2.0]

    Source: Bhatt, Weller, Moura 2020, arXiv 2005.00631.
    """
    values, counted = _strengths(maps)
    shares = values / values.sum(1, keepdim=True)
    return Score("complexity", -torch.xlogy(shares, shares).sum(1), counted, higher=False)


@metric(
    "effective-complexity",
    Measure("effective complexity", higher=False, headline=True),
    family="complexity",
    summary="how many pixels are not negligible",
    source="arXiv 2007.07584",
)
def effective_complexity(maps: Tensor, *, eps: float = 1e-5) -> Score:
    """How many pixels have |a| > eps · max |a|. Less is better.

    The published measure asks the model which pixels it can do without; this is the count that is
    in use for it. The rest is as in :func:`sparseness`.

    Raises:
        InputError: also if eps is not from 0 to 1.

    Example:
        >>> effective_complexity(torch.tensor([[[1.0, -0.5], [1e-6, 0.0]]])).values.tolist()
        [2.0]

    Source: Nguyen, Martínez 2020, arXiv 2007.07584.
    """
    if isinstance(eps, bool) or not isinstance(eps, (int, float)) or not 0 <= eps < 1:
        raise wrong("eps", eps, "a number from 0 to below 1, a share of the maximum")
    values, counted = _strengths(maps)
    found = (values > eps * values.amax(1, keepdim=True)).sum(1).double()
    return Score("effective complexity", found, counted, higher=False)


def _strengths(maps: Tensor) -> tuple[Tensor, dict[str, int]]:
    """|a| / max |a|, (B, pixels) float64, ones for a map of zeros, and what was counted."""
    if not isinstance(maps, Tensor) or maps.ndim not in (3, 4):
        raise wrong_tensor("maps", maps, "(B, H, W), or (B, C, H, W) with channels")
    maps = checked_maps(maps, maps if maps.ndim == 4 else maps[:, None])
    values = maps.flatten(1).abs()
    most = values.amax(1, keepdim=True)
    count = int(constant_maps(maps).sum())
    values = torch.where(most > 0, values / most, 1.0)
    return values, {"constant maps": count}
