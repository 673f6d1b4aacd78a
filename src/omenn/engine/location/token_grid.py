"""Which tokens of a module's output are a picture: told by where they lie, never by their number.

Each token that depends on a part of the input has a :class:`~omenn.engine.location.Place`, a mean
of input locations. The middles of these means are a grid, or they are not.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from omenn.engine.depth import depth_of
from omenn.engine.location import Place, full
from omenn.engine.trace.guards import alone

APART = 1e-3  # of two middles, in input locations: less is rounding


@alone()
def token_grid(model: nn.Module, inputs: Any, at: str) -> tuple[int, int] | None:
    """(h, w) if the last h·w tokens of module ``at`` lie on the input as a grid, line by line.

    None if its output is no one row of tokens a sample, or if these do not lie so. Takes one
    forward pass. For ``grid=`` of pictures of an explanation at a module that was not brought to
    the input (``resample="none"``).

    >>> from omenn.models import bundled
    >>> model, x = bundled.load("birds-vit").eval(), torch.randn(1, 3, 64, 64)
    >>> token_grid(model, x, "blocks.1")  # and one class token
    (8, 8)
    """
    depth = depth_of(model, inputs, at, None, "nearest")
    if depth is None or len(depth.found) != 1 or depth.ones.ndim < 3:
        return None
    (one,) = depth.found
    place = one.place
    if place is None or one.channel is None:
        return None
    cells = full(place.cells, one.shape).select(one.channel, 0)
    if cells.ndim != 2:
        return None
    tokens = cells[0]
    there = place.grid.reason[tokens] == 0
    front = int((~there).sum())
    if not bool(there[front:].all()):
        return None
    return _lines(*_middles(place.with_cells(tokens[front:]), depth.ones))


def _middles(place: Place, ones: Tensor) -> list[Tensor]:
    """Of each cell the means of the last two coordinates of its locations."""
    with torch.enable_grad():
        u = place.ones()
        rows = torch.zeros_like(u, requires_grad=True)
        (back,) = torch.autograd.grad(u, ones, rows, create_graph=True, retain_graph=True)
        found = []
        for axis in (-2, -1):
            shape = [1] * ones.ndim
            shape[axis] = ones.shape[axis]
            coordinate = torch.arange(ones.shape[axis], dtype=back.dtype).reshape(shape)
            weighted = (back * coordinate.to(back.device)).sum()
            found.append(torch.autograd.grad(weighted, rows, retain_graph=True)[0])
    return found


def _lines(down: Tensor, across: Tensor) -> tuple[int, int] | None:
    """(h, w) of points that are a grid of h lines, one after the other; None if they are none."""
    count = len(down)
    width = int((down < down[0] + APART).sum()) if count else 0
    if not width or count % width:
        return None
    y, x = down.reshape(-1, width), across.reshape(-1, width)
    same = (y - y[:, :1]).abs().amax() < APART and (x - x[:1]).abs().amax() < APART
    ordered = (y[1:, 0] - y[:-1, 0] > APART).all() and (x[0, 1:] - x[0, :-1] > APART).all()
    return (count // width, width) if bool(same) and bool(ordered) else None
