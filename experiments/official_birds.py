"""Networks trained on FunnyBirds' official renders: a benchmark's subjects, not shipped.

    python -m experiments.official_birds --zip PICTURES.zip --arch resnet --out runs/official
    python -m experiments.official_birds --zip PICTURES.zip --arch vit --out runs/official \
        --stem runs/official/resnet-96.safetensors

A held-out part of the pictures, complete birds, tells how good a network is; the official test
pictures (--test) are read once, after the last epoch. A training that was interrupted, or stopped
by --minutes, goes on with the same command. ``load`` gives the trained network to a benchmark.

The vision transformer begins with the first half of the trained residual network (``--stem``):
from random weights it learned next to nothing of these pictures in the time that was there.

The networks can be named to ``omenn``: ``experiments/official_birds.py:resnet`` with ``--weights``.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from omenn.errors import InputError, OmennError, WeightsError, did_you_mean, reason
from omenn.modalities.image.preprocessing import Preprocessing
from omenn.models.architectures import BirdsConvNet, BirdsResNet, BirdsViT, Classifier

MEAN = STD = (0.5, 0.5, 0.5)


class ResNet(BirdsResNet):
    """The residual network behind a stem at a quarter of the resolution."""

    def __init__(self, classes: int = 50) -> None:
        super().__init__(classes, widths=(48, 96, 144, 192), blocks=(1, 2, 2, 1))
        self.stem = nn.Sequential(
            nn.Conv2d(3, 24, 3, 2, 1, bias=False),
            nn.BatchNorm2d(24),
            nn.ReLU(),
            nn.Conv2d(24, 48, 3, 2, 1, bias=False),
            nn.BatchNorm2d(48),
            nn.ReLU(),
        )

    def first_half(self) -> nn.Sequential:
        """Down to an eighth of the side: (B, 3, S, S) → (B, 96, S/8, S/8)."""
        return nn.Sequential(self.stem, self.stages[0], self.stages[1])


class ViT(BirdsViT):
    """Four transformer blocks, a token for every 8 x 8 pixels, behind half of the ``ResNet``."""

    def __init__(self, size: int, classes: int = 50) -> None:
        super().__init__(classes, depth=4)
        tokens, width = (size // 8) ** 2, self.position.shape[2]
        self.stem = nn.Sequential(ResNet(classes).first_half(), nn.Conv2d(96, width, 1))
        self.position = nn.Parameter(0.02 * torch.randn(1, tokens + 1, width))

    def begin_with(self, whole: ResNet) -> None:
        """Copy the first half of a trained residual network into the stem."""
        self.stem[0].load_state_dict(whole.first_half().state_dict())


class ConvNet(BirdsConvNet):
    """Ten convolutions with biases and ReLU, no normalisation."""

    def __init__(self, classes: int = 50) -> None:
        super().__init__(classes, widths=(24, 48, 96, 144, 192))


SIZE = {"resnet": 96, "vit": 96, "convnet": 96}
"""Architecture → its usual side in pixels."""
SIZES = (64, 96, 128)


def build(arch: str, size: int, classes: int = 50) -> Classifier:
    """An untrained network; ``preprocess`` says what it reads. Raises InputError for a name."""
    if arch not in SIZE:
        raise InputError(f"unknown architecture '{arch}': {did_you_mean(arch, SIZE)}")
    builders: dict[str, Callable[[], Classifier]] = {
        "resnet": lambda: ResNet(classes),
        "vit": lambda: ViT(size, classes),
        "convnet": lambda: ConvNet(classes),
    }
    network = builders[arch]()
    network.preprocess = {"size": size, "mean": MEAN, "std": STD}  # pyright: ignore
    return network


def resnet() -> Classifier:
    """The residual network at its usual size, untrained."""
    return build("resnet", SIZE["resnet"])


def vit() -> Classifier:
    """The vision transformer at its usual size, untrained."""
    return build("vit", SIZE["vit"])


def convnet() -> Classifier:
    """The network without normalisation at its usual size, untrained."""
    return build("convnet", SIZE["convnet"])


def load(path: Path | str, arch: str) -> tuple[Classifier, Preprocessing]:
    """A trained network in evaluation mode and what turns a picture into its input.

    ``path`` is the safetensors file, or the folder that holds one of ``arch``; the card lies
    beside it. Raises WeightsError where there is none, or several, or one does not fit.
    """
    from omenn.models.checkpoints import load_weights

    path = Path(path)
    if path.is_dir():
        found = sorted(path.glob(f"{arch}-*.safetensors"))
        if len(found) != 1:
            names = ", ".join(entry.name for entry in found) or "none"
            raise WeightsError(
                f"{path} must hold one {arch}-<size>.safetensors, found {names}. "
                "Train it with experiments.official_birds, or name the file."
            )
        path = found[0]
    card = read_card(path)
    size, classes, trained = card["input"]["size"], card["classes"], card["arch"]
    if trained != arch:
        raise WeightsError(f"'{path}' holds a {trained}, asked for was a {arch}. Name the other.")
    with torch.random.fork_rng(devices=[]):
        network = build(arch, size, classes)
    load_weights(network, path)
    return network.eval(), preprocessing(size, path.with_suffix(".json").name)


def read_card(weights: Path) -> dict[str, Any]:
    """What was written beside these weights. Raises WeightsError where that cannot be used."""
    card = weights.with_suffix(".json")
    try:
        content = json.loads(card.read_text(encoding="utf-8"))
        parts = content["data"]["digest"], content["data"]["held_out"], content["arch"]
        numbers = content["input"]["size"], content["classes"]
        if not all(isinstance(v, str) for v in parts) or any(type(v) is not int for v in numbers):
            raise ValueError("an entry is of another kind")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(
            f"the card '{card}' cannot be read: {reason(error)}. "
            "It is written with the weights: copy both, or train again."
        ) from error
    return content


def preprocessing(size: int, source: str) -> Preprocessing:
    """From a picture to the input of a network of this size."""
    return Preprocessing(size=(size, size), mean=MEAN, std=STD, source=source)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is no positive number")
    return number


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--zip", type=Path, required=True, help="the pictures")
    add("--arch", choices=SIZE, required=True)
    add("--size", type=int, choices=SIZES, help="side in pixels (default: by architecture)")
    add("--epochs", type=_positive, help="(default: by architecture)")
    add("--out", type=Path, default=Path("runs/official"), help="folder of weights and cache")
    add("--minutes", type=float, default=math.inf, help="begin no epoch after so many minutes")
    add("--validation", type=_positive, default=1000, help="pictures held out (default 1000)")
    add("--stem", type=Path, help="weights of the resnet whose first half the vit begins with")
    add("--test", type=Path, help="FunnyBirds folder to evaluate at the end")
    add("--seed", type=int, default=0)
    a = parser.parse_args(words)

    from experiments.official_birds_training import RECIPES, train  # the builders need none of it

    given = {"size": a.size, "epochs": a.epochs}
    recipe = replace(RECIPES[a.arch], **{k: v for k, v in given.items() if v is not None})
    options = {"seed": a.seed, "validation": a.validation, "minutes": a.minutes, "test": a.test}
    if a.stem and a.arch != "vit":
        parser.error(f"--stem is for --arch vit, not {a.arch}")
    try:
        weights = train(a.zip, a.arch, a.out, recipe=recipe, stem=a.stem, **options)
    except OmennError as error:
        raise SystemExit(f"official_birds: {error}") from None
    if weights:
        print(f"wrote {weights} and its card")


if __name__ == "__main__":
    main()
