"""Outliers of a map: entries beyond a bound are clipped to it, and the excess is redistributed.

NOTE [given back]
Clipping alone changes Σ C. To keep it, each sign keeps its sum. With x the map, y the clipped map,
x⁺ = max(x, 0), x⁻ = max(−x, 0):

    z = y⁺ · Σx⁺/Σy⁺  −  y⁻ · Σx⁻/Σy⁻

So the positive mass that was cut goes to the positive entries in proportion, the negative to the
negative, and Σz = Σx per sample. Within a sign, z is y up to one factor: an outlier exceeds the
rest by the same ratio as in the clipped map, although it may exceed the bound by that factor. No
entry changes its sign, zeros stay zero, and z(−x) = −z(x), z(ax) = a z(x).

If all entries of a sign were outliers (a single spike on zeros, say), y has no entry of that sign.
Their mass is then spread evenly over all entries. A constant map has no outliers and does not
change.
"""

from __future__ import annotations

import torch
from torch import Tensor

from omenn.check import positive, real, wrong
from omenn.viz.map_layout import as_maps, given_form

Q = 0.01
K = 2.5
NORMAL = 1.4826  # σ of a normal distribution in median absolute deviations
NORMAL_MEAN = 1.2533  # the same in mean absolute deviations, √(π/2)
NOTHING_LEFT = 1e-14  # of the mass of a sign: within rounding


def clamp(maps: Tensor, q: float = Q, keep_sum: bool = True, *, batched: bool = True) -> Tensor:
    """Cut each map to its [q, 1−q] quantiles, (B, *locations) to the same.

    Quantiles are taken over all entries of a sample, linear between two of them. With ``keep_sum``
    Σ stays the same in every sample (see NOTE [given back]); without, this is the plain clamp.

    Args:
        q: share of the entries to be cut on either side, 0 ≤ q < ½.
        batched: False for one map without the axis of samples.

    Raises:
        InputError: q out of range; NaN; no floating-point tensor of at least two axes.

    >>> x = torch.arange(101.0)[None]; x[0, -1] = 1e4
    >>> y = clamp(x, 0.01)
    >>> assert torch.allclose(y.sum(), x.sum()) and y.max() < 300
    >>> assert clamp(x, 0.01, keep_sum=False).max() == 99

    Source: outlier removal of arXiv 2412.02399, whose quantile is not published; q = 1 % is that
    of its authors' later code. The form that keeps the sum is ours.
    """
    if not 0 <= real("q", q) < 0.5:
        raise wrong("q", q, "a share to cut on either side, from 0 to less than 0.5")
    flat = as_maps(maps, batched).flatten(1)
    low, high = quantiles(flat, q, 1 - q)
    return given_form(_cut(flat, low, high, keep_sum), maps)


def mad(maps: Tensor, k: float = K, keep_sum: bool = True, *, batched: bool = True) -> Tensor:
    """Cut each map to median ± k·1.4826·MAD, MAD = median |x − median|; (B, *locations) to same.

    1.4826·MAD is σ of a normal distribution. Where MAD is zero (more than half of the entries are
    equal) 1.2533 times the mean absolute deviation is σ instead. ``keep_sum``, ``batched`` and
    errors: see :func:`clamp`.

    Args:
        k: the bound in σ, above 0. Maps have heavier tails than a normal distribution: 2.5 cuts
            more than the 1 % that it would cut there.

    >>> x = torch.arange(-50.0, 51)[None]; x[0, -1] = 1e4
    >>> y = mad(x)
    >>> assert torch.allclose(y.sum(), x.sum()) and y[0, :50].equal(x[0, :50])

    Source: median absolute deviation with k = 2.5, arXiv 2602.06613 (there over repetitions); the
    fallback: Iglewicz and Hoaglin, How to Detect and Handle Outliers, 1993.
    """
    k = positive("k", k)
    flat = as_maps(maps, batched).flatten(1)
    middle = quantiles(flat, 0.5)[0]
    away = (flat - middle).abs()
    scale = NORMAL * quantiles(away, 0.5)[0]
    scale = torch.where(scale > 0, scale, NORMAL_MEAN * away.mean(1, keepdim=True))
    return given_form(_cut(flat, middle - k * scale, middle + k * scale, keep_sum), maps)


def quantiles(flat: Tensor, *shares: float) -> list[Tensor]:
    """Quantiles of every row of (B, N), each (B, 1), linear between two entries.

    ``torch.quantile`` refuses more than 2²⁴ entries; this does not.
    """
    rows = flat.sort(1).values
    last = rows.shape[1] - 1
    found: list[Tensor] = []
    for share in shares:
        rank = share * last
        below = int(rank)
        low, high = rows[:, below, None], rows[:, min(below + 1, last), None]
        found.append(torch.lerp(low, high, rank - below))
    return found


def _cut(flat: Tensor, low: Tensor, high: Tensor, keep_sum: bool) -> Tensor:
    cut = torch.minimum(torch.maximum(flat, low), high)
    return given_back(flat, cut) if keep_sum else cut


def given_back(before: Tensor, after: Tensor) -> Tensor:
    """``after`` (B, N) with the sums of ``before``, sign by sign (see NOTE [given back])."""
    result = torch.zeros_like(after)
    for sign in (1, -1):
        was, left = (sign * before).clamp(min=0), (sign * after).clamp(min=0)
        mass, rest = was.sum(1, keepdim=True), left.sum(1, keepdim=True)
        any_left = rest > NOTHING_LEFT * mass
        shares = torch.where(any_left, left / torch.where(any_left, rest, 1), 1 / left.shape[1])
        # Where nothing was cut the factor is one, and the entries stay the same to the bit.
        result += sign * torch.where(mass == rest, left, shares * mass)
    return result
