"""Generated birds without a folder: drawn when asked for, with FunnyBirds' interface."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
from PIL import Image

from omenn.data import birds
from omenn.data.birds.scenes import Scene, Split
from omenn.data.funnybirds import BACKDROP, MAP_COLOURS
from omenn.errors import InputError


class GeneratedBirds:
    """The first ``count`` scenes of a split in which the bird has all its parts.

    It has what :class:`omenn.data.funnybirds.FunnyBirds` has for a folder: pictures as Pillow RGB
    images, masks as boolean arrays (height, width), and every intervention.

    Raises InputError for a count below one, and later for a number or part that is not there.

    >>> data = GeneratedBirds("test", 3, size=16)
    >>> len(data), data.label(1), data.with_parts(1, ["beak"]).size
    (3, 1, (16, 16))
    """

    def __init__(self, split: Split = "test", count: int = 50, *, size: int = 64, seed: int = 0):
        if count < 1:
            raise InputError(f"count is {count}; at least one scene is needed")
        self.split: Split = split
        self.size, self.seed = size, seed
        self.classes: tuple[Mapping[str, int], ...] = tuple(
            {str(part): k for part, k in held.items()} for held in birds.CLASSES
        )
        self.parts = birds.PARTS
        self.scenes: list[Scene] = []
        index = 0
        while len(self.scenes) < count:
            scene = birds.sample_scene(index, split, seed=seed)
            index += 1
            if len(scene.parts) == len(birds.PARTS):
                self.scenes.append(scene)

    def __len__(self) -> int:
        return len(self.scenes)

    def __repr__(self) -> str:
        return f"GeneratedBirds({self.split!r}, {len(self)}, size={self.size}, seed={self.seed})"

    def _scene(self, index: int) -> Scene:
        if not 0 <= index < len(self.scenes):
            raise InputError(f"scene {index} was asked for; there are {len(self)}, counted from 0")
        return self.scenes[index]

    def label(self, index: int) -> int:
        """The class of a picture."""
        return self._scene(index).class_index

    def image(self, index: int) -> Image.Image:
        """The picture."""
        return birds.render(self._scene(index), self.size)

    def masks(self, index: int) -> dict[str, np.ndarray]:
        """For every part where it is seen; a part that is hidden has an empty mask."""
        pixels = np.asarray(birds.part_map(self._scene(index), self.size))
        return {
            part: np.any([(pixels == colour).all(axis=2) for colour in MAP_COLOURS[part]], axis=0)
            for part in self.parts
        }

    def background_count(self, index: int) -> int:
        """How many background objects the scene has, seen or not."""
        return len(self._scene(index).backdrop)

    def background_masks(self, index: int) -> np.ndarray:
        """Where each background object is seen: (objects, height, width)."""
        pixels = np.asarray(birds.part_map(self._scene(index), self.size)).astype(int)
        grey = (pixels[:, :, 0] == BACKDROP) & (pixels[:, :, 1] == BACKDROP)
        number = np.where(grey, pixels[:, :, 2] - BACKDROP, -1)
        return number[None] == np.arange(self.background_count(index))[:, None, None]

    def with_parts(self, index: int, kept: Collection[str]) -> Image.Image:
        """The picture in which the bird has the parts ``kept`` alone; all else is the same."""
        unknown = set(kept) - set(self.parts)
        if unknown:
            raise InputError(
                f"kept= names {', '.join(sorted(unknown))}; the parts are {', '.join(self.parts)}"
            )
        gone = [part for part in self.parts if part not in kept]
        return birds.render(self._scene(index), self.size, without=gone)

    def without_background(self, index: int, number: int) -> Image.Image:
        """The picture without background object ``number``; all else is the same."""
        count = self.background_count(index)
        if not 0 <= number < count:
            raise InputError(
                f"background object {number} was asked for; scene {index} has {count}, "
                "counted from 0"
            )
        return birds.render(self._scene(index), self.size, without_background=[number])
