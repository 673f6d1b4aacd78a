"""What the layouts of photographs on disk share: pictures, boxes, class folders, and what to say of
a folder of another form. The layouts are ``imagenet.py``, ``imagenet_s.py`` and ``voc.py``.

NOTE [boxes]
A box is [left, right) × [top, bottom) in pixels of the picture on disk, whose first pixel is
[0, 1). Annotations name the first and the last pixel, counted from 1 (VOC) or edges counted from 0
(ImageNet). They also name the size of the picture: if the one on disk is a copy of another size,
its boxes are scaled with it.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping, Sized
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from PIL import Image, UnidentifiedImageError

from omenn.errors import InputError, reason
from omenn.files.reading import GB, is_folder, opened, read_bytes

ENDINGS = frozenset({".jpeg", ".jpg", ".png"})
"""What counts as a picture, in small letters."""

SYNSET = re.compile(r"n\d{8}")
"""The name of a WordNet noun, which ImageNet calls its classes by."""

SHOWN = 5

MAX_PIXELS = 64_000_000
"""Larger pictures are refused before they are decoded: 64 million pixels are 192 MB of RGB."""


@dataclass(frozen=True)
class Box:
    """Where an object is, see NOTE [boxes]; ``name`` is its class as the annotation spells it."""

    name: str
    left: float
    top: float
    right: float
    bottom: float
    difficult: bool = False

    @property
    def area(self) -> float:
        return (self.right - self.left) * (self.bottom - self.top)


def read_picture(path: Path) -> Image.Image:
    """A picture as it lies on disk, RGB.

    A note in the file about its orientation is not followed: boxes and masks belong to the pixels
    as they lie, and the published figures of models are made so.

    Raises:
        InputError: missing, or not a picture.
    """
    return _opened(path).convert("RGB")


def size_of(path: Path) -> tuple[int, int]:
    """Width and height of a picture, which is not decoded for it.

    Raises:
        InputError: missing, or not a picture.
    """
    return _opened(path, decode=False).size


def read_ids(path: Path) -> np.ndarray:
    """The numbers of a segmentation PNG as they lie in the file: (H, W), or (H, W, channels).

    Raises:
        InputError: missing, or not a picture.
    """
    return np.asarray(_opened(path))


def _opened(path: Path, *, decode: bool = True) -> Image.Image:
    try:
        with (
            warnings.catch_warnings(),
            opened(path, "picture", most=GB, remedy="The set is not complete: restore it.") as file,
        ):
            warnings.simplefilter("ignore")  # odd metadata, of which photographs have plenty
            with Image.open(file) as image:
                width, height = image.size
                if width * height > MAX_PIXELS:
                    raise InputError(
                        f"{path} has {width} x {height} pixels, and at most "
                        f"{MAX_PIXELS / 1000000.0:.0f} million are read.",
                        argument="path",
                        got=str(path),
                        remedy="Scale it down.",
                    )
                if decode:
                    image.load()
                return image
    except InputError:
        raise
    except UnidentifiedImageError as error:
        raise InputError(
            f"{path} is not a picture that can be read.",
            argument="path",
            got=str(path),
            remedy="Restore it.",
        ) from error
    except Exception as error:  # decoders of broken files raise almost anything
        raise InputError(
            f"{path} cannot be read: {reason(error)}.",
            argument="path",
            got=str(path),
            remedy="Restore it.",
        ) from error


def read_boxes(path: Path, size: tuple[int, int], first: int) -> tuple[Box, ...]:
    """The boxes of an annotation in VOC's XML, for a picture of ``size`` (width, height).

    ``first``: what the annotation calls the first pixel, see NOTE [boxes]. Parts of objects, which
    have boxes of their own, are left out. What lies outside of the picture is cut off.

    Raises:
        InputError: missing, not XML, without a name or numbers, or a box without a pixel.
    """
    try:
        remedy = "The picture has no annotation: restore it."
        root = ElementTree.fromstring(read_bytes(path, "annotation", remedy=remedy))
    except ElementTree.ParseError as error:
        raise InputError(
            f"{path} cannot be read as XML: {reason(error)}.",
            argument="path",
            got=str(path),
            remedy="Restore it.",
        ) from error
    try:
        said = [float(root.findtext(f"size/{side}") or 0) for side in ("width", "height")]
        across, down = (size[k] / said[k] if said[k] > 0 else 1.0 for k in (0, 1))
        return tuple(_box(entry, first, across, down, size) for entry in root.findall("object"))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{path} is not an annotation: {reason(error)}.",
            argument="path",
            got=str(path),
            remedy=(
                "Expected are <object> entries with a <name> and a <bndbox> of <xmin>, <ymin>, "
                "<xmax> and <ymax>."
            ),
        ) from error


def _box(
    entry: ElementTree.Element, first: int, across: float, down: float, size: tuple[int, int]
) -> Box:
    name = (entry.findtext("name") or "").strip()
    if not name:
        raise ValueError("an <object> has no <name>")
    given = []
    for corner in ("xmin", "ymin", "xmax", "ymax"):
        text = entry.findtext(f"bndbox/{corner}")
        if text is None:
            raise ValueError(f"the object '{name}' has no <{corner}>")
        given.append(float(text))
    left, top, right, bottom = given
    left, right = (min(max(x * across, 0), size[0]) for x in (left - first, right))
    top, bottom = (min(max(y * down, 0), size[1]) for y in (top - first, bottom))
    if not (left < right and top < bottom):
        raise ValueError(f"the box {given} of '{name}' has no pixel of the picture in it")
    return Box(name, left, top, right, bottom, (entry.findtext("difficult") or "0").strip() == "1")


def within(boxes: Iterable[Box], size: tuple[int, int]) -> np.ndarray:
    """(height, width) bool: the pixels whose middle lies in one of the boxes.

    >>> within([Box("cat", 1, 0, 3, 1)], (4, 2)).astype(int).tolist()
    [[0, 1, 1, 0], [0, 0, 0, 0]]
    """
    x, y = (np.arange(side) + 0.5 for side in size)
    inside = np.zeros((size[1], size[0]), dtype=bool)
    for box in boxes:
        rows, columns = (box.top <= y) & (y < box.bottom), (box.left <= x) & (x < box.right)
        inside |= rows[:, None] & columns[None, :]
    return inside


def fitted(ids: np.ndarray, size: tuple[int, int], path: Path) -> np.ndarray:
    """A segmentation (H, W) at the size of its picture (width, height), which may be a copy.

    Raises:
        InputError: the sides have another ratio, so it belongs to another picture.
    """
    height, width = ids.shape
    if (width, height) == size:
        return ids
    if abs(width * size[1] - height * size[0]) > max(width, height, *size):
        raise InputError(
            f"{path} has {width} x {height} pixels, its picture {size[0]} x {size[1]}: they do "
            "not belong together.",
            argument="path",
            got=str(path),
            remedy="Restore one of them.",
        )
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(int)
        for old, new in ((height, size[1]), (width, size[0]))
    )
    return ids[rows[:, None], columns[None, :]]


def pictures_in(folder: Path) -> list[Path]:
    """The pictures that lie in a folder, by name; hidden ones are left out."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in ENDINGS and not path.name.startswith(".")
    )


