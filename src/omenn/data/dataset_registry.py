"""Data sets by name: a decorator registers a function that opens one, ``birds`` or ``voc:FOLDER``.

NOTE [where the subject is]
The mask of a sample is where its labelled class is seen: of birds all parts, of ImageNet and VOC's
``detection`` the boxes, of ImageNet-S and VOC's ``segmentation`` the pixels that belong to it for
certain. A picture without boxes has an empty mask, which protocols leave out and count. Where a
protocol wants boxes, masks that are boxes (``boxes`` of ``Dataset``) are taken as they are, any
number of them; of other masks the one box around all that is marked.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

from omenn.discovery import import_all
from omenn.errors import InputError, did_you_mean

if TYPE_CHECKING:
    import numpy as np

PARTS, MASKS, TRAINING = "parts", "masks", "training pictures"
"""What a data set can give beside samples and labels: samples in which parts are removed; masks of
the subject; samples of the split that models are trained on."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled samples, and which of them are used.

    ``samples`` has ``label(k)`` and ``image(k)``; with ``parts`` also what the FunnyBirds protocol
    asks for (:class:`omenn.metrics.parts.PartData`). ``where`` the subject is, see NOTE [where the
    subject is]; ``boxes``: whether these masks are boxes. ``train``: as many samples, evenly
    spread, of the split that models are trained on.
    """

    samples: Any
    indices: tuple[int, ...]
    classes: int
    where: Callable[[int], np.ndarray] | None = None
    train: Callable[[int], Dataset] | None = None
    boxes: bool = False
    parts: bool = False

    @property
    def gives(self) -> frozenset[str]:
        """Which of ``PARTS``, ``MASKS`` and ``TRAINING`` there are."""
        there = {PARTS: self.parts, MASKS: self.where, TRAINING: self.train}
        return frozenset(name for name, known in there.items() if known)

    def sample(self, index: int) -> Any:
        """A sample, as the modality of a model takes it."""
        return self.samples.image(index)

    def label(self, index: int) -> int:
        """The number of a sample's class."""
        return self.samples.label(index)

    def mask(self, index: int) -> np.ndarray:
        """Where the subject of a picture is seen, (height, width) bool.

        Raises:
            InputError: the data set has no masks, or this one cannot be read.
        """
        if self.where is None:
            raise lacking("masks of the subject")
        return self.where(index)


def lacking(what: str) -> InputError:
    """The error for something that the data set does not give."""
    return InputError(
        f"the data has no {what}.",
        argument="data",
        expected=what,
        remedy="Choose other data.",
    )


@dataclass(frozen=True)
class Request:
    """Which samples are wanted: at most ``limit`` of a split.

    ``classes``: of these alone, all if it is empty. ``side``: in pixels, of generated pictures.
    """

    split: str
    limit: int
    side: int = 64
    classes: tuple[int, ...] = ()

    def chosen(self, samples: Any, classes: int) -> tuple[int, ...]:
        """The indices of the samples that are used, evenly spread over the data set.

        Raises:
            InputError: a class that does not exist, or has no samples.
        """
        self.check_classes(classes)
        rows: Sequence[int] = range(len(samples))
        if self.classes:
            rows = [k for k in rows if samples.label(k) in self.classes]
        if not rows:
            of = f" of class {', '.join(map(str, self.classes))}" if self.classes else ""
            raise InputError(
                f"{samples.root} has no picture{of} in split '{self.split}'.",
                argument="classes" if of else "split",
                got=self.split,
                remedy=f"Choose another split{' or class' if of else ''}.",
            )
        return tuple(rows[k] for k in evenly(len(rows), self.limit))

    def check_classes(self, classes: int) -> None:
        """Raises InputError for a number that is no class of the data set."""
        other = [number for number in self.classes if not 0 <= number < classes]
        if other:
            expected = f"its {classes} classes are numbered from 0 to {classes - 1}"
            raise InputError(
                f"the data has no class {other[0]}: {expected}.",
                argument="classes",
                got=str(other[0]),
                expected=expected,
            )


@dataclass(frozen=True)
class Kind:
    """A registered data set. ``folder``: whether it lies in one; ``holds``: whether this does."""

    name: str
    read: Callable[..., Dataset]
    summary: str
    splits: tuple[str, ...]
    folder: bool = True
    holds: Callable[[Path], bool] = lambda root: False

    @property
    def form(self) -> str:
        """How it is written in a plan."""
        return f"{self.name}:FOLDER" if self.folder else self.name

    @property
    def options(self) -> Mapping[str, Any]:
        """Option → default: the arguments of ``read`` that must be named."""
        found = inspect.signature(self.read).parameters.values()
        return {p.name: p.default for p in found if p.kind is p.KEYWORD_ONLY}


