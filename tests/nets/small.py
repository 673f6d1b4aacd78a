"""Small networks that several tests explain, and the check that they share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import omenn
from omenn.explanation import leaves
from opcases.case import draw
from opcases.linear import seeded

ROWS = draw(3, 4)
IMAGE = draw(2, 3, 6, 6)


def mlp() -> nn.Module:
    return seeded(nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.LayerNorm(6), nn.Linear(6, 5)))


def convnet() -> nn.Module:
    return seeded(
        nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True),
            nn.MaxPool2d(2), nn.Conv2d(4, 4, 3), nn.SiLU(), nn.Flatten(), nn.Linear(4, 3),
        )
    )  # fmt: skip


def strided() -> nn.Module:
    """Convolutions that halve the picture, each behind the other: 16, 8, 4."""
    layers = [nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 5, 3, 2, 1), nn.GELU()]
    return seeded(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4)))


def sums_up(e: omenn.Explanation) -> None:
    assert e.exact
    total = sum(m.detach().double().reshape(len(e.output), -1).sum(1) for m in leaves(e.matrix))
    torch.testing.assert_close(total, e.output.detach().double(), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(e.total, e.output.detach().double(), rtol=1e-10, atol=1e-10)


class Two(nn.Module):
    """A product of two inputs of different shapes, and a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 5), nn.Linear(3, 5)

    def forward(self, left: Tensor, right: Tensor, scale: float = 1.0) -> Tensor:
        return scale * (self.a(left) * self.b(right) + self.a(left))


def windows(x: Tensor, size: int) -> Tensor:
    """(B, H, W, C) -> (B · windows, size², C), as Swin partitions."""
    b, h, w, c = x.shape
    x = x.view(b, h // size, size, w // size, size, c)
    return x.permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, size * size, c)


def unwindowed(t: Tensor, size: int, h: int, w: int) -> Tensor:
    """The inverse of ``windows``, (B, H, W, C)."""
    t = t.view(-1, h // size, w // size, size, size, t.shape[-1])
    return t.permute(0, 1, 3, 2, 4, 5).reshape(-1, h, w, t.shape[-1])
