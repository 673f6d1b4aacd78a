"""ImageNet (ILSVRC 2012) in its official layout, or only its class folders.

Russakovsky et al., "ImageNet Large Scale Visual Recognition Challenge", IJCV 115, 2015.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from omenn.data.dataset_registry import Dataset, Request, dataset, training
from omenn.data.folders import (
    SYNSET,
    Box,
    ImageFolder,
    another_layout,
    class_folders,
    in_class_folders,
    pictures_in,
    read_boxes,
    size_of,
    within,
)
from omenn.errors import InputError, MissingExtra, did_you_mean, reason
from omenn.files.reading import read_text

EXPECTED = (
    "{split}/<synset>/<name>.JPEG, with synsets such as n01440764; or ILSVRC/Data/CLS-LOC/{split}/ "
    "or the folder itself in place of {split}/"
)
MAPPINGS = ("LOC_synset_mapping.txt", "imagenet_class_index.json")
"""Files that are looked for beside the pictures, which give the classes their numbers."""

Classes = Path | str | Sequence[str]


class ImageNet(ImageFolder):
    """The pictures of one split, by class and name; they are read when asked for.

    ``synsets`` and ``names``: of the classes, in the order of their numbers. The numbers come from
    ``classes``: a file (a line for each class that begins with its synset, or JSON as Keras has
    it), or the synsets in order; without it from such a file beside the pictures; without that
    they are the class folders, sorted. **A part of the classes needs a mapping**, or its numbers
    are not those of a model's logits: :func:`imagenet_synsets` has all thousand.

    ``annotations``: the folder with ``<name>.xml`` or ``<synset>/<name>.xml``, looked for in
    ``Annotations/CLS-LOC/<split>`` and the like if not given.

    Raises InputError, also later, for another layout and anything missing or unreadable.

    >>> import tempfile
    >>> from PIL import Image
    >>> root = Path(tempfile.mkdtemp())
    >>> (root / "val/n01440764").mkdir(parents=True)
    >>> Image.new("RGB", (8, 6)).save(root / "val/n01440764/a.JPEG")
    >>> data = ImageNet(root)
    >>> len(data), data.label(0), data.synsets, data.image(0).size
    (1, 0, ('n01440764',), (8, 6))
    """

    def __init__(
        self,
        root: Path | str,
        split: str = "val",
        *,
        classes: Classes | None = None,
        annotations: Path | str | None = None,
    ) -> None:
        root = Path(root)
        folder, folders = _pictures(root, split)
        self.synsets, self.names = _numbered(classes, root, folders)
        super().__init__(root, split, in_class_folders(folders, numbered(self.synsets, folders)))
        if not self.files:
            raise InputError(
                f"{folder} holds {len(folders)} class folders and no picture in them.",
                argument="root",
                got=str(folder),
                remedy="Restore the pictures (.JPEG).",
            )
        self._annotations = None if annotations is None else Path(annotations)

    def annotated(self, index: int) -> bool:
        """Whether the picture has boxes."""
        return self._annotation(index).exists()

    def boxes(self, index: int) -> tuple[Box, ...]:
        """The boxes of the picture's class.

        Raises:
            InputError: no annotation, a broken one, or one of another class.
        """
        path, own = self._annotation(index), self.path(index).parent.name
        boxes = read_boxes(path, size_of(self.path(index)), first=0)
        of_class = tuple(box for box in boxes if box.name == own)
        if not of_class:
            named = ", ".join(sorted({box.name for box in boxes})) or "no object"
            raise InputError(
                f"{path} names {named}, but the picture lies in the folder of {own}: they do "
                "not belong together.",
                argument="annotations",
                got=str(path),
                expected=own,
                remedy="Restore one of them.",
            )
        return of_class

    def mask(self, index: int) -> np.ndarray:
        """(height, width) bool: what lies in the boxes."""
        return within(self.boxes(index), size_of(self.path(index)))

    def _annotation(self, index: int) -> Path:
        path = self.path(index)
        below = f"CLS-LOC/{self.split}"
        places = ("Annotations", f"Annotations/{below}", f"Annotations/{self.split}")
        places = (*places, f"ILSVRC/Annotations/{below}")
        folders = [self._annotations] if self._annotations else [self.root / p for p in places]
        here = [folder for folder in folders if folder.is_dir()]
        if not here:
            raise another_layout(
                "ImageNet's boxes",
                folders[0] if self._annotations else self.root,
                f"<name>.xml or <synset>/<name>.xml in Annotations/{below}/, or in the folder that "
                "annotations= names",
            )
        name = f"{path.stem}.xml"
        tries = [folder / part for folder in here for part in (name, f"{path.parent.name}/{name}")]
        return next((found for found in tries if found.exists()), tries[-2])


def imagenet_synsets() -> tuple[str, ...]:
    """The thousand synsets in the order of the logits of torchvision's and timm's models.

    >>> synsets = imagenet_synsets()
    >>> len(synsets), synsets[0]
    (1000, 'n01440764')

    Raises:
        MissingExtra: timm, which holds them, is not installed.
    """
    # Its file is read without an import of timm, which imports torchvision and all of its models.
    package = find_spec("timm")
    places = package.submodule_search_locations if package else None
    files = [Path(place) / "data/_info/imagenet_synsets.txt" for place in places or ()]
    file = next((path for path in files if path.exists()), None)
    if file is None:
        raise MissingExtra("timm", "models", "the list of ImageNet's classes")
    return read_classes(file)[0]


def read_classes(classes: Classes) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Synsets and names in the order of their numbers, from a file or a list of synsets.

    Raises:
        InputError: unreadable, something that is not a synset, one that comes twice, or the
            numbers of the development kit, which are not those of models.

    >>> read_classes(["n01440764", "n01443537"])[0]
    ('n01440764', 'n01443537')
    """
    if not isinstance(classes, (str, Path)):
        return _checked([(synset, "") for synset in classes], "classes=")
    path = Path(classes)
    try:
        text = read_text(path, "list of classes", empty=True)
        if path.suffix.lower() == ".json":
            return _checked(_of_json(json.loads(text)), str(path))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise InputError(
            f"{path} cannot be read as a list of classes: {reason(error)}.",
            argument="classes",
            got=str(path),
            remedy=(
                'Expected is a line for each that begins with its synset, or JSON like {"0": '
                '["n01440764", "tench"]}.'
            ),
        ) from error
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    pairs = [(parts[0], parts[-1] if parts[1:] else "") for parts in map(_parts, lines)]
    if pairs and all(re.match(r"\d+(\s|$)", name) for _, name in pairs):
        raise InputError(
            f"{path} numbers the classes as the development kit does ('{lines[0]}'), which is "
            "not the order of models.",
            argument="classes",
            got=str(path),
            remedy=(
                f"Give a file whose lines are in the order of the logits, such as {MAPPINGS[0]}."
            ),
        )
    return _checked(pairs, str(path))


