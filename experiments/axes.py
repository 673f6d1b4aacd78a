"""What grows in ``experiments.scaling``, and the small models in which it grows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import omenn
from experiments.zoo_models import perturb

MODES = ("gradient", "explain")


class Block(nn.Module):
    """A pre-norm transformer block of width 192 with three heads."""

    def __init__(self, width: int = 192, heads: int = 3) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        parts = self.qkv(self.before(x)).view(b, n, 3, self.heads, d // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, d)
        x = x + self.out(mixed)
        return x + self.down(F.gelu(self.up(self.between(x))))


class Encoder(nn.Module):
    """Blocks, the mean over tokens, ten logits: (B, T, 192) -> (B, 10)."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(Block() for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(192), nn.Linear(192, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(x)).mean(1))


Made = tuple[nn.Module, Tensor]


def encoder(tokens: int = 256, depth: int = 4) -> Made:
    return Encoder(depth), torch.randn(1, tokens, 192)


def resnet(side: int = 128, batch: int = 1) -> Made:
    from omenn.models.torchvision_remedy import prepare

    prepare()
    import torchvision

    return torchvision.models.resnet18(weights=None), torch.randn(batch, 3, side, side)


def vit(side: int = 224) -> Made:
    from omenn.models.torchvision_remedy import prepare

    prepare()
    import timm

    model = timm.create_model("vit_tiny_patch16_224", pretrained=False, dynamic_img_size=True)
    return model, torch.randn(1, 3, side, side)


# --- the axes ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Axis:
    """One thing that grows, in one model."""

    title: str
    unit: str
    values: tuple[int, ...]
    make: Callable[[int], Made]
    rows: bool = False  # the value is the number of outputs


_SIDES = (64, 96, 128, 192, 256, 384, 512)
AXES: dict[str, Axis] = {
    "tokens": Axis(
        "Transformer encoder, 4 blocks", "tokens", (128, 256, 512, 1024, 2048, 4096), encoder
    ),
    "depth": Axis(
        "Transformer encoder, 256 tokens",
        "blocks",
        (2, 4, 8, 16, 32, 48),
        lambda depth: encoder(depth=depth),
    ),
    "outputs": Axis(
        "ViT-Ti/16, many rows of W", "outputs", (1, 3, 10, 30, 100), lambda _: vit(), True
    ),
    "side-resnet": Axis("ResNet-18, image side", "pixels", _SIDES, resnet),
    "side-vit": Axis("ViT-Ti/16, image side", "pixels", _SIDES, vit),
    "batch": Axis(
        "ResNet-18, 128 × 128", "images", (1, 2, 4, 8, 16, 32), lambda b: resnet(batch=b)
    ),
}


def call_of(axis: Axis, value: int, mode: str, made: Made) -> Callable[[], object]:
    """One measured call: of several outputs, the plain gradient has one backward pass for each."""
    model, x = made
    if mode == "explain":
        if axis.rows:
            return partial(omenn.rows, model, x, range(value))
        return partial(omenn.explain, model, x, 0)

    def gradient() -> list[Tensor]:
        leaf = x.clone().requires_grad_()
        y = model(leaf).sum(0)
        count = value if axis.rows else 1
        return [
            torch.autograd.grad(y[k], leaf, retain_graph=k + 1 < count)[0] for k in range(count)
        ]

    return gradient


def load(axis: Axis, value: int) -> Made:
    torch.manual_seed(0)
    model, x = axis.make(value)
    return perturb(model), x
