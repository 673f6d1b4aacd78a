"""Pictures of birds as input of the networks, and their random changes in training."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from omenn.models.bundled import MEAN, STD


def normalised(images: Tensor) -> Tensor:
    """Pixels 0..255 (B, 3, S, S) as input of the networks: (v / 255 - MEAN) / STD."""
    return (images.float() / 255 - MEAN[0]) / STD[0]


@dataclass(frozen=True, eq=False)
class Move:
    """A shift and perhaps a mirroring of each picture of a batch: where its pixels come from.

    ``rows`` and ``columns`` are (B, S). A move is applied to pictures and to their masks alike.

    >>> turned = Move(torch.arange(4)[None], torch.arange(4).flip(0)[None])
    >>> image = torch.arange(16.0).view(1, 1, 4, 4)
    >>> assert turned(image).equal(image.flip(3))
    """

    rows: Tensor
    columns: Tensor

    def __call__(self, images: Tensor) -> Tensor:
        """(B, C, S, S) of any type → the same shape, stored channels last."""
        device = images.device
        number = torch.arange(len(images), device=device)[:, None, None]
        rows, columns = self.rows.to(device), self.columns.to(device)
        last = images.permute(0, 2, 3, 1)[number, rows[:, :, None], columns[:, None, :]]
        return last.permute(0, 3, 1, 2)


def drawn_move(batch: int, size: int, generator: torch.Generator) -> Move:
    """A shift by up to three pixels either way, edges repeated, and a mirroring half of the time.

    A mirrored bird faces the other way: same class.
    """
    shift = torch.randint(-3, 4, (2, batch, 1), generator=generator)
    rows, columns = (torch.arange(size) + shift).clamp(0, size - 1)
    mirrored = torch.rand(batch, 1, generator=generator) < 0.5
    return Move(rows, torch.where(mirrored, columns.flip(1), columns))


def tinted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Random small changes of brightness, contrast and tint; (B, 3, S, S) in [-1, 1]."""
    batch = len(images)

    def between(low: float, high: float, channels: int) -> Tensor:
        drawn = torch.rand(batch, channels, 1, 1, generator=generator)
        return (low + (high - low) * drawn).to(images.device)

    tint = between(-0.1, 0.1, 1) + between(-0.05, 0.05, 3)
    return images * between(0.8, 1.2, 1) + tint


def augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    """Moved, then tinted. (B, 3, S, S) in [-1, 1] → the same shape."""
    return tinted(drawn_move(len(images), images.shape[-1], generator)(images), generator)
