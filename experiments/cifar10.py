"""A residual network of 20 layers for CIFAR-10: a benchmark's subject, not shipped with weights.

    python -m experiments.cifar10 --data FOLDER --weights resnet20.th

says how many of the pictures in FOLDER/test/<class>/ the trained network has right. It can be named
to ``omenn``: ``experiments/cifar10.py:resnet20`` with ``--weights``, or, in a plan,
``experiments/cifar10.py:resnet20[weights=resnet20.th]``.

The network is the one of 6 n + 2 layers with n = 3 in section 4.2 of He, Zhang, Ren, Sun, "Deep
Residual Learning for Image Recognition", arXiv 1512.03385: three stages of 16, 32 and 64 channels
at 32, 16 and 8 pixels, and shortcuts without parameters (option A). Where the paper leaves a choice
(which side the zero channels are on, how pictures are normalised) it is the one that common
trained weights were made with: both sides, and ImageNet's mean and deviation.
"""

from __future__ import annotations

import argparse
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from omenn.data.cifar10 import CLASSES, Cifar10
from omenn.errors import OmennError
from omenn.modalities.image.preprocessing import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Preprocessing,
    from_mapping,
)
from omenn.models.checkpoints import load_weights

PREPROCESS = {"size": 32, "mean": IMAGENET_MEAN, "std": IMAGENET_STD}
AT_ONCE = 50


class Block(nn.Module):
    """Two convolutions beside a shortcut that takes every ``stride``-th pixel.

    Channels that the shortcut lacks are zeros, as many before as behind its own.
    """

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.stride, self.missing = stride, after - before

    def forward(self, x: Tensor) -> Tensor:
        inside = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.missing:
            x = x[:, :, :: self.stride, :: self.stride]
            x = F.pad(x, (0, 0, 0, 0, self.missing // 2, self.missing - self.missing // 2))
        return F.relu(inside + x)


class ResNet20(nn.Module):
    """Images (B, 3, 32, 32) → ten logits."""

    def __init__(self, blocks: int = 3, widths: Sequence[int] = (16, 32, 64)) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        before = widths[0]
        for number, width in enumerate(widths, 1):
            stage: OrderedDict[str, nn.Module] = OrderedDict()
            for k in range(blocks):
                stage[str(k)] = Block(before, width, stride=2 if k == 0 and number > 1 else 1)
                before = width
            self.add_module(f"layer{number}", nn.Sequential(stage))
        self.linear = nn.Linear(before, len(CLASSES))
        self.preprocess, self.classes = dict(PREPROCESS), list(CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        for stage in (self.layer1, self.layer2, self.layer3):
            x = stage(x)
        return self.linear(x.mean((2, 3)))


def resnet20() -> ResNet20:
    """The network, untrained."""
    return ResNet20()


def load(path: Path | str) -> tuple[ResNet20, Preprocessing]:
    """The trained network in evaluation mode, and what turns a picture into its input.

    Raises:
        WeightsError: a file that is missing, could run code, or does not fit.
    """
    with torch.random.fork_rng(devices=[]):
        network = resnet20()
    load_weights(network, path)
    return network.eval(), from_mapping(PREPROCESS, Path(__file__).name)


@torch.no_grad()
def right(network: nn.Module, preprocessing: Preprocessing, data: Cifar10) -> int:
    """How many pictures get the logit of their class as the largest."""
    found = 0
    for start in range(0, len(data), AT_ONCE):
        rows = range(start, min(start + AT_ONCE, len(data)))
        images = torch.cat([preprocessing(data.image(k)) for k in rows])
        labels = torch.tensor([data.label(k) for k in rows])
        found += int((network(images).argmax(1) == labels).sum())
    return found


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="the folder that holds test/")
    parser.add_argument("--weights", type=Path, required=True, help="of a trained ResNet-20")
    a = parser.parse_args(words)
    try:
        network, preprocessing = load(a.weights)
        data = Cifar10(a.data)
    except OmennError as error:
        raise SystemExit(f"cifar10: {error}") from None
    count = right(network, preprocessing, data)
    print(f"{count} of {len(data)} pictures right ({100 * count / len(data):.1f} %)")


if __name__ == "__main__":
    main()
