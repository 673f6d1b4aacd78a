"""FunnyBirds' official renders for training, read straight from one zip of pictures.

The zip holds ``classes.json``, ``parts.json`` and, for every tag (``a``, ``b``, …),
``dataset_train_<tag>.json`` with the pictures ``train_<tag>/<class>/<index>.jpg``.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from rich.progress import Progress
from torch import Tensor

from omenn.data.funnybirds import FunnyBirds
from omenn.errors import InputError, reason
from omenn.files.atomic import replacing

LAYOUT = "classes.json, parts.json, dataset_train_<tag>.json and train_<tag>/<class>/<index>.jpg"


@dataclass(frozen=True, eq=False)
class Renders:
    """N pictures of C classes with P parts.

    ``images`` (N, 3, S, S) uint8, stored channels last; ``labels`` (N,) class; ``compatible``
    (N, C), one over the number of classes that agree with the visible parts, 0 for the others;
    ``parts`` (N, P) instance of each part, -1 where it is missing; ``instances``: how many each
    part has; ``digest``: of the zip they come from.
    """

    images: Tensor
    labels: Tensor
    compatible: Tensor
    parts: Tensor
    instances: tuple[int, ...]
    digest: str

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: Tensor) -> Renders:
        """The pictures with these numbers; everything is copied."""
        return Renders(
            self.images[rows],
            self.labels[rows],
            self.compatible[rows],
            self.parts[rows],
            self.instances,
            self.digest,
        )


class ZippedFunnyBirds(FunnyBirds):
    """One training split inside an open zip; all else is as in a folder."""

    def __init__(self, archive: ZipFile, split: str) -> None:
        self._archive = archive
        super().__init__(str(archive.filename), split)

    def _json(self, name: str, kind: type) -> Any:
        try:
            content = json.loads(self._archive.read(name))
        except KeyError:
            raise InputError(f"{self.root} has no {name}; it must hold {LAYOUT}") from None
        except (OSError, ValueError, BadZipFile) as error:
            raise InputError(
                f"{name} in {self.root} cannot be read as JSON: {reason(error)}. "
                "Use an intact copy of the zip."
            ) from error
        if not isinstance(content, kind):
            raise InputError(
                f"{name} in {self.root} holds a {type(content).__name__}, "
                f"FunnyBirds a {kind.__name__}; it must hold {LAYOUT}"
            )
        return content

    def _picture(self, name: str) -> Image.Image:
        try:
            with Image.open(BytesIO(self._archive.read(f"{name}.jpg"))) as image:
                return image.convert("RGB")
        except KeyError:
            raise InputError(
                f"{self.root} has no {name}.jpg, which dataset_{self.split}.json lists; "
                "use an intact copy of the zip"
            ) from None
        except (OSError, BadZipFile, UnidentifiedImageError) as error:
            raise InputError(
                f"{name}.jpg in {self.root} cannot be read as an image: {reason(error)}. "
                "Use an intact copy of the zip."
            ) from error


def read(path: Path, size: int, cache: Path, progress: Progress | None = None) -> Renders:
    """All pictures of the zip, resized to ``size`` pixels (bilinear), kept as ``cache/*.npy``.

    Raises InputError for a zip that is missing, damaged or of another layout, naming what is
    wrong; OutputError where the cache cannot be written.
    """
    try:
        archive = ZipFile(path)
    except FileNotFoundError:
        raise InputError(f"there is no zip '{path}'. Check --zip.") from None
    except (OSError, BadZipFile) as error:
        raise InputError(
            f"'{path}' cannot be read as a zip: {reason(error)}. Use an intact copy of it."
        ) from error
    with archive:
        found = (re.fullmatch(r"dataset_(train_\w+)\.json", name) for name in archive.namelist())
        splits = sorted(match[1] for match in found if match)
        if not splits:
            first = ", ".join(archive.namelist()[:3]) or "nothing"
            raise InputError(f"'{path}' must hold {LAYOUT}; it begins with {first}")
        sets = [ZippedFunnyBirds(archive, split) for split in splits]
        if not any(map(len, sets)):
            raise InputError(f"'{path}' lists no pictures; it must hold {LAYOUT}")
        digest = _digest(archive)
        kept = cache / f"renders-{size}-{digest}.npy"
        if not kept.exists():
            _draw(sets, size, kept, progress)
        pixels = np.load(kept)
    return Renders(torch.from_numpy(pixels).permute(0, 3, 1, 2), *_annotations(sets), digest)


def _digest(archive: ZipFile) -> str:
    """Names and checksums of all members: changes with the content, needs no reading of it."""
    members = [(entry.filename, entry.CRC, entry.file_size) for entry in archive.infolist()]
    return hashlib.sha256(json.dumps(members).encode()).hexdigest()[:12]


def _draw(sets: Sequence[FunnyBirds], size: int, kept: Path, progress: Progress | None) -> None:
    count = sum(map(len, sets))
    task = progress and progress.add_task(f"reading pictures, {size} pixels", total=count)
    pixels = np.empty((count, size, size, 3), np.uint8)
    row = 0
    for data in sets:
        for index in range(len(data)):
            resized = data.image(index).resize((size, size), Image.Resampling.BILINEAR)
            pixels[row] = np.asarray(resized)
            row += 1
            if progress is not None and task is not None:
                progress.advance(task)
    with replacing(kept) as beside, open(beside, "wb") as file:
        np.save(file, pixels)


def _annotations(sets: Sequence[FunnyBirds]) -> tuple[Tensor, Tensor, Tensor, tuple[int, ...]]:
    labels, parts, agree = [], [], []
    first = sets[0]
    for data in sets:
        for index in range(len(data)):
            visible = data.visible_parts(index)
            labels.append(data.label(index))
            parts.append([visible.get(part, -1) for part in first.parts])
            row = torch.zeros(len(first.classes))
            row[list(data.compatible(visible))] = 1
            agree.append(row / row.sum())
    instances = tuple(len(entries) for entries in first.parts.values())
    return torch.tensor(labels), torch.stack(agree), torch.tensor(parts), instances


def held_out(renders: Renders, count: int) -> tuple[Tensor, Tensor]:
    """Row numbers for training and for validation: the last complete birds of every class.

    ``count`` pictures are held out, as many of each class; none of them misses a part.

    Raises InputError where ``count`` is no multiple of the classes or too few birds are complete.
    """
    classes = renders.compatible.shape[1]
    each, rest = divmod(count, classes)
    if rest or each < 1:
        raise InputError(
            f"--validation is {count}; it must be a positive multiple of the {classes} classes"
        )
    complete = (renders.parts >= 0).all(1)
    taken = []
    for index in range(classes):
        rows = torch.nonzero(complete & (renders.labels == index)).flatten()
        if len(rows) < each:
            raise InputError(
                f"class {index} has {len(rows)} complete birds, --validation {count} needs {each}; "
                "choose a smaller number"
            )
        taken.append(rows[-each:])
    validation = torch.cat(taken)
    training = torch.ones(len(renders), dtype=torch.bool)
    training[validation] = False
    return torch.nonzero(training).flatten(), validation
