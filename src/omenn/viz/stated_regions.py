"""The main squares of a picture with what the map gives them and what replacing them costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class StatedRegion:
    """One cell of the grid, counted from 1: the map's sum, and the limits of the logit's loss."""

    row: int
    column: int
    sum: str
    cost: str

    @property
    def name(self) -> str:
        return f"row {self.row}, column {self.column}"


@dataclass(frozen=True)
class StatedRegions:
    """What a calibration says of the cells with the largest sums.

    Attributes:
        regions: the largest first.
        grid: cells along a side.
        method: of the map. replaced: what happens to a region, as in "blurring it".
        level: per cent. pictures: how many the limits were measured on.
    """

    regions: Sequence[StatedRegion]
    grid: int
    method: str
    replaced: str
    level: str
    pictures: int

    def place(self, region: StatedRegion) -> str:
        """Where a cell lies on the picture, as CSS.

        >>> cell = StatedRegion(1, 3, "+1", "between 0 and 2")
        >>> StatedRegions([cell], 4, "omenn", "blurring it", "90", 20).place(cell)
        'left:50%;top:0%;width:25%;height:25%'
        """
        side = 100 / self.grid
        left, top = (region.column - 1) * side, (region.row - 1) * side
        return f"left:{left:g}%;top:{top:g}%;width:{side:g}%;height:{side:g}%"
