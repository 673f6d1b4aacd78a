"""The map of one sample, of any shape, as one flat array that has each entry once.

NOTE [every entry is drawn]
What is drawn sums to the matrix, whatever its shape. No axis is folded because its length happens
to be a square, and no entry is omitted because it might be a class token. Tokens are drawn as a
grid only if the caller passes ``grid=``; the tokens in front of it then have a separate line above.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from omenn.check import real, whole, wrong
from omenn.errors import InputError
from omenn.viz.heatmaps import as_matrix, signed_rgb
from omenn.viz.map_layout import Layout
from omenn.viz.wording import number, plural

if TYPE_CHECKING:
    from torch import Tensor

    from omenn import Explanation

NOTHING = (232, 235, 240)
"""The colour of cells without an entry; no map uses it."""


@dataclass(frozen=True, eq=False)
class Drawing:
    """Pictures (rows, columns, H, W) next to each other, and tokens (n,) in front of them.

    ``words`` describe the axes where this is not obvious: empty for a picture. ``plane``: it is
    one picture of two axes, which may be drawn over the input.
    """

    pictures: np.ndarray
    front: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0))
    words: str = ""
    plane: bool = False

    @property
    def array(self) -> np.ndarray:
        """What is drawn, (height, width): every entry once, NaN in cells without one."""
        gap = ((0, 0), (0, 0), (0, 1), (0, 1))  # below and to the right of each picture
        apart = np.pad(self.pictures, gap, constant_values=np.nan).transpose(0, 2, 1, 3)
        flat = apart.reshape(apart.shape[0] * apart.shape[1], -1)[:-1, :-1]
        width = flat.shape[1]
        above = np.pad(self.front, (0, -self.front.size % width), constant_values=np.nan)
        return np.concatenate([above.reshape(-1, width), flat])

    def entries(self) -> np.ndarray:
        """The entries that set the scale of the colours, (1, n): not those in front of a grid."""
        return self.pictures[~np.isnan(self.pictures)][None]

    def smoothed(self, sigma: float) -> Drawing:
        """Each picture smoothed by a Gaussian that keeps its sum; tokens in front do not change."""
        sigma = real("the width of the smoothing", sigma, 0)
        if sigma == 0:
            return self
        import torch

        from omenn.filters import gaussian_filter

        soft = gaussian_filter(torch.from_numpy(self.pictures.copy()), sigma).numpy()
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
    them. Two axes are a picture. Of three axes the first counts slices, which are drawn next to
    each other, line by line; of four the first counts the lines and the second the slices in each.

    Raises:
        InputError: more axes, no entry, NaN; ``grid`` with fewer tokens, or for other axes.

    >>> drawing_of(np.arange(17.0)).array.shape
    (1, 17)
    >>> drawing_of(np.arange(17.0), (4, 4)).array.shape
    (5, 4)
    """
    shape = tuple(matrix.shape)
    if len(shape) > 4 or not math.prod(shape):
        raise InputError(
            f"a map of the shape {shape} has no picture, expected one to four axes with entries.",
            argument="matrix",
            got=str(shape),
            expected="one to four axes with entries",
            remedy="Sum over some of them, or save it as .safetensors or .json.",
        )
    values = as_matrix(matrix.reshape(1, -1)).reshape(shape)
    if grid is not None:
        return _tokens(values, grid)
    if len(shape) < 2:
        last = values.size - 1
        words = f"one row, entries 0 to {last}" if last else "one row of one entry"
        return Drawing(values.reshape(1, 1, 1, -1), words=words)
    if len(shape) == 2:
        return Drawing(values[None, None], plane=True)
    if len(shape) == 3:
        return _slices(values)
    words = f"{shape[0]} lines of {plural(shape[1], 'slice')}: first and second of four axes"
    return Drawing(values, words=words)


def _tokens(values: np.ndarray, grid: tuple[int, int]) -> Drawing:
    import torch

    layout, tokens = Layout.of(grid), torch.from_numpy(values.copy())[None]
    picture, front = layout.pictures(tokens).numpy(), layout.front(tokens)[0].numpy()
    words = ""
    if front.size:
        words = f"above it {plural(front.size, 'token')} in front: {number(front.sum())}"
    return Drawing(picture[None], front, words, plane=True)


def _slices(values: np.ndarray) -> Drawing:
    count = len(values)
    columns = math.ceil(math.sqrt(count))
    lines = -(-count // columns)
    gap = ((0, lines * columns - count), (0, 0), (0, 0))
    padded = np.pad(values, gap, constant_values=np.nan)
    words = f"{plural(count, 'slice')} along the first of three axes, line by line"
    return Drawing(padded.reshape(lines, columns, *values.shape[1:]), words=words)


def chosen(value: Any, which: str | int | None = None) -> Tensor:
    """The tensor that is drawn, of a result with several inputs: the only one, or ``which``.

    Raises:
        InputError: there are several and none is named, or the named one does not exist.
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
            f"{asked}; this explanation has maps of the inputs {names}.",
            argument="input",
            got=repr(which),
            expected=names,
            remedy="Name one of them with input=, or save all as .safetensors or .json.",
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

    NaN where a cell holds no entry: between slices, and next to the tokens in front of a grid.
    Arguments and errors: see :func:`omenn.viz.heatmap`.

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
    """Raises InputError for a sample that does not exist."""
    from omenn import Explanation

    if not isinstance(explanation, Explanation):
        raise wrong("explanation", explanation, "an Explanation")
    count = len(explanation.output)
    whole("index", index, -count, count - 1)
