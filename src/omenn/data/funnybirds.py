"""FunnyBirds in its official layout, the real set or one that ``omenn.data.birds`` wrote.

Hesse, Schaub-Meyer, Roth, "FunnyBirds: A Synthetic Vision Dataset for a Part-Based Analysis of
Explainable AI Methods", ICCV 2023, arXiv 2308.06248.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sized
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from omenn.check import choose
from omenn.data.birds.scenes import checked_object
from omenn.data.dataset_registry import Dataset, Request, dataset, training
from omenn.data.folders import ImageFolder, another_layout, checked_index, read_picture
from omenn.errors import InputError
from omenn.files.reading import GB, read_json

MAP_COLOURS: dict[str, tuple[tuple[int, int, int], ...]] = {
    "beak": ((255, 255, 0),),
    "eye": ((255, 255, 253), (255, 255, 254)),
    "foot": ((255, 0, 1), (255, 0, 2)),
    "tail": ((0, 0, 255),),
    "wing": ((0, 255, 1), (0, 255, 2)),
}
"""Colours of the part maps; the two of a pair are one part."""

BACKDROP = 204
"""Background object n is (204, 204, 204 + n)."""


class PartImages(Sized):
    """Pictures of birds with parts: where parts and background objects are seen, by part maps."""

    parts: Any  # names, or a mapping from names

    def part_map(self, index: int) -> Image.Image:
        """The part map of a picture, in FunnyBirds' colours."""
        raise NotImplementedError

    def background_count(self, index: int) -> int:
        """How many background objects the scene has, seen or not."""
        raise NotImplementedError

    def masks(self, index: int) -> dict[str, np.ndarray]:
        """For every part where it is seen; a part that is missing or hidden has an empty mask."""
        pixels = np.asarray(self.part_map(index))
        return {
            part: np.any([(pixels == colour).all(axis=2) for colour in MAP_COLOURS[part]], axis=0)
            for part in self.parts
            if part in MAP_COLOURS
        }

    def mask(self, index: int) -> np.ndarray:
        """Where the bird is seen: (height, width) bool."""
        return np.any(list(self.masks(index).values()), axis=0)

    def background_masks(self, index: int) -> np.ndarray:
        """Where each background object is seen: (objects, height, width)."""
        pixels = np.asarray(self.part_map(index)).astype(int)
        grey = (pixels[:, :, 0] == BACKDROP) & (pixels[:, :, 1] == BACKDROP)
        number = np.where(grey, pixels[:, :, 2] - BACKDROP, -1)
        return number[None] == np.arange(self.background_count(index))[:, None, None]

    def _checked_parts(self, kept: Collection[str]) -> set[str]:
        for part in kept:
            choose("kept", part, tuple(self.parts))
        return set(kept)

    def _checked_object(self, index: int, number: int) -> int:
        return checked_object(number, self.background_count(index))


