"""Operators that average or sample make a new grid: its ones are those of its cells, averaged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from omenn.engine.location.grid import OPERATOR, POOLED, Place, full
from omenn.engine.location.overlap import averaged


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


def resampled(
    place: Place, shape: Sequence[int], size: Sequence[int], smooth: bool = False
) -> Place:
    """The place of a feature map (N, C, *size) computed from one of ``shape``.

    The new cells cover the old ones evenly, see NOTE [even cells]; ``smooth``: as kernels that
    overlap. What was padded covers nothing.
    """
    cells = full(place.cells, shape)
    if cells.ndim > len(size) + 1 and cells.shape[1] > 1:
        place = reduced(place, shape, [1], True)
        cells = place.cells
    means: dict[int, int] = {}
    for dim, n in zip(range(cells.ndim - len(size), cells.ndim), size, strict=True):
        if cells.shape[dim] == 1:  # where the place is constant it stays so
            continue
        cells = _unpadded(cells, dim)
        have = cells.shape[dim]
        if n >= have and n % have == 0:  # each element lies in one cell
            cells = cells.repeat_interleave(n // have, dim) if n > have else cells
        else:
            means[dim] = n
    if not means:
        return place.with_cells(cells)
    kept = cells
    for dim, n in means.items():
        have = cells.shape[dim]
        index = (torch.arange(n, device=cells.device) * have + have // 2) // max(n, 1)
        kept = kept.index_select(dim, index)
    u = place.grid.u[cells]
    if smooth or any(not n or cells.shape[dim] % n for dim, n in means.items()) or len(size) > 3:
        for dim, n in means.items():
            u = averaged(u, dim, n, smooth)
    else:
        u = _pooled(u, kept.shape, len(size))
    return place.regrid(u, kept)


def _pooled(u: Tensor, shape: Sequence[int], spatial: int) -> Tensor:
    """The means over blocks of whole cells, along the last dimensions."""
    pool: Any = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)[spatial - 1]
    maps = u.reshape(-1, 1, *u.shape[-spatial:])
    return pool(maps, list(shape[-spatial:])).reshape(shape)


def _unpadded(cells: Tensor, dim: int) -> Tensor:
    """``cells`` without those that :func:`padded` repeats at either end of a dimension.

    At an end there are as many equal ones as next to it, where each cell was enlarged.
    """
    lines = cells.movedim(dim, 0)
    if len(lines) < 2 or not (lines[0].equal(lines[1]) or lines[-1].equal(lines[-2])):
        return cells
    change = (lines[1:] != lines[:-1]).flatten(1).any(1).nonzero().flatten() + 1
    edges = [0, *change.tolist(), len(lines)]
    runs = [b - a for a, b in pairwise(edges)]
    if len(runs) < 2:
        return cells
    before, after = max(0, runs[0] - runs[1]), max(0, runs[-1] - runs[-2])
    return cells.narrow(dim, before, len(lines) - before - after)


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
