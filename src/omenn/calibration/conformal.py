"""Intervals that hold for a new picture: the fit of drops to sums, and hierarchical quantiles.

NOTE [pictures are exchangeable]
The regions of one picture depend on each other, so a quantile over all regions would promise too
much. What is exchangeable is the pictures. Each of the n pictures of the second half weighs the
same: its N regions have 1 / ((n + 1) N) each, and 1 / (n + 1) lies at infinity. The quantile of
that holds for a random region of a new picture with at least the stated probability, whatever the
network, the map and the number of regions (Lee, Barber, Willett 2023, arXiv 2306.06342).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

ROUNDS = 2  # of weighted least squares
LEAST = 0.1  # of the mean |sum|, or of the median scale: below, both count as small
FLOOR = 0.05  # of the mean |residual|: one that happens to be 0 has no logarithm
PARTS = 3
MARGIN = 2  # the other half, which gives the quantiles, must not fall short by chance


@dataclass(frozen=True)
class Fit:
    """drop ≈ a · share + b · sum, give or take a multiple of s(sum) = (|sum| + δ)^c."""

    a: float
    b: float
    c: float
    delta: float

    def expected(self, sums: Tensor, shares: Tensor) -> Tensor:
        """a · share + b · sum."""
        return self.a * shares + self.b * sums

    def scale(self, sums: Tensor) -> Tensor:
        """How far drops usually are from that, up to a factor."""
        return (sums.abs() + self.delta) ** self.c if self.c else torch.ones_like(sums)

    def scores(self, sums: Tensor, shares: Tensor, drops: Tensor) -> Tensor:
        """|drop − a · share − b · sum| / s(sum)."""
        return (drops - self.expected(sums, shares)).abs() / self.scale(sums)


def fitted(sums: Tensor, shares: Tensor, drops: Tensor) -> Fit:
    """The fit to regions of similar size, (R,) each, float64.

    a and b by least squares, weighted by 1/s² in the second round; c, from 0 to 1, by least squares
    of log |residual| on log(|sum| + δ). Of a map of zeros b = c = 0.

    >>> m, p = torch.tensor([[1.0, -2.0, 4.0], [0.1, 0.1, 0.2]], dtype=torch.float64)
    >>> fit = fitted(m, p, 3 * m + 5 * p)
    >>> assert abs(fit.b - 3) < 1e-9 and abs(fit.a - 5) < 1e-9
    """
    delta = LEAST * float(sums.abs().mean())
    weights = torch.ones_like(sums)
    fit = Fit(0.0, 0.0, 0.0, delta)
    for _ in range(ROUNDS):
        a, b = _coefficients(shares, sums, drops, weights)
        missed = (drops - a * shares - b * sums).abs()
        floor = max(FLOOR * float(missed.mean()), 1e-300)
        c = _slope((sums.abs() + delta).log(), (missed + floor).log()) if delta else 0.0
        fit = Fit(a, b, min(max(c, 0.0), 1.0), delta)
        scale = fit.scale(sums)
        weights = 1 / scale.clamp(min=LEAST * float(scale.median()))
    return fit


def _coefficients(x: Tensor, z: Tensor, y: Tensor, weights: Tensor) -> tuple[float, float]:
    """y ≈ a x + b z by weighted least squares, the smallest of several solutions."""
    columns = torch.stack([x, z], 1) * weights[:, None]
    units = columns.norm(dim=0).clamp(min=1e-300)  # so that neither counts for its unit
    found = torch.linalg.lstsq(columns / units, (y * weights)[:, None], driver="gelsd")
    a, b = (found.solution[:, 0] / units).tolist()
    return (a, b) if bool(z.any()) else (a, 0.0)


def _slope(x: Tensor, y: Tensor) -> float:
    """Of y on x by least squares; 0 where x is the same everywhere."""
    apart = x - x.mean()
    spread = float((apart**2).sum())
    return float((apart * (y - y.mean())).sum()) / spread if spread > 1e-12 * len(x) else 0.0


def cuts(sums: Sequence[Tensor], level: float) -> list[float]:
    """Where |sum| is cut into thirds; nowhere if a third would come from too few pictures.

    ``sums``: of the regions of each picture of the first half.
    """
    flat = torch.cat([one.abs() for one in sums])
    shares = torch.arange(1, PARTS, dtype=flat.dtype) / PARTS
    found = torch.quantile(flat, shares)
    if not bool((found[1:] > found[:-1]).all()):
        return []
    parts = [torch.bucketize(one.abs(), found, right=True) for one in sums]
    pictures = [sum(bool((part == k).any()) for part in parts) for k in range(PARTS)]
    return found.tolist() if min(pictures) >= MARGIN * needed(level) else []


def needed(level: float) -> int:
    """How many pictures a finite quantile takes.

    >>> needed(0.9), needed(0.95)
    (9, 19)
    """
    return math.ceil(level / (1 - level) - 1e-9)


def hierarchical_quantile(scores: Sequence[Tensor], level: float) -> float:
    """The quantile of NOTE [pictures are exchangeable]; infinite if there are too few pictures.

    ``scores``: of the regions of each picture; pictures without a region are left out.

    >>> hierarchical_quantile([torch.tensor([float(k)]) for k in range(19)], 0.9)
    17.0
    """
    there = [one for one in scores if len(one)]
    if not there:
        return math.inf
    weights = torch.cat([torch.full((len(s),), 1 / len(s), dtype=torch.float64) for s in there])
    values, order = torch.cat(there).double().sort()
    reached = weights[order].cumsum(0)
    # a millionth of a region is rounding
    enough = (reached >= level * (len(there) + 1) - 1e-6).nonzero()
    return float(values[enough[0, 0]]) if len(enough) else math.inf
