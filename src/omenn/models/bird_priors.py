"""Attribution priors for the training on birds: built from names and numbers, and described."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from torch import Tensor

from omenn.data.birds.arrays import scene_arrays
from omenn.engine.digest import digest
from omenn.errors import unknown
from omenn.models.augmentation import normalised
from omenn.models.bundled import SIZE
from omenn.models.recipes import BIRD_PRIORS

if TYPE_CHECKING:
    from omenn.xdnn import AttributionPrior

REFERENCES = 128


def bird_prior(
    name: str, weight: float, method: str | None = None, *, fraction: float = 1.0, seed: int = 0
) -> AttributionPrior:
    """The prior of ``omenn train birds --prior``. Expected gradients start from training scenes.

    ``method`` computes the attributions; None means ``"omenn"``, which is exact for every
    architecture. ``seed`` is that of the training.

    Raises InputError for an unknown prior or method, a weight or fraction out of range.

    >>> bird_prior("right-reasons", 2.0)
    AttributionPrior('right-reasons', 2, 'omenn')
    """
    from omenn.xdnn import AttributionPrior

    if name not in BIRD_PRIORS:
        raise unknown("prior", name, BIRD_PRIORS)
    options: dict[str, Any] = {}
    if method == "expected-gradients":
        scenes = scene_arrays("train", REFERENCES, seed=seed, size=SIZE)
        options["references"] = normalised(scenes.images)
    return AttributionPrior(
        name, weight, method or "omenn", fraction=fraction, seed=seed, **options
    )


def described(prior: Any) -> dict[str, Any] | None:
    """A prior in words and numbers, for cards and checkpoints; only the name of a user's prior.

    >>> described(bird_prior("sparsity", 0.5, "integrated-gradients", fraction=0.25))
    ... # doctest: +NORMALIZE_WHITESPACE
    {'name': 'sparsity', 'weight': 0.5, 'method': 'integrated-gradients', 'fraction': 0.25,
     'options': {'steps': 16, 'baseline': 0.0, 'chunk': 1024}}
    """
    if prior is None:
        return None
    if not hasattr(prior, "options"):
        return {"name": getattr(prior, "__name__", type(prior).__name__)}
    return {
        "name": prior.name,
        "weight": prior.weight,
        "method": prior.method,
        "fraction": prior.fraction,
        "options": {name: _plain(value) for name, value in prior.options.items()},
    }


def takes_mask(prior: AttributionPrior | None) -> bool:
    """Whether a prior has an argument ``mask``: where the birds are."""
    if prior is None:
        return False
    function = getattr(prior.prior, "forward", prior.prior)
    return "mask" in inspect.signature(function).parameters


def state_digest(prior: Any) -> str | None:
    """A digest of the random state from which a prior starts."""
    return digest([prior.state_dict()["generator"]]) if hasattr(prior, "options") else None


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return f"tensor {tuple(value.shape)}, digest {digest([value])}"
    return value if isinstance(value, str | int | float | None) else repr(value)
