"""Explainers: a method of omenn on a model, or a trivial map that does not depend on the model.

What a trivial map gets, a method has to beat: a protocol may reward maps for their form alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import omenn
from omenn.attribution.registry import find
from omenn.engine.digest import content
from omenn.errors import InputError, unknown

Explainer = Callable[[Tensor, Tensor], Tensor]
"""Images (B, C, H, W), targets (B,) → maps (B, H, W)."""


def explainer(
    model: nn.Module | Callable[..., Any], method: str, *, channels: bool = False, **options: Any
) -> Explainer:
    """The maps of a method on a model, or of a trivial row, by name.

    Maps are ``Explanation.matrix``: contributions summed over channels. With ``channels=True`` they
    are the contributions (B, C, H, W) themselves, for ``gae(published=True)``.

    Raises:
        InputError: the name is neither a method nor a trivial map.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(72, 4)).eval()
        >>> images, targets = torch.randn(2, 3, 8, 8), torch.tensor([0, 3])
        >>> assert explainer(net, "omenn")(images, targets).shape == (2, 8, 8)
        >>> assert explainer(net, "centre")(images, targets).shape == (2, 8, 8)
    """
    if method in TRIVIAL:
        if options:
            raise InputError(
                f"the trivial map {method!r} has no option {next(iter(options))!r}.",
                argument="options",
                got=next(iter(options)),
            )
        return TRIVIAL[method]
    if method not in omenn.methods():
        raise unknown("method", method, [*omenn.methods(), *TRIVIAL])
    found = find(method)

    def explain(images: Tensor, targets: Tensor) -> Tensor:
        e = omenn.explain(model, images, targets, method=found.name, **options)
        if not isinstance(e.matrix, Tensor) or e.matrix.ndim != 3:
            got = tuple(e.matrix.shape) if isinstance(e.matrix, Tensor) else type(e.matrix).__name__
            raise InputError(
                f"method {method!r} gives maps of the form {got}, the protocols need (B, H, W).",
                argument="method",
                got=str(got),
                expected="(B, H, W)",
                remedy="Explain an image model at its input.",
            )
        return (e.contribution if channels else e.matrix).detach()

    return explain


def constant(images: Tensor, targets: Tensor) -> Tensor:
    """The same everywhere: what a larger part gets for its area alone."""
    return images.new_ones(len(images), *images.shape[2:])


def centre(images: Tensor, targets: Tensor) -> Tensor:
    """A Gaussian in the middle with σ = a fifth of the side: photographers centre their subject."""
    height, width = images.shape[2:]
    rows = torch.linspace(-0.5, 0.5, height, device=images.device, dtype=images.dtype)
    columns = torch.linspace(-0.5, 0.5, width, device=images.device, dtype=images.dtype)
    distance = rows[:, None] ** 2 + columns[None, :] ** 2
    return torch.exp(-distance / (2 * 0.2**2)).expand(len(images), -1, -1)


def edges(images: Tensor, targets: Tensor) -> Tensor:
    """How steep the image is: the length of Sobel's gradient of the mean over channels."""
    grey = F.pad(images.mean(1, keepdim=True), (1, 1, 1, 1), "replicate")
    smooth, slope = images.new_tensor([1, 2, 1]), images.new_tensor([1, 0, -1])
    across = F.conv2d(grey, torch.outer(smooth, slope)[None, None])
    down = F.conv2d(grey, torch.outer(slope, smooth)[None, None])
    return torch.hypot(across, down)[:, 0]


def random(images: Tensor, targets: Tensor) -> Tensor:
    """Normal numbers, which are the same for the same image and target whatever the batch."""
    maps = []
    for image, target in zip(images, targets, strict=True):
        digest = hashlib.sha256(content(image) + str(int(target)).encode()).digest()
        # a generator looks at 32 bits of its seed
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))
        maps.append(torch.randn(image.shape[1:], generator=generator))
    return torch.stack(maps).to(images)


TRIVIAL: Mapping[str, Explainer] = MappingProxyType(
    {"constant": constant, "centre": centre, "edges": edges, "random": random}
)
"""Maps that do not depend on the model, by name."""
