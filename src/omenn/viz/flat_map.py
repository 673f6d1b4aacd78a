"""The map of one sample, of whatever shape, as one flat array in which each entry stands once.

NOTE [every entry is drawn]
What is drawn sums to the matrix, whatever its shape. No axis is folded because its length happens
to be a square, and no entry is left out because it might be a class token: a grid of tokens is
drawn where somebody says that there is one (``grid=``), and then the tokens in front of it have a
line of their own above it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from omenn.check import quoted, whole
from omenn.errors import InputError
from omenn.viz.heatmaps import as_matrix, signed_rgb, smooth
from omenn.viz.map_axes import Layout
from omenn.viz.wording import number

if TYPE_CHECKING:
    from torch import Tensor

    from omenn import Explanation

NOTHING = (232, 235, 240)
"""The colour of cells in which no entry lies: no colour of a map."""


@dataclass(frozen=True, eq=False)
class Drawing:
    """Pictures (rows, columns, H, W) beside one another, and tokens (n,) in front of them.

    ``words`` say how the axes lie where that is not plain: empty for a picture. ``plane``: it is
    one picture of two axes, which may lie over the input.
    """

    pictures: np.ndarray
    front: np.ndarray
    words: str = ""
    plane: bool = False

    @property
    def array(self) -> np.ndarray:
        """What is drawn, (height, width): every entry once, NaN in cells without one."""
        rows, columns, height, width = self.pictures.shape
        gap = int(rows * columns > 1)
        size = (rows * (height + gap) - gap, columns * (width + gap) - gap)
        flat = np.full(size, np.nan)
        for row in range(rows):
            for column in range(columns):
                top, left = row * (height + gap), column * (width + gap)
                flat[top : top + height, left : left + width] = self.pictures[row, column]
        if not self.front.size:
            return flat
        lines = -(-self.front.size // size[1])
        above = np.full(lines * size[1], np.nan)
        above[: self.front.size] = self.front
        return np.concatenate([above.reshape(lines, -1), flat])

    def entries(self) -> np.ndarray:
        """What sets the scale of the colours, (1, n): not a class token beside its picture."""
        return self.pictures[~np.isnan(self.pictures)][None]

    def smoothed(self, sigma: float) -> Drawing:
        """Each picture under a Gaussian that keeps its sum; tokens in front stay as they are."""
        soft = self.pictures.copy()
        for row, column in np.ndindex(*soft.shape[:2]):
            if not np.isnan(soft[row, column]).any():  # a place that no slice takes
                soft[row, column] = smooth(soft[row, column], sigma)
        return dataclasses.replace(self, pictures=soft)

    def pixels(self, scale: float) -> np.ndarray:
        """(height, width, 3), uint8, on a given scale; cells without an entry are grey."""
        values = self.array
        pixels = signed_rgb(np.nan_to_num(values), scale)
        pixels[np.isnan(values)] = NOTHING
        return pixels


def drawing_of(matrix: Any, grid: tuple[int, int] | None = None) -> Drawing:
    """The map of one sample, (*locations), as it is drawn (see NOTE [every entry is drawn]).

    One axis is one row, or with ``grid`` the picture of its last h·w tokens and those in front of
    them. Two axes are a picture. Of three the first counts slices, which lie beside one another
    line by line; of four the first counts the lines and the second the slices in each.

    Raises:
        InputError: more axes, no entry, NaN; ``grid`` with fewer tokens, or for other axes.

    >>> drawing_of(np.arange(17.0)).array.shape
    (1, 17)
    >>> drawing_of(np.arange(17.0), (4, 4)).array.shape
    (5, 4)
    """
    shape = tuple(matrix.shape)
    count = math.prod(shape)
    if len(shape) > 4 or not count:
        raise InputError(
            f"a map of the shape {shape} has no picture, expected one to four axes with entries. "
            "Sum over some of them, or save it as .safetensors or .json."
        )
    values = as_matrix(matrix.reshape(1, -1)).reshape(shape)
    nothing = np.zeros(0)
    layout = Layout.of(grid)
    if layout.grid is not None:
        height, width = layout.grid
        if len(shape) != 1 or shape[0] < height * width:
            raise InputError(
                f"grid=({height}, {width}) is for one axis of {height * width} tokens or more, the "
                f"map has the shape {shape}. Leave it away, or give the grid of these tokens."
            )
        front, rest = values[: count - height * width], values[count - height * width :]
        words = ""
        if front.size:
            words = f"above it {_counted(front.size, 'token')} in front: {number(front.sum())}"
        return Drawing(rest.reshape(1, 1, height, width), front, words, plane=True)
    if len(shape) < 2:
        words = f"one row, entries 0 to {count - 1}" if count > 1 else "one row of one entry"
        return Drawing(values.reshape(1, 1, 1, -1), nothing, words)
    if len(shape) == 2:
        return Drawing(values[None, None], nothing, plane=True)
    if len(shape) == 4:
        lines, slices = shape[:2]
        words = f"{lines} lines of {_counted(slices, 'slice')}: first and second of four axes"
        return Drawing(values, nothing, words)
    columns = math.ceil(math.sqrt(shape[0]))
    lines = -(-shape[0] // columns)
    padded = np.full((lines * columns, *shape[1:]), np.nan)
    padded[: shape[0]] = values
    words = f"{_counted(shape[0], 'slice')} along the first of three axes, line by line"
    return Drawing(padded.reshape(lines, columns, *shape[1:]), nothing, words)


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def chosen(value: Any, which: str | int | None = None) -> Tensor:
    """The one tensor of a result of several inputs that is drawn: the only one, or ``which``.

    Raises:
        InputError: there are several and none is named, or there is no such one.
    """
    if hasattr(value, "detach"):
        return value
    items = value.items() if isinstance(value, Mapping) else enumerate(value)
    there = {name: one for name, one in items if one is not None}
    if which is None and len(there) == 1:
        which = next(iter(there))
    if which not in there:
        names = ", ".join(repr(name) for name in there)
        asked = "one picture shows the map of one input" if which is None else f"no input {which!r}"
        raise InputError(
            f"{asked}; this explanation has maps of the inputs {names}. Name one of them with "
            "input=, or save all of them as .safetensors or .json."
        )
    return chosen(there[which])


def drawn(
    explanation: Explanation,
    index: int = 0,
    *,
    smooth: float = 0.0,
    grid: tuple[int, int] | None = None,
    input: str | int | None = None,
) -> np.ndarray:
    """The numbers behind ``heatmap``, (height, width): each entry of the sample's matrix once.

    NaN where a cell holds no entry: between slices, and beside tokens that stand in front of a
    grid. Arguments and errors: see :func:`omenn.viz.heatmap`.

    >>> import omenn, torch
    >>> e = omenn.explain(torch.nn.Linear(30, 1).eval(), torch.randn(1, 30))
    >>> values = drawn(e)
    >>> assert values.shape == (1, 30) and abs(np.nansum(values) - e.matrix.sum().item()) < 1e-6
    """
    return sample_of(explanation, index, grid, input).smoothed(smooth).array


def sample_of(
    explanation: Explanation,
    index: int,
    grid: tuple[int, int] | None = None,
    which: str | int | None = None,
) -> Drawing:
    """The map of one sample of an explanation as it is drawn."""
    check_index(explanation, index)
    return drawing_of(chosen(explanation.matrix, which)[index], grid)


def check_index(explanation: Explanation, index: int) -> None:
    """Raises InputError for a sample that is not there."""
    from omenn import Explanation

    if not isinstance(explanation, Explanation):
        raise InputError(f"an Explanation can be drawn, but {quoted(explanation)} was given.")
    count, index = len(explanation.output), whole("index", index)
    if not -count <= index < count:
        raise InputError(f"there is no sample {index}, the explanation has {count}.")
