"""Where the pictures of a benchmark come from, by name: ``birds``, ``imagenet:FOLDER`` and others.

NOTE [where the subject is]
The mask of a picture is where its labelled class is seen: of birds all parts, of ImageNet and VOC's
``detection`` the boxes, of ImageNet-S and VOC's ``segmentation`` the pixels that belong to it for
certain. A picture without boxes has an empty mask, which protocols leave out and count. Where a
protocol wants boxes, masks that are boxes (``boxes`` of ``BenchData``) are taken as they are, any
number of them; of other masks the one box around all that is marked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np

from omenn.data import cifar10, folders
from omenn.data.funnybirds import FunnyBirds
from omenn.data.generated import GeneratedBirds
from omenn.data.imagenet import MAPPINGS, Classes, ImageNet, imagenet_synsets
from omenn.data.imagenet_s import ImageNetS
from omenn.data.voc import CLASSES as VOC_CLASSES
from omenn.data.voc import VOC
from omenn.errors import InputError, did_you_mean
from omenn.metrics.metric_registry import MASKS, PARTS, TRAINING


@dataclass(frozen=True, eq=False)
class BenchData:
    """Pictures, which of them are judged, how many classes there are, and what else is known.

    ``pictures`` has ``label(k)`` and ``image(k)``, and is a ``PartData`` where ``gives`` says so.
    ``where`` a subject is, see NOTE [where the subject is]; ``boxes``: whether these masks are
    boxes already. ``train``: as many pictures, evenly spread, of the split that models are trained
    on.
    """

    pictures: Any
    indices: tuple[int, ...]
    classes: int
    gives: frozenset[str] = frozenset()
    where: Callable[[int], np.ndarray] | None = None
    train: Callable[[int], BenchData] | None = None
    boxes: bool = False

    def mask(self, index: int) -> np.ndarray:
        """Where the subject of a picture is seen, (height, width) bool.

        Raises:
            InputError: the data has no masks, or this one cannot be read.
        """
        if self.where is None:
            raise InputError("the data has no masks of the subject. Choose other data.")
        return self.where(index)


@dataclass(frozen=True)
class Asked:
    """What is wanted of a kind of data; ``classes``: of these alone, all if it is empty."""

    split: str
    limit: int
    side: int = 64
    classes: tuple[int, ...] = ()


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
    text: str,
    split: str,
    limit: int,
    *,
    side: int = 64,
    classes: Sequence[int] = (),
    options: Mapping[str, Any] | None = None,
) -> BenchData:
    """The first pictures of generated birds, or as many of a folder, evenly spread over it.

    ``side``: in pixels, of pictures that are drawn when asked for; folders have a size of their
    own. ``classes``: numbers of those whose pictures are wanted, all by default.

    Raises:
        InputError: an unknown kind, split or class, a folder of another layout.

    >>> data = open_data("birds", "test", 3, side=16)
    >>> [data.pictures.label(k) for k in data.indices], sorted(data.gives)
    ([0, 1, 2], ['masks', 'parts', 'training pictures'])
    >>> data = open_data("birds", "test", 2, side=16, classes=[7])
    >>> [data.pictures.label(k) for k in data.indices]
    [7, 7]
    """
    kind, place = kind_of(text)
    if split not in kind.splits:
        raise InputError(
            f"data '{text}' has no split '{split}': {did_you_mean(split, kind.splits)}"
        )
    asked = Asked(split, limit, side, tuple(classes))
    return kind.read(Path(place).expanduser(), asked, **(options or {}))


def kind_of(text: str) -> tuple[Kind, str]:
    """The kind of data and the folder, if it has one; of a folder alone by what lies in it.

    Raises:
        InputError: an unknown kind, a folder that is missing, of no known layout, or one too many.
    """
    name, colon, place = text.partition(":")
    kind = KINDS.get(name)
    folder = Path(text).expanduser()
    named = kind is not None and (colon or ":" not in kind.form)  # else it may be a folder's name
    if not named and ("/" in name or folder.exists()):
        return KINDS[_layout(folder)], text
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


def _layout(root: Path) -> str:
    """The kind of data that lies in a folder."""
    inside = [root / part for part in ("", "VOC2012", "VOCdevkit/VOC2012")]
    parts = sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    if any((root / name).exists() for name in ("parts.json", "dataset_test.json")):
        return "funnybirds"
    if any((place / "JPEGImages").is_dir() for place in inside):
        return "voc"
    if any(part.name.endswith("-segmentation") for part in parts):
        return "imagenet-s"
    if cifar10.looks_like(root):
        return "cifar10"
    official = [*root.glob("ILSVRC/Data/CLS-LOC/*"), *root.glob("Data/CLS-LOC/*")]
    if any(folders.class_folders(place) for place in (root, *parts, *official)):
        return "imagenet"
    known = [kind for kind in KINDS.values() if ":" in kind.form]
    expected = "; ".join(f"{kind.name}: {kind.summary.partition(';')[0]}" for kind in known)
    raise folders.another_layout("data of a known layout", root, expected)


def _chosen(pictures: Any, asked: Asked, classes: int, where: str) -> tuple[int, ...]:
    """The pictures that are judged.

    Raises:
        InputError: a class that there is not, or none of its pictures.
    """
    _check_classes(asked, classes)
    rows: Sequence[int] = range(len(pictures))
    if asked.classes:
        wanted = set(asked.classes)
        rows = [k for k in rows if pictures.label(k) in wanted]
    if not rows:
        of = f" of class {', '.join(map(str, asked.classes))}" if asked.classes else ""
        raise InputError(
            f"{where} has no picture{of} in split '{asked.split}'. Choose another split"
            f"{' or class' if of else ''}."
        )
    return tuple(rows[k] for k in evenly(len(rows), asked.limit))


def _check_classes(asked: Asked, classes: int) -> None:
    other = [number for number in asked.classes if not 0 <= number < classes]
    if other:
        raise InputError(
            f"the data has no class {other[0]}: its {classes} classes are numbered from 0 to "
            f"{classes - 1}."
        )


def _birds(place: Path, asked: Asked, *, seed: int = 0) -> BenchData:
    def drawn(split: str, count: int) -> GeneratedBirds:
        return GeneratedBirds(split, count, size=asked.side, seed=seed)  # type: ignore[arg-type]

    def train(count: int) -> BenchData:
        return BenchData(drawn("train", count), tuple(range(count)), classes)

    count = asked.limit
    data = drawn(asked.split, count)
    classes = len(data.classes)
    _check_classes(asked, classes)
    rows: Sequence[int] = () if asked.classes else range(count)
    while len(rows) < asked.limit:  # there are as many scenes as are asked for
        count += classes * asked.limit
        data = drawn(asked.split, count)
        rows = [k for k in range(count) if data.label(k) in asked.classes]
    gives = frozenset({PARTS, MASKS, TRAINING})
    return BenchData(data, tuple(rows[: asked.limit]), classes, gives, _parts_of(data), train)


def _funnybirds(root: Path, asked: Asked) -> BenchData:
    files = ("classes.json", "parts.json", f"dataset_{asked.split}.json")
    if not any((root / name).exists() for name in files):
        raise folders.another_layout(
            "FunnyBirds", root, f"{', '.join(files)} and {asked.split}/<class>/<number>.png"
        )
    data = FunnyBirds(root, asked.split)
    classes = len(data.classes)
    chosen = _chosen(data, asked, classes, str(root))
    gives = {PARTS, MASKS} if (root / f"{asked.split}_interventions").is_dir() else set()
    train = None
    if (root / "dataset_train.json").exists():
        train = _training(lambda: FunnyBirds(root, "train"), classes)
    return _complete(data, chosen, classes, gives, _parts_of(data), train)


def _imagenet(
    root: Path, asked: Asked, *, mapping: str | None = None, annotations: str | None = None
) -> BenchData:
    numbers = _numbers(root, mapping)
    data = ImageNet(root, asked.split, classes=numbers, annotations=annotations)
    classes = len(data.synsets)
    chosen = _chosen(data, asked, classes, str(root))
    boxed = {index for index in chosen if _annotated(data, index)}

    def where(index: int) -> np.ndarray:
        if index in boxed:
            return data.mask(index)
        width, height = folders.size_of(data.path(index))
        return np.zeros((height, width), dtype=bool)

    places = ("train", "ILSVRC/Data/CLS-LOC/train", "Data/CLS-LOC/train")
    train = None
    if any((root / place).is_dir() for place in places):
        train = _training(lambda: ImageNet(root, "train", classes=data.synsets), classes)
    gives = {MASKS} if boxed else set[str]()
    return _complete(data, chosen, classes, gives, where, train, boxes=True)


def _imagenet_s(
    root: Path, asked: Asked, *, mapping: str | None = None, categories: str | None = None
) -> BenchData:
    numbers = _numbers(root, mapping)
    data = ImageNetS(root, asked.split, classes=numbers, categories=categories)
    classes = len(data.synsets)
    chosen = _chosen(data, asked, classes, str(root))
    train = None
    if (root / "train").is_dir():
        train = _training(lambda: ImageNet(root, "train", classes=data.synsets), classes)
    return _complete(data, chosen, classes, {MASKS}, data.mask, train)


def _voc(
    root: Path, asked: Asked, *, task: Literal["segmentation", "detection"] = "segmentation"
) -> BenchData:
    data = VOC(root, asked.split, task=task)
    classes = len(VOC_CLASSES)
    chosen = _chosen(data, asked, classes, str(root))

    def boxed(index: int) -> np.ndarray:
        boxes = data.boxes(index, data.label(index))
        return folders.within(boxes, folders.size_of(data.path(index)))

    where = data.mask if task == "segmentation" else boxed
    sets = data.root / "ImageSets" / ("Segmentation" if task == "segmentation" else "Main")
    train = None
    if (sets / "train.txt").exists():
        train = _training(lambda: VOC(root, "train", task=task), classes)
    return _complete(data, chosen, classes, {MASKS}, where, train, boxes=task == "detection")


def _cifar10(root: Path, asked: Asked) -> BenchData:
    data = cifar10.Cifar10(root, asked.split)
    classes = len(data.classes)
    there = cifar10.looks_like(root, "train")
    train = _training(lambda: cifar10.Cifar10(root, "train"), classes) if there else None
    return _complete(data, _chosen(data, asked, classes, str(root)), classes, set(), None, train)


def _complete(
    data: Any,
    chosen: tuple[int, ...],
    classes: int,
    gives: set[str],
    where: Callable[[int], np.ndarray] | None,
    train: Callable[[int], BenchData] | None,
    *,
    boxes: bool = False,
) -> BenchData:
    gives = gives | ({TRAINING} if train is not None else set())
    return BenchData(data, chosen, classes, frozenset(gives), where, train, boxes)


def _training(opened: Callable[[], Any], classes: int) -> Callable[[int], BenchData]:
    """Opened only when it is asked for, as it may be large."""

    def train(count: int) -> BenchData:
        data = opened()
        return BenchData(data, evenly(len(data), count), classes)

    return train


def _parts_of(data: Any) -> Callable[[int], np.ndarray]:
    def where(data: Any, index: int) -> np.ndarray:
        return np.any(list(data.masks(index).values()), axis=0)

    return partial(where, data)


def _annotated(data: ImageNet, index: int) -> bool:
    try:
        return data.annotated(index)
    except InputError:  # no folder of annotations
        return False


def _numbers(root: Path, mapping: str | None) -> Classes | None:
    """What gives ImageNet's classes the numbers that models know them by.

    A list beside the pictures, or else all thousand: folders of a part of the classes would be
    numbered from 0. ``mapping`` is another list, or "folders" where a model was trained on those.
    """
    if mapping == "folders":
        return None
    if mapping is not None:
        return Path(mapping).expanduser()
    beside = [root / name for name in MAPPINGS if (root / name).exists()]
    return beside[0] if beside else imagenet_synsets()


CIFAR_SPLITS = ("test", "train")
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
                "classes.json, parts.json, dataset_test.json and the pictures of FunnyBirds; masks "
                "of the parts",
                ("test", "train"),
                _funnybirds,
            ),
            Kind(
                "imagenet",
                "imagenet:FOLDER",
                "val/<synset>/ or ILSVRC/Data/CLS-LOC/val/<synset>/; masks are the boxes of "
                "Annotations/, if there are any; mapping: a file that numbers the classes, or "
                "folders",
                ("val", "train"),
                _imagenet,
                {"mapping": None, "annotations": None},
            ),
            Kind(
                "imagenet-s",
                "imagenet-s:FOLDER",
                "validation/<synset>/ and validation-segmentation/<synset>/; mapping as above; "
                "categories: the set's list of classes, where folders are missing",
                ("validation", "train-semi"),
                _imagenet_s,
                {"mapping": None, "categories": None},
            ),
            Kind(
                "voc",
                "voc:FOLDER",
                "VOC2012/ with JPEGImages/, Annotations/, SegmentationClass/ and ImageSets/; the "
                "class of a picture is the one with the largest boxes",
                ("val", "train", "trainval"),
                _voc,
                {"task": "segmentation"},
            ),
            Kind("cifar10", "cifar10:FOLDER", "test/<class>/<picture>", CIFAR_SPLITS, _cifar10),
        )
    }
)
"""Every kind of data by name."""