def numbered(synsets: Sequence[str], folders: Sequence[Path]) -> dict[str, int]:
    """Synset → number.

    Raises:
        InputError: a folder's name is none of them.
    """
    numbers = {synset: number for number, synset in enumerate(synsets)}
    unknown = [folder for folder in folders if folder.name not in numbers]
    if unknown:
        raise InputError(
            f"{unknown[0]} is a folder of a class that is not among the {len(synsets)} given "
            f"({len(unknown)} such folders):",
            argument="classes",
            got=unknown[0].name,
            remedy=did_you_mean(unknown[0].name, synsets),
        )
    return numbers


def _pictures(root: Path, split: str) -> tuple[Path, list[Path]]:
    """The folder of the split, and the folders of the classes in it."""
    inside = [root / split, root / "ILSVRC/Data/CLS-LOC" / split, root / "Data/CLS-LOC" / split]
    folder = next((place for place in inside if place.is_dir()), root)
    folders = class_folders(folder)
    if folders:
        return folder, folders
    if folder.is_dir() and pictures_in(folder):
        raise InputError(
            f"{folder} holds {len(pictures_in(folder))} pictures and no class folders, so their "
            "classes are not known.",
            argument="root",
            got=str(folder),
            remedy=f"Move each into {folder}/<synset>/, as the official validation labels say.",
        )
    raise another_layout("ImageNet's layout", folder, EXPECTED.format(split=split))


