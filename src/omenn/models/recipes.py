"""How each bundled architecture is trained on generated birds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from omenn.check import positive, whole, wrong
from omenn.errors import ModelError, unknown

# Adam divides it by 1 − β₁, and the quotient has to be a float32.
LARGEST_RATE = 1e30


@dataclass(frozen=True)
class Recipe:
    """Everything that determines the outcome except seed, prior and rounding of the machine."""

    epochs: int
    learning_rate: float
    weight_decay: float = 0.02
    batch_size: int = 128
    warmup: float = 0.05
    averaging: float = 0.998
    part_loss: float = 1.0
    clip: float = 1.0
    train_scenes: int = 30_000
    validation_scenes: int = 1_000
    test_scenes: int = 5_000
    precision: Literal["float32", "bfloat16"] = "bfloat16"


RECIPES: dict[str, Recipe] = {
    "birds-resnet": Recipe(epochs=5, learning_rate=3e-3),
    "birds-vit": Recipe(epochs=6, learning_rate=1e-3, weight_decay=0.05),
    "birds-convnet": Recipe(epochs=8, learning_rate=1e-3),
    "birds-xresnet": Recipe(epochs=5, learning_rate=3e-3),
    "birds-xvit": Recipe(epochs=6, learning_rate=1e-3, weight_decay=0.05),
    "birds-xconvnet": Recipe(epochs=8, learning_rate=3e-3),
}
"""A network without additive terms has the schedule of its regular counterpart."""

BIRD_PRIORS = ("sparsity", "smoothness", "right-reasons")
"""Priors that need only the scenes. ``right-reasons``: attribution only on the bird."""


def recipe_of(arch: str, **changes: Any) -> Recipe:
    """The recipe of an architecture with some entries changed; None keeps an entry.

    Raises ModelError for an unknown architecture, InputError for a number that is too small.

    >>> recipe_of("birds-vit", epochs=2, learning_rate=None).epochs
    2
    """
    if arch not in RECIPES:
        raise unknown("architecture", arch, RECIPES, ModelError)
    given = {name: value for name, value in changes.items() if value is not None}
    recipe = replace(RECIPES[arch], **given)
    whole("epochs", recipe.epochs, 1)
    whole("train_scenes", recipe.train_scenes, recipe.batch_size)
    check_rate(recipe.learning_rate)
    return recipe


def check_rate(learning_rate: float) -> None:
    """Raises InputError for a learning rate that is not above 0, or overflows float32."""
    if positive("learning_rate", learning_rate) > LARGEST_RATE:
        raise wrong("learning_rate", learning_rate, f"at most {LARGEST_RATE:g}")
