"""How inputs are moved before a network is asked again: noise, and affine maps of images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from omenn.attribution.ordinary_gradient import Move
from omenn.check import flag, real, whole
from omenn.engine.inputs import Inputs

# What images are moved by, if it is not said: degrees, share of the size, share of the scale.
ROTATION, TRANSLATION, SCALING = 20.0, 0.1, 0.1
MOST_SEED = 2**63 - 1  # the largest that torch takes
_MOST = {"noise": 1.0, "rotation": 180.0, "translation": 1.0, "scaling": 0.99}


@dataclass(frozen=True)
class Moves:
    """How often and how far inputs are moved.

    None: as far as is usual for an image, and nothing else.
    """

    steps: int
    seed: int
    noise: float
    rotation: float | None
    translation: float | None
    scaling: float | None
    flip: bool | None

    def __post_init__(self) -> None:
        whole("steps", self.steps, 0, MOST_SEED)
        whole("seed", self.seed, 0, MOST_SEED)
        for name, most in _MOST.items():
            if name == "noise" or getattr(self, name) is not None:
                real(name, getattr(self, name), 0, most)
        if self.flip is not None:
            flag("flip", self.flip)

    def asked(self) -> list[str]:
        """The transformations that were asked for by name."""
        names = ("rotation", "translation", "scaling", "flip")
        return [name for name in names if getattr(self, name)]

    def of(self, inputs: Inputs) -> Sequence[Move]:
        """One move of the inputs for each step."""
        generator = torch.Generator().manual_seed(int(self.seed))
        strength = torch.linspace(0, self.noise, int(self.steps), dtype=torch.float64).tolist()
        return [
            Step(
                inputs,
                t,
                self._drawn(torch.rand(5, generator=generator, dtype=torch.float64)),
                int(torch.randint(2**62, (), generator=generator)),
            )
            for t in strength
        ]

    def _drawn(self, u: Tensor) -> Affine | None:
        """The affine map that five numbers between 0 and 1 stand for."""
        angle, right, down, size, mirror = u.tolist()
        rotation = ROTATION if self.rotation is None else self.rotation
        shift = TRANSLATION if self.translation is None else self.translation
        scaling = SCALING if self.scaling is None else self.scaling
        found = Affine(
            angle=math.radians(rotation) * (2 * angle - 1),
            right=2 * shift * (2 * right - 1),
            down=2 * shift * (2 * down - 1),
            size=1 + scaling * (2 * size - 1),
            mirror=self.flip is not False and mirror < 0.5,
        )
        return None if found == Affine() else found


@dataclass(frozen=True)
class Affine:
    """Where a pixel is taken from: turned, resized and mirrored about the middle, then shifted.

    ``right``, ``down``: in halves of width and height.
    """

    angle: float = 0.0
    right: float = 0.0
    down: float = 0.0
    size: float = 1.0
    mirror: bool = False

    def __call__(self, x: Tensor) -> Tensor:
        """The images x (B, C, H, W) moved; zero where nothing is taken from."""
        height, width = x.shape[-2:]
        sin, cos = math.sin(self.angle) / self.size, math.cos(self.angle) / self.size
        sign = -1 if self.mirror else 1
        rows = [
            [sign * cos, -sin * height / width, self.right],
            [sign * sin * width / height, cos, self.down],
        ]
        theta = torch.tensor(rows, dtype=x.dtype, device=x.device).expand(len(x), 2, 3)
        grid = F.affine_grid(theta, list(x.shape), align_corners=False)
        return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


class Step:
    """x ↦ (1 − t) τ x + √(1 − (1 − t)²) n, with the same τ and n for every sample."""

    def __init__(self, inputs: Inputs, t: float, affine: Affine | None, seed: int) -> None:
        self.inputs, self.t, self.affine, self.seed = inputs, t, affine, seed

    def __call__(self, k: int, x: Tensor) -> Tensor:
        if self.affine is not None and is_image(self.inputs, k):
            x = self.affine(x)
        if not self.t:
            return x
        return (1 - self.t) * x + math.sqrt(1 - (1 - self.t) ** 2) * self._noise(k, x)

    def _noise(self, k: int, x: Tensor) -> Tensor:
        shape, dim = list(x.shape), self.inputs.batch[k]
        count = (
            self.inputs.samples
            if self.inputs.batched and shape[dim] % self.inputs.samples == 0
            else 1
        )
        shape[dim] //= count
        generator = torch.Generator().manual_seed(self.seed + k)
        # In double precision on the processor: the same numbers for every type and device.
        drawn = torch.randn(shape, generator=generator, dtype=torch.float64)
        times = [count if d == dim else 1 for d in range(x.ndim)]
        return drawn.to(x.device, x.dtype).repeat(times)


def is_image(inputs: Inputs, k: int) -> bool:
    """Whether the k-th explained input is a batch of images (B, C, H, W)."""
    return inputs.batched and inputs.leaves[k].ndim == 4 and inputs.channels[k] == -3
