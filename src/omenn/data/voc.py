"""Pascal VOC 2012 in its official layout: boxes, segmentations and image sets.

Everingham et al., "The Pascal Visual Object Classes (VOC) Challenge", IJCV 88, 2010, and the
development kit of 2012.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Literal

import numpy as np

from omenn.check import choose
from omenn.data.dataset_registry import Dataset, Request, dataset, training
from omenn.data.folders import (
    Box,
    ImageFolder,
    another_layout,
    fitted,
    found_in,
    read_boxes,
    read_ids,
    size_of,
    within,
)
from omenn.errors import InputError, TargetError, did_you_mean
from omenn.files.reading import read_text

CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip
"""In the order of their numbers; a segmentation has these from 1."""

VOID = 255
"""The number of outlines and of what is too small or hard to tell."""

_SETS = {"segmentation": "Segmentation", "detection": "Main"}


class VOC(ImageFolder):
    """The pictures of one image set; they are read when asked for.

    ``root`` is ``VOC2012`` or a folder around it (``VOCdevkit``). ``task``: ``"segmentation"`` has
    the pictures of ``ImageSets/Segmentation/<split>.txt``, which have masks, and ``"detection"``
    the more of ``ImageSets/Main``, which have boxes alone. A picture may show several classes:
    :meth:`labels` has them all, :meth:`label` the one whose boxes are largest together.

    Raises InputError, also later, for another layout and anything missing or unreadable.
    """

    names = CLASSES

    def __init__(
        self,
        root: Path | str,
        split: str = "val",
        *,
        task: Literal["segmentation", "detection"] = "segmentation",
    ) -> None:
        choose("task", task, tuple(_SETS))
        self.task = task
        root = _root(Path(root), task)
        sets = root / "ImageSets" / _SETS[task]
        names = read_text(
            sets / f"{split}.txt", "image set", empty=True, remedy=found_in(sets)
        ).splitlines()
        ids = [line.split()[0] for line in names if line.strip()]
        if not ids:
            raise InputError(
                f"the image set {sets / split}.txt names no picture.",
                argument="split",
                got=split,
                remedy="Restore it.",
            )
        super().__init__(root, split, [(root / "JPEGImages" / f"{name}.jpg", -1) for name in ids])

    def _beside(self, index: int, folder: str, ending: str) -> Path:
        return self.root / folder / f"{self.path(index).stem}.{ending}"

    def boxes(self, index: int, label: int | None = None) -> tuple[Box, ...]:
        """The boxes of all objects, or of one class.

        Raises:
            InputError: no annotation, a broken one, or an unknown class in it.
        """
        path = self._beside(index, "Annotations", "xml")
        boxes = read_boxes(path, size_of(self.path(index)), first=1)
        for box in boxes:
            if box.name not in CLASSES:
                raise InputError(
                    f"{path} names an object '{box.name}', which is no class of Pascal VOC:",
                    argument="path",
                    got=box.name,
                    expected=", ".join(CLASSES),
                    remedy=did_you_mean(box.name, CLASSES),
                )
        wanted = None if label is None else CLASSES[_checked(label)]
        return tuple(box for box in boxes if wanted in (None, box.name))

    def labels(self, index: int) -> tuple[int, ...]:
        """The classes that are annotated, the one with the largest boxes first."""
        areas: Counter[str] = Counter()
        for box in self.boxes(index):
            areas[box.name] += box.area  # pyright: ignore[reportArgumentType]
        return tuple(CLASSES.index(name) for name, _ in areas.most_common())

    def label(self, index: int) -> int:
        """The class whose boxes are largest together.

        Raises:
            InputError: the annotation names no object.
        """
        found = self.labels(index)
        if not found:
            path = self._beside(index, "Annotations", "xml")
            raise InputError(
                f"{path} names no object, so the picture has no class.",
                argument="path",
                got=str(path),
                remedy="Leave it out.",
            )
        return found[0]

    def segmentation(self, index: int) -> np.ndarray:
        """(height, width) int: numbers of classes from 1, 0 for background, 255 for void.

        Raises:
            InputError: missing, or not the numbers of a palette.
        """
        path = self._beside(index, "SegmentationClass", "png")
        if not path.exists():
            raise InputError(
                f"{path} does not exist: only the pictures of task='segmentation' have masks, "
                f"this is one of task={self.task!r}.",
                argument="task",
                got=self.task,
                expected="segmentation",
            )
        ids = read_ids(path)
        known = ids.ndim == 2 and bool(((ids <= len(CLASSES)) | (ids == VOID)).all())
        if not known:
            got = f"the form {ids.shape}" if ids.ndim != 2 else f"numbers up to {ids.max()}"
            raise InputError(
                f"{path} has {got}; a segmentation of Pascal VOC has a palette, with numbers "
                f"from 0 to {len(CLASSES)} and {VOID}.",
                argument="path",
                got=got,
                remedy="Restore the official file.",
            )
        return fitted(ids.astype(int), size_of(self.path(index)), path)

    def mask(self, index: int, label: int | None = None) -> np.ndarray:
        """(height, width) bool: where a class is seen, by default the picture's."""
        wanted = self.label(index) if label is None else _checked(label)
        return self.segmentation(index) == wanted + 1

    def ignored(self, index: int) -> np.ndarray:
        """(height, width) bool: what is void."""
        return self.segmentation(index) == VOID


def _checked(label: int) -> int:
    if not 0 <= label < len(CLASSES):
        raise TargetError(
            f"class {label} is none of Pascal VOC's.",
            argument="label",
            got=str(label),
            expected="0 to 19",
            remedy="Choose from 0 to 19.",
        )
    return label


def _root(given: Path, task: str) -> Path:
    """The folder with the pictures, which is the one given or lies in it."""
    root = _inside(given)
    if root is None or not (root / "ImageSets" / _SETS[task]).is_dir():
        raise another_layout(
            "Pascal VOC",
            root or given,
            f"JPEGImages/, Annotations/, SegmentationClass/ and ImageSets/{_SETS[task]}/, as in "
            "VOCdevkit/VOC2012/",
        )
    return root


def _inside(given: Path) -> Path | None:
    places = [given, given / "VOC2012", given / "VOCdevkit/VOC2012"]
    return next((place for place in places if (place / "JPEGImages").is_dir()), None)


@dataset(
    "voc",
    summary="VOC2012/ with JPEGImages/, Annotations/, SegmentationClass/ and ImageSets/; the class "
    "of a picture is the one with the largest boxes",
    splits=("val", "train", "trainval"),
    holds=lambda root: _inside(root) is not None,
)
def voc(
    root: Path, request: Request, *, task: Literal["segmentation", "detection"] = "segmentation"
) -> Dataset:
    """The masks are segmentations, or the boxes of the class for ``task="detection"``."""
    data, classes = VOC(root, request.split, task=task), len(CLASSES)

    def boxed(index: int) -> np.ndarray:
        return within(data.boxes(index, data.label(index)), size_of(data.path(index)))

    there = (data.root / "ImageSets" / _SETS[task] / "train.txt").exists()
    return Dataset(
        data,
        request.chosen(data, classes),
        classes,
        where=data.mask if task == "segmentation" else boxed,
        train=training(lambda: VOC(root, "train", task=task), classes) if there else None,
        boxes=task == "detection",
    )
