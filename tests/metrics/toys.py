"""Toy birds: five blobs whose colour is their instance, grey objects, and models that add up parts.

What a part is worth to the model is known by construction, so a protocol can be asked whether it
finds it out.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

SIDE = 24
# part: top, left, height, width. Between any two of all boxes are two pixels or more.
PLACES = {
    "beak": (2, 2, 2, 3),
    "eye": (2, 8, 1, 2),
    "foot": (18, 2, 3, 4),
    "tail": (8, 14, 4, 4),
    "wing": (8, 4, 3, 5),
}
OBJECTS = ((2, 14, 3, 3), (18, 10, 2, 4), (18, 18, 4, 3))
CLASSES = ("21201", "01210", "00220", "02211", "22202", "20022", "20220", "22021")
"""The colours of beak, eye, foot, tail and wing. All but one class have a contrast pair."""


class ToyBirds:
    """PartData: picture k has class k modulo 8, its own brightness of each part, 0 to 3 objects."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.parts = tuple(PLACES)
        self.classes: tuple[Mapping[str, int], ...] = tuple(
            dict(zip(PLACES, map(int, digits), strict=True)) for digits in CLASSES
        )

    def __len__(self) -> int:
        return self.count

    def label(self, index: int) -> int:
        return index % len(CLASSES)

    def background_count(self, index: int) -> int:
        return (3 * index + index // 8) % 4

    def image(self, index: int) -> Image.Image:
        return self._drawn(index, self.parts, None)

    def with_parts(self, index: int, kept: Collection[str]) -> Image.Image:
        return self._drawn(index, kept, None)

    def without_background(self, index: int, number: int) -> Image.Image:
        return self._drawn(index, self.parts, number)

    def masks(self, index: int) -> dict[str, np.ndarray]:
        return {part: inside(place) for part, place in PLACES.items()}

    def background_masks(self, index: int) -> np.ndarray:
        boxes = [inside(place) for place in OBJECTS[: self.background_count(index)]]
        return np.array(boxes, bool).reshape(-1, SIDE, SIDE)

    def _drawn(self, index: int, kept: Collection[str], gone: int | None) -> Image.Image:
        pixels = np.zeros((SIDE, SIDE, 3), np.uint8)
        for number, place in enumerate(OBJECTS[: self.background_count(index)]):
            if number != gone:
                pixels[inside(place)] = 128
        draw = random.Random(f"brightness {index}")
        for part, place in PLACES.items():
            bright = draw.randrange(180, 256)
            if part in kept:
                pixels[inside(place), self.classes[self.label(index)][part]] = bright
        return Image.fromarray(pixels)


def inside(place: tuple[int, int, int, int]) -> np.ndarray:
    top, left, height, width = place
    mask = np.zeros((SIDE, SIDE), bool)
    mask[top : top + height, left : left + width] = True
    return mask


def preprocessing(picture: Image.Image) -> Tensor:
    pixels = np.asarray(picture).transpose(2, 0, 1).astype(np.float64) / 255
    return torch.from_numpy(pixels)[None]


def additive(flipped: bool = False) -> nn.Module:
    """The sum over the parts of what each is worth to a class: 0.8 to 1.2, less than 0 if foreign.

    Every part is worth more than 5 % of the logit of its bird, the objects nothing. ``flipped``:
    the worth is subtracted, so that all logits are negative.
    """
    draw = random.Random("worth")
    weight = torch.zeros(len(CLASSES), 3, SIDE, SIDE, dtype=torch.float64)
    for number, digits in enumerate(CLASSES):
        for (_, place), own in zip(PLACES.items(), digits, strict=True):
            mask = torch.from_numpy(inside(place))
            for colour in range(3):
                worth = draw.uniform(0.8, 1.2) if colour == int(own) else -draw.uniform(0.1, 0.5)
                weight[number, colour, mask] = worth / int(mask.sum())
    linear = nn.Linear(3 * SIDE * SIDE, len(CLASSES), bias=False, dtype=torch.float64)
    linear.weight.data = weight.flatten(1) * (-1 if flipped else 1)
    return nn.Sequential(nn.Flatten(), linear).eval().requires_grad_(False)


class Mixed(nn.Module):
    """An additive model disturbed by a random network: right for some pictures, not for all."""

    def __init__(self, noise: float = 40.0) -> None:
        super().__init__()
        self.noise = noise
        self.sum = additive()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            self.net = nn.Sequential(
                nn.Conv2d(3, 6, 5, dtype=torch.float64),
                nn.GELU(),
                nn.Flatten(),
                nn.Linear(6 * 20 * 20, len(CLASSES), dtype=torch.float64),
            )
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.sum(x) + self.noise * self.net(x)


def signed_sum(weight: Tensor) -> Callable[[Tensor], Tensor]:
    """Σ w x and its negative as logits."""

    def f(images: Tensor) -> Tensor:
        total = (images * weight).flatten(1).sum(1)
        return torch.stack([total, -total], 1)

    return f
