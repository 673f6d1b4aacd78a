"""The layout of maps (samples first, then locations), and the pictures that a filter acts on.

A picture is the last two axes. Maps of pixels are pictures already. Tokens become a picture by
their grid, and patches of pixels by taking each patch as one cell.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from omenn.check import wrong
from omenn.errors import InputError


def as_maps(maps: Any, batched: bool = True, name: str = "the map") -> Tensor:
    """Maps as (B, *locations) in double precision, without history; ``batched=False``: one map.

    Raises:
        InputError: not a tensor of real floating-point numbers; empty; NaN; no axis of locations.
    """
    if not isinstance(maps, Tensor) or not maps.is_floating_point():
        kind = str(maps.dtype) if isinstance(maps, Tensor) else type(maps).__name__
        raise _refused(name, f"must be a floating-point tensor, got {kind}.", kind)
    shape = str(tuple(maps.shape))
    values = maps.detach().double()
    values = values if batched else values[None]
    if values.ndim < 2:
        expected = "(samples, *locations), or with batched=False the locations of one map"
        raise _refused(name, f"has shape {shape}, expected {expected}.", shape, expected)
    if not values.numel():
        raise _refused(name, f"is empty: its shape is {shape}.", shape)
    if count := int((~torch.isfinite(values)).sum()):
        text = f"has {count} values that are NaN or infinite."
        raise _refused(name, text, f"{count} values", remedy="Check the model's output.")
    return values


def _refused(
    name: str, text: str, got: str, expected: str = "finite numbers", remedy: str = ""
) -> InputError:
    return InputError(f"{name} {text}", argument=name, got=got, expected=expected, remedy=remedy)


def given_form(values: Tensor, maps: Tensor) -> Tensor:
    """``values`` in the shape and the precision of ``maps``."""
    return values.reshape(maps.shape).to(maps.dtype)


@dataclass(frozen=True)
class Layout:
    """From maps (B, *locations) to pictures (…, h, w) and back; at most one of the three.

    ``grid`` (h, w): maps of tokens (B, T), of which the last h·w are a picture, row by row; those
    in front (class token, registers) have no location in it. ``patch`` p or (p, q): maps of pixels,
    (B, …, H, W), of which each patch is one cell, its mean. ``sequence``: maps of tokens (B, T) as
    a picture of one row.
    """

    grid: tuple[int, int] | None = None
    patch: tuple[int, int] | None = None
    sequence: bool = False

    @staticmethod
    def of(grid: Any = None, patch: Any = None, sequence: bool = False) -> Layout:
        """Raises InputError for two of them, and for sizes that are not positive integers."""
        given = {"grid": grid is not None, "patch": patch is not None, "sequence": sequence}
        if sum(map(bool, given.values())) > 1:
            raise InputError(
                "grid=, patch= and sequence= exclude one another;",
                argument=", ".join(name for name, set_ in given.items() if set_),
                remedy="give one of them.",
            )
        return Layout(_pair("grid", grid, False), _pair("patch", patch, True), bool(sequence))

    def __str__(self) -> str:
        """How ``Explanation.processing`` names it; empty for plain pixels."""
        if self.grid is not None:
            return f" on a grid of {self.grid[0]} x {self.grid[1]}"
        if self.patch is not None:
            return f" on patches of {self.patch[0]} x {self.patch[1]}"
        return " along the sequence" if self.sequence else ""

    def pictures(self, maps: Tensor) -> Tensor:
        """(B, …, h, w); the maps themselves without grid, patch and sequence.

        Raises:
            InputError: the maps have another layout.
        """
        shape = tuple(maps.shape)
        if self.grid is not None:
            height, width = self.grid
            if maps.ndim != 2 or shape[1] < height * width:
                least = f"(samples, tokens) with {height * width} tokens or more"
                raise _needs("grid", self.grid, f"maps of tokens {least}", shape)
            return maps[:, -height * width :].unflatten(1, (height, width))
        if self.patch is not None:
            high, wide = self.patch
            if maps.ndim < 3 or shape[-2] % high or shape[-1] % wide:
                divided = "maps of pixels (samples, height, width) that it divides"
                raise _needs("patch", self.patch, divided, shape)
            cells = (shape[-2] // high, high, shape[-1] // wide, wide)
            return maps.reshape(*shape[:-2], *cells).mean((-3, -1))
        if self.sequence and maps.ndim != 2:
            raise _needs("sequence", True, "maps of tokens (samples, tokens)", shape)
        return maps[:, None] if self.sequence else maps

    def front(self, maps: Tensor) -> Tensor:
        """The tokens (B, n) in front of a grid; they are in no picture."""
        return maps[:, : maps.shape[1] - math.prod(self.grid)] if self.grid else maps[:, :0]

    def channels(self, guide: Tensor) -> Tensor:
        """The same for a guide (B, C, *locations): (B, C, …, h, w)."""
        each = self.pictures(guide.flatten(0, 1))
        return each.unflatten(0, guide.shape[:2])

    def back(self, pictures: Tensor, maps: Tensor) -> Tensor:
        """The inverse, (B, *locations); tokens without a location are those of ``maps``."""
        if self.grid is not None:
            return torch.cat([self.front(maps), pictures.flatten(1)], 1)
        if self.patch is not None:
            high, wide = self.patch
            return pictures.repeat_interleave(high, -2).repeat_interleave(wide, -1)
        return pictures[:, 0] if self.sequence else pictures


def as_pictures(maps: Tensor, layout: Layout) -> Tensor:
    """``layout.pictures``. A filter mixes neighbours, so they need two axes of locations.

    Raises:
        InputError: they have one.
    """
    pictures = layout.pictures(maps)
    if pictures.ndim < 3:
        shape = tuple(maps.shape)
        raise InputError(
            f"the map has shape {shape}: one axis of locations, of which no neighbours are known.",
            argument="maps",
            got=str(shape),
            expected="two axes of locations",
            remedy="Tokens of a picture: grid=(height, width). A sequence: sequence=True. One "
            "picture (height, width): batched=False, or map[None]. Columns of a table have no "
            "neighbours: cut outliers alone, with clamp or mad.",
        )
    return pictures


def _needs(name: str, value: Any, expected: str, shape: tuple[int, ...]) -> InputError:
    text = f"{name}={value} needs {expected}, got shape {shape}."
    return InputError(text, argument=name, got=str(shape), expected=expected)


def _pair(name: str, value: Any, square: bool) -> tuple[int, int] | None:
    if value is None:
        return None
    pair = (value, value) if square and isinstance(value, int) else value
    whole = isinstance(pair, Sequence) and all(type(side) is int and side > 0 for side in pair)
    if not whole or len(pair) != 2:
        forms = "one or two positive integers" if square else "two positive integers"
        raise wrong(name, value, f"{forms} (height, width)")
    return pair[0], pair[1]
