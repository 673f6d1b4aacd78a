"""Many rendered scenes as tensors, for training and measuring: drawn once, kept in a cache."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor

from omenn.data.birds.painting import MAP_COLOURS, part_map, render
from omenn.data.birds.scenes import CLASSES, PARTS, Scene, Split, compatible, sample_scene
from omenn.files.atomic import replacing


@dataclass(frozen=True, eq=False)
class SceneArrays:
    """N rendered scenes.

    ``images`` (N, 3, S, S) uint8, stored channels last; ``labels`` (N,) class; ``compatible``
    (N, 50), one over the number of classes that agree with the visible parts, 0 for the others;
    ``parts`` (N, 5) instance of each part, -1 where it is missing; ``masks`` (N, 1, S, S) bool,
    true on the bird, or None where they were not asked for.
    """

    images: Tensor
    labels: Tensor
    compatible: Tensor
    parts: Tensor
    masks: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)


def scene_arrays(
    split: Split,
    count: int,
    *,
    seed: int = 0,
    size: int = 64,
    masks: bool = False,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> SceneArrays:
    """Scenes 0 to ``count`` - 1 of a split; ``cache`` names a folder that keeps the pictures.

    ``masks`` asks for the place of the birds as well: ``bird_mask`` of every scene.

    Raises OutputError where the cache cannot be written.

    >>> arrays = scene_arrays("train", 2, size=16, masks=True)
    >>> arrays.images.shape, arrays.masks.shape
    (torch.Size([2, 3, 16, 16]), torch.Size([2, 1, 16, 16]))
    """
    scenes = [sample_scene(index, split, seed=seed) for index in range(count)]
    agree = torch.zeros(count, len(CLASSES))
    for row, scene in enumerate(scenes):
        agree[row, list(compatible(scene.parts))] = 1
    parts = [[scene.parts.get(part, -1) for part in PARTS] for scene in scenes]
    name = f"{split}-{count}-{size}-{seed}-{drawing_digest()}"

    path = cache and cache / f"{name}.npy"
    blank = np.empty((count, size, size, 3), np.uint8)
    pixels = _drawn(blank, scenes, render, path, progress, f"drawing {split} scenes")
    where = None
    if masks:
        path = cache and cache / f"{name}-masks.npy"
        blank = np.empty((count, size, size), bool)
        found = _drawn(blank, scenes, bird_mask, path, progress, f"masking {split} scenes")
        where = torch.from_numpy(found)[:, None]
    return SceneArrays(
        images=torch.from_numpy(pixels).permute(0, 3, 1, 2),
        labels=torch.tensor([scene.class_index for scene in scenes]),
        compatible=agree / agree.sum(1, keepdim=True),
        parts=torch.tensor(parts),
        masks=where,
    )


_BASE = np.array([65536, 256, 1])  # a colour of the part map as one number


def bird_mask(scene: Scene, size: int = 64) -> np.ndarray:
    """Where the bird is, (size, size) bool: its pixels in the part map and those beside them.

    The neighbours belong to it because a picture is antialiased and its part map is not; a map of
    twice the size also shows legs that are thinner than a pixel.

    >>> bool(bird_mask(sample_scene(0, "test"), 32)[0, 0])
    False
    """
    pixels = np.asarray(part_map(scene, 2 * size))
    bird = np.isin(pixels @ _BASE, np.array(list(MAP_COLOURS.values())) @ _BASE)
    bird = bird.reshape(size, 2, size, 2).any(axis=(1, 3))
    grown = np.pad(bird, 1)
    rows = grown[:-2] | grown[1:-1] | grown[2:]
    return rows[:, :-2] | rows[:, 1:-1] | rows[:, 2:]


def _drawn(
    blank: np.ndarray,
    scenes: Sequence[Scene],
    draw: Callable[[Scene, int], Any],
    path: Path | None,
    progress: Progress | None,
    words: str,
) -> np.ndarray:
    """What ``draw`` makes of each scene at the size of ``blank``, which is filled; or the cache."""
    if path and path.exists():
        return np.load(path)
    task = progress and progress.add_task(words, total=len(scenes))
    for row, scene in enumerate(scenes):
        blank[row] = np.asarray(draw(scene, blank.shape[1]))
        if progress is not None and task is not None:
            progress.advance(task)
    if path:
        with replacing(path) as beside, open(beside, "wb") as file:
            np.save(file, blank)
    return blank


def drawing_digest() -> str:
    """A cache serves one version of the drawing: the hash of its source."""
    digest = hashlib.sha256()
    for name in ("scenes.py", "shapes.py", "painting.py"):
        digest.update(Path(__file__).with_name(name).read_bytes())
    return digest.hexdigest()[:12]