class FunnyBirds(ImageFolder, PartImages):
    """One split of a part-annotated set on disk; pictures are read when asked for.

    ``classes``: for every class the instance of each part; ``parts``: for every part its
    instances; ``records``: what ``dataset_<split>.json`` says of each picture. Pictures come as
    Pillow RGB images, masks as boolean arrays (height, width).

    Raises InputError, also later, for anything missing or unreadable, naming the file.

    >>> import tempfile
    >>> from omenn.data import birds
    >>> root = Path(tempfile.mkdtemp()) / "birds"
    >>> _ = birds.write(root, train_scenes=50, test_scenes=0, size=16)
    >>> data = FunnyBirds(root, "train")
    >>> len(data), data.label(3), data.image(3).size
    (50, 3, (16, 16))
    """

    def __init__(self, root: Path | str, split: str = "test") -> None:
        super().__init__(Path(root), split, ())
        self.records: list[dict[str, Any]] = self._json(f"dataset_{split}.json", list)
        self.parts: dict[str, list[dict[str, str]]] = self._json("parts.json", dict)
        try:
            entries = {e["class_idx"]: e["parts"] for e in self._json("classes.json", list)}
            self.classes: tuple[dict[str, int], ...] = tuple(
                {part: int(k) for part, k in entries[index].items()}
                for index in range(len(entries))
            )
            self.labels_of_files = [int(record["class_idx"]) for record in self.records]
            for number, label in enumerate(self.labels_of_files):
                self.classes[label]
                self.files.append(self.root / split / f"{label}/{number:06d}.png")
        except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
            raise InputError(
                f"{self.root} does not hold FunnyBirds' layout: classes.json or "
                f"dataset_{split}.json "
                f"lacks {error}",
                argument="root",
                got=str(self.root),
            ) from error

    def _json(self, name: str, kind: type) -> Any:
        path = self.root / name
        remedy = (
            f"Give the folder that holds classes.json, parts.json and dataset_{self.split}.json."
        )
        content = read_json(path, "list", most=GB, remedy=remedy)
        if not isinstance(content, kind):
            raise InputError(
                f"{path} holds a {type(content).__name__}, FunnyBirds a {kind.__name__}",
                argument="path",
                got=type(content).__name__,
                expected=kind.__name__,
            )
        return content

    def _picture(self, name: str) -> Image.Image:
        path = self.root / f"{name}.png"
        if not path.exists() and (self.root / f"{name}.jpg").exists():
            path = self.root / f"{name}.jpg"
        return read_picture(path)

    def _place(self, index: int) -> str:
        return f"{self.label(index)}/{index:06d}"

    def image(self, index: int) -> Image.Image:
        """A picture, RGB."""
        return self._picture(f"{self.split}/{self._place(index)}")

    def part_map(self, index: int) -> Image.Image:
        """The part map of a picture, in FunnyBirds' colours."""
        return self._picture(f"{self.split}_part_map/{self._place(index)}")

    def visible_parts(self, index: int) -> dict[str, int]:
        """Which instance of each part the bird has; missing parts are left out."""
        record = self.records[checked_index(index, self)]
        visible: dict[str, int] = {}
        for part, instances in self.parts.items():
            model = record.get(f"{part}_model", "placeholder")
            if model == "placeholder":
                continue
            for number, entry in enumerate(instances):
                if all(record.get(f"{part}_{key}") == value for key, value in entry.items()):
                    visible[part] = number
                    break
            else:
                raise InputError(
                    f"picture {index} has a {part} '{model}' that parts.json lacks",
                    argument="root",
                    got=model,
                )
        return visible

    def compatible(self, parts: Mapping[str, int]) -> tuple[int, ...]:
        """The classes that agree with every part given."""
        return tuple(
            index
            for index, instances in enumerate(self.classes)
            if all(instances.get(part) == instance for part, instance in parts.items())
        )

    def background_count(self, index: int) -> int:
        """How many background objects the scene has, seen or not."""
        names = str(self.records[checked_index(index, self)].get("bg_objects", "")).split(",")
        return sum(bool(name.strip()) for name in names)

    def with_parts(self, index: int, kept: Collection[str]) -> Image.Image:
        """The picture in which the bird has the parts ``kept`` alone; all else is the same.

        Raises InputError for an unknown part, or a split without interventions.
        """
        name = "_".join(sorted(self._checked_parts(kept)))
        return self._picture(f"{self.split}_interventions/{self._place(index)}/body_{name}")

    def without_background(self, index: int, number: int) -> Image.Image:
        """The picture without background object ``number``; all else is the same."""
        folder = f"{self.split}_interventions/{self._place(index)}/background_interventions"
        return self._picture(f"{folder}/{self._checked_object(index, number)}")


@dataset(
    "funnybirds",
    summary="classes.json, parts.json, dataset_test.json and the pictures of FunnyBirds; masks of "
    "the parts",
    splits=("test", "train"),
    holds=lambda root: any((root / n).exists() for n in ("parts.json", "dataset_test.json")),
)
def funnybirds(root: Path, request: Request) -> Dataset:
    """The masks are those of all parts; parts can be removed where there are interventions."""
    split = request.split
    files = ("classes.json", "parts.json", f"dataset_{split}.json")
    if not any((root / name).exists() for name in files):
        expected = f"{', '.join(files)} and {split}/<class>/<number>.png"
        raise another_layout("FunnyBirds", root, expected)
    data = FunnyBirds(root, split)
    classes = len(data.classes)
    parts = (root / f"{split}_interventions").is_dir()
    there = (root / "dataset_train.json").exists()
    train = training(lambda: FunnyBirds(root, "train"), classes) if there else None
    chosen = request.chosen(data, classes)
    return Dataset(data, chosen, classes, data.mask if parts else None, train, parts=parts)
