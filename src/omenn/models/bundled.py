"""The trained networks that come with omenn: small classifiers of generated birds.

>>> import torch
>>> network = load("birds-resnet")
>>> network(torch.zeros(1, 3, SIZE, SIZE)).shape
torch.Size([1, 50])
>>> card("birds-resnet")["result"]["test_top1"] > 0.95
True
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omenn.data.birds import CLASS_NAMES
from omenn.errors import ModelError, WeightsError, of_file, reason, unknown

if TYPE_CHECKING:
    from omenn.models.architectures import Classifier

__all__ = ["CLASS_NAMES", "MEAN", "SIZE", "STD", "card", "load", "names", "weights_path"]

SIZE = 64
"""Side of the input in pixels."""
MEAN = STD = (0.5, 0.5, 0.5)
"""Input = (pixel in [0, 1] - MEAN) / STD, for red, green and blue."""

# To bundle another network of ``ARCHITECTURES``, train it with ``omenn train birds`` and its
# default recipe, copy the two files to weights/, and add the name here.
_NAMES = ("birds-resnet", "birds-vit", "birds-convnet", "birds-xconvnet")
_FOLDER = Path(__file__).with_name("weights")


def names() -> tuple[str, ...]:
    """The names that ``load`` knows."""
    return _NAMES


def weights_path(name: str) -> Path:
    """The safetensors file of a bundled network. Raises ModelError for an unknown name."""
    return _FOLDER / f"{_known(name)}.safetensors"


def card(name: str) -> dict[str, Any]:
    """Data, recipe, command and accuracy of a bundled network, as its training wrote them.

    Raises ModelError for an unknown name, WeightsError if the card cannot be read.
    """
    path = _FOLDER / f"{_known(name)}.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        text = f"the card '{path}' cannot be read: {reason(error)}."
        raise of_file(WeightsError, path, text, "Install omenn again.") from error


def load(name: str) -> Classifier:
    """A bundled network with its trained weights, on the CPU and in evaluation mode.

    Takes (B, 3, SIZE, SIZE), normalised by MEAN and STD; returns logits (B, 50) in the order of
    CLASS_NAMES. Raises ModelError for an unknown name, WeightsError for a damaged file.
    """
    path = weights_path(name)
    import torch

    from omenn.models.architectures import ARCHITECTURES
    from omenn.models.checkpoints import load_weights

    with torch.random.fork_rng(devices=[]):  # layers draw random weights first
        network = ARCHITECTURES[name]()
    load_weights(network, path)
    return network.eval()


def _known(name: str) -> str:
    if name not in _NAMES:
        raise unknown("bundled model", name, _NAMES, ModelError)
    return name
