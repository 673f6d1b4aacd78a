"""Networks small enough to be multiplied out: their whole W(x), row by row."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import omenn
from opcases.case import draw
from opcases.linear import seeded


class Block(nn.Module):
    """A pre-norm transformer block with one projection for query, key and value."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(4), nn.LayerNorm(4)
        self.qkv, self.proj = nn.Linear(4, 12), nn.Linear(4, 4)
        self.mlp = nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 4))

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.norm1(x)).reshape(*x.shape[:2], 3, 2, 2).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(*qkv.unbind(0))
        x = x + self.proj(mixed.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(2, 4, 2, 2)
        self.token, self.position = (
            nn.Parameter(torch.zeros(1, 1, 4)),
            nn.Parameter(torch.zeros(10, 4)),
        )
        self.blocks = nn.Sequential(Block(), Block())
        self.norm, self.head = nn.LayerNorm(4), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.position
        return self.head(self.norm(self.blocks(x))[:, 0])


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.block, self.head = nn.Embedding(7, 4), Block(), nn.Linear(4, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.block(self.embed(ids)).mean(1))


def mlp() -> nn.Module:
    return seeded(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5)))


def convnet() -> nn.Module:
    """No bypass, so that the operators of its parts multiply to that of the whole."""
    return seeded(
        nn.Sequential(
            nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True)),
            nn.MaxPool2d(2),
            nn.Sequential(nn.Conv2d(4, 3, 3), nn.SiLU(), nn.GroupNorm(1, 3)),
            nn.Flatten(),
            nn.Linear(3, 4),
        )
    )  # fmt: skip


def segmentation() -> nn.Module:
    return seeded(
        nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.GELU(), nn.AvgPool2d(2),
                      nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(3, 2, 1))
    )  # fmt: skip


IMAGE = draw(1, 2, 6, 6)
NETWORKS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "mlp": (mlp, draw(1, 4)),
    "convnet": (convnet, IMAGE),
    "vit": (lambda: seeded(ViT()), IMAGE),
    "lstm": (lambda: seeded(Recurrent()), draw(1, 4, 3)),
    "segmentation": (segmentation, IMAGE),
    "token ids": (lambda: seeded(Tokens()), torch.tensor([[1, 4, 2, 6]])),
}


def made(name: str, **options) -> tuple[omenn.Operator, nn.Module, Tensor]:
    build, x = NETWORKS[name]
    net = build()
    return omenn.operator(net, x, **options), net, x


def by_rows(net: nn.Module, x: Tensor) -> Tensor:
    """The dense W: one explanation for each number of the output."""
    count = net(x).numel()
    r = omenn.rows(net, x, [lambda z, k=k: z.reshape(-1)[k] for k in range(count)])
    return r.weight.reshape(count, -1)


def close(got: Tensor, wanted: Tensor, tolerance: float = 1e-11) -> None:
    torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance)
