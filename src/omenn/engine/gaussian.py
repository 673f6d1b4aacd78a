"""A Gaussian over the last two axes of maps that loses none of their sum."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def spread(pictures: Tensor, sigma: float, reach: int | None = None, keep: bool = True) -> Tensor:
    """K_H C K_Wᵀ on (…, H, W), σ > 0 in entries; an axis with one entry is left alone.

    ``keep``: the map is continued by reflection (d c b a | a b c d), which makes K symmetric with
    rows and columns that sum to one; without, by zeros. ``reach``: taps to either side, 4σ if not
    given.

    >>> spike = torch.zeros(9, 9); spike[0, 4] = 2
    >>> assert torch.allclose(spread(spike, 1.5).sum(), spike.sum())
    """
    for axis in (-2, -1):
        if pictures.shape[axis] > 1:
            pictures = _along(pictures, axis, sigma, reach, keep)
    return pictures


def _along(values: Tensor, axis: int, sigma: float, reach: int | None, keep: bool) -> Tensor:
    """Along one axis: entry i gets Σ_o w_o · entry i+o of the continued map."""
    length = values.shape[axis]
    if reach is None:
        # beyond eight lengths the folded Gaussian is even, whatever its tail
        reach = max(1, math.ceil(min(4 * sigma, 8 * length)))
    weights = [math.exp(-0.5 * min(abs(o) / sigma, 1e9) ** 2) for o in range(-reach, reach + 1)]
    total = math.fsum(weights)
    places = torch.arange(-reach, length + reach, device=values.device)
    folded = places % (2 * length)
    continued = values.index_select(axis, torch.minimum(folded, 2 * length - 1 - folded))
    if not keep:
        inside = (places >= 0) & (places < length)
        continued = continued * inside.reshape(-1, *[1] * (-axis - 1))
    out = torch.zeros_like(values)
    for start, weight in enumerate(weights):
        out.add_(continued.narrow(axis, start, length), alpha=weight / total)
    return out
