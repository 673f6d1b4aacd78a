"""Trainings on birds that take a second."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from omenn.models.recipes import RECIPES


@pytest.fixture
def tiny_recipes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every recipe cut down to three steps an epoch, in float32."""
    for name, recipe in RECIPES.items():
        cut = replace(
            recipe,
            epochs=2,
            batch_size=8,
            train_scenes=24,
            validation_scenes=10,
            test_scenes=10,
            precision="float32",
        )
        monkeypatch.setitem(RECIPES, name, cut)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scenes")
