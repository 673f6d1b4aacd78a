"""Operators that move elements act on the cells alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from omenn.engine.location.grid import (
    OPERATOR,
    TOKEN,
    Grid,
    Place,
    compacted,
    finest,
    full,
    mixed,
    one_grid,
    unplaced,
)

# Elements of an index from which on it is worth a look whether it changes along each dimension.
_LARGE = 65536


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
    laid_out = cells.expand(expanded).reshape(target)
    if len(target) > len(expanded) and laid_out.numel() > _LARGE:
        laid_out = compacted(laid_out)  # channels that were laid out in full are apart again
    return place.with_cells(laid_out)


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
            sample = _samples(grid, written)
            if adds:
                sample = torch.where(written < 0, sample, written)
                return Place(grid, compacted(grid.slot(sample, OPERATOR)))
            own = Place(grid, grid.slot(sample))
    if adds:
        return own
    if own.grid is not grid:
        own, moved = one_grid([(own, shape), (given, size)])
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
    Whole batches behind the written ones are common to all samples.
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
                if order == "outer":
                    return index
                return index.where(_some(written, dim, n), grid.common)
    return unplaced(grid, written.shape, TOKEN).cells - grid.slots


def _some(written: Tensor, dim: int, n: int) -> Tensor:
    """Along ``dim``, whether anything is written in the batch of n rows that a row is of."""
    rows = (written >= 0).movedim(dim, 0).flatten(1).any(1)
    rows = rows.reshape(-1, n).any(1).repeat_interleave(n)
    return rows.reshape(-1, *[1] * (written.ndim - 1 - dim))


def _beside(placed: Sequence[tuple[Place, Sequence[int]]], dim: int) -> Place | None:
    """Channels side by side, none of which has a place of its own: the finest place of them all.

    Of several inputs it is the even mixture.
    Parts that moved against one another in one grid (the four of patch merging) keep their own.
    A single element along ``dim`` may be a token, whose place is its own.
    """
    if any(full(p.cells, s).shape[dim] > 1 for p, s in placed):
        return None
    if not any(s[dim] > 1 for _, s in placed):
        return None
    if any(p.grid.tail is not placed[0][0].grid.tail for p, _ in placed):  # of several inputs
        return mixed([p for p, _ in placed], [s for _, s in placed])
    best = finest([place for place, _ in placed])
    others = [p.cells for p, _ in placed if p.grid is best.grid and p.cells is not best.cells]
    return best if all(torch.equal(cells, best.cells) for cells in others) else None


def _constant(grid: Grid, columns: Sequence[Tensor], dim: int) -> Tensor:
    """Cells of a constant beside others: without location, and along the batch of no sample."""
    samples = [grid.sample[column] for column in columns]
    first = samples[0].narrow(dim, 0, 1)
    if all(bool((sample == first).all()) for sample in samples):
        return grid.slot(first)
    return grid.shared(first.ndim)


def joined(
    parts: Sequence[tuple[Place | None, Sequence[int]]], dim: int, stacked: bool = False
) -> Place:
    """The place of a concatenation; parts without a place (constants) have no location."""
    placed = [(p, s) for p, s in parts if p is not None]
    first, shape = placed[0]
    ndim = len(shape)
    dim = dim % (ndim + stacked)
    if not stacked and (beside := _beside(placed, dim)) is not None:
        return beside
    same = all(p.grid is first.grid for p, _ in placed)
    if not same:  # bring all cells into one grid, one after the other
        first, parts = one_grid(parts)
    given = [full(p.cells, size) if p else None for p, size in parts]
    if stacked:
        given = [cells if cells is None else cells.unsqueeze(dim) for cells in given]
        parts = [(p, [*size[:dim], 1, *size[dim:]]) for p, size in parts]
    there = [cells for cells in given if cells is not None]
    blank = _constant(first.grid, there, dim) if len(there) < len(given) else there[0]
    columns = []
    for cells, (_, size) in zip(given, parts, strict=True):
        cells = blank if cells is None else cells
        columns.append(cells.expand(*[*cells.shape[:dim], size[dim], *cells.shape[dim + 1 :]]))
    widest = [max(c.shape[d] for c in columns) for d in range(columns[0].ndim)]
    columns = [c.expand(*[*widest[:dim], c.shape[dim], *widest[dim + 1 :]]) for c in columns]
    return first.with_cells(torch.cat(columns, dim))
