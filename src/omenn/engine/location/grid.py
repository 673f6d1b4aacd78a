"""Grids of cells, places in them, and the places of what has none."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# Why a constant has no place on the input; a cell's reason counts from 1, and 0 is located.
TOKEN, POOLED, OPERATOR, UNIFORM, ROUTED = 1, 2, 3, 4, 5
REASONS = ("token", "pooled", "operator", "uniform", "attention")
# Reasons for which every grid has slots: a place may end there at any operator.
_SLOTTED = (TOKEN, POOLED, OPERATOR)


class Grid:
    """Cells of a resampled ones image: ``u`` (n,), ``sample`` (n,) and ``reason`` (n,).

    ``reason`` is 0 where a cell is located. The cells are followed by ``tail``, slots for what has
    no location: for each reason one of each sample, and one of what is common to all.

    NOTE [common] A reference beside the batch is of no sample: each uses it. The ``sample`` of such
    a row is the number ``common``, and what its constants add is told by a pass back for each
    sample alone (see ``omenn.engine.location.common_rows``). Such a row has no location.
    """

    __slots__ = ("base", "reason", "sample", "samples", "slots", "tail", "u")

    def __init__(self, u: Tensor, sample: Tensor, reason: Tensor, tail: Tail) -> None:
        self.samples = tail.mean.numel() - 1
        self.slots = u.numel()  # index of the first slot
        self.tail = tail
        self.base: Grid | None = None  # the grid that this one extends
        self.u = torch.cat([u.flatten(), tail.u])
        self.sample = torch.cat([sample.flatten(), tail.sample])
        self.reason = torch.cat([reason.flatten(), tail.reason])

    @property
    def mean(self) -> Tensor:
        """One for each sample, and one for all: what has no location hangs on it. (samples + 1,)"""
        return self.tail.mean

    @property
    def common(self) -> int:
        """The sample of what is common to all; the only one, if there are no others."""
        return self.samples if self.samples > 1 else 0

    def extended(self, u: Tensor, sample: Tensor) -> Grid:
        """This grid with more cells behind, placed by attention; its own keep their indices."""
        grid = object.__new__(Grid)
        grid.base, grid.tail = self, self.tail
        grid.samples, grid.slots = self.samples, self.slots
        grid.u = torch.cat([self.u, u.flatten()])
        grid.sample = torch.cat([self.sample, sample.flatten()])
        grid.reason = torch.cat([self.reason, torch.full_like(sample.flatten(), ROUTED)])
        return grid

    def extends(self, other: Grid) -> bool:
        """Whether the cells of ``other`` are cells of this grid, under the same index."""
        grid: Grid | None = self
        while grid is not None and grid is not other:
            grid = grid.base
        return grid is other

    def slot(self, sample: Tensor, reason: int = TOKEN) -> Tensor:
        """Indices of the slots of ``sample``: without a place, for this reason."""
        return sample + (self.slots + (reason - 1) * (self.samples + 1))

    def shared(self, rank: int, reason: int = TOKEN) -> Tensor:
        """The slot of what is common to all samples, of so many dimensions of size one."""
        return self.slot(self.sample.new_full((1,) * rank, self.common), reason)


class Tail(NamedTuple):
    """The slots of a grid: u, sample and reason of each; and the ones that u repeats.

    ``means``: the ones of each input that the grid is of, of which ``mean`` is the mean.
    """

    means: tuple[Tensor, ...]
    mean: Tensor
    u: Tensor
    sample: Tensor
    reason: Tensor


def tail_of(*means: Tensor) -> Tail:
    """The slots for some inputs, each with a one for each sample and for all, that share evenly."""
    mean = means[0] if len(means) == 1 else torch.stack(means).mean(0)
    sample = torch.arange(mean.numel(), device=mean.device)
    reason = torch.tensor(_SLOTTED, device=mean.device).repeat_interleave(mean.numel())
    return Tail(means, mean, mean.repeat(len(_SLOTTED)), sample.repeat(len(_SLOTTED)), reason)


def joint_tail(grids: Iterable[Grid]) -> Tail:
    """The slots for all inputs that these grids are of, each input once."""
    tails = [grid.tail for grid in grids]
    means = {id(m): m for tail in tails for m in tail.means}
    known = next((tail for tail in tails if len(tail.means) == len(means)), None)
    return known or tail_of(*means.values())


def joint(grids: Iterable[Grid]) -> Grid:
    """A grid without cells: for what is of several inputs and has no location on any."""
    tail = joint_tail(grids)
    none = tail.sample[:0]
    return Grid(tail.u[:0], none, none, tail)


class Place:
    """Where each element of a tensor lies: ``cells`` indexes ``grid``, 1-sized where constant."""

    __slots__ = ("_common", "_ones", "_source", "cells", "grid", "origin")

    def __init__(self, grid: Grid, cells: Tensor) -> None:
        self.grid = grid
        self.cells = cells
        self.origin: Origin | None = None  # where it was before all positions were mixed
        self._ones: Tensor | None = None
        self._source: Tensor | None = None
        self._common: bool | None = None

    def ones(self) -> Tensor:
        """U at this place: ones with the shape of ``cells``, differentiable to the input's U."""
        if self._ones is None:
            self._ones = self.grid.u[self.cells]
        return self._ones

    def source_index(self) -> Tensor:
        """For each cell its sample, plus the number of samples and one times its reason."""
        if self._source is None:
            grid = self.grid
            self._source = (grid.sample + (grid.samples + 1) * grid.reason)[self.cells]
        return self._source

    def common(self) -> bool:
        """Whether anything here is common to several samples."""
        if self._common is None:
            n = self.grid.samples
            self._common = n > 1 and bool((self.source_index() % (n + 1) == n).any())
        return self._common

    def with_cells(self, cells: Tensor) -> Place:
        return self if cells is self.cells else Place(self.grid, cells)

    def located(self) -> Tensor:
        """Whether each cell is a place on the input."""
        return self.grid.reason[self.cells] == 0

    def routed(self) -> Tensor:
        """Whether each cell is a mixture of places, by attention."""
        return self.grid.reason[self.cells] == ROUTED

    def back_to(self, shape: Sequence[int]) -> Place | None:
        """The place before positions were mixed, for a tensor that has as many of them again."""
        if self.origin is None:
            return None
        place, before, dims = self.origin
        same = len(shape) == len(before) and all(shape[d] == before[d] for d in dims)
        return place if same else None

    def unplaced(self) -> Tensor:
        """The slot of each row of dimension 0, shaped (rows, 1, …)."""
        cells = self.cells
        rows = cells.reshape(cells.shape[0], -1)[:, 0] if cells.ndim else cells.reshape(1)
        slots = self.grid.slot(self.grid.sample[rows])
        return slots.reshape(-1, *[1] * (cells.ndim - 1)) if cells.ndim else slots.reshape(())

    def regrid(
        self, u: Tensor, cells: Tensor, reason: Tensor | None = None, parts: Tensor | None = None
    ) -> Place:
        """A new grid with the values ``u``; ``cells`` (same shape) tell sample and reason.

        ``parts`` (…, n): the cells that each new one is the mean of, where some may be equal.
        What has no location hangs on the ones of its sample.
        """
        grid = self.grid
        sample = grid.sample[cells]
        if reason is None:
            reason = grid.reason[cells]
        kept = (reason == 0) | (reason == ROUTED)
        # One cell per sample is the whole input: honest about it, it is not located.
        reason = torch.where((reason == 0) & _single(grid, sample, kept, parts), POOLED, reason)
        lost = (reason != 0) & (reason != ROUTED)
        if bool(lost.any()):
            u = torch.where(lost, grid.mean[sample], u)
        fresh = torch.arange(u.numel(), device=u.device).reshape(u.shape)
        return Place(Grid(u, sample, reason, grid.tail), fresh)


