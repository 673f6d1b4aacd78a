"""Does a map change when the model's parameters or the explained class change?

Model-parameter randomisation, plain, efficient and smooth, and the random logit test.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from omenn.check import choose, real, whole
from omenn.errors import InputError
from omenn.metrics.explainers import Explainer
from omenn.metrics.maps import (
    checked_images,
    checked_maps,
    checked_targets,
    constant_maps,
    maps_of,
)
from omenn.metrics.metric_registry import Measure, metric
from omenn.metrics.random_layers import Order, randomisations, randomised
from omenn.metrics.robustness import noisy
from omenn.metrics.score import Score
from omenn.metrics.similarity import SIMILARITIES, Similarity, histogram_entropy

Make = Callable[[nn.Module], Explainer]
"""A model → its explainer: ``lambda model: explainer(model, "omenn")``."""

FROM_CONSTANT = "left out: a constant map of a model, but not of the random one"


@dataclass(frozen=True, eq=False, repr=False)
class ParameterRandomisation:
    """How similar the maps of B images are to those of models with random layers.

    ``layers``: L names in the order of randomisation; ``similarity`` (B, L) float64; ``counted``.
    """

    name: str
    layers: tuple[str, ...]
    similarity: Tensor
    counted: Mapping[str, int]

    @property
    def mean(self) -> Score:
        """The mean over the layers, image by image. Less is better."""
        return Score(self.name, self.similarity.mean(1), self.counted, higher=False)

    @property
    def last(self) -> Score:
        """After the last layer: for the cascading orders, with everything random."""
        name = f"{self.name}, last"
        return Score(name, self.similarity[:, -1], self.counted, higher=False)

    @property
    def scores(self) -> tuple[Score, Score]:
        return self.mean, self.last

    def __repr__(self) -> str:
        return f"ParameterRandomisation({self.mean!r}, {len(self.layers)} layers)"


@metric(
    "mprt",
    Measure("mprt", higher=False, headline=True),
    Measure("mprt, last", higher=False),
    family="randomisation",
    summary="how similar a map stays as the model's layers are randomised one by one",
    source="arXiv 1810.03292",
)
def parameter_randomisation(
    make: Make,
    model: nn.Module,
    images: Tensor,
    targets: int | Tensor,
    *,
    order: Order = "top_down",
    similarity: Similarity = "spearman",
    absolute: bool = True,
    seed: int = 0,
    chunk: int = 16,
) -> ParameterRandomisation:
    """The similarity of a model's maps and those of copies of it with random layers.

    A map that shows what the model has learned gets less similar. Maps that are the same have
    similarity 1, also if both are constant; a constant map has rank correlation 0 with another one.

    Args:
        make: the maps of a model; called with the model and with its randomised copies.
        order: see :data:`Order`.
        similarity: "spearman", or "ssim" of maps that are divided by their largest absolute value;
            :data:`~omenn.metrics.similarity.SIMILARITIES`.
        absolute: compare the maps' absolute values.
        seed: of the parameters, see :func:`randomised`.
        chunk: how many images are explained at once, at most.

    Raises:
        ModelError: the model is no module, has no parameters, or cannot be copied.
        InputError: shapes that do not fit, maps that are not finite, options that are not known.

    Example:
        >>> from omenn.metrics.explainers import explainer
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))
        >>> make = lambda model: explainer(model, "omenn")
        >>> found = parameter_randomisation(make, net.eval(), torch.rand(2, 3, 8, 8), 1)
        >>> found.layers, tuple(found.similarity.shape)
        (('3', '0'), (2, 2))

    Source: Adebayo et al. 2018, arXiv 1810.03292.
    """
    images, targets = _checked(images, targets, chunk)
    compare = _similarity(similarity)
    own = maps_of(make(model), images, targets, chunk)
    names, found, constant = [], [], 0
    for layer, random in randomisations(model, order, seed):
        other = maps_of(make(random), images, targets, chunk)
        constant += int(constant_maps(other).sum())
        pair = (maps.abs() if absolute else maps for maps in (own, other))
        found.append(compare(*pair).cpu())
        names.append(layer)
    counted = _counts(own)
    if constant:
        counted["constant maps of random models"] = constant
    return ParameterRandomisation("mprt", tuple(names), torch.stack(found, 1), counted)


@metric(
    "smooth-mprt",
    Measure("smooth mprt", higher=False, headline=True),
    Measure("smooth mprt, last", higher=False),
    family="randomisation",
    summary="mprt of maps that are averaged over noisy pictures",
    source="arXiv 2401.06465",
)
def smooth_randomisation(
    make: Make,
    model: nn.Module,
    images: Tensor,
    targets: int | Tensor,
    *,
    samples: int = 50,
    noise: float = 0.1,
    order: Order = "bottom_up",
    similarity: Similarity = "spearman",
    absolute: bool = True,
    seed: int = 0,
    chunk: int = 16,
) -> ParameterRandomisation:
    """:func:`parameter_randomisation` of maps that are :func:`smoothed`: less of it is noise.

    Source: Hedström et al. 2024, arXiv 2401.06465.
    """
    images = checked_images(images)
    smooth: Make = lambda m: smoothed(make(m), samples, noise, seed, chunk)  # noqa: E731
    how: Any = {"order": order, "similarity": similarity, "absolute": absolute, "seed": seed}
    how["chunk"] = len(images)  # the noise of an image depends on its place in the batch
    found = parameter_randomisation(smooth, model, images, targets, **how)
    return replace(found, name="smooth mprt")


@metric(
    "efficient-mprt",
    Measure("efficient mprt", headline=True),
    family="randomisation",
    summary="how much the entropy of the map rises when all parameters are randomised",
    source="arXiv 2401.06465",
)
def efficient_randomisation(
    make: Make,
    model: nn.Module,
    images: Tensor,
    targets: int | Tensor,
    *,
    bins: int = 100,
    absolute: bool = False,
    seed: int = 0,
    chunk: int = 16,
) -> Score:
    """(E' − E) / E: how much the entropy of the map rises as all parameters become random.

    E is the entropy of the histogram of the map's values in ``bins`` equal steps from its smallest
    to its largest. More is better. A constant map has E = 0: that is no rise, 0, if the random
    model's is constant too, and otherwise it is left out, and counted.

    Raises:
        ModelError, InputError: as in :func:`parameter_randomisation`.

    Source: Hedström et al. 2024, arXiv 2401.06465.
    """
    images, targets = _checked(images, targets, chunk)
    whole("bins", bins, 2)
    own = maps_of(make(model), images, targets, chunk)
    other = maps_of(make(randomised(model, seed)), images, targets, chunk)
    pair = [maps.abs() if absolute else maps for maps in (own, other)]
    before, after = (histogram_entropy(maps, bins) for maps in pair)
    rise = torch.where((before == 0) & (after == 0), 0.0, (after - before) / before)
    undefined = (before == 0) & (after > 0)
    counted = {**_counts(own, other), FROM_CONSTANT: int(undefined.sum())}
    return Score("efficient mprt", torch.where(undefined, torch.nan, rise), counted)


@metric(
    "random-logit",
    Measure("random logit", higher=False, headline=True),
    family="randomisation",
    summary="how similar the maps for the predicted class and for another class are",
    source="arXiv 1912.09818",
)
def random_logit(
    explain: Explainer,
    images: Tensor,
    targets: int | Tensor,
    classes: int,
    *,
    similarity: Similarity = "ssim",
    absolute: bool = False,
    seed: int = 0,
    chunk: int = 16,
) -> Score:
    """The similarity of the maps for the target and for another class, which is drawn at random.

    Less is better: a map that is the same for every class has 1. ``classes``: how many the model
    has. ``seed``: of the class; the k-th image has the same one in any batch. The rest is as in
    :func:`parameter_randomisation`.

    Example:
        >>> same = lambda images, targets: images.sum(1)
        >>> random_logit(same, torch.rand(3, 1, 8, 8), 0, classes=4).values.tolist()
        [1.0, 1.0, 1.0]

    Source: Sixt, Granz, Landgraf 2020, arXiv 1912.09818.
    """
    images, targets = _checked(images, targets, chunk)
    compare = _similarity(similarity)
    whole("seed", seed, 0)
    whole("classes", classes, 2)
    if int(targets.max()) >= classes:
        raise InputError(
            f"classes={classes} but a target is {int(targets.max())}.",
            argument="classes",
            got=str(classes),
            remedy="Give the number of classes of the model.",
        )
    generator = torch.Generator().manual_seed(seed)
    others = torch.cat([torch.randint(1, classes, (1,), generator=generator) for _ in targets])
    own = maps_of(explain, images, targets, chunk)
    other = maps_of(explain, images, (targets + others.to(targets)) % classes, chunk)
    pair = (maps.abs() if absolute else maps for maps in (own, other))
    return Score("random logit", compare(*pair), _counts(own), higher=False)


def smoothed(
    explain: Explainer, samples: int = 50, noise: float = 0.1, seed: int = 0, chunk: int = 16
) -> Explainer:
    """The mean of the maps of ``samples`` pictures: the picture, and it with normal noise.

    The deviation of the noise is ``noise`` times the range of the picture's values. The k-th image
    of a batch always has the same noise.

    >>> plain = lambda images, targets: images.sum(1)
    >>> images = torch.rand(2, 1, 4, 4)
    >>> assert torch.allclose(smoothed(plain, samples=1)(images, 0), images[:, 0].double())
    """
    whole("samples", samples, 1)
    whole("chunk", chunk, 1)
    real("noise", noise, 0)

    def added(x: Tensor, generator: torch.Generator) -> Tensor:
        return torch.randn(x.shape, generator=generator) * noise * float(x.max() - x.min())

    def smooth(images: Tensor, targets: Tensor) -> Tensor:
        targets = checked_targets(targets, len(images), images.device)
        total = maps_of(explain, images, targets, chunk)
        for rows, pictures in noisy(images, added, samples - 1, seed, chunk):
            some = rows.to(total.device)
            maps = checked_maps(explain(pictures, targets[some]), pictures)
            total = total.index_add(0, some, maps)
        return total / samples

    return smooth


def _checked(images: Tensor, targets: int | Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    whole("chunk", chunk, 1)
    images = checked_images(images)
    return images, checked_targets(targets, len(images), images.device)


def _similarity(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    choose("similarity", name, tuple(SIMILARITIES))
    return SIMILARITIES[name]


def _counts(own: Tensor, other: Tensor | None = None) -> dict[str, int]:
    counted = {"constant maps": int(constant_maps(own).sum())}
    if other is not None:
        counted["constant maps of random models"] = int(constant_maps(other).sum())
    return counted
