"""Smoothing of maps: every entry is spread over its neighbours, and the sum is kept.

NOTE [columns]
A smoothed map is K C. The usual filter has rows that sum to one (each result is a mean) or pads
with zeros, and either changes Σ C. Here the columns of K sum to one, 1ᵀK = 1ᵀ: each entry is
divided among its neighbours, nothing is lost, and Σ K C = Σ C. K is also symmetric, so its
rows sum to one too: each result is a mean, and a constant map stays constant up to the border.
``keep_sum=False`` is the usual form. In both, a smoothed entry stands for its neighbourhood.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from omenn.check import positive, wrong
from omenn.errors import InputError
from omenn.filters import gaussian_filter
from omenn.viz.map_layout import Layout, as_maps, as_pictures, given_form

SHARE = 40  # the default σ is a fortieth of the shorter side, as on the command line
LEAST = 0.5  # and at least half an entry

Slices = tuple[Any, ...]


def default_sigma(height: int, width: int) -> float:
    """The default σ of a picture: a fortieth of its shorter side, at least a half.

    For one row of tokens it is a fortieth of the length. At 224 pixels σ is 5.6, within the 5 to 7
    of the code that followed the OMENN paper.

    >>> default_sigma(224, 224), default_sigma(14, 14)
    (5.6, 0.5)
    """
    return max(LEAST, min([n for n in (height, width) if n > 1], default=1) / SHARE)


def gaussian(
    maps: Tensor,
    sigma: float,
    keep_sum: bool = True,
    *,
    kernel: float | None = None,
    grid: tuple[int, int] | None = None,
    patch: int | tuple[int, int] | None = None,
    sequence: bool = False,
    batched: bool = True,
) -> Tensor:
    """Spread every entry by a Gaussian over the last two axes, (B, …, H, W) to the same.

    ``K_H C K_Wᵀ``. With ``keep_sum`` the map is continued by reflection (d c b a | a b c d), which
    makes the columns (and the rows) of K sum to one; without, by zeros, so that what leaves the
    map is lost. An axis with one entry has no neighbours and does not change.

    Args:
        sigma: width in entries (with ``grid`` or ``patch`` in cells), above 0, at most the longer
            side.
        kernel: number of taps, odd; 4σ to either side if not given. Few taps are part of some
            published forms, such as 11 with σ = 7.
        grid: (h, w), maps of tokens (B, T): the last h·w are smoothed as a picture, tokens in front
            of them (class token, registers) stay as they are.
        patch: p or (p, q), maps of pixels: each patch becomes one cell, the mean of its pixels, and
            the cells are smoothed. What differs within a patch is averaged.
        sequence: maps of tokens (B, T) are smoothed along T.
        batched: False for one map without the axis of samples.

    Raises:
        InputError: a width out of range; an even kernel; NaN; maps of another layout.

    >>> spike = torch.zeros(1, 9, 9); spike[0, 0, 4] = 2
    >>> soft = gaussian(spike, 1.5)
    >>> assert torch.allclose(soft.sum(), spike.sum()) and soft.max() < 0.3
    >>> assert gaussian(spike, 1.5, keep_sum=False).sum() < 1.5
    """
    layout = Layout.of(grid, patch, sequence)
    values = as_maps(maps, batched)
    pictures = as_pictures(values, layout)
    sigma = _width(sigma, pictures)
    reach = None if kernel is None else _reach_of(kernel, max(pictures.shape[-2:]))
    soft = gaussian_filter(pictures, sigma, reach, "symmetric" if keep_sum else "zeros")
    return given_form(layout.back(soft, values), maps)


def bilateral(
    maps: Tensor,
    sigma: float,
    range: float,
    guide: Tensor | None = None,
    keep_sum: bool = True,
    *,
    grid: tuple[int, int] | None = None,
    patch: int | tuple[int, int] | None = None,
    sequence: bool = False,
    batched: bool = True,
) -> Tensor:
    """Spread every entry over the neighbours with a similar guide; shapes stay the same.

    ``w_ij = exp(−|i−j|²/2σ²) · exp(−d²(g_i, g_j)/2ρ²)`` within 3σ, d² the mean over the channels
    of the guide, and s_i = Σ_j w_ij. The usual form is ``out_i = Σ_j w_ij C_j / s_i``. With
    ``keep_sum`` it is ``out_i = C_i + Σ_j w_ij (C_j − C_i) / max(s_i, s_j)``: what i gets, j loses.
    There the columns of the weights sum to one, and being symmetric so do their rows.

    Args:
        sigma: width in entries or cells, as in :func:`gaussian`.
        range: ρ, above 0, as a share of the guide's span (largest minus smallest value) per sample.
        guide: (B, *locations) or (B, C, *locations), for example the input; the map itself if
            not given.
        keep_sum, grid, patch, sequence, batched: see :func:`gaussian`.

    Raises:
        InputError: as :func:`gaussian`; a guide of another shape.

    >>> step = torch.zeros(1, 6, 8); step[..., 4:] = 1; step[0, 3, 2] = 0.1
    >>> soft = bilateral(step, 1.5, 0.1)
    >>> assert torch.allclose(soft.sum(), step.sum()) and soft[0, 3, 2] < 0.05
    >>> assert soft[..., :4].max() < 0.1 and soft[..., 4:].min() > 0.9  # the edge stays

    Source: Tomasi and Manduchi, Bilateral Filtering for Gray and Color Images, ICCV 1998. The
    form that keeps the sum divides by the larger of two sums as Hastings, Biometrika 57, 1970.
    """
    layout = Layout.of(grid, patch, sequence)
    values = as_maps(maps, batched)
    pictures = as_pictures(values, layout)
    sigma = _width(sigma, pictures)
    rho = positive("range", range)
    given = values[:, None] if guide is None else as_guide(guide, values, batched)
    pairs = _Pairs(layout.channels(given), sigma, rho)
    return given_form(layout.back(pairs.mixed(pictures, keep_sum), values), maps)


class _Pairs:
    """Every pair of neighbours of a guide (B, C, …, h, w), once, with its weight."""

    def __init__(self, guide: Tensor, sigma: float, rho: float) -> None:
        self.guide, self.sigma = guide, sigma
        places = tuple(range(1, guide.ndim))
        span = guide.amax(places, keepdim=True) - guide.amin(places, keepdim=True)
        self.scale = torch.where(span > 0, rho * span, 1).clamp(min=1e-300)

    def mixed(self, pictures: Tensor, keep: bool) -> Tensor:
        total = torch.ones_like(pictures)  # w is symmetric: one sum serves rows and columns
        for here, there, weight in self:
            total[here] += weight
            total[there] += weight
        out = pictures.clone()
        for here, there, weight in self:
            if keep:
                share = weight / torch.maximum(total[here], total[there])
                flow = share * (pictures[there] - pictures[here])
                out[here] += flow
                out[there] -= flow
            else:
                out[here] += weight * pictures[there]
                out[there] += weight * pictures[here]
        return out if keep else out / total

    def __iter__(self) -> Iterator[tuple[Slices, Slices, Tensor]]:
        height, width = self.guide.shape[-2:]
        reach = math.ceil(3 * self.sigma)
        down, aside = min(reach, height - 1), min(reach, width - 1)
        for dy in range(down + 1):
            for dx in range(-aside if dy else 1, aside + 1):
                here = (..., slice(dy, None), slice(max(dx, 0), width + min(dx, 0)))
                there = (..., slice(0, height - dy), slice(max(-dx, 0), width - max(dx, 0)))
                near = -0.5 * (dy * dy + dx * dx) / self.sigma**2
                apart = (self.guide[here] - self.guide[there]) / self.scale
                yield here, there, torch.exp(near - 0.5 * apart.square().mean(1))


def as_guide(guide: Any, values: Tensor, batched: bool = True) -> Tensor:
    """The guide as (B, C, *locations)."""
    given = as_maps(guide, batched, "the guide")
    if given.shape == values.shape:
        return given[:, None]
    if given.ndim == values.ndim + 1 and given.select(1, 0).shape == values.shape:
        return given
    start = 0 if batched else 1
    shape, expected = tuple(given.shape[start:]), tuple(values.shape[start:])
    raise InputError(
        f"the guide has shape {shape}, the map {expected}.",
        argument="guide",
        got=str(shape),
        expected=str(expected),
        remedy="Give one number, or one per channel (second axis), for every location of the map.",
    )


def _width(sigma: Any, pictures: Tensor) -> float:
    sigma, most = positive("sigma", sigma), max(pictures.shape[-2:])
    if sigma > most:
        raise wrong("sigma", sigma, f"at most {most}, the longer side of the map")
    return sigma


def _reach_of(kernel: Any, longest: int) -> int:
    taps, most = positive("kernel", kernel), 2 * longest + 1
    if taps % 2 != 1 or taps > most:
        raise wrong("kernel", kernel, f"an odd number of taps, at most {most} for this map")
    return int(taps) // 2
