"""Three small image classifiers in plain torch, one for each family that omenn explains.

``birds-resnet``: residual network with BatchNorm (He et al., arXiv 1512.03385), four stages.
``birds-vit``: vision transformer (Dosovitskiy et al., arXiv 2010.11929) with a convolutional stem
(Xiao et al., arXiv 2106.14881), class token and learned position embedding.
``birds-convnet``: convolutions with biases and ReLU, no normalisation.

``birds-xresnet``, ``birds-xvit``, ``birds-xconvnet``: the same without additive terms, so that
F(αx) = αF(x) for α ≥ 0 (Hesse et al., arXiv 2111.07668). ``omenn.xdnn.convert`` makes them from
the others: BatchNorm and LayerNorm become ``ScaleNorm``, GELU becomes ReLU, softmax becomes a
normalised ReLU, class token and position embedding become zero.

All take (B, 3, 64, 64), normalised as in ``bundled``, and return logits (B, classes).
``features`` returns the input of the last layer ``head``, (B, D).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from omenn.models.bundled import SIZE


class Classifier(nn.Module):
    """An image classifier that ends in one linear layer: ``head(features(image))``."""

    head: nn.Linear

    def features(self, image: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.features(image))


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions with BatchNorm, and a shortcut."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outside)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or inside != outside:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class BirdsResNet(Classifier):
    """BatchNorm ResNet: stem at half resolution, then four stages of residual blocks."""

    def __init__(
        self,
        classes: int = 50,
        widths: tuple[int, ...] = (32, 64, 96, 128),
        blocks: tuple[int, ...] = (1, 2, 2, 1),
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, widths[0], 3, 2, 1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU()
        )
        stages = []
        inside = widths[0]
        for number, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            stage = []
            for block in range(count):
                stage.append(ResidualBlock(inside, width, 2 if number and not block else 1))
                inside = width
            stages.append(nn.Sequential(*stage))
        self.stages = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(inside, classes)

    def features(self, image: Tensor) -> Tensor:
        return self.pool(self.stages(self.stem(image))).flatten(1)


class BirdsConvNet(Classifier):
    """Eight convolutions with biases and ReLU; every second one halves the side."""

    def __init__(self, classes: int = 50, widths: tuple[int, ...] = (32, 64, 128, 128)) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inside = 3
        for width in widths:
            layers += [nn.Conv2d(inside, width, 3, 2, 1), nn.ReLU()]
            layers += [nn.Conv2d(width, width, 3, 1, 1), nn.ReLU()]
            inside = width
        self.layers = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(inside, classes)
        for layer in self.layers:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)  # pyright: ignore[reportArgumentType]

    def features(self, image: Tensor) -> Tensor:
        return self.pool(self.layers(image)).flatten(1)


class Attention(nn.Module):
    """Multi-head self-attention over tokens (B, T, D)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(x).view(batch, tokens, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.proj(mixed.transpose(1, 2).reshape(batch, tokens, width))


class TransformerBlock(nn.Module):
    """Pre-norm attention and a GELU network, each with a shortcut."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class BirdsViT(Classifier):
    """Vision transformer on 8 × 8 tokens that a stem of three strided convolutions makes."""

    def __init__(
        self, classes: int = 50, width: int = 128, depth: int = 6, heads: int = 4, hidden: int = 256
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 32, 3, 2, 1),
            nn.GELU(),
            nn.Conv2d(32, 64, 3, 2, 1),
            nn.GELU(),
            nn.Conv2d(64, width, 2, 2),
        )
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(0.02 * torch.randn(1, 65, width))
        self.blocks = nn.Sequential(*(TransformerBlock(width, heads, hidden) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def features(self, image: Tensor) -> Tensor:
        patches = self.stem(image).flatten(2).transpose(1, 2)
        token = self.class_token.expand(patches.shape[0], -1, -1)
        x = torch.cat([token, patches], dim=1) + self.position
        return self.norm(self.blocks(x))[:, 0]


def _without_additive_terms(network: Classifier, **options: Any) -> Classifier:
    from omenn.xdnn import convert

    return cast(Classifier, convert(network, norm="scale", **options))


def birds_xresnet() -> Classifier:
    """``birds-resnet`` without additive terms, with weights drawn in the same way."""
    return _without_additive_terms(BirdsResNet())


def birds_xvit() -> Classifier:
    """``birds-vit`` without additive terms, and so without position embedding."""
    return _without_additive_terms(
        BirdsViT(), stand_ins="all", inputs=torch.zeros(1, 3, SIZE, SIZE)
    )


def birds_xconvnet() -> Classifier:
    """``birds-convnet`` without its biases."""
    return _without_additive_terms(BirdsConvNet())


ARCHITECTURES: dict[str, Callable[[], Classifier]] = {
    "birds-resnet": BirdsResNet,
    "birds-vit": BirdsViT,
    "birds-convnet": BirdsConvNet,
    "birds-xresnet": birds_xresnet,
    "birds-xvit": birds_xvit,
    "birds-xconvnet": birds_xconvnet,
}
"""Name → a function that builds the network with 50 classes and random weights."""
