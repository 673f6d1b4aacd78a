"""ImageNet-S: photographs of ImageNet with segmentations, in its official layout.

Gao et al., "Large-scale Unsupervised Semantic Segmentation", TPAMI 2023, arXiv 2106.03149.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from omenn.data.dataset_registry import Dataset, Request, dataset
from omenn.data.folders import (
    ImageFolder,
    another_layout,
    class_folders,
    fitted,
    in_class_folders,
    read_ids,
    size_of,
)
from omenn.data.imagenet import (
    Classes,
    model_numbers,
    numbered,
    read_classes,
    segmented,
    training_pictures,
)
from omenn.errors import InputError

IGNORED = 1000
"""The number of pixels that belong to no class for certain; 0 is everything else."""


class ImageNetS(ImageFolder):
    """The pictures of one split, by class and name; they are read when asked for.

    ``root`` is ``ImageNetS50``, ``ImageNetS300`` or ``ImageNetS919``, with ``<split>/<synset>/`` of
    pictures and ``<split>-segmentation/<synset>/`` of PNGs, whose number is R + 256 G: the place of
    the class in the sorted ``categories``, from 1. ``categories`` are the class folders, or given
    (a list, or the set's file) where folders of the official set are missing.

    ``classes`` gives the labels their numbers, as in :class:`omenn.data.imagenet.ImageNet`;
    without it they are places in ``categories``, from 0, which are not those of ImageNet's models.

    Raises InputError, also later, for another layout and anything missing or unreadable.

    >>> import tempfile
    >>> from PIL import Image
    >>> root = Path(tempfile.mkdtemp())
    >>> for part in ("validation", "validation-segmentation"):
    ...     (root / part / "n01443537").mkdir(parents=True)
    >>> Image.new("RGB", (4, 2)).save(root / "validation/n01443537/a.JPEG")
    >>> Image.new("RGB", (4, 2), (1, 0, 0)).save(root / "validation-segmentation/n01443537/a.png")
    >>> data = ImageNetS(root)
    >>> data.label(0), data.mask(0).all()
    (0, np.True_)
    """

    def __init__(
        self,
        root: Path | str,
        split: str = "validation",
        *,
        classes: Classes | None = None,
        categories: Classes | None = None,
    ) -> None:
        root = Path(root)
        self._segmentations = root / f"{split}-segmentation"
        folders = class_folders(root / split)
        if not folders or not class_folders(self._segmentations):
            raise another_layout(
                "ImageNet-S",
                root,
                f"{split}/<synset>/<name>.JPEG and {split}-segmentation/<synset>/<name>.png, as in "
                "ImageNetS919/",
            )
        listed = [folder.name for folder in folders] if categories is None else categories
        self.categories = tuple(sorted(read_classes(listed)[0]))
        self._ids = {s: n + 1 for s, n in numbered(self.categories, folders).items()}
        self.synsets, self.names = read_classes(self.categories if classes is None else classes)
        super().__init__(root, split, in_class_folders(folders, numbered(self.synsets, folders)))

    def segmentation(self, index: int) -> np.ndarray:
        """(height, width) int: numbers of ``categories`` from 1, 0 elsewhere, 1000 if not certain.

        Raises:
            InputError: missing, of another form, or with numbers that are none of the categories.
        """
        path = self.path(index)
        where = self._segmentations / path.parent.name / f"{path.stem}.png"
        channels = read_ids(where)
        if channels.ndim != 3 or channels.dtype != np.uint8:
            raise InputError(
                f"{where} has the form {channels.shape} of {channels.dtype}, ImageNet-S's are "
                "RGB with 8 bits, whose number is R + 256 G.",
                argument="root",
                got=str(channels.shape),
                remedy="Restore the official file.",
            )
        ids = channels[..., 0].astype(int) + 256 * channels[..., 1].astype(int)
        own, found = self._ids[path.parent.name], set(np.unique(ids).tolist()) - {0, IGNORED}
        if found and (own not in found or max(found) > len(self.categories)):
            raise InputError(
                f"{where} holds the numbers {', '.join(map(str, sorted(found)))}, but its class "
                f"is {own} of {len(self.categories)}. Folders may be missing: give the official "
                "list with categories=.",
                argument="categories",
            )
        return fitted(ids, size_of(path), where)

    def mask(self, index: int) -> np.ndarray:
        """(height, width) bool: where the picture's class is seen for certain."""
        return self.segmentation(index) == self._ids[self.path(index).parent.name]

    def ignored(self, index: int) -> np.ndarray:
        """(height, width) bool: what belongs to no class for certain."""
        return self.segmentation(index) == IGNORED


@dataset(
    "imagenet-s",
    summary="validation/<synset>/ and validation-segmentation/<synset>/; mapping as for "
    "imagenet; categories: the set's list of classes, where folders are missing",
    splits=("validation", "train-semi"),
    holds=segmented,
)
def imagenet_s(
    root: Path, request: Request, *, mapping: str | None = None, categories: str | None = None
) -> Dataset:
    """The masks are segmentations."""
    numbers = model_numbers(root, mapping)
    data = ImageNetS(root, request.split, classes=numbers, categories=categories)
    chosen, train = request.chosen(data, len(data.synsets)), training_pictures(root, data.synsets)
    return Dataset(data, chosen, len(data.synsets), data.mask, train)
