"""Small networks with trained-looking numbers, for the tests of the rule books."""

from __future__ import annotations

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