def _single(grid: Grid, sample: Tensor, kept: Tensor, parts: Tensor | None) -> Tensor:
    """Whether what is kept of the sample of a cell is one cell, however often it is laid out."""
    index = torch.arange(sample.numel(), device=sample.device)
    rows = index.unsqueeze(1) if parts is None else parts.unsqueeze(0).flatten(0, -2)
    at = index[kept.flatten()]
    owner = sample.flatten()[at]
    first = index.new_full((grid.samples + 1,), len(index)).scatter_reduce(0, owner, at, "amin")
    other = (rows[at] != rows[first[owner]]).any(1)
    several = torch.zeros_like(first, dtype=torch.bool).index_fill(0, owner[other], True)
    return ~several[sample]


# A place, the shape of its tensor, and the dimensions along which positions were mixed.
Origin = tuple[Place, Sequence[int], Sequence[int]]


def input_place(
    ones: Tensor, samples: int, batch: int, channel: int | None, spread: bool, batched: bool
) -> Place:
    """The place of an explained input with the locations of ``ones``, samples along ``batch``.

    NOTE [two leaves] What has a location hangs on ``ones``, and what has none on the ones of its
    sample: only after the pass back it is known which locations act on the output, and so where
    it is spread (see ``omenn.engine.location.spread``).
    """
    rows = ones.shape[batch]
    sample = torch.arange(rows, device=ones.device) * samples // rows
    sample = sample.reshape(-1, *[1] * (ones.ndim - 1 - batch)).expand_as(ones)
    mean = torch.ones(samples + 1, dtype=ones.dtype, device=ones.device)
    mean.requires_grad_(ones.requires_grad)
    why = UNIFORM if spread else 0 if ones.numel() > samples else POOLED
    u = mean[sample] if why else ones
    cells = torch.arange(ones.numel(), device=ones.device).reshape(ones.shape)
    reason = torch.full_like(cells, why)
    if not batched:
        cells = cells.squeeze(0)
    if channel is not None:
        cells = cells.unsqueeze(channel)
    return Place(Grid(u, sample, reason, tail_of(mean)), cells)


