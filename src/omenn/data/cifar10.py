"""CIFAR-10 as pictures in a folder a class: ``test/<class>/<name>.png`` or ``.jpg``."""

from __future__ import annotations

from pathlib import Path

from omenn.data.dataset_registry import Dataset, Request, dataset, training
from omenn.data.folders import ImageFolder, another_layout, found_in, in_class_folders
from omenn.errors import InputError, did_you_mean

CLASSES = tuple("airplane automobile bird cat deer dog frog horse ship truck".split())
"""In the order of the data set's labels, which is that of the logits of models."""


class Cifar10(ImageFolder):
    """The pictures of one split, class by class.

    Classes without a folder are left out; the others keep their numbers.

    Raises:
        InputError: a folder of another layout, one that is named like no class, no picture.

    >>> import tempfile
    >>> from PIL import Image
    >>> root = Path(tempfile.mkdtemp())
    >>> (root / "test" / "cat").mkdir(parents=True)
    >>> Image.new("RGB", (32, 32)).save(root / "test" / "cat" / "0000.png")
    >>> data = Cifar10(root)
    >>> len(data), data.label(0), data.image(0).size
    (1, 3, (32, 32))

    Source: Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images".
    """

    classes = CLASSES

    def __init__(self, root: Path | str, split: str = "test") -> None:
        root = Path(root)
        folder = root / split
        if not looks_like(root, split):
            expected = f"{split}/<class>/<name>.png or .jpg, the classes being {', '.join(CLASSES)}"
            raise another_layout("CIFAR-10 as pictures", root, expected)
        inside = {path.name for path in folder.iterdir() if path.is_dir()}
        for name in sorted(inside.difference(CLASSES)):
            if not name.startswith("."):
                raise InputError(
                    f"{folder / name} is named like no class of CIFAR-10:",
                    argument="root",
                    got=name,
                    expected=", ".join(CLASSES),
                    remedy=did_you_mean(name, CLASSES),
                )
        present = [folder / name for name in CLASSES if name in inside]
        numbers = {name: number for number, name in enumerate(CLASSES)}
        super().__init__(root, split, in_class_folders(present, numbers))
        if not self.files:
            raise InputError(
                f"{folder} has no picture in its class folders.",
                argument="root",
                got=str(folder),
                remedy=f"Restore them. {found_in(folder)}",
            )


def looks_like(root: Path, split: str = "test") -> bool:
    """Whether a folder holds a split with folders of CIFAR-10's classes."""
    return any((root / split / name).is_dir() for name in CLASSES)


@dataset("cifar10", summary="test/<class>/<picture>", splits=("test", "train"), holds=looks_like)
def cifar10(root: Path, request: Request) -> Dataset:
    """The pictures without masks."""
    data, classes = Cifar10(root, request.split), len(CLASSES)
    there = looks_like(root, "train")
    train = training(lambda: Cifar10(root, "train"), classes) if there else None
    return Dataset(data, request.chosen(data, classes), classes, train=train)
