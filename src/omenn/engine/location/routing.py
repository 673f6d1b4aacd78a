"""What sits in a class token goes along the frozen attention (``bias="attention"``).

A row of softmax attention is a mixture of the rows of the value, with weights that sum to one. The
place of a token without a location, after an attention block, is the same mixture of their places:
Σ_j Ā[token, j] · place(j), Ā being the weights averaged over the heads. So the sum is kept. Before
the first attention block such a token has no place.

NOTE [extended grids] The new cells go behind those of the grid that the block began with, whose
indices stay valid. So the residual sum, of which one side is older, is settled cell by cell: a
location first, then the newest mixture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from omenn.engine.location.grid import ROUTED, Grid, Place, full


def routed(rows: Place, queries: int, value: Place, weights: Callable[[Tensor], Tensor]) -> Place:
    """The place of ``queries`` output rows; those without a location are mixtures of the values.

    ``rows``: place of the output with cells (…, queries or 1, 1). ``value``: that of the values,
    (…, keys or 1, 1). ``weights(index)``: the attention weights (…, len(index), keys) of some rows.
    """
    cells = rows.cells.expand(*rows.cells.shape[:-2], queries, 1)
    lost = rows.grid.reason[cells] != 0
    index = lost.reshape(-1, queries).any(0).nonzero().flatten()
    if not len(index) or not bool(value.located().any()):
        return rows
    w = weights(index).to(rows.grid.u.dtype)
    total = w.sum(-1, keepdim=True)
    if bool((w < 0).any()) or not bool((total > 0).all()):
        return rows  # not a mixture
    w = w / total
    there = full(value.ones(), w.shape)
    for dim in range(w.ndim - 2):
        if there.shape[dim] == 1 and full(cells, w.shape).shape[dim] == 1:
            w = w.mean(dim, keepdim=True)
    u = w @ there.expand(*there.shape[:-2], w.shape[-1], 1)
    old = full(cells, w.shape).expand(*u.shape[:-2], queries, 1).clone()
    sample = rows.grid.sample[old[..., index, :]]
    grid = rows.grid.extended(u, sample)
    fresh = torch.arange(u.numel(), device=u.device).reshape(u.shape) + rows.grid.u.numel()
    at = full(lost, w.shape).expand_as(old)[..., index, :]
    old[..., index, :] = torch.where(at, fresh, old[..., index, :])
    return Place(grid, old)


def settled(places: Sequence[Place], best: Place) -> Place:
    """The place of a sum: a location before a mixture, and a new mixture before an older one.

    Only for places of one grid and of extensions of it; ``best`` where there is nothing to settle.
    """
    newest = next((p for p in places if _extends_all(p.grid, places)), None)
    if newest is None:
        return best
    cells, reason = newest.cells, newest.grid.reason
    for place in places:
        if place.grid is newest.grid:
            continue
        old, new = torch.broadcast_tensors(place.cells, cells)
        kept = (reason[old] == 0) | ((reason[old] == ROUTED) & (reason[new] != ROUTED))
        cells = torch.where(kept & (reason[new] != 0), old, new)
    return newest.with_cells(cells)


def _extends_all(grid: Grid, places: Sequence[Place]) -> bool:
    """Whether a grid is an extension of all others (and not the only one)."""
    others = [p.grid for p in places if p.grid is not grid]
    return bool(others) and all(grid.extends(other) for other in others)