def full(cells: Tensor, shape: Sequence[int]) -> Tensor:
    """``cells`` with as many dimensions as ``shape`` (missing ones are leading)."""
    if cells.ndim == len(shape):
        return cells
    return cells.reshape((1,) * (len(shape) - cells.ndim) + tuple(cells.shape))


def compacted(cells: Tensor) -> Tensor:
    """``cells`` with every dimension along which they do not change narrowed to one element."""
    for dim in range(cells.ndim):
        first = cells.narrow(dim, 0, min(1, cells.shape[dim]))
        if cells.shape[dim] > 1 and bool((cells == first).all()):
            cells = first
    return cells


def unplaced(grid: Grid, shape: Sequence[int], reason: int = OPERATOR) -> Place:
    """A place without location for a tensor of ``shape`` whose first dimension is batch-major.

    If its rows are no whole number of batches, they are common to all samples.
    """
    rows = shape[0] if len(shape) else 1
    if grid.samples == 1 or rows % grid.samples:
        return Place(grid, grid.shared(len(shape), reason))
    index = torch.arange(grid.samples, device=grid.u.device)
    index = index.repeat_interleave(rows // grid.samples)
    return Place(grid, grid.slot(index.reshape(-1, *[1] * (len(shape) - 1)), reason))


def nowhere(place: Place, before: Sequence[int], after: Sequence[int]) -> Place:
    """Without location, but of its own sample: for a tensor ``after`` made from one ``before``.

    The dimension along which the samples differ is looked for under the same number and size.
    """
    grid = place.grid
    own = grid.reason[place.cells]
    # What was without location stays so for the reason that it had.
    reason = int(own.min()) if own.numel() else OPERATOR
    reason = reason if reason in _SLOTTED else OPERATOR
    sample = compacted(grid.sample[full(place.cells, before)])
    varying = [d for d, n in enumerate(sample.shape) if n > 1]
    if len(before) == len(after) and all(sample.shape[d] == after[d] for d in varying):
        return Place(grid, grid.slot(sample, reason))
    if len(varying) == 1 and (size := sample.numel()) in after:
        same = varying[0] < len(after) and after[varying[0]] == size
        dim = varying[0] if same else list(after).index(size)
        rank = (*[1] * dim, size, *[1] * (len(after) - dim - 1))
        return Place(grid, grid.slot(sample.reshape(rank), reason))
    return unplaced(grid, after, reason)


def finest(places: Sequence[Place]) -> Place:
    """The place with the most cells; of as many, the one from the finer grid, then the first."""
    return max(places, key=lambda place: (place.cells.numel(), place.grid.slots))


def mixed(places: Sequence[Place], shapes: Sequence[Sequence[int]]) -> Place:
    """The even mixture of places of different inputs, broadcast together.

    NOTE [evenly] A constant of several inputs goes to each of them in equal parts: to its place
    there, or without one to all of that input. So nothing depends on which of them comes first.
    A mixture has a location where one of its parts has one.
    """
    ndim = max(len(s) for s in shapes)
    ones = [full(p.ones(), [1] * ndim) for p in places]
    u = torch.stack(torch.broadcast_tensors(*ones)).mean(0)
    cells = [full(p.cells, [1] * ndim) for p in places]
    best = max(range(len(places)), key=lambda k: cells[k].numel())
    sample = places[best].grid.sample[cells[best]].expand(u.shape)
    reasons = [p.grid.reason[c] for p, c in zip(places, cells, strict=True)]
    reason = torch.stack(torch.broadcast_tensors(*reasons)).amin(0)
    fresh = torch.arange(u.numel(), device=u.device).reshape(u.shape)
    return Place(Grid(u, sample, reason, joint_tail(p.grid for p in places)), fresh)


Part = tuple[Place | None, Sequence[int]]


def one_grid(parts: Sequence[Part]) -> tuple[Place, list[Part]]:
    """The same places in one grid, which has the cells of all; and the first of them."""
    grids = list({id(p.grid): p.grid for p, _ in parts if p is not None}.values())
    merged = next((g for g in grids if all(g.extends(other) for other in grids)), None)
    offset = {id(grid): 0 for grid in grids}
    if merged is None:
        total = 0
        for grid in grids:
            offset[id(grid)] = total
            total += grid.u.numel()
        u, sample, reason = (
            torch.cat([getattr(g, name) for g in grids]) for name in ("u", "sample", "reason")
        )
        merged = Grid(u, sample, reason, joint_tail(grids))
    moved: list[Part] = [
        (p if p is None else Place(merged, p.cells + offset[id(p.grid)]), size) for p, size in parts
    ]
    first = next(p for p, _ in moved if p is not None)
    return first, moved
