"""Protocols as the table of protocols calls them, where that is not the function as it stands.

Some measure several things at once. Those that ask where the subject is look at the map for the
labelled class, as the mask is of that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from omenn.engine.target import pick_output
from omenn.metrics import funnybirds_protocol as birds
from omenn.metrics import idsds as in_domain_deletion
from omenn.metrics import localisation, masking, quantus, randomisation
from omenn.metrics.explainers import Explainer
from omenn.metrics.in_domain import Recipe
from omenn.metrics.keep_remove import METRICS, keep_remove
from omenn.metrics.maps import Model
from omenn.metrics.parts import Responses
from omenn.metrics.removal import whole_number
from omenn.metrics.road import road
from omenn.metrics.score import Score
from omenn.metrics.similarity import Similarity
from omenn.metrics.trial import Measured, Verdict


def funnybirds(
    explain: Explainer,
    seen: Responses,
    *,
    published: bool = False,
    positive: bool = False,
    dilation: int | None = None,
    seed: int = 0,
    tick: Callable[[], Any] = lambda: None,
) -> Verdict:
    """All measures of FunnyBirds; those that are one of the three under that name alone."""
    options = {"published": published, "positive": positive, "dilation": dilation}
    found = birds.funnybirds(explain, seen, **options, tick=tick)
    scores = found.scores()
    scores |= {
        "correctness": scores.pop("single_deletion"),
        "contrastivity": scores.pop("target_sensitivity"),
    }
    intervals = found.intervals(seed)
    measures = {}
    for name, value in found.values.items():
        if name in ("single_deletion", "target_sensitivity"):  # these are two of the three
            continue
        own = scores.get(name)
        images = own.images if own is not None else len(seen)
        values = tuple(own.values.tolist()) if own is not None else None
        chance = own.chance if own is not None else None
        measures[name.replace("_", " ")] = Measured(value, *intervals[name], images, values, chance)
    return Verdict(measures, found.counted)


def insertion_deletion(
    f: Model,
    images: Tensor,
    targets: Tensor,
    maps: Tensor,
    *,
    step: int | None = None,
    outcome: masking.Outcome = "probability",
    seed: int = 0,
    chunk: int = 64,
) -> tuple[Score, ...]:
    """Insertion minus deletion, insertion, deletion, from the same curves."""
    options: Any = {"step": step, "outcome": outcome, "seed": seed, "chunk": chunk}
    up = masking.insertion(f, images, targets, maps, **options)
    down = masking.deletion(f, images, targets, maps, **options)
    both = Score("insertion − deletion", up.values - down.values, up.counted)
    return both, up, down


def keep_and_remove(
    f: Model,
    images: Tensor,
    targets: Tensor,
    maps: Tensor,
    labels: Tensor,
    *,
    kernel: int | None = None,
    sigma: float | None = None,
    published: bool = False,
    seed: int = 0,
    chunk: int = 64,
) -> tuple[Score, ...]:
    """KPM, KNM, KAM, RPM, RNM, RAM; the accuracies of KAM and RAM are those of the labels."""
    options: Any = {"kernel": kernel, "sigma": sigma, "seed": seed, "chunk": chunk}
    found = keep_remove(f, images, targets, maps, labels=labels, published=published, **options)
    constant = {"constant maps": found.constant}
    return tuple(
        Score(
            name,
            found.areas[name].cpu(),
            {**constant, f"maps without a pixel of the sign of {name}": found.empty[name]},
            higher=METRICS[name].higher,
        )
        for name in METRICS
    )


def road_both_ways(
    f: Model,
    images: Tensor,
    targets: Tensor,
    maps: Tensor,
    *,
    noise: float = 0.01,
    seed: int = 0,
    chunk: int = 64,
) -> tuple[Score, Score]:
    """ROAD with the most relevant pixels first, and with the least relevant."""
    options: Any = {"noise": noise, "seed": seed, "chunk": chunk}
    return (
        road(f, images, targets, maps, **options),
        road(f, images, targets, maps, least_first=True, **options),
    )


def parameter_randomisation(
    make: randomisation.Make,
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    *,
    order: randomisation.Order = "top_down",
    similarity: Similarity = "spearman",
    absolute: bool = True,
    seed: int = 0,
    chunk: int = 16,
) -> tuple[Score, Score]:
    """The mean over the layers, and after the last one."""
    options: Any = {"order": order, "similarity": similarity, "absolute": absolute}
    found = randomisation.parameter_randomisation(
        make, model, images, targets, seed=seed, chunk=chunk, **options
    )
    return found.mean, found.last


def smooth_randomisation(
    make: randomisation.Make,
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    *,
    samples: int = 50,
    noise: float = 0.1,
    order: randomisation.Order = "bottom_up",
    similarity: Similarity = "spearman",
    absolute: bool = True,
    seed: int = 0,
    chunk: int = 16,
) -> tuple[Score, Score]:
    """The mean over the layers, and after the last one, of smoothed maps."""
    options: Any = {"samples": samples, "noise": noise, "order": order, "similarity": similarity}
    found = randomisation.smooth_randomisation(
        make, model, images, targets, absolute=absolute, seed=seed, chunk=chunk, **options
    )
    return found.mean, found.last


def completeness(
    f: Model, images: Tensor, targets: Tensor, explain: Explainer, *, tolerance: float = 1e-3
) -> Score:
    """Whether the map adds up to the logit itself."""
    return quantus.completeness(f, images, targets, explain, tolerance=tolerance)


def energy_pointing_game(
    explain: Explainer,
    images: Tensor,
    labels: Tensor,
    masks: Tensor,
    boxes: Tensor,
    *,
    box: bool = True,
) -> Score:
    """In the boxes, as published; or in the mask itself."""
    return localisation.energy_pointing_game(explain(images, labels), boxes if box else masks)


def pointing_game(
    explain: Explainer,
    images: Tensor,
    labels: Tensor,
    masks: Tensor,
    *,
    tolerance: float | None = None,
    seed: int = 0,
) -> Score:
    """Whether the largest value is on the mask, or near it."""
    maps = explain(images, labels)
    return localisation.pointing_game(maps, masks, tolerance=tolerance, seed=seed)


def relevance_mass(
    explain: Explainer,
    images: Tensor,
    labels: Tensor,
    masks: Tensor,
    *,
    mass: localisation.Mass = "positive",
) -> Score:
    """The share of the mass in the mask."""
    return localisation.relevance_mass_accuracy(explain(images, labels), masks, mass=mass)


def relevance_rank(
    explain: Explainer, images: Tensor, labels: Tensor, masks: Tensor, *, seed: int = 0
) -> Score:
    """How many of the largest values are in the mask."""
    return localisation.relevance_rank_accuracy(explain(images, labels), masks, seed=seed)


def idsds(
    tuned: Callable[[int, Recipe], nn.Module],
    make: randomisation.Make,
    images: Tensor,
    labels: Tensor,
    *,
    pictures: int = 1000,
    epochs: int = 5,
    batch: int = 32,
    rate: float = 0.001,
    cells: int = in_domain_deletion.CELLS,
    fill: in_domain_deletion.Fill = "zeros",
    published: bool = False,
    seed: int = 0,
    chunk: int = 64,
) -> Score:
    """Of a model that was trained on with deleted cells, on the labelled class.

    Published are 30 epochs of all training pictures with batches of 256; the rate falls to a tenth
    after each third of the epochs, as there.
    """
    whole_number("pictures", pictures, 1)
    localised = {"cells": cells, "fill": fill}
    step = max(1, -(-epochs // 3)) if isinstance(epochs, int) else 1  # thirds, rounded up
    recipe = Recipe(epochs, batch, rate, step=step, seed=seed, **localised)
    model = tuned(pictures, recipe)
    maps = make(model)(images, labels)

    def f(x: Tensor) -> Tensor:
        return pick_output(model(x), None)

    options: Any = {**localised, "published": published, "seed": seed, "chunk": chunk}
    return in_domain_deletion.idsds(f, images, labels, maps, **options)
