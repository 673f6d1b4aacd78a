"""Where the pictures of a benchmark come from, by name: ``birds``, ``funnybirds:FOLDER``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
from PIL import Image

from omenn.data.funnybirds import FunnyBirds
from omenn.data.generated import GeneratedBirds
from omenn.errors import InputError, did_you_mean

PARTS, MASKS = "parts", "masks"
"""What data can give beside pictures and labels: pictures in which parts are removed; masks of the
subject."""


class Pictures(Protocol):
    """Pictures with the number of their class."""

    def __len__(self) -> int: ...
    def label(self, index: int) -> int: ...
    def image(self, index: int) -> Image.Image: ...


@dataclass(frozen=True, eq=False)
class BenchData:
    """Pictures, which of them are judged, how many classes there are, and what else is known."""

    pictures: Any  # Pictures, and PartData where ``gives`` says so
    indices: tuple[int, ...]
    classes: int
    gives: frozenset[str] = frozenset()

    def mask(self, index: int) -> np.ndarray:
        """Where the subject of a picture is seen, (height, width) bool; of birds, their parts."""
        if PARTS in self.gives:
            return np.any(list(self.pictures.masks(index).values()), axis=0)
        return self.pictures.mask(index)


@dataclass(frozen=True)
class Kind:
    """A kind of data. ``form``: how it is written; ``splits``: which there are, the usual first."""

    name: str
    form: str
    summary: str
    splits: tuple[str, ...]
    read: Callable[..., BenchData]
    options: Mapping[str, Any] = field(default_factory=dict)


def open_data(
    text: str, split: str, limit: int, *, side: int = 64, options: Mapping[str, Any] | None = None
) -> BenchData:
    """The first pictures of generated birds, or as many of a folder, evenly spread over it.

    ``side``: in pixels, of pictures that are drawn when asked for. Folders have a size of their
    own.

    Raises:
        InputError: an unknown kind or split, a folder of another layout.

    >>> data = open_data("birds", "test", 3, side=16)
    >>> [data.pictures.label(k) for k in data.indices], sorted(data.gives)
    ([0, 1, 2], ['masks', 'parts'])
    """
    kind, place = kind_of(text)
    if split not in kind.splits:
        raise InputError(
            f"data '{text}' has no split '{split}': {did_you_mean(split, kind.splits)}"
        )
    return kind.read(place, split, limit, side, **(options or {}))


def kind_of(text: str) -> tuple[Kind, str]:
    """The kind of data and the folder, if it has one.

    Raises:
        InputError: an unknown kind, a folder that is missing, or one too many.
    """
    name, colon, place = text.partition(":")
    kind = KINDS.get(name)
    if kind is None:
        forms = ", ".join(k.form for k in KINDS.values())
        raise InputError(f"unknown data '{text}': {did_you_mean(name, KINDS)} Write {forms}.")
    if (":" in kind.form) != bool(place) or (colon and not place):
        raise InputError(f"data '{text}' is not complete. Write {kind.form}.")
    return kind, place


def evenly(count: int, limit: int) -> tuple[int, ...]:
    """At most ``limit`` of ``count`` numbers, evenly spread: sets on disk are sorted by class.

    >>> evenly(10, 4)
    (0, 2, 5, 7)
    """
    few = min(count, limit)
    return tuple(k * count // few for k in range(few))


def _birds(place: str, split: str, limit: int, side: int, *, seed: int = 0) -> BenchData:
    data = GeneratedBirds(split, limit, size=side, seed=seed)  # type: ignore[arg-type]
    return BenchData(data, tuple(range(limit)), len(data.classes), frozenset({PARTS, MASKS}))


def _funnybirds(place: str, split: str, limit: int, side: int) -> BenchData:
    folder = Path(place).expanduser()
    data = FunnyBirds(folder, split)
    if not len(data):
        raise InputError(f"{folder} has no picture in split '{split}'. Choose another split.")
    removed = (folder / f"{split}_interventions").is_dir()
    gives = frozenset({PARTS, MASKS} if removed else ())
    return BenchData(data, evenly(len(data), limit), len(data.classes), gives)


KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        kind.name: kind
        for kind in (
            Kind(
                "birds",
                "birds",
                "generated birds with parts, drawn when asked for, at the size of the model",
                ("test", "validation", "train"),
                _birds,
                {"seed": 0},
            ),
            Kind(
                "funnybirds",
                "funnybirds:FOLDER",
                "a folder in FunnyBirds' layout",
                ("test", "train"),
                _funnybirds,
            ),
        )
    }
)
