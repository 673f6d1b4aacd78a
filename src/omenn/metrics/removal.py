"""Sets of pixels are replaced: the map's sum over each, and the drop of the output without it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from omenn.check import choose, quoted, whole
from omenn.errors import InputError, did_you_mean
from omenn.filters import gaussian_filter
from omenn.metrics.maps import (
    Model,
    checked_images,
    checked_maps,
    checked_targets,
    constant_maps,
)
from omenn.metrics.masking import POINTS
from omenn.metrics.perturbation import Outcome, answers, states
from omenn.metrics.score import Score

Fill = Literal["black", "white", "mean", "zero", "blur"] | float | Tensor
"""The replacement: the picture's own smallest, largest or mean value, zero, the blurred picture, a
number, or pictures of the images' shape."""

Features = Literal["pixels", "values"]
"""What is replaced: a pixel with all its channels, or one channel of a pixel, which has the pixel's
value in the map."""

FILLS = ("black", "white", "mean", "zero", "blur")
BLUR = 0.05  # σ of "blur", as a share of the shorter side
LEVEL = "no correlation: the sums or the model's answers are all the same"


@dataclass(frozen=True, eq=False)
class Removal:
    """Images, a map for each, and the model that is run on what is left of them.

    ``values`` (B, F): what the map says of each feature. ``fill``: what takes their place, (B, C,
    H, W). ``before`` (B,): what the model says of the whole images. ``constant`` (B,): which maps
    are the same everywhere.
    """

    f: Model
    images: Tensor
    targets: Tensor
    values: Tensor
    fill: Tensor
    before: Tensor
    constant: Tensor
    outcome: Outcome
    chunk: int

    @classmethod
    def of(
        cls,
        f: Model,
        images: Tensor,
        targets: int | Tensor,
        maps: Tensor,
        *,
        fill: Fill,
        features: Features,
        outcome: Outcome,
        chunk: int,
    ) -> Removal:
        """From the arguments of a protocol, checked."""
        images = checked_images(images)
        maps = checked_maps(maps, images)
        choose("features", features, ("pixels", "values"))
        whole("chunk", chunk, 1)
        targets = checked_targets(targets, len(images), images.device)
        values = maps.flatten(1)
        return cls(
            f,
            images,
            targets,
            values if features == "pixels" else values.repeat(1, images.shape[1]),
            filled(images, fill),
            answers(f, images, targets, outcome, chunk),
            constant_maps(maps),
            outcome,
            chunk,
        )

    def __len__(self) -> int:
        return len(self.images)

    @property
    def count(self) -> int:
        """How many features a picture has."""
        return self.values.shape[1]

    @property
    def size(self) -> int:
        """A 224th of the features: as many as 224 are of 224 x 224 pixels."""
        return max(1, round(self.count / POINTS))

    def drops(self, k: int, sets: Tensor, fills: Tensor | None = None) -> Tensor:
        """How much the k-th image loses without each set (R, n) of features: (R,).

        With S ``fills`` (S, C, H, W) in place of its own: (R, S).
        """
        shape = self.images.shape[1:]
        x = self.images[k].reshape(-1, self.count)
        new = self.fill[k : k + 1] if fills is None else fills.expand(-1, *shape)
        new = new.reshape(-1, *x.shape)

        def change(_: Tensor, state: Tensor) -> Tensor:
            index = sets[state // len(new)][:, None].expand(-1, len(x), -1)
            there = x.expand(len(state), -1, -1)
            changed = there.scatter(2, index, new[state % len(new)].gather(2, index))
            return changed.view(-1, *shape)

        count = len(sets) * len(new)
        own = self.targets[k : k + 1]
        after = states(self.f, own, count, change, outcome=self.outcome, chunk=self.chunk)
        found = (self.before[k] - after).view(len(sets), len(new))
        return found[:, 0] if fills is None else found

    def sums(self, k: int, sets: Tensor) -> Tensor:
        """Σ of the k-th map over each set (R, n): (R,).

        What is repeated at the end of a set counts once; the rest of it is different features.
        """
        first = torch.ones_like(sets, dtype=torch.bool)
        first[:, 1:] = sets[:, 1:] != sets[:, :-1]
        return (self.values[k][sets] * first).sum(1)

    def correlations(self, found: Tensor) -> Tensor:
        """Without those of constant maps, whose equal sums may differ in their last bit."""
        level = self.constant if found.ndim == 1 else self.constant[:, None]
        return torch.where(level, torch.nan, found)

    def score(self, name: str, found: Tensor) -> Score:
        """Correlations (B,) as a score: chance, 0, where there is none."""
        undefined = int((found.isnan() & ~self.constant).sum())
        counted = {"constant maps": int(self.constant.sum()), LEVEL: undefined}
        return Score(name, found.nan_to_num(0.0), counted, chance=0.0)


def filled(images: Tensor, fill: Fill) -> Tensor:
    """What takes the place of pixels: pictures of the shape of the images.

    ``"black"``, ``"white"`` and ``"mean"`` are the smallest, largest and mean number of each
    picture, over all its channels; ``"zero"`` is zero in the space of the model's input; ``"blur"``
    is the picture under a Gaussian whose σ is a twentieth of its shorter side.

    Raises:
        InputError: a name that is not known, or pictures of another shape.

    Example:
        >>> filled(torch.tensor([[[[1.0, 3.0]]]]), "mean").tolist()
        [[[[2.0, 2.0]]]]
    """
    if isinstance(fill, Tensor):
        if fill.shape != images.shape:
            raise InputError(
                f"fill has the shape {tuple(fill.shape)}, the images {tuple(images.shape)}.",
                argument="fill",
                got=str(tuple(fill.shape)),
                expected=str(tuple(images.shape)),
                remedy="Give one picture for each image.",
            )
        return fill.detach().to(images)
    if isinstance(fill, (int, float)) and not isinstance(fill, bool):
        return torch.full_like(images, fill)
    if fill == "blur":
        return gaussian_filter(images, BLUR * min(images.shape[2:]))
    flat = images.flatten(1)
    if fill == "black":
        number = flat.amin(1)
    elif fill == "white":
        number = flat.amax(1)
    elif fill == "mean":
        number = flat.mean(1)
    elif fill == "zero":
        number = torch.zeros_like(flat[:, 0])
    else:
        raise InputError(
            f"fill={fill!r} is not known:",
            argument="fill",
            got=quoted(fill),
            expected=", ".join(FILLS),
            remedy=(
                f"{did_you_mean(str(fill), FILLS)} A number or pictures of the images' shape "
                "are taken as well."
            ),
        )
    return number.view(-1, 1, 1, 1).expand_as(images)
