"""Many rendered scenes as tensors, for training and measuring: drawn once, kept in a cache."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor

from omenn.data.atomic import replacing
from omenn.data.birds.drawing import render
from omenn.data.birds.scenes import CLASSES, PARTS, Split, compatible, sample_scene


@dataclass(frozen=True, eq=False)
class SceneArrays:
    """N rendered scenes.

    ``images`` (N, 3, S, S) uint8, stored channels last; ``labels`` (N,) class; ``compatible``
    (N, 50), one over the number of classes that agree with the visible parts, 0 for the others;
    ``parts`` (N, 5) instance of each part, -1 where it is missing.
    """

    images: Tensor
    labels: Tensor
    compatible: Tensor
    parts: Tensor

    def __len__(self) -> int:
        return len(self.labels)


def scene_arrays(
    split: Split,
    count: int,
    *,
    seed: int = 0,
    size: int = 64,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> SceneArrays:
    """Scenes 0 to ``count`` - 1 of a split; ``cache`` names a folder that keeps the pictures.

    Raises OutputError where the cache cannot be written.

    >>> scene_arrays("train", 2, size=16).images.shape
    torch.Size([2, 3, 16, 16])
    """
    scenes = [sample_scene(index, split, seed=seed) for index in range(count)]
    agree = torch.zeros(count, len(CLASSES))
    for row, scene in enumerate(scenes):
        agree[row, list(compatible(scene.parts))] = 1
    parts = [[scene.parts.get(part, -1) for part in PARTS] for scene in scenes]
    path = cache and cache / f"{split}-{count}-{size}-{seed}-{_drawing_digest()}.npy"
    if path and path.exists():
        pixels = np.load(path)
    else:
        pixels = np.empty((count, size, size, 3), np.uint8)
        task = progress and progress.add_task(f"drawing {split} scenes", total=count)
        for row, scene in enumerate(scenes):
            pixels[row] = np.asarray(render(scene, size))
            if progress is not None and task is not None:
                progress.advance(task)
        if path:
            with replacing(path) as beside, open(beside, "wb") as file:
                np.save(file, pixels)
    return SceneArrays(
        images=torch.from_numpy(pixels).permute(0, 3, 1, 2),
        labels=torch.tensor([scene.class_index for scene in scenes]),
        compatible=agree / agree.sum(1, keepdim=True),
        parts=torch.tensor(parts),
    )


def _drawing_digest() -> str:
    """A cache serves one version of the drawing: the hash of its source."""
    digest = hashlib.sha256()
    for name in ("scenes.py", "shapes.py", "drawing.py"):
        digest.update(Path(__file__).with_name(name).read_bytes())
    return digest.hexdigest()[:12]
