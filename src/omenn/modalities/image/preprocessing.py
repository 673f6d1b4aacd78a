"""From a picture to the tensor that a model expects, and from that tensor back to a picture."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from omenn.errors import InputError, ModelError, unknown
from omenn.modalities.image.picture_files import MAX_PIXELS

if TYPE_CHECKING:
    import torch

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_CROPS = ("center", "squash", "border")
_MODES = {1: "L", 3: "RGB"}


@dataclass(frozen=True)
class Preprocessing:
    """Resize, crop and normalise a picture: ``x = (pixels / 255 - mean) / std``.

    Attributes:
        size: height and width of the tensor, in pixels.
        mean, std: one number a channel (1 channel: grey, 3: red, green, blue).
        resize: height and width before the crop, in pixels; None: the same as ``size``.
        interpolation: nearest, bilinear, bicubic or lanczos.
        crop: ``center`` scales the picture to cover ``resize`` and cuts out the middle; ``squash``
            stretches it to ``resize`` first; ``border`` fits all of it into ``resize`` and pads
            with the mean.
        source: where these settings come from, in words.
        assumed: whether these are defaults because the model declares none.

    Raises:
        ModelError: settings that contradict each other.

    >>> prepare = Preprocessing(size=(8, 8))
    >>> x = prepare(Image.new("RGB", (20, 16), (200, 100, 0)))
    >>> assert tuple(x.shape) == (1, 3, 8, 8)
    >>> assert tuple(prepare.display(x[0])[4, 4]) == (200, 100, 0)
    """

    size: tuple[int, int] = (224, 224)
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    resize: tuple[int, int] | None = None
    interpolation: str = "bilinear"
    crop: str = "center"
    source: str = field(default="ImageNet defaults", compare=False)
    assumed: bool = field(default=False, compare=False)

    def __post_init__(self) -> None:
        height, width = self.size
        if min(height, width) < 1 or len(self.mean) != len(self.std) or min(self.std) <= 0:
            expected = "a positive size and as many mean as positive std values"
            got = f"size {self.size}, mean {self.mean}, std {self.std}"
            raise ModelError(
                f"preprocessing needs {expected}, got {got}.",
                argument="preprocess",
                got=got,
                expected=expected,
                remedy="Correct the model's settings.",
            )
        for what, got, known in (
            ("interpolation", self.interpolation, _RESAMPLING),
            ("crop", self.crop, _CROPS),
        ):
            if got not in known:
                raise unknown(what, got, known, ModelError)

    @property
    def channels(self) -> int:
        return len(self.mean)

    def __call__(self, image: Image.Image) -> torch.Tensor:
        """The picture as a tensor (1, channels, height, width), float32.

        Raises:
            InputError: the model does not take pictures, or the picture is far too elongated.
        """
        import torch

        mode = _MODES.get(self.channels)
        if mode is None:
            raise InputError(
                f"the model takes {self.channels} channels, a picture has 3 (or 1 if grey).",
                argument="picture",
                got="3 channels (or 1 if grey)",
                expected=f"{self.channels} channels",
                remedy="Explain this model from Python with your own tensor.",
            )
        pixels = np.asarray(self._fit(image.convert(mode)), dtype=np.float32) / np.float32(255)
        pixels = pixels.reshape(*self.size, self.channels)
        values = (pixels - self._per_channel(self.mean)) / self._per_channel(self.std)
        return torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1)))[None]

    def display(self, tensor: torch.Tensor) -> np.ndarray:
        """The inverse of the normalisation: (channels, H, W) to (H, W, 3), uint8.

        Values outside 0…255 are clipped; a single channel is repeated.
        """
        values = tensor.detach().to("cpu").float().numpy().transpose(1, 2, 0)
        pixels = values * self._per_channel(self.std) + self._per_channel(self.mean)
        pixels = np.rint(np.clip(pixels * 255, 0, 255)).astype(np.uint8)
        return pixels if self.channels == 3 else np.repeat(pixels[..., :1], 3, axis=2)

    def _per_channel(self, numbers: tuple[float, ...]) -> np.ndarray:
        return np.asarray(numbers, dtype=np.float32)

    def _fit(self, image: Image.Image) -> Image.Image:
        height, width = self.resize or self.size
        across, down = image.width / width, image.height / height
        if self.crop == "squash":
            target = (width, height)
        elif self.crop == "center" and height == width:  # torchvision's rule: round down
            shorter = min(image.size)
            target = (width * image.width // shorter, height * image.height // shorter)
        else:
            ratio = max(across, down) if self.crop == "border" else min(across, down)
            target = (round(image.width / ratio), round(image.height / ratio))
        resized = _resized(image, target, _RESAMPLING[self.interpolation])
        fill = [round(255 * value) for value in self.mean] if self.crop == "border" else None
        return _middle(resized, *self.size, fill)


def from_mapping(settings: Mapping[str, Any], source: str) -> Preprocessing:
    """Settings written by hand, such as ``{"size": 32, "mean": 0.5, "std": 0.5}``.

    A number stands for a square size, or for one grey channel.

    Raises:
        ModelError: an unknown name, or a value of the wrong kind.

    >>> from_mapping({"size": 32, "mean": [0.5] * 3, "std": [0.5] * 3}, "net.py").size
    (32, 32)
    """
    known = [entry.name for entry in fields(Preprocessing) if entry.compare]
    for name in map(str, settings):
        if name not in known:
            raise unknown("preprocessing setting", name, known, ModelError)
    values = dict(settings)
    try:
        for name in ("size", "resize"):
            if values.get(name) is not None:
                value = values[name]
                values[name] = (value, value) if isinstance(value, int) else _pair(value)
        for name in ("mean", "std"):
            if name in values:
                value = values[name]
                numbers = (value,) if isinstance(value, int | float) else value
                values[name] = tuple(float(number) for number in numbers)
        return Preprocessing(**values, source=source)
    except (TypeError, ValueError) as error:
        raise ModelError(
            f"the preprocessing settings {dict(settings)} of {source} cannot be used: {error}.",
            argument="preprocess",
            got=str(dict(settings)),
            remedy="Write them like "
            '{"size": 224, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}.',
        ) from error


def from_timm(config: Mapping[str, Any], source: str) -> Preprocessing:
    """The data configuration of a timm model (``timm.data.resolve_model_data_config``)."""
    (_, height, width), part = config["input_size"], config["crop_pct"]
    return Preprocessing(
        size=(height, width),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        resize=(math.floor(height / part), math.floor(width / part)),
        interpolation=config["interpolation"],
        crop=config["crop_mode"],
        source=source,
    )


def from_torchvision(transforms: Any, source: str) -> Preprocessing:
    """The evaluation transforms of a torchvision weights entry (``Weights.transforms()``)."""
    return Preprocessing(
        size=(transforms.crop_size[0], transforms.crop_size[0]),
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
        resize=(transforms.resize_size[0], transforms.resize_size[0]),
        interpolation=transforms.interpolation.value,
        source=source,
    )


def _resized(
    image: Image.Image, size: tuple[int, int], resampling: Image.Resampling
) -> Image.Image:
    width, height = size
    if width * height > MAX_PIXELS:
        raise InputError(
            f"the picture of {image.width} x {image.height} pixels is too elongated: scaled to the "
            f"model's input it has {width} x {height}.",
            argument="picture",
            got=f"{image.width} x {image.height} pixels",
            remedy="Cut out the part that matters.",
        )
    return image.resize((max(1, width), max(1, height)), resampling)


def _middle(image: Image.Image, height: int, width: int, fill: list[int] | None) -> Image.Image:
    """Cut out the centre; pad a picture that is smaller (black by default)."""
    whole = Image.new(image.mode, (width, height))
    if fill:
        whole.paste(tuple(fill), (0, 0, width, height))
    left = _offset(image.width, width)
    top = _offset(image.height, height)
    whole.paste(image, (left, top))
    return whole


def _offset(have: int, want: int) -> int:
    return -round((have - want) / 2) if have >= want else (want - have) // 2


def _pair(values: Any) -> tuple[int, int]:
    height, width = (int(value) for value in values)
    return height, width
