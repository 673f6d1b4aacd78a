"""The result of a training on birds: the weights, and a card that describes them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from omenn.models.bundled import MEAN, SIZE, STD
from omenn.models.fit import machine, write_network
from omenn.models.recipes import BIRD_PRIORS, RECIPES, Recipe

_OPTIONS = ("epochs", "train_scenes", "learning_rate")


@dataclass(frozen=True)
class Trained:
    """A finished training. ``prior`` names the attribution prior with its settings, or is None."""

    arch: str
    seed: int
    recipe: Recipe
    prior: Mapping[str, Any] | None
    validation: float
    test: float
    seconds: float
    device: str


def wilson(share: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's interval of a share observed in ``count`` independent trials; 95 % for z = 1.96.

    (p + z²/2n ± z·√(p(1-p)/n + z²/4n²)) / (1 + z²/n)  — E. B. Wilson, JASA 22 (1927).

    >>> low, high = wilson(1.0, 5000)
    >>> round(low, 4), round(high, 4)
    (0.9992, 1.0)
    """
    middle = share + z * z / (2 * count)
    reach = z * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    scale = 1 + z * z / count
    return max(0.0, (middle - reach) / scale), min(1.0, (middle + reach) / scale)


def write_result(network: nn.Module, found: Trained, out: Path) -> Path:
    """Write ``<arch>.safetensors`` and ``<arch>.json`` to ``out``; returns the former."""
    card = _card(found, sum(p.numel() for p in network.parameters()))
    return write_network(network, card, out / f"{found.arch}.safetensors")


def command_of(arch: str, seed: int, recipe: Recipe, prior: Mapping[str, Any] | None) -> str | None:
    """The command line that trains the same network again; None with a user's prior.

    >>> command_of("birds-vit", 3, RECIPES["birds-vit"], None)
    'omenn train birds --arch birds-vit --seed 3'
    """
    if prior is not None and prior["name"] not in BIRD_PRIORS:
        return None
    words = [f"omenn train birds --arch {arch} --seed {seed}"]
    for name in _OPTIONS:
        value = getattr(recipe, name)
        if value != getattr(RECIPES[arch], name):
            words.append(f"--{name.replace('_', '-')} {value}")
    if prior is not None:
        words.append(f"--prior {prior['name']}")
        words += [f"--prior-{name} {prior[name]}" for name in ("weight", "method", "fraction")]
    return " ".join(words)


def _card(found: Trained, parameters: int) -> dict[str, Any]:
    recipe = found.recipe
    return {
        "name": found.arch,
        "parameters": parameters,
        "input": {"size": SIZE, "mean": MEAN, "std": STD},
        "data": {
            "generator": "omenn.data.birds",
            "seed": found.seed,
            "train": f"{recipe.train_scenes} scenes, about half of them miss parts",
            "validation": f"{recipe.validation_scenes} complete scenes, read after every epoch",
            "test": f"{recipe.test_scenes} complete scenes, read once at the end",
        },
        "recipe": asdict(recipe),
        "prior": found.prior and dict(found.prior),
        "command": command_of(found.arch, found.seed, recipe, found.prior),
        "result": {
            "validation_top1": found.validation,
            "test_top1": found.test,
            "test_scenes": recipe.test_scenes,
            "test_interval_95": [
                round(bound, 4) for bound in wilson(found.test, recipe.test_scenes)
            ],
        },
        "training": {"minutes": round(found.seconds / 60, 1), **machine(found.device)},
    }
