"""The ones image U and the places of tensors: where on the input a constant term belongs.

Every tensor that depends on the input has a :class:`Place`: an integer tensor ``cells`` with the
tensor's own dimensions (1 where the place does not change, as along channels) that points into a
:class:`Grid` of cells. A grid holds ``u``, the ones image resampled to those cells by a linear map
whose rows sum to one. Layout operators (reshape, permute, roll, slicing) act on ``cells`` alone;
pooling, convolution and reductions make a new grid by averaging. So a constant term added to a
tensor reaches the input through ``u[cells]``, and because ``u`` is one everywhere the forward pass
never changes.

Each grid ends with one slot per sample that holds the mean over the whole input: the place of what
has no place (a class token, a layer after global pooling).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


class Grid:
    """Cells of a resampled ones image: ``u`` (n,), ``sample`` (n,) and ``located`` (n,)."""

    __slots__ = ("located", "sample", "samples", "slots", "u")

    def __init__(self, u: Tensor, sample: Tensor, located: Tensor, mean: Tensor) -> None:
        self.samples = mean.numel()
        self.slots = u.numel()  # index of the first whole-input slot
        device = u.device
        self.u = torch.cat([u.flatten(), mean])
        self.sample = torch.cat([sample.flatten(), torch.arange(self.samples, device=device)])
        self.located = torch.cat(
            [located.flatten(), torch.zeros(self.samples, dtype=torch.bool, device=device)]
        )

    @property
    def mean(self) -> Tensor:
        """The whole-input slots, (samples,)."""
        return self.u[self.slots :]


class Place:
    """Where each element of a tensor lies: ``cells`` indexes ``grid``, 1-sized where constant."""

    __slots__ = ("_ones", "_source", "cells", "grid")

    def __init__(self, grid: Grid, cells: Tensor) -> None:
        self.grid = grid
        self.cells = cells
        self._ones: Tensor | None = None
        self._source: Tensor | None = None

    def ones(self) -> Tensor:
        """U at this place: ones with the shape of ``cells``, differentiable to the input's U."""
        if self._ones is None:
            self._ones = self.grid.u[self.cells]
        return self._ones

    def source_index(self) -> Tensor:
        """For each cell its sample, plus the number of samples where it is not located."""
        if self._source is None:
            grid = self.grid
            self._source = (grid.sample + grid.samples * (~grid.located))[self.cells]
        return self._source

    def with_cells(self, cells: Tensor) -> Place:
        return self if cells is self.cells else Place(self.grid, cells)

    def unplaced(self) -> Tensor:
        """The whole-input slot of each row of dimension 0, shaped (rows, 1, …)."""
        cells = self.cells
        rows = cells.reshape(cells.shape[0], -1)[:, 0] if cells.ndim else cells.reshape(1)
        slots = self.grid.slots + self.grid.sample[rows]
        return slots.reshape(-1, *[1] * (cells.ndim - 1)) if cells.ndim else slots.reshape(())

    def regrid(self, u: Tensor, cells: Tensor) -> Place:
        """A new grid with the values ``u``; ``cells`` (same shape) tell sample and locatedness."""
        grid = self.grid
        sample = grid.sample[cells]
        # One cell per sample is the whole input: honest about it, it is not located.
        located = grid.located[cells] & (u.numel() > grid.samples)
        fresh = torch.arange(u.numel(), device=u.device).reshape(u.shape)
        return Place(Grid(u, sample, located, grid.mean), fresh)


def input_place(
    ones: Tensor, samples: int, batch: int, channel: int | None, spread: bool, batched: bool
) -> Place:
    """The place of an explained input with the locations of ``ones``, samples along ``batch``."""
    rows = ones.shape[batch]
    sample = torch.arange(rows, device=ones.device) * samples // rows
    sample = sample.reshape(-1, *[1] * (ones.ndim - 1 - batch)).expand_as(ones)
    sizes = sample.flatten().bincount(minlength=samples).clamp_min_(1)
    mean = ones.new_zeros(samples).index_add(0, sample.flatten(), ones.flatten()) / sizes
    u = mean[sample] if spread else ones
    located = torch.full(ones.shape, not spread and ones.numel() > samples, device=ones.device)
    cells = torch.arange(ones.numel(), device=ones.device).reshape(ones.shape)
    if not batched:
        cells = cells.squeeze(0)
    if channel is not None:
        cells = cells.unsqueeze(channel)
    return Place(Grid(u, sample, located, mean), cells)


