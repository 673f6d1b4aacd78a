"""Regions: those that a person names, and those that are drawn to calibrate with.

NOTE [drawn like that]
An interval holds for regions that are drawn as :class:`Recipe` draws them. They come in sizes, by
their share of the locations. In each size a picture has as many cells of regular grids, boxes, and
unions of scattered cells; a row of a table or a text has unions of its groups.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from omenn.check import choose, misshapen, whole, wrong
from omenn.errors import InputError, MissingExtra

SIZES = (0.0, 0.01, 0.03, 0.09, 0.2, 0.4, 0.7, 1.0)
"""The bounds of the sizes, as shares of all locations."""

FORMS = ("cells", "boxes", "unions", "superpixels")
USUAL = FORMS[:3]
FINEST = 16  # cells along a side
SCATTERED = 8  # the same, of unions
SEGMENTS = 64
TRIES = 30


class Box(NamedTuple):
    """Rows from ``top`` to before ``bottom``, columns from ``left`` to before ``right``."""

    top: int
    left: int
    bottom: int
    right: int

    def mask(self, shape: Sequence[int]) -> Tensor:
        """(H, W) bool."""
        found = torch.zeros(*shape, dtype=torch.bool)
        if len(shape) == 2:
            height, width = shape
            inside = 0 <= self.top < self.bottom <= height and 0 <= self.left < self.right <= width
            if inside:
                found[self.top : self.bottom, self.left : self.right] = True
                return found
        raise wrong("region", self, f"a box inside of {_sides(shape)}")


class Cells(NamedTuple):
    """Cells (row, column), counted from 0, of a regular grid of ``rows`` × ``columns``.

    >>> Cells(2, 2, ((0, 1),)).mask((2, 4)).int().tolist()
    [[0, 0, 1, 1], [0, 0, 0, 0]]
    """

    rows: int
    columns: int
    chosen: Sequence[tuple[int, int]]

    def mask(self, shape: Sequence[int]) -> Tensor:
        """(H, W) bool."""
        found = torch.zeros(*shape, dtype=torch.bool)
        fits = len(shape) == 2 and 0 < self.rows <= shape[0] and 0 < self.columns <= shape[1]
        if not fits or not all(
            0 <= r < self.rows and 0 <= c < self.columns for r, c in self.chosen
        ):
            raise wrong("region", self, f"cells of a grid over {_sides(shape)}")
        for row, column in self.chosen:
            found |= cell(shape, self.rows, self.columns, row, column)
        return found


class Entries(NamedTuple):
    """Columns of a table or positions of a text, by their numbers from 0."""

    chosen: Sequence[int]

    def mask(self, shape: Sequence[int]) -> Tensor:
        """(N,) bool."""
        if len(shape) != 1 or not all(0 <= k < shape[0] for k in self.chosen):
            raise wrong("region", self, f"numbers of {_sides(shape)}")
        found = torch.zeros(*shape, dtype=torch.bool)
        found[list(self.chosen)] = True
        return found


def _sides(shape: Sequence[int]) -> str:
    return f"{' x '.join(map(str, shape))} locations"


def masks_of(region: Any, shape: Sequence[int]) -> tuple[Tensor, bool]:
    """Regions as masks (R, *shape), and whether several were given.

    Raises:
        InputError: another shape, a region without a location or with all of them.
    """
    several = isinstance(region, list)
    given = region if several else [region]
    if not given:
        raise wrong("region", region, "a region, or a list of some")
    found: list[Tensor] = []
    for one in given:
        if isinstance(one, (Box, Cells, Entries)):
            found.append(one.mask(shape))
            continue
        mask = _mask(one)
        if mask.ndim == len(shape) + 1:
            several = True
        elif mask.ndim == len(shape):
            mask = mask[None]
        if mask.shape[1:] != tuple(shape):
            raise misshapen("region", mask, tuple(shape))
        found += mask.cpu().unbind()
    masks = torch.stack(found)
    counts = masks.flatten(1).sum(1)
    if bool((counts == 0).any()):
        raise wrong("region", region, "a region with at least one location")
    if bool((counts == masks[0].numel()).any()):
        remedy = "Of the whole input the model itself says what it loses."
        raise wrong("region", region, "a part of the input", remedy)
    return masks, several


def _mask(given: Any) -> Tensor:
    try:
        mask = torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError):
        mask = torch.zeros(0)
    if mask.dtype != torch.bool:
        raise wrong("region", given, "a mask of True and False, a Box, Cells or Entries")
    return mask


def cell(shape: Sequence[int], rows: int, columns: int, row: int, column: int) -> Tensor:
    """One cell of a regular grid, (H, W) bool; sides that do not divide are rounded."""
    height, width = shape
    found = torch.zeros(height, width, dtype=torch.bool)
    top, bottom = (round(k * height / rows) for k in (row, row + 1))
    left, right = (round(k * width / columns) for k in (column, column + 1))
    found[top:bottom, left:right] = True
    return found


def size_of(share: float) -> int:
    """Which of the SIZES a share lies in: (low, high].

    >>> size_of(1 / 16), size_of(0.2), size_of(1.0)
    (2, 3, 6)
    """
    return next(k for k, high in enumerate(SIZES[1:]) if share <= high + 1e-9)


@dataclass(frozen=True)
class Recipe:
    """How regions are drawn, see NOTE [drawn like that].

    Args:
        shape: of the locations: (H, W), or (N,).
        forms: of FORMS, for pictures.
        groups: numbers of locations that belong together, for (N,); by default each alone.
        each: regions of each size.
    """

    shape: tuple[int, ...]
    forms: tuple[str, ...] = USUAL
    groups: tuple[tuple[int, ...], ...] | None = None
    each: int = 6

    def __post_init__(self) -> None:
        whole("each", self.each, 1)
        if len(self.shape) not in (1, 2):
            raise wrong("inputs", self.shape, "pictures, or rows of columns or tokens")
        if not self.forms:
            raise wrong("forms", self.forms, f"some of {', '.join(FORMS)}")
        for form in self.forms:
            choose("forms", form, FORMS)
        if "superpixels" in self.forms and importlib.util.find_spec("skimage") is None:
            raise MissingExtra("scikit-image", "zoo", "drawing superpixels")
        if self.groups is not None:
            flat = [k for group in self.groups for k in group]
            fits = len(self.shape) == 1 and all(self.groups)
            if not fits or sorted(flat) != sorted(set(flat) & set(range(self.shape[0]))):
                raise wrong("groups", self.groups, f"lists of different numbers of {self.shape}")

    def draw(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Regions (R, *shape) bool for one input, by size; fewer where a size has none."""
        found = []
        segments = _segments(x, self.shape) if "superpixels" in self.forms else None
        for low, high in pairwise(SIZES):
            for k in range(self.each):
                form = self.forms[k % len(self.forms)] if len(self.shape) == 2 else "groups"
                mask = self._one(form, low, high, segments, generator)
                if mask is not None:
                    found.append(mask)
        return torch.stack(found) if found else torch.zeros(0, *self.shape, dtype=torch.bool)

    def _one(
        self, form: str, low: float, high: float, segments: Tensor | None, g: torch.Generator
    ) -> Tensor | None:
        for _ in range(TRIES):
            if form == "cells":
                mask = _cell(self.shape, low, high, g)
            elif form == "boxes":
                mask = _box(self.shape, low, high, g)
            elif form == "unions":
                mask = _union(self._scattered(), low, high, g)
            elif form == "groups":
                mask = _union(self._groups(), low, high, g)
            else:
                mask = None if segments is None else _grown(segments, low, high, g)
            if mask is None:
                return None
            share = float(mask.double().mean())
            if low + 1e-9 < share <= high + 1e-9 and share < 1:
                return mask
        return None

    def _scattered(self) -> Tensor:
        rows, columns = (min(SCATTERED, side) for side in self.shape)
        every = [(r, c) for r in range(rows) for c in range(columns)]
        return torch.stack([cell(self.shape, rows, columns, r, c) for r, c in every])

    def _groups(self) -> Tensor:
        groups = self.groups or [(k,) for k in range(self.shape[0])]
        return torch.stack([Entries(group).mask(self.shape) for group in groups])


