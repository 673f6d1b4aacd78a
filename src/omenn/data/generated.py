"""Generated birds without a folder: drawn when asked for, with FunnyBirds' interface."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path

import numpy as np
from PIL import Image

from omenn.check import whole
from omenn.data import birds
from omenn.data.birds.arrays import drawing_digest
from omenn.data.birds.scenes import Scene, Split
from omenn.data.dataset_registry import Dataset, Request, dataset
from omenn.data.folders import checked_index
from omenn.data.funnybirds import PartImages
from omenn.errors import InputError
from omenn.files.atomic import replacing


class GeneratedBirds(PartImages):
    """The first ``count`` scenes of a split in which the bird has all its parts.

    It has what :class:`omenn.data.funnybirds.FunnyBirds` has for a folder: pictures as Pillow RGB
    images, masks as boolean arrays (height, width), and every intervention.

    ``cache`` names a folder that keeps what is drawn, a file for each scene: the first request
    draws a scene with all its interventions, whoever asks next reads them.

    Raises InputError for a count below one, and later for a number or part that is not there, or a
    file in the cache that cannot be read; OutputError where the cache cannot be written.

    >>> data = GeneratedBirds("test", 3, size=16)
    >>> len(data), data.label(1), data.with_parts(1, ["beak"]).size
    (3, 1, (16, 16))
    """

    def __init__(
        self,
        split: Split = "test",
        count: int = 50,
        *,
        size: int = 64,
        seed: int = 0,
        cache: Path | None = None,
    ):
        whole("count", count, 1)
        self.split: Split = split
        self.size, self.seed = size, seed
        self.classes: tuple[Mapping[str, int], ...] = tuple(
            {str(part): k for part, k in instances.items()} for instances in birds.CLASSES
        )
        self.parts = birds.PARTS
        self.scenes: list[Scene] = []
        self._numbers: list[int] = []  # of the scenes in the split
        self._folder = cache and cache / f"{split}-{size}-{seed}-{drawing_digest()}"
        self._read: tuple[int | None, dict[str, np.ndarray]] = (None, {})  # the last scene
        index = 0
        while len(self.scenes) < count:
            scene = birds.sample_scene(index, split, seed=seed)
            if len(scene.parts) == len(birds.PARTS):
                self.scenes.append(scene)
                self._numbers.append(index)
            index += 1

    def __len__(self) -> int:
        return len(self.scenes)

    def __repr__(self) -> str:
        return f"GeneratedBirds({self.split!r}, {len(self)}, size={self.size}, seed={self.seed})"

    def _scene(self, index: int) -> Scene:
        return self.scenes[checked_index(index, self)]

    def _picture(self, index: int, name: str) -> Image.Image:
        """One picture of a scene, drawn or from the cache."""
        if self._folder is None:
            return self._drawings(index)[name]()
        read = self._read
        if read[0] != index:
            read = self._read = (index, self._cached(index, self._folder))
        return Image.fromarray(read[1][name])

    def _cached(self, index: int, folder: Path) -> dict[str, np.ndarray]:
        drawings = self._drawings(index)
        path = folder / f"{self._numbers[index]:06d}.npz"
        if not path.exists():
            drawn = np.stack([np.asarray(draw()) for draw in drawings.values()])
            with replacing(path) as beside, open(beside, "wb") as file:
                np.savez_compressed(file, pictures=drawn)
        try:
            with open(path, "rb") as file, np.load(file) as content:
                return dict(zip(drawings, content["pictures"], strict=True))
        except (OSError, ValueError, KeyError, EOFError, zlib.error, zipfile.BadZipFile) as error:
            raise InputError(
                f"{path} cannot be read: {error}.",
                argument="cache",
                got=str(path),
                remedy="Delete it.",
            ) from error

    def _drawings(self, index: int) -> dict[str, Callable[[], Image.Image]]:
        """Every picture of a scene by its name in the cache."""
        scene, size = self._scene(index), self.size
        found = {"map": lambda: birds.part_map(scene, size)}
        for count in range(len(self.parts) + 1):
            for gone in combinations(self.parts, count):
                found[_without(gone)] = partial(birds.render, scene, size, without=gone)
        for n in range(len(scene.backdrop)):
            found[_object(n)] = partial(birds.render, scene, size, without_background=[n])
        return found

    def label(self, index: int) -> int:
        """The class of a picture."""
        return self._scene(index).class_index

    def image(self, index: int) -> Image.Image:
        """The picture."""
        return self._picture(index, _without([]))

    def part_map(self, index: int) -> Image.Image:
        """The part map of a picture, in FunnyBirds' colours."""
        return self._picture(index, "map")

    def background_count(self, index: int) -> int:
        """How many background objects the scene has, seen or not."""
        return len(self._scene(index).backdrop)

    def with_parts(self, index: int, kept: Collection[str]) -> Image.Image:
        """The picture in which the bird has the parts ``kept`` alone; all else is the same."""
        kept = self._checked_parts(kept)
        return self._picture(index, _without([part for part in self.parts if part not in kept]))

    def without_background(self, index: int, number: int) -> Image.Image:
        """The picture without background object ``number``; all else is the same."""
        return self._picture(index, _object(self._checked_object(index, number)))


def _without(gone: Collection[str]) -> str:
    """The name of the picture without these parts, which are in their order."""
    return "without " + " ".join(gone)


def _object(number: int) -> str:
    return f"without object {number}"


@dataset(
    "birds",
    summary="generated birds with parts, drawn on demand at the size of the model's input",
    splits=("test", "validation", "train"),
    folder=False,
)
def generated_birds(_: Path, request: Request, *, seed: int = 0) -> Dataset:
    """As many scenes as are asked for; the masks are those of all parts."""

    def drawn(split: str, count: int) -> GeneratedBirds:
        return GeneratedBirds(split, count, size=request.side, seed=seed)  # type: ignore[arg-type]

    def train(count: int) -> Dataset:
        return Dataset(drawn("train", count), tuple(range(count)), classes)

    count, classes = request.limit, len(birds.CLASSES)
    request.check_classes(classes)
    data = drawn(request.split, count)
    rows: Sequence[int] = () if request.classes else range(count)
    while len(rows) < request.limit:
        count += classes * request.limit
        data = drawn(request.split, count)
        rows = [k for k in range(count) if data.label(k) in request.classes]
    return Dataset(data, tuple(rows[: request.limit]), classes, data.mask, train, parts=True)
