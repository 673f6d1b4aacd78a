"""Operators that average or sample make a new grid: its ones are those of its cells, averaged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from omenn.engine.location.grid import OPERATOR, POOLED, Place, full


def reduced(place: Place, shape: Sequence[int], dims: Sequence[int], keepdim: bool) -> Place:
    """The mean place over ``dims`` of a tensor of ``shape``."""
    cells = full(place.cells, shape)
    spread = [d for d in dims if cells.shape[d] > 1]
    if spread:
        u = place.grid.u[cells].mean(spread, keepdim=True)
        kept = cells
        for dim in spread:
            kept = kept.narrow(dim, 0, 1)
        reason = place.grid.reason[cells]
        least, most = reason.amin(spread, keepdim=True), reason.amax(spread, keepdim=True)
        # One cell without a location is enough for the mean to have none.
        reason = torch.where((least == 0) & (most != 0), most.clamp_min(POOLED), least)
        parts = cells.movedim(spread, list(range(-len(spread), 0))).flatten(-len(spread))
        place = place.regrid(u, kept, reason, parts)
        cells = place.cells
    if not keepdim:
        keep = [n for d, n in enumerate(cells.shape) if d not in dims]
        cells = cells.reshape(tuple(keep))
    return place.with_cells(cells)


def merged(place: Place, shape: Sequence[int], dims: Sequence[int]) -> Place:
    """The mean place over ``dims``, which stay and hold mixtures; it knows where it was before."""
    mean = reduced(place, shape, dims, True)
    if mean.grid is not place.grid:
        mean.origin = (place, tuple(shape), tuple(dims))
    return mean


def folded(place: Place, u: Tensor, cells: Tensor, fold: Callable[[Tensor], Tensor]) -> Place:
    """The mean over the windows (B, offset, window) that ``fold`` lays on a cell."""
    count = fold(torch.ones_like(u[:1]))
    total = fold(u) / count.clamp_min(1)
    whole = u.mean((1, 2)).reshape(-1, 1, 1, 1)  # where no window lies there is nothing to place
    kept = cells[:, :1, :1].unsqueeze(-1).expand(total.shape)
    reason = place.grid.reason[cells].amax((1, 2)).reshape(-1, 1, 1, 1).expand(total.shape)
    reason = torch.where((count == 0) & (reason == 0), OPERATOR, reason)
    return place.regrid(torch.where(count == 0, whole, total), kept, reason)


def resampled(place: Place, shape: Sequence[int], size: Sequence[int]) -> Place:
    """The place of a feature map (N, C, *size) computed from one of ``shape``, cell by cell."""
    cells = full(place.cells, shape)
    if cells.ndim > len(size) + 1 and cells.shape[1] > 1:
        place = reduced(place, shape, [1], True)
        cells = place.cells
    spatial = tuple(cells.shape[-len(size) :])
    # Along a dimension in which the place is constant it stays so.
    size = [n if have > 1 else 1 for n, have in zip(size, spatial, strict=True)]
    if list(spatial) == size:
        return place.with_cells(cells)
    kept = cells
    for k, n in enumerate(size):
        dim = cells.ndim - len(size) + k
        have = cells.shape[dim]
        if n != have:
            index = (torch.arange(n, device=cells.device) * have + have // 2) // max(n, 1)
            kept = kept.index_select(dim, index.clamp_(max=have - 1))
    if all(n <= have for n, have in zip(size, spatial, strict=True)) and len(size) <= 3:
        pool: Any = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)[
            len(size) - 1
        ]
        u = pool(place.grid.u[cells].reshape(-1, 1, *spatial), size).reshape(kept.shape)
        return place.regrid(u, kept)
    return place.with_cells(kept)


def padded(place: Place, shape: Sequence[int], pad: Sequence[int]) -> Place:
    """The place after padding: the rim belongs to the nearest inner cell, or to all samples."""
    cells = full(place.cells, shape)
    for k in range(len(pad) // 2):
        dim = cells.ndim - 1 - k
        before, after = pad[2 * k], pad[2 * k + 1]
        have = cells.shape[dim]
        # The one sample of a batch is padded as several are.
        single = dim == 0 and shape[0] == place.grid.samples == 1
        if (have > 1 or single) and (before or after):
            index = torch.arange(-before, have + after, device=cells.device)
            inner = (index >= 0) & (index < have)
            cells = cells.index_select(dim, index.clamp_(0, have - 1))
            sample = place.grid.sample[cells]
            if single or bool((sample != sample.narrow(dim, 0, 1)).any()):
                inner = inner.reshape(-1, *[1] * (cells.ndim - 1 - dim))
                cells = torch.where(inner, cells, place.grid.shared(cells.ndim))
    return place.with_cells(cells)