_KINDS: dict[str, Kind] = {}
_Read = TypeVar("_Read", bound=Callable[..., Dataset])


def dataset(
    name: str,
    *,
    summary: str,
    splits: Sequence[str],
    folder: bool = True,
    holds: Callable[[Path], bool] = lambda root: False,
) -> Callable[[_Read], _Read]:
    """A decorator that registers a function ``read(root, request, **options) → Dataset``.

    ``splits``: the usual one first. ``folder``: whether it needs one. ``holds``: whether a folder
    has this layout, for a folder that is given without a name; no two layouts may claim the same.

    >>> @dataset("none", summary="an empty data set", splits=("test",), folder=False)
    ... def nothing(root, request, *, classes: int = 2):
    ...     return Dataset((), (), classes)
    >>> open_data("none", "test", 8, options={"classes": 3}).classes
    3
    >>> del _KINDS["none"]
    """

    def register(read: _Read) -> _Read:
        _KINDS[name] = Kind(name, read, summary, tuple(splits), folder, holds)
        return read

    return register


def datasets() -> Mapping[str, Kind]:
    """Every registered data set by name, those without a folder first."""
    import_all(__package__ or "")
    found = sorted(_KINDS.values(), key=lambda kind: (kind.folder, kind.name))
    return MappingProxyType({kind.name: kind for kind in found})


def open_data(
    text: str,
    split: str,
    limit: int,
    *,
    side: int = 64,
    classes: Sequence[int] = (),
    options: Mapping[str, Any] | None = None,
) -> Dataset:
    """The first pictures of generated birds, or as many of a folder, evenly spread over it.

    The arguments are as in :class:`Request`; ``options`` are those of the data set.

    Raises:
        InputError: an unknown data set, split or class, a folder of another layout.

    >>> data = open_data("birds", "test", 3, side=16)
    >>> [data.label(k) for k in data.indices], sorted(data.gives)
    ([0, 1, 2], ['masks', 'parts', 'training pictures'])
    >>> data = open_data("birds", "test", 2, side=16, classes=[7])
    >>> [data.label(k) for k in data.indices]
    [7, 7]
    """
    kind, place = kind_of(text)
    if split not in kind.splits:
        raise InputError(
            f"data '{text}' has no split '{split}':",
            argument="split",
            got=split,
            expected=", ".join(kind.splits),
            remedy=did_you_mean(split, kind.splits),
        )
    request = Request(split, limit, side, tuple(classes))
    return kind.read(Path(place).expanduser(), request, **(options or {}))


def kind_of(text: str) -> tuple[Kind, str]:
    """The data set and its folder, if it has one; of a folder alone by what lies in it.

    Raises:
        InputError: an unknown name, a folder that is missing, of no known layout, or one too many.
    """
    known = datasets()
    name, colon, place = text.partition(":")
    kind = known.get(name)
    root = Path(text).expanduser()
    named = kind is not None and (colon or not kind.folder)  # else it may be a folder's name
    if not named and ("/" in name or root.exists()):
        return _layout(root), text
    if kind is None:
        forms = ", ".join(k.form for k in known.values())
        raise InputError(
            f"unknown data '{text}':",
            argument="data",
            got=text,
            expected=forms,
            remedy=f"{did_you_mean(name, known)} Write {forms}.",
        )
    if kind.folder != bool(place) or (colon and not place):
        raise InputError(
            f"data '{text}' is not complete.",
            argument="data",
            got=text,
            expected=kind.form,
            remedy=f"Write {kind.form}.",
        )
    return kind, place


def _layout(root: Path) -> Kind:
    from omenn.data.folders import another_layout

    known = [kind for kind in datasets().values() if kind.folder]
    found = next((kind for kind in known if kind.holds(root)), None)
    if found is None:
        expected = "; ".join(f"{kind.name}: {kind.summary.partition(';')[0]}" for kind in known)
        raise another_layout("data of a known layout", root, expected)
    return found


def evenly(count: int, limit: int) -> tuple[int, ...]:
    """At most ``limit`` of ``count`` numbers, evenly spread: sets on disk are sorted by class.

    >>> evenly(10, 4)
    (0, 2, 5, 7)
    """
    few = min(count, limit)
    return tuple(k * count // few for k in range(few))


def training(opened: Callable[[], Any], classes: int) -> Callable[[int], Dataset]:
    """The ``train`` of a data set whose training split is opened when it is asked for."""

    def train(count: int) -> Dataset:
        samples = opened()
        return Dataset(samples, evenly(len(samples), count), classes)

    return train
