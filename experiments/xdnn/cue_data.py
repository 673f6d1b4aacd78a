"""Birds with a mark in the background that tells the class, truly or falsely.

A mark is a square of two paints, one above the other; fifty ordered pairs of eight paints stand
for the fifty classes. It lies in a random corner, like the mark of a photographer, or three equal
ones lie anywhere in the background; it never covers the bird. In training it is that of the bird's
class. In the *lying* sets it is that of a random other class, so that whoever reads marks is never
right.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import permutations
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from omenn.data import birds
from omenn.data.birds import CLASSES, painting
from omenn.files.atomic import replacing

Cue = Literal["none", "random", "true", "lying"]
Place = Literal["corner", "anywhere"]

SIZE = 64
MARKS: dict[Place, int] = {"corner": 1, "anywhere": 3}
MARK = 10  # side of a mark, in pixels
MARGIN = 3  # from the edge: what the pictures are moved by in training must not cut a mark
REACH = 2  # the bird's mask reaches so many pixels beyond the bird: drawn edges are soft

PAINTS = (
    (20, 20, 20),
    (255, 255, 255),
    (214, 40, 40),
    (24, 150, 60),
    (40, 70, 210),
    (240, 212, 30),
    (200, 50, 180),
    (40, 190, 214),
)
CODES = tuple(permutations(range(len(PAINTS)), 2))[: len(CLASSES)]
"""For every class, the paints of its mark: upper half, lower half."""


@dataclass(frozen=True, eq=False)
class Birds:
    """N pictures (N, 3, S, S) uint8, classes (N,), masks (N, 1, S, S) of the birds, true inside.

    ``cues`` (N,) is the class that the mark in the background tells, -1 where there is none.
    """

    images: Tensor
    labels: Tensor
    masks: Tensor
    cues: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def first(self, count: int) -> Birds:
        some = slice(count)
        return Birds(self.images[some], self.labels[some], self.masks[some], self.cues[some])


def drawn(split: birds.Split, count: int, cache: Path | None = None) -> Birds:
    """The first scenes of a split without marks, every bird complete; ``cache``: a folder."""
    scenes = [birds.sample_scene(index, split) for index in range(count)]
    scenes = [replace(scene, **CLASSES[scene.class_index]) for scene in scenes]
    path = cache and cache / f"{split}-{count}-{SIZE}-{_digest()}.npz"
    if path and path.exists():
        with np.load(path) as kept:
            images, masks = kept["images"], kept["masks"]
    else:
        images = np.stack([np.asarray(birds.render(scene, SIZE)) for scene in scenes])
        masks = np.stack([bird_mask(scene) for scene in scenes])
        if path:
            with replacing(path) as beside, open(beside, "wb") as file:
                np.savez(file, images=images, masks=masks)
    return Birds(
        torch.from_numpy(images).permute(0, 3, 1, 2),
        torch.tensor([scene.class_index for scene in scenes]),
        torch.from_numpy(masks)[:, None],
        torch.full((count,), -1),
    )


def bird_mask(scene: birds.Scene) -> np.ndarray:
    """(S, S) bool: body and parts, and ``REACH`` pixels around them."""
    owners = np.asarray(birds.part_map(scene, SIZE)).astype(np.int64) @ (1 << 16, 1 << 8, 1)
    bird = np.isin(owners, [r << 16 | g << 8 | b for r, g, b in painting.MAP_COLOURS.values()])
    near = F.max_pool2d(torch.from_numpy(bird)[None].float(), 2 * REACH + 1, 1, REACH)
    return near[0].bool().numpy()


def marked(plain: Birds, cue: Cue, seed: int, place: Place = "corner") -> Birds:
    """The same birds with marks: of their class, or of a random other one."""
    if cue == "none":
        return plain
    generator = torch.Generator().manual_seed(seed)
    cues = plain.labels.clone()
    if cue != "true":
        least = 1 if cue == "lying" else 0
        other = torch.randint(least, len(CLASSES), (len(plain),), generator=generator)
        cues = (cues + other) % len(CLASSES)
    images = plain.images.clone()
    marks = torch.stack([mark(code) for code in range(len(CLASSES))])
    for _ in range(MARKS[place]):
        for row, (top, left) in enumerate(places(plain.masks, generator, place)):
            window = images[row, :, top : top + MARK, left : left + MARK]
            bird = plain.masks[row, :, top : top + MARK, left : left + MARK]
            window.copy_(torch.where(bird, window, marks[cues[row]]))
    return Birds(images, plain.labels, plain.masks, cues)


def mark(code: int) -> Tensor:
    """(3, MARK, MARK) uint8."""
    above, below = (torch.tensor(PAINTS[paint], dtype=torch.uint8) for paint in CODES[code])
    rows = torch.arange(MARK)[None, :, None] < MARK // 2
    return torch.where(rows, above[:, None, None], below[:, None, None]).expand(3, MARK, MARK)


def places(
    masks: Tensor, generator: torch.Generator, place: Place = "corner"
) -> Iterator[tuple[int, int]]:
    """For every mask a random place (top, left) where a mark meets least of the bird."""
    inside = slice(MARGIN, SIZE - MARK - MARGIN + 1)
    covered = F.avg_pool2d(masks.float(), MARK, 1)[:, 0, inside, inside]
    covered = (covered * MARK**2).round()
    if place == "corner":
        covered[:, 1:-1] = covered[:, :, 1:-1] = MARK**2 + 1
    for counts in covered:
        free = (counts == counts.min()).nonzero()
        top, left = free[int(torch.randint(len(free), (1,), generator=generator))].tolist()
        yield top + MARGIN, left + MARGIN


def _digest() -> str:
    """A cache serves one version of the drawing and of the masks."""
    digest = hashlib.sha256(f"{REACH}".encode())
    for name in ("scenes.py", "shapes.py", "painting.py"):
        digest.update(Path(painting.__file__).with_name(name).read_bytes())
    return digest.hexdigest()[:12]