def _number(low: int, high: int, g: torch.Generator) -> int:
    """From low to high, both included."""
    return int(torch.randint(low, high + 1, (), generator=g))


def _cell(shape: Sequence[int], low: float, high: float, g: torch.Generator) -> Tensor | None:
    sides = [range(1, min(FINEST, side) + 1) for side in shape]
    grids = [
        (rows, columns)
        for rows in sides[0]
        for columns in sides[1]
        if low < 1 / (rows * columns) <= high and 0.5 <= rows / columns <= 2
    ]
    if not grids:
        return None
    rows, columns = grids[_number(0, len(grids) - 1, g)]
    return cell(shape, rows, columns, _number(0, rows - 1, g), _number(0, columns - 1, g))


def _box(shape: Sequence[int], low: float, high: float, g: torch.Generator) -> Tensor | None:
    """Sides between 1 : 2 and 2 : 1, as far as the picture allows."""
    low = max(low, 1 / FINEST**2)
    u, v, y, x = torch.rand(4, generator=g, dtype=torch.float64).tolist()
    share, ratio = low * (high / low) ** u, 2 ** (2 * v - 1)
    height = min(1.0, max(share, math.sqrt(share * ratio)))
    sides = [
        max(1, round(part * n)) for part, n in zip((height, share / height), shape, strict=True)
    ]
    top, left = (int(at * (n - side + 1)) for at, n, side in zip((y, x), shape, sides, strict=True))
    return Box(top, left, top + sides[0], left + sides[1]).mask(shape)


