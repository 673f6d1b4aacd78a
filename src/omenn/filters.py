"""The Gaussian filter that smooths maps and blurs pictures."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def gaussian_filter(
    maps: Tensor, sigma: float, reach: int | None = None, border: str = "symmetric"
) -> Tensor:
    """K_H C K_Wᵀ on (…, H, W), σ > 0 in entries; an axis with one entry does not change.

    ``border``, how a map is continued (the first two names are those of ``numpy.pad``):

    - ``symmetric``: d c b a | a b c d. K is symmetric with rows and columns that sum to one, so a
      constant map stays constant and Σ stays the same.
    - ``reflect``: d c b | a b c d. A constant map stays constant; needs ``reach`` below the side.
    - ``zeros``: what leaves the map is lost.

    ``reach``: taps to either side, 4σ if not given.

    >>> spike = torch.zeros(9, 9); spike[0, 4] = 2
    >>> assert torch.allclose(gaussian_filter(spike, 1.5).sum(), spike.sum())
    """
    for axis in (-2, -1):
        if maps.shape[axis] > 1:
            maps = _along(maps, axis, sigma, reach, border)
    return maps


def _along(values: Tensor, axis: int, sigma: float, reach: int | None, border: str) -> Tensor:
    """Along one axis: entry i gets Σ_o w_o · entry i+o of the continued map."""
    length = values.shape[axis]
    if reach is None:
        # beyond eight lengths the folded Gaussian is flat, whatever its tail
        reach = max(1, math.ceil(min(4 * sigma, 8 * length)))
    weights = [math.exp(-0.5 * min(abs(o) / sigma, 1e9) ** 2) for o in range(-reach, reach + 1)]
    total = math.fsum(weights)
    kernel = torch.tensor(weights, dtype=torch.float64, device=values.device) / total
    matrix = _toeplitz(kernel, length, border).to(values.dtype)
    with torch.autocast(values.device.type, enabled=False):  # would round pictures to eight bits
        return (matrix @ values.movedim(axis, -2)).movedim(-2, axis)


def _toeplitz(kernel: Tensor, length: int, border: str) -> Tensor:
    """The kernel along an axis of a map continued at its ends, (length, length)."""
    reach = len(kernel) // 2
    offsets = torch.arange(-reach, reach + 1, device=kernel.device)
    places = torch.arange(length, device=kernel.device)[:, None] + offsets
    twice = int(border != "reflect")  # whether the entry at the edge is repeated
    folded = places % (2 * length - 2 + 2 * twice)
    index = torch.minimum(folded, 2 * length - 2 + twice - folded)
    weights = kernel.expand(places.shape)
    if border == "zeros":
        weights = torch.where((places >= 0) & (places < length), weights, 0)
    return torch.zeros_like(weights[:, :1]).repeat(1, length).scatter_add_(1, index, weights)
