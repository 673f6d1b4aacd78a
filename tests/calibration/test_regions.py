"""Regions that are named and regions that are drawn."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from omenn import InputError, MissingExtra
from omenn.calibration.regions import (
    FORMS,
    SIZES,
    Box,
    Cells,
    Entries,
    Recipe,
    checked_forms,
    masks_of,
    size_of,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(st.integers(8, 40), st.integers(8, 40), st.integers(0, 1000))
@settings(max_examples=20)
def test_drawn_regions_of_pictures_have_the_sizes(height: int, width: int, seed: int) -> None:
    recipe = Recipe((height, width), each=3)
    masks = recipe.draw(torch.zeros(3, height, width), generator(seed))
    shares = masks.flatten(1).double().mean(1)
    assert bool((shares > 0).all())
    assert bool((shares < 1).all())
    sizes = [size_of(float(s)) for s in shares]
    assert sizes == sorted(sizes)
    assert {2, 3, 4, 5, 6} <= set(sizes)
    assert torch.equal(masks, recipe.draw(torch.zeros(3, height, width), generator(seed)))


def test_superpixels_are_connected_and_follow_the_picture() -> None:
    pytest.importorskip("skimage")
    x = torch.rand(3, 32, 32, generator=generator()) * 0.1
    x[:, :, 16:] += 1
    masks = Recipe((32, 32), ("superpixels",), each=4).draw(x, generator())
    assert len(masks) >= 12
    assert {size_of(float(m.double().mean())) for m in masks} >= {3, 4, 5}


def test_superpixels_need_their_package(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra) as error:
        Recipe((8, 8), ("superpixels",))
    assert (error.value.package, error.value.extra) == ("scikit-image", "zoo")


def test_groups_of_columns_stay_together() -> None:
    recipe = Recipe((6,), groups=((0, 1), (2, 3), (4,), (5,)), each=5)
    masks = recipe.draw(torch.zeros(6), generator())
    assert len(masks)
    assert bool((masks[:, 0] == masks[:, 1]).all())
    assert bool((masks[:, 2] == masks[:, 3]).all())
    assert not bool(masks.all(1).any())
    four = Recipe((4,), each=2).draw(torch.zeros(4), generator())
    assert [size_of(float(m.double().mean())) for m in four] == [4, 4, 5, 5, 6, 6]


@pytest.mark.parametrize(
    "words",
    [
        {"groups": ((0, 9),)},
        {"groups": ((0, 1), (1,))},
        {"groups": ((),)},
        {"each": 0},
        {"forms": ()},
        {"forms": ("circles",)},
    ],
)
def test_recipes_that_cannot_be(words: dict[str, object]) -> None:
    with pytest.raises(InputError) as error:
        Recipe((6,), **words)  # pyright: ignore[reportArgumentType]
    assert error.value.argument == next(iter(words))
    assert error.value.expected


def test_regions_by_name() -> None:
    masks, several = masks_of([Box(0, 1, 2, 3), Cells(2, 2, [(1, 1)])], (4, 4))
    assert several
    assert masks.int().sum((1, 2)).tolist() == [4, 4]
    assert bool(masks[0, :2, 1:3].all())
    assert bool(masks[1, 2:, 2:].all())
    one, several = masks_of(Entries([0, 2]), (3,))
    assert not several
    assert one.tolist() == [[True, False, True]]
    given_masks, several = masks_of(masks.numpy(), (4, 4))
    assert several
    assert torch.equal(given_masks, masks)


@pytest.mark.parametrize(
    "region",
    [
        Box(0, 0, 5, 2),
        Box(2, 0, 2, 2),
        Cells(2, 2, [(2, 0)]),
        Cells(9, 9, [(0, 0)]),
        Entries([0]),
        torch.zeros(4, 4),
        torch.zeros(4, 5, dtype=torch.bool),
        torch.zeros(4, 4, dtype=torch.bool),
        torch.ones(4, 4, dtype=torch.bool),
        [],
        Cells(2, 2, []),
        "left",
    ],
)
def test_regions_that_cannot_be(region: object) -> None:
    with pytest.raises(InputError) as error:
        masks_of(region, (4, 4))
    assert error.value.argument == "region"
    assert error.value.expected
    assert "\n" not in str(error.value)


def test_sizes_and_forms() -> None:
    assert [size_of(high) for high in SIZES[1:]] == list(range(len(SIZES) - 1))
    assert all(low < high for low, high in pairwise(SIZES))
    assert checked_forms(",".join(FORMS)) == FORMS
    for wrong in ("", "cells,squares"):
        with pytest.raises(InputError) as error:
            checked_forms(wrong)
        assert error.value.argument == "forms"