def unplaced(grid: Grid, shape: Sequence[int]) -> Place:
    """A place without location for a tensor of ``shape`` whose first dimension is batch-major."""
    rows = shape[0] if len(shape) else 1
    if grid.samples == 1 or rows % grid.samples:
        index = torch.zeros(1, dtype=torch.long, device=grid.u.device)
    else:
        index = torch.arange(grid.samples, device=grid.u.device)
        index = index.repeat_interleave(rows // grid.samples)
    rank = (-1, *[1] * (len(shape) - 1)) if len(shape) else ()
    return Place(grid, (grid.slots + index[: None if len(shape) else 1]).reshape(rank))


def nowhere(place: Place, before: Sequence[int], after: Sequence[int]) -> Place:
    """Without location, but of its own sample: for a tensor ``after`` made from one ``before``.

    The dimension along which the samples differ is looked for under the same number and size.
    """
    grid = place.grid
    sample = compacted(grid.sample[full(place.cells, before)])
    varying = [d for d, n in enumerate(sample.shape) if n > 1]
    if len(before) == len(after) and all(sample.shape[d] == after[d] for d in varying):
        return Place(grid, grid.slots + sample)
    if len(varying) == 1 and (size := sample.numel()) in after:
        same = varying[0] < len(after) and after[varying[0]] == size
        dim = varying[0] if same else list(after).index(size)
        rank = (*[1] * dim, size, *[1] * (len(after) - dim - 1))
        return Place(grid, grid.slots + sample.reshape(rank))
    return unplaced(grid, after)


def full(cells: Tensor, shape: Sequence[int]) -> Tensor:
    """``cells`` with as many dimensions as ``shape`` (missing ones are leading)."""
    return cells.reshape((1,) * (len(shape) - cells.ndim) + tuple(cells.shape))


def squeezed(cells: Tensor) -> Tensor:
    """``cells`` with every dimension of stride zero narrowed to one element."""
    for dim in range(cells.ndim):
        if cells.shape[dim] > 1 and cells.stride(dim) == 0:
            cells = cells.narrow(dim, 0, 1)
    return cells


def viewed(place: Place, shape: Sequence[int], view: Callable[[Tensor], object]) -> object:
    """Applies a view operator to the cells of a tensor of ``shape``; returns places as it does."""
    out = view(full(place.cells, shape).expand(shape))
    if isinstance(out, Tensor):
        return place.with_cells(squeezed(out))
    if isinstance(out, (tuple, list)):
        return [place.with_cells(squeezed(item)) for item in out]
    return None


def reshaped(place: Place, before: Sequence[int], after: Sequence[int]) -> Place:
    """The place after an order-preserving reshape from ``before`` to ``after``.

    The dimensions are grouped into the smallest blocks of equal size; a block along which the
    place is constant stays one cell, any other block is laid out in full and reshaped.
    """
    cells = full(place.cells, before)
    if 0 in before:
        return place.with_cells(cells.expand(before).reshape(after))
    expanded: list[int] = []
    target: list[int] = []
    i = j = 0
    while i < len(before) or j < len(after):
        i0, j0 = i, j
        left = right = 1
        while True:
            if left == right and (i > i0 or j > j0) and left > 1:
                break
            if left <= right and i < len(before):
                left *= before[i]
                i += 1
            elif j < len(after):
                right *= after[j]
                j += 1
            elif i < len(before):
                left *= before[i]
                i += 1
            else:
                break
        if all(n == 1 for n in cells.shape[i0:i]):
            expanded += cells.shape[i0:i]
            target += [1] * (j - j0)
        else:
            expanded += before[i0:i]
            target += after[j0:j]
    return place.with_cells(cells.expand(expanded).reshape(target))


def reduced(place: Place, shape: Sequence[int], dims: Sequence[int], keepdim: bool) -> Place:
    """The mean place over ``dims`` of a tensor of ``shape``."""
    cells = full(place.cells, shape)
    spread = [d for d in dims if cells.shape[d] > 1]
    if spread:
        u = place.grid.u[cells].mean(spread, keepdim=True)
        kept = cells
        for dim in spread:
            kept = kept.narrow(dim, 0, 1)
        place = place.regrid(u, kept)
        cells = place.cells
    if not keepdim:
        keep = [n for d, n in enumerate(cells.shape) if d not in dims]
        cells = cells.reshape(tuple(keep))
    return place.with_cells(cells)


def resampled(place: Place, shape: Sequence[int], size: Sequence[int]) -> Place:
    """The place of a feature map (N, C, *size) computed from one of ``shape``, cell by cell."""
    cells = full(place.cells, shape)
    if cells.ndim > len(size) + 1 and cells.shape[1] > 1:
        place = reduced(place, shape, [1], True)
        cells = place.cells
    spatial = tuple(cells.shape[-len(size) :])
    if spatial == tuple(size):
        return place.with_cells(cells)
    if all(n == 1 for n in spatial):  # constant over the map: stays so
        return place.with_cells(cells)
    kept = cells
    for k, n in enumerate(size):
        dim = cells.ndim - len(size) + k
        have = cells.shape[dim]
        index = (torch.arange(n, device=cells.device) * have + have // 2) // max(n, 1)
        kept = kept.index_select(dim, index.clamp_(max=have - 1))
    if all(n <= have for n, have in zip(size, spatial, strict=True)) and len(size) <= 3:
        pool: Any = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)[
            len(size) - 1
        ]
        u = pool(place.grid.u[cells].reshape(-1, 1, *spatial), list(size)).reshape(kept.shape)
        return place.regrid(u, kept)
    return place.with_cells(kept)


def padded(place: Place, shape: Sequence[int], pad: Sequence[int]) -> Place:
    """The place after padding: the rim belongs to the nearest inner cell."""
    cells = full(place.cells, shape)
    for k in range(len(pad) // 2):
        dim = cells.ndim - 1 - k
        before, after = pad[2 * k], pad[2 * k + 1]
        have = cells.shape[dim]
        if have > 1 and (before or after):
            index = torch.arange(-before, have + after, device=cells.device)
            cells = cells.index_select(dim, index.clamp_(0, have - 1))
    return place.with_cells(cells)


def overwritten(
    target: tuple[Place | None, Sequence[int]],
    source: tuple[Place, Sequence[int]],
    write: Callable[[Tensor, Tensor], Tensor],
    home: Place | None = None,
    adds: bool = False,
) -> Place:
    """The place of a target after ``write(cells of the target, cells of the source)``.

    A constant target has the place ``home`` if that fits, else none: the rows of its samples. With
    ``adds`` the written cells hold sums: the target's place stays, or it is without location.
    """
    (own, shape), (given, size) = target, source
    cells = full(given.cells, size).expand(size)
    grid = given.grid
    if own is None:
        blank = torch.full(tuple(shape), -1, device=cells.device)
        written = write(blank, grid.sample[cells])
        own = home if home is not None and _agrees(home, shape, written) else None
        if own is None:
            own = Place(grid, grid.slots + _samples(grid, written))
            if adds:
                sample = torch.where(written < 0, own.cells - grid.slots, written)
                return Place(grid, compacted(grid.slots + sample))
    if adds:
        return own
    if own.grid is not grid:
        own, moved = _one_grid([(own, shape), (given, size)])
        there = moved[1][0]
        assert there is not None
        cells = full(there.cells, size).expand(size)
    kept = full(own.cells, shape).expand(tuple(shape)).clone()
    return own.with_cells(compacted(write(kept, cells)))


def _agrees(place: Place, shape: Sequence[int], written: Tensor) -> bool:
    """Whether the samples of a place are those ``written`` (-1 where nothing is written)."""
    sample = place.grid.sample[full(place.cells, shape)]
    return bool(((written == sample) | (written < 0)).all())


def _samples(grid: Grid, written: Tensor) -> Tensor:
    """The samples of a tensor into which those ``written`` went (-1 where nothing did).

    They lie along the first dimension in which samples, in either order, agree with the written.
    """
    n, device = grid.samples, written.device
    for dim, size in enumerate(written.shape):
        if size % n or n == 1:
            continue
        for order in ("outer", "inner"):
            index = torch.arange(n, device=device)
            each = size // n
            index = index.repeat_interleave(each) if order == "outer" else index.repeat(each)
            index = index.reshape(-1, *[1] * (written.ndim - 1 - dim))
            if bool(((written == index) | (written < 0)).all()):
                return index
    return unplaced(grid, written.shape).cells - grid.slots


def compacted(cells: Tensor) -> Tensor:
    """``cells`` with every dimension along which they do not change narrowed to one element."""
    for dim in range(cells.ndim):
        first = cells.narrow(dim, 0, min(1, cells.shape[dim]))
        if cells.shape[dim] > 1 and bool((cells == first).all()):
            cells = first
    return cells


def mixed(places: Sequence[Place], shapes: Sequence[Sequence[int]]) -> Place:
    """The even mixture of places of different inputs, broadcast together."""
    ndim = max(len(s) for s in shapes)
    ones = [full(p.ones(), [1] * ndim) for p in places]
    u = torch.stack(torch.broadcast_tensors(*ones)).mean(0)
    cells = [full(p.cells, [1] * ndim) for p in places]
    best = max(range(len(places)), key=lambda k: cells[k].numel())
    return places[best].regrid(u, cells[best].expand(u.shape))


def joined(
    parts: Sequence[tuple[Place | None, Sequence[int]]], dim: int, stacked: bool = False
) -> Place:
    """The place of a concatenation; parts without a place (constants) get the whole input."""
    placed = [(p, s) for p, s in parts if p is not None]
    first, shape = placed[0]
    ndim = len(shape)
    dim = dim % (ndim + stacked)
    same = all(p.grid is first.grid for p, _ in placed)
    if not same:  # bring all cells into one grid, one after the other
        first, parts = _one_grid(parts)
    own = full(first.cells, shape)
    if not stacked:
        own = own.narrow(dim, 0, 1)
    nowhere = first.grid.slots + first.grid.sample[own]
    columns = []
    for place, size in parts:
        cells = full(place.cells, size) if place else nowhere
        if stacked:
            cells, size = cells.unsqueeze(dim), [*size[:dim], 1, *size[dim:]]
        columns.append(cells.expand(*[*cells.shape[:dim], size[dim], *cells.shape[dim + 1 :]]))
    widest = [max(c.shape[d] for c in columns) for d in range(columns[0].ndim)]
    columns = [c.expand(*[*widest[:dim], c.shape[dim], *widest[dim + 1 :]]) for c in columns]
    return first.with_cells(torch.cat(columns, dim))


def _one_grid(
    parts: Sequence[tuple[Place | None, Sequence[int]]],
) -> tuple[Place, list[tuple[Place | None, Sequence[int]]]]:
    grids = {id(p.grid): p.grid for p, _ in parts if p is not None}
    offset: dict[int, int] = {}
    total = 0
    for key, grid in grids.items():
        offset[key] = total
        total += grid.slots
    all_grids = list(grids.values())
    mean = torch.stack([g.mean for g in all_grids]).mean(0)
    merged = Grid(
        torch.cat([g.u[: g.slots] for g in all_grids]),
        torch.cat([g.sample[: g.slots] for g in all_grids]),
        torch.cat([g.located[: g.slots] for g in all_grids]),
        mean,
    )
    moved: list[tuple[Place | None, Sequence[int]]] = []
    first: Place | None = None
    for place, size in parts:
        if place is None:
            moved.append((None, size))
            continue
        cells, grid = place.cells, place.grid
        inside = cells < grid.slots
        there = torch.where(inside, cells + offset[id(grid)], cells - grid.slots + total)
        there = Place(merged, there)
        first = first or there
        moved.append((there, size))
    assert first is not None
    return first, moved
