"""The shares of coarse cells in fine ones, counted on a ruler: a slow reference."""

from __future__ import annotations

import torch
from torch import Tensor


def overlaps(have: int, count: int) -> Tensor:
    """The shares of blocks (count, have), counted on a ruler on which both are whole numbers."""
    shares = torch.zeros(count, have, dtype=torch.float64)
    for tick in range(have * count):
        shares[tick // have, tick // count] += 1 / have
    return shares


def hats(have: int, count: int) -> Tensor:
    """The shares of tents, by a midpoint rule whose steps have no kink inside; then reflected."""
    shares = torch.zeros(count, have, dtype=torch.float64)
    for unit in range(count):
        middle, length = (2 * unit + 1) * have, 2 * have  # in steps of 1 / (2 count)
        for step in range(middle - length, middle + length):
            cell = step // (2 * count)
            cell = -1 - cell if cell < 0 else 2 * have - 1 - cell if cell >= have else cell
            shares[unit, cell] += (1 - abs(step + 0.5 - middle) / length) / length
    return shares


def shares(bias: str, have: int, count: int) -> Tensor:
    return (hats if bias == "bilinear" and count < have else overlaps)(have, count)