def _union(parts: Tensor, low: float, high: float, g: torch.Generator) -> Tensor | None:
    """As many of the parts as the size takes, chosen at random."""
    usual = float(parts.double().flatten(1).mean(1).mean())
    least, most = math.floor(low / usual + 1e-9) + 1, math.floor(high / usual + 1e-9)
    most = min(most, len(parts) - 1)
    if least > most:
        return None
    count = _number(least, most, g)
    return parts[torch.randperm(len(parts), generator=g)[:count]].any(0)


def _segments(x: Tensor, shape: Sequence[int]) -> Tensor | None:
    """Numbers of superpixels (H, W) of a picture (C, H, W)."""
    if x.ndim != 3 or len(shape) != 2:
        return None
    from skimage.segmentation import slic

    values = x.double() - x.min()
    pixels = (values / (values.max() + 1e-12)).permute(1, 2, 0).numpy()
    return torch.from_numpy(slic(pixels, n_segments=SEGMENTS, channel_axis=-1, start_label=0))


def _grown(segments: Tensor, low: float, high: float, g: torch.Generator) -> Tensor | None:
    """A connected union of superpixels, grown from one by neighbours until it has the size."""
    total = int(segments.max()) + 1
    mask = segments == _number(0, total - 1, g)
    wanted = low + (high - low) * float(torch.rand((), generator=g))
    while float(mask.double().mean()) < max(wanted, 1e-9):
        wide = torch.nn.functional.max_pool2d(mask[None, None].float(), 3, 1, 1)[0, 0] > 0
        around = segments[wide & ~mask].unique()
        if not len(around):
            return None
        mask = mask | (segments == around[_number(0, len(around) - 1, g)])
    return mask


def checked_forms(text: str) -> tuple[str, ...]:
    """Forms as they are typed: ``cells,boxes``.

    >>> checked_forms("cells, boxes")
    ('cells', 'boxes')
    """
    forms = tuple(word.strip() for word in text.split(",") if word.strip())
    if not forms:
        raise InputError(
            "no form of regions was named.",
            argument="forms",
            got=text,
            expected=", ".join(FORMS),
            remedy=f"Choose some of: {', '.join(FORMS)}.",
        )
    for form in forms:
        choose("forms", form, FORMS)
    return forms
