"""Small networks with trained-looking numbers, shared by the tests."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def draw(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def seeded(net: nn.Module, dtype: torch.dtype = torch.float64, seed: int = 7) -> nn.Module:
    """The network in evaluation mode, all its numbers drawn: none is zero, or one."""
    generator = torch.Generator().manual_seed(seed)
    for name, t in [*net.named_parameters(), *net.named_buffers()]:
        if t.is_floating_point():
            drawn = torch.randn(t.shape, generator=generator, dtype=torch.float64)
            drawn = drawn / max(t[0].numel(), 1) ** 0.5
            t.data = (drawn.abs() + 0.5 if "running_var" in name else drawn).to(t.dtype)
    return net.to(dtype).eval()


class Plain(nn.Module):
    """A VGG in small: convolutions with batch norm, pools, two linear layers, no branches."""

    def __init__(self, bias: bool = True, norm: bool = True) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 3, 3, padding=1, bias=bias)
        self.norm = nn.BatchNorm2d(3) if norm else nn.Identity()
        self.second = nn.Conv2d(3, 8, 2, stride=2, bias=bias)
        self.hidden, self.head = nn.Linear(8, 9, bias=bias), nn.Linear(9, 3, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.norm(self.first(x))), 2)
        x = F.adaptive_avg_pool2d(F.relu(self.second(x)), 1).flatten(1)
        return self.head(F.relu(self.hidden(x)))


class Residual(nn.Module):
    """A ResNet in small: stem, max pool, one block with a shortcut, average, head."""

    def __init__(self, bias: bool = True, norm: bool = True) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 3, 3, padding=1, bias=bias)
        self.conv = nn.Conv2d(3, 3, 3, padding=1, bias=bias)
        self.norm = nn.BatchNorm2d(3) if norm else nn.Identity()
        self.head = nn.Linear(3, 3, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.stem(x)), 2)
        out = self.norm(self.conv(x))
        out += x
        return self.head(F.relu(out).mean((2, 3)))


class Tokens(nn.Module):
    """A transformer block in small, attention spelled out or fused; a class token is optional."""

    def __init__(self, width: int = 4, fused: bool = True) -> None:
        super().__init__()
        self.fused, self.width = fused, width
        self.norm, self.qkv = nn.LayerNorm(width), nn.Linear(width, 3 * width)
        self.out, self.mlp = nn.Linear(width, width), nn.Linear(width, width)
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            y = torch.softmax(q @ k.transpose(-2, -1) * self.width**-0.5, -1) @ v
        x = x + self.out(y)
        x = x + F.gelu(self.mlp(x))
        return self.head(x.mean(1))


class Patches(nn.Module):
    """A vision transformer in small: class token, positions, one block fused, one spelled out."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(2, 6, 2, stride=2)
        self.token = nn.Parameter(torch.zeros(1, 1, 6))
        self.position = nn.Parameter(torch.zeros(1, 17, 6))
        self.blocks = nn.Sequential(Block(6, 2, fused=True), Block(6, 2, fused=False))
        self.norm, self.head = nn.LayerNorm(6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.position
        return self.head(self.norm(self.blocks(x))[:, 0])


class Block(nn.Module):
    """Attention with heads and an MLP, each behind a norm and beside a shortcut."""

    def __init__(self, width: int, heads: int, fused: bool) -> None:
        super().__init__()
        self.heads, self.fused = heads, fused
        self.before, self.behind = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        shape = (*x.shape[:2], 3, self.heads, -1)
        q, k, v = self.qkv(self.before(x)).reshape(shape).permute(2, 0, 3, 1, 4)
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            y = torch.softmax(q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5, -1) @ v
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.mlp(self.behind(x))


class Text(nn.Module):
    """Ids with padding (0): embedding, attention of PyTorch's own, mean over the words."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 6, padding_idx=0)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.norm, self.hidden, self.head = nn.LayerNorm(6), nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, ids: Tensor) -> Tensor:
        x, padding = self.table(ids), ids == 0
        x = self.norm(x + self.attention(x, x, x, key_padding_mask=padding, need_weights=False)[0])
        kept = (~padding).unsqueeze(-1).to(x.dtype)
        x = F.relu(self.hidden(x)) * kept
        return self.head(x.sum(1) / kept.sum(1))


class Table(nn.Module):
    """Rows of a table: GELU, a layer norm and SiLU between linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(5, 8), nn.LayerNorm(8), nn.Linear(8, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(F.gelu(self.first(x)))
        return self.head(F.silu(self.second(x)) + x)


class Recurrent(nn.Module):
    """A sequence: LSTM, then GRU, the last state into a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.gru = nn.LSTM(4, 5, batch_first=True), nn.GRU(5, 4, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gru(self.lstm(x)[0])[0][:, -1])


class Gated(nn.Module):
    """Two inputs by name, one the gate of the other."""

    def __init__(self) -> None:
        super().__init__()
        self.value, self.gate = nn.Linear(4, 6), nn.Linear(3, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        return self.head(torch.tanh(self.value(x)) * torch.sigmoid(self.gate(context)))


class Example(NamedTuple):
    """A network, what it is given, and one of its modules."""

    net: nn.Module
    inputs: Any
    module: str


def convnet(bias: bool = True) -> nn.Sequential:
    """Two convolutions, their mean and a linear layer; a batch norm where there are biases."""
    norm = [nn.BatchNorm2d(6)] if bias else []
    first = [nn.Conv2d(3, 6, 3, padding=1, bias=bias), *norm, nn.ReLU(), nn.MaxPool2d(2)]
    second = [nn.Conv2d(6, 5, 3, bias=bias), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*first, *second, nn.Linear(5, 5, bias=bias))


def layered() -> nn.Module:
    """A convolutional network whose every step is a module, in a row."""
    first = [nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2)]
    second = [nn.Conv2d(3, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()]
    return nn.Sequential(*first, *second, nn.Linear(20, 6), nn.ReLU(), nn.Linear(6, 3))


def examples() -> dict[str, Example]:
    """One network of each kind by name, in double precision, with two samples or three."""
    picture = draw(2, 2, 8, 8)
    ids = torch.tensor([[3, 7, 1, 10, 4], [5, 2, 2, 0, 0]])
    both = {"x": draw(2, 4), "context": draw(2, 3, seed=2)}
    return {
        "plain": Example(seeded(Plain()), picture, "second"),
        "layered": Example(seeded(layered()), picture, "3"),
        "residual": Example(seeded(Residual()), picture, "norm"),
        "patches": Example(seeded(Patches()), picture, "blocks.0"),
        "text": Example(seeded(Text()), ids, "norm"),
        "table": Example(seeded(Table()), draw(3, 5), "norm"),
        "recurrent": Example(seeded(Recurrent()), draw(2, 4, 4), "lstm"),
        "gated": Example(seeded(Gated()), both, "gate"),
    }