def pictures_among(paths: Iterable[Path]) -> list[Path]:
    """Pictures without labels: the files that are named, and those in folders and below them.

    Those of a folder come by name; hidden ones, and files that no picture ends like, are left out.

    Raises:
        InputError: a folder without a picture, or no path at all.

    >>> [path.name for path in pictures_among([Path("a.png"), Path("b.unusual")])]
    ['a.png', 'b.unusual']
    """
    found: list[Path] = []
    for path in paths:
        inside = [path]
        if is_folder(path):
            inside = sorted(
                file
                for file in path.rglob("*")
                if file.suffix.lower() in ENDINGS
                and not any(part.startswith(".") for part in file.relative_to(path).parts)
            )
        if not inside:
            raise _no_picture(f"'{path}' holds no picture.", str(path), found_in(path))
        found += inside
    if not found:
        raise _no_picture("no picture was named.", "", "")
    return found


def _no_picture(text: str, got: str, found: str) -> InputError:
    endings = ", ".join(sorted(ENDINGS))
    remedy = f"Name pictures, or a folder with files that end in {endings}. {found}".strip()
    return InputError(text, argument="images", got=got, expected="pictures", remedy=remedy)


def class_folders(folder: Path) -> list[Path]:
    """The folders with a synset's name in a folder, sorted; none if it is not there."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if SYNSET.fullmatch(path.name))


def another_layout(layout: str, root: Path, expected: str) -> InputError:
    """The error for a folder that is not what it should be: what was expected, and found."""
    return InputError(
        f"{root} does not hold {layout}.",
        argument="root",
        got=str(root),
        expected=expected,
        remedy=f"Expected: {expected}. {found_in(root)}",
    )


def found_in(folder: Path) -> str:
    """The first entries of a folder, in a sentence.

    >>> found_in(Path("/nowhere"))
    'Found: no such folder.'
    """
    if not folder.exists():
        return "Found: no such folder."
    if not folder.is_dir():
        return "Found: a file."
    entries = sorted(folder.iterdir())
    if not entries:
        return "Found: an empty folder."
    names = [f"{path.name}/" if path.is_dir() else path.name for path in entries[:SHOWN]]
    rest = f", … ({len(entries)} entries)" if len(entries) > SHOWN else ""
    return f"Found: {', '.join(names)}{rest}."


class ImageFolder:
    """The pictures of one split of a data set on disk; they are read when they are asked for.

    ``files`` and ``labels_of_files`` are the pictures and the numbers of their classes, in order.

    Raises InputError, also later, for anything that is missing or unreadable.
    """

    def __init__(self, root: Path, split: str, files: Iterable[tuple[Path, int]]) -> None:
        self.root, self.split = root, split
        pairs = list(files)
        self.files = [path for path, _ in pairs]
        self.labels_of_files = [label for _, label in pairs]

    def __len__(self) -> int:
        return len(self.files)

    def __repr__(self) -> str:
        name = type(self).__name__
        return f"{name}({str(self.root)!r}, split={self.split!r}, pictures={len(self)})"

    def path(self, index: int) -> Path:
        """The file of a picture."""
        return self.files[checked_index(index, self)]

    def label(self, index: int) -> int:
        """The number of a picture's class."""
        return self.labels_of_files[checked_index(index, self)]

    def image(self, index: int) -> Image.Image:
        """A picture, RGB."""
        return read_picture(self.path(index))


def checked_index(index: int, pictures: Sized) -> int:
    """The index of a picture. Raises InputError where there is no such picture."""
    if not 0 <= index < len(pictures):
        raise InputError(
            f"there is no picture {index} in {pictures!r}.",
            argument="index",
            got=str(index),
            expected=f"0 to {len(pictures) - 1}",
            remedy=f"Choose 0 to {len(pictures) - 1}.",
        )
    return index


def in_class_folders(folders: Iterable[Path], numbers: Mapping[str, int]) -> list[tuple[Path, int]]:
    """Every picture in folders that bear the names of classes, with the number of its class."""
    return [(path, numbers[folder.name]) for folder in folders for path in pictures_in(folder)]
