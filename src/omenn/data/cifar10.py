"""CIFAR-10 as pictures in a folder a class: ``test/<class>/<name>.png`` or ``.jpg``."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from omenn.data.folders import another_layout, checked_index, found_in, pictures_in, read_picture
from omenn.errors import InputError, did_you_mean

CLASSES = tuple("airplane automobile bird cat deer dog frog horse ship truck".split())
"""In the order of the data set's labels, which is that of the logits of models."""


class Cifar10:
    """The pictures of a split by index, class by class, each with the number of its class.

    Classes that are not there are left out, and the others keep their numbers.

    Raises:
        InputError: a folder of another layout, one that is named like no class, no picture.

    >>> import tempfile
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
        self.root, self.split = Path(root), split
        self.folder = self.root / split
        if not looks_like(self.root, split):
            expected = f"{split}/<class>/<name>.png or .jpg, the classes being {', '.join(CLASSES)}"
            raise another_layout("CIFAR-10 as pictures", self.root, expected)
        inside = sorted(path.name for path in self.folder.iterdir() if path.is_dir())
        for name in inside:
            if name not in CLASSES and not name.startswith("."):
                raise InputError(
                    f"{self.folder / name} is named like no class of CIFAR-10: "
                    f"{did_you_mean(name, CLASSES)}"
                )
        self.paths = [
            (path, number)
            for number, name in enumerate(CLASSES)
            if (self.folder / name).is_dir()
            for path in pictures_in(self.folder / name)
        ]
        if not self.paths:
            raise InputError(
                f"{self.folder} has no picture in its class folders. Restore them. "
                f"{found_in(self.folder)}"
            )

    def __len__(self) -> int:
        return len(self.paths)

    def __repr__(self) -> str:
        return f"Cifar10({str(self.root)!r}, {self.split!r}, pictures={len(self)})"

    def path(self, index: int) -> Path:
        """Where the picture lies."""
        return self.paths[checked_index(index, self.paths, self.folder)][0]

    def label(self, index: int) -> int:
        """The number of the picture's class."""
        return self.paths[checked_index(index, self.paths, self.folder)][1]

    def image(self, index: int) -> Image.Image:
        """The picture, RGB."""
        return read_picture(self.path(index))


def looks_like(root: Path, split: str = "test") -> bool:
    """Whether a folder holds a split with folders of CIFAR-10's classes."""
    return any((root / split / name).is_dir() for name in CLASSES)