def _numbered(
    classes: Classes | None, root: Path, folders: Sequence[Path]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    if classes is None:
        beside = [root / name for name in MAPPINGS if (root / name).exists()]
        classes = beside[0] if beside else [folder.name for folder in folders]
    return read_classes(classes)


def _parts(line: str) -> list[str]:
    """The synset and the rest of a line."""
    return re.split(r"[\s,]+", line, maxsplit=1)


def _of_json(content: object) -> list[tuple[str, str]]:
    if isinstance(content, dict):
        entries = {int(number): entry for number, entry in content.items()}
        content = [entries[number] for number in range(len(entries))]
    if not isinstance(content, list):
        raise TypeError(f"it holds a {type(content).__name__}")
    return [(entry, "") if isinstance(entry, str) else (entry[0], entry[1]) for entry in content]


def _checked(
    pairs: Sequence[tuple[str, str]], source: str
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    synsets = tuple(synset for synset, _ in pairs)
    wrong = [s for s in synsets if not isinstance(s, str) or not SYNSET.fullmatch(s)]
    twice = [] if wrong else [s for s, count in Counter(synsets).items() if count > 1]
    if wrong or twice or not synsets:
        fault = f"{wrong[0]!r}, which is no synset" if wrong else "no class"
        fault = f"{twice[0]} twice" if twice else fault
        raise InputError(
            f"{source} holds {fault}.",
            argument="classes",
            got=fault,
            remedy="Give each class once, by names like n01440764.",
        )
    return synsets, tuple(name or synset for synset, name in pairs)


@dataset(
    "imagenet",
    summary="val/<synset>/ or ILSVRC/Data/CLS-LOC/val/<synset>/; masks are the boxes of "
    "Annotations/, if there are any; mapping: a file that numbers the classes, or folders",
    splits=("val", "train"),
    holds=lambda root: not segmented(root) and any(map(class_folders, _places(root))),
)
def imagenet(
    root: Path, request: Request, *, mapping: str | None = None, annotations: str | None = None
) -> Dataset:
    """The masks are boxes, empty for a picture without any."""
    numbers = model_numbers(root, mapping)
    data = ImageNet(root, request.split, classes=numbers, annotations=annotations)
    chosen = request.chosen(data, len(data.synsets))
    boxed = {index for index in chosen if _annotated(data, index)}

    def where(index: int) -> np.ndarray:
        boxes = data.boxes(index) if index in boxed else ()
        return within(boxes, size_of(data.path(index)))

    train = training_pictures(root, data.synsets)
    return Dataset(data, chosen, len(data.synsets), where if boxed else None, train, boxes=True)


def training_pictures(root: Path, synsets: Sequence[str]) -> Callable[[int], Dataset] | None:
    """The ``train`` of a data set in ImageNet's layout; None where it has no such split."""
    places = ("train", "ILSVRC/Data/CLS-LOC/train", "Data/CLS-LOC/train")
    if not any((root / place).is_dir() for place in places):
        return None
    return training(lambda: ImageNet(root, "train", classes=synsets), len(synsets))


def segmented(root: Path) -> bool:
    """Whether a folder has the layout of ImageNet-S."""
    return root.is_dir() and any(path.is_dir() for path in root.glob("*-segmentation"))


def model_numbers(root: Path, mapping: str | None) -> Classes | None:
    """What gives ImageNet's classes the numbers that models know them by.

    A list beside the pictures, or else all thousand: folders of a part of the classes would be
    numbered from 0. ``mapping`` is another list, or "folders" where a model was trained on those.
    """
    if mapping is not None:
        return None if mapping == "folders" else Path(mapping).expanduser()
    beside = [root / name for name in MAPPINGS if (root / name).exists()]
    return beside[0] if beside else imagenet_synsets()


def _places(root: Path) -> list[Path]:
    """Where folders of classes may lie."""
    parts = [path for path in root.iterdir() if path.is_dir()] if root.is_dir() else []
    return [root, *parts, *root.glob("ILSVRC/Data/CLS-LOC/*"), *root.glob("Data/CLS-LOC/*")]


def _annotated(data: ImageNet, index: int) -> bool:
    try:
        return data.annotated(index)
    except InputError:  # no folder of annotations
        return False
