"""How far a map moves when the picture hardly does: sensitivity and local Lipschitz estimate."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from omenn.check import positive, whole
from omenn.metrics.explainers import Explainer
from omenn.metrics.maps import (
    checked_images,
    checked_maps,
    checked_targets,
    constant_maps,
    maps_of,
)
from omenn.metrics.metric_registry import Measure, metric
from omenn.metrics.score import Score
from omenn.metrics.similarity import by_largest

ZEROS = "left out: the map is zero everywhere"


def max_sensitivity(
    explain: Explainer,
    images: Tensor,
    targets: int | Tensor,
    *,
    radius: float = 0.2,
    samples: int = 50,
    seed: int = 0,
    chunk: int = 16,
) -> Score:
    """The largest ‖a(x + δ) − a(x)‖ / ‖a(x)‖ over δ uniform in [−radius, radius]. Less is better.

    A map that ignores the picture has 0; a map of zeros has no such number, is left out and
    counted. More samples find a larger maximum: compare values of the same number.

    Args:
        explain: images and targets → maps; called with noisy pictures.
        radius: in the space of the model's input.
        samples: how many noisy pictures of each image are explained.
        seed: of the noise; the k-th image has the same noise in any batch.
        chunk: how many pictures are explained at once, at most.

    Raises:
        InputError: shapes that do not fit, maps that are not finite, options out of range.

    Example:
        >>> images = torch.rand(2, 3, 8, 8) + 1
        >>> twice = lambda x, targets: 2 * x.sum(1)
        >>> found = max_sensitivity(twice, images, 0, radius=0.1, samples=5)
        >>> assert (found.values > 0).all() and (found.values < 0.1).all()

    Source: Yeh et al. 2019, arXiv 1901.09392.
    """
    how: Any = {"radius": radius, "samples": samples, "seed": seed, "chunk": chunk}
    return sensitivities(explain, images, targets, **how)[0]


def avg_sensitivity(
    explain: Explainer,
    images: Tensor,
    targets: int | Tensor,
    *,
    radius: float = 0.2,
    samples: int = 50,
    seed: int = 0,
    chunk: int = 16,
) -> Score:
    """The mean of what :func:`max_sensitivity` takes the maximum of. Less is better.

    Source: Yeh et al. 2019, arXiv 1901.09392.
    """
    how: Any = {"radius": radius, "samples": samples, "seed": seed, "chunk": chunk}
    return sensitivities(explain, images, targets, **how)[1]


@metric(
    "sensitivity",
    Measure("max-sensitivity", higher=False, headline=True),
    Measure("avg-sensitivity", higher=False),
    family="robustness",
    summary="how much a map changes under small changes of the picture",
    source="arXiv 1901.09392",
)
def sensitivities(
    explain: Explainer,
    images: Tensor,
    targets: int | Tensor,
    *,
    radius: float = 0.2,
    samples: int = 50,
    seed: int = 0,
    chunk: int = 16,
) -> tuple[Score, Score]:
    """:func:`max_sensitivity` and :func:`avg_sensitivity`, from the same noisy pictures."""
    positive("radius", radius)
    noise = _uniform(radius)
    how: Any = {"samples": samples, "seed": seed, "chunk": chunk}
    maps, moved, _ = _moved(explain, images, targets, noise, **how)
    length = maps.flatten(1).norm(dim=1, keepdim=True)
    found = torch.where(length > 0, moved / length, torch.nan)
    counted = {"constant maps": int(constant_maps(maps).sum()), ZEROS: int((length == 0).sum())}
    return (
        Score("max-sensitivity", found.amax(1), counted, higher=False),
        Score("avg-sensitivity", found.mean(1), counted, higher=False),
    )


@metric(
    "local-lipschitz",
    Measure("local lipschitz estimate", higher=False, headline=True),
    family="robustness",
    summary="how much a map changes per change of the picture, for small changes",
    source="arXiv 1806.08049",
)
def local_lipschitz(
    explain: Explainer,
    images: Tensor,
    targets: int | Tensor,
    *,
    sigma: float = 0.1,
    samples: int = 50,
    normalise: bool = True,
    seed: int = 0,
    chunk: int = 16,
) -> Score:
    """The largest ‖a(x + δ) − a(x)‖ / ‖δ‖ over δ normal with deviation sigma. Less is better.

    It has the unit of the maps, so by default each map is divided by its largest absolute value
    (one of zeros stays). The rest is as in :func:`max_sensitivity`.

    Source: Alvarez-Melis, Jaakkola 2018, arXiv 1806.08049.
    """
    positive("sigma", sigma)
    noise = _normal(sigma)
    scaled: Explainer = lambda x, t: by_largest(checked_maps(explain(x, t), x))  # noqa: E731
    how: Any = {"samples": samples, "seed": seed, "chunk": chunk}
    maps, moved, far = _moved(scaled if normalise else explain, images, targets, noise, **how)
    counted = {"constant maps": int(constant_maps(maps).sum())}
    return Score("local lipschitz estimate", (moved / far).amax(1), counted, higher=False)


Noise = Callable[[Tensor, torch.Generator], Tensor]
"""(a picture (C, H, W), where random numbers come from) → what is added to it."""


def _uniform(radius: float) -> Noise:
    return lambda x, generator: (2 * torch.rand(x.shape, generator=generator) - 1) * radius


def _normal(sigma: float) -> Noise:
    return lambda x, generator: torch.randn(x.shape, generator=generator) * sigma


def noisy(
    images: Tensor, noise: Noise, samples: int, seed: int, chunk: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """(which image, picture with noise) for ``samples`` of each image in turn, in chunks."""
    generator = torch.Generator().manual_seed(seed)
    if not samples:
        return
    for rows in torch.arange(len(images)).repeat_interleave(samples).split(chunk):
        some = images[rows.to(images.device)]
        yield rows, some + torch.stack([noise(x, generator) for x in some]).to(some)


def _moved(
    explain: Explainer,
    images: Tensor,
    targets: int | Tensor,
    noise: Noise,
    *,
    samples: int,
    seed: int,
    chunk: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The maps (B, H, W), ‖a(x + δ) − a(x)‖ (B, samples), and ‖δ‖ (B, samples)."""
    images = checked_images(images)
    targets = checked_targets(targets, len(images), images.device)
    whole("samples", samples, 1)
    whole("seed", seed, 0)
    whole("chunk", chunk, 1)
    maps = maps_of(explain, images, targets, chunk)
    moved, far = [], []
    for rows, pictures in noisy(images, noise, samples, seed, chunk):
        found = checked_maps(explain(pictures, targets[rows]), pictures)
        moved.append((found - maps[rows]).flatten(1).norm(dim=1))
        far.append((pictures - images[rows]).double().flatten(1).norm(dim=1))
    shape = (len(images), samples)
    return maps, torch.cat(moved).view(shape), torch.cat(far).view(shape)
