"""Localisation: against slow loops and Quantus' formulas, and where the answer is known."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from omenn.errors import InputError
from omenn.metrics.localisation import (
    area_shares,
    energy_pointing_game,
    pointing_game,
    relevance_mass_accuracy,
    relevance_rank_accuracy,
)
from omenn.metrics.score import Score
from refusals import refused

PROTOCOLS: dict[str, Callable[..., Score]] = {
    "energy pointing game": energy_pointing_game,
    "relevance mass accuracy": relevance_mass_accuracy,
    "relevance rank accuracy": relevance_rank_accuracy,
    "pointing game": pointing_game,
}
every = pytest.mark.parametrize("name", list(PROTOCOLS))


def drawn(seed: int, batch: int = 4, side: int = 7) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(batch, side, side, generator=generator, dtype=torch.float64)
    masks = torch.rand(batch, side, side, generator=generator) < 0.3
    masks[:, 2, 3] = True
    return maps, masks


# --- slow references -------------------------------------------------------------------------


def pixels(map: Tensor) -> list[tuple[int, int]]:
    return [(r, c) for r in range(map.shape[0]) for c in range(map.shape[1])]


def slow_mass(map: Tensor, mask: Tensor, value: Callable[[float], float]) -> float:
    total = sum(value(float(map[p])) for p in pixels(map))
    return sum(value(float(map[p])) for p in pixels(map) if mask[p]) / total


def slow_rank(map: Tensor, mask: Tensor) -> float:
    size = sum(bool(mask[p]) for p in pixels(map))
    first = sorted(pixels(map), key=lambda p: -float(map[p]))[:size]
    return sum(bool(mask[p]) for p in first) / size


def slow_hit(map: Tensor, mask: Tensor, tolerance: float) -> float:
    top = max(pixels(map), key=lambda p: float(map[p]))
    return float(min(math.dist(top, p) for p in pixels(map) if mask[p]) <= tolerance)


@settings(max_examples=25)
@given(st.integers(0, 10_000))
def test_like_slow_loops(seed: int) -> None:
    maps, masks = drawn(seed)
    rows = list(zip(maps, masks, strict=True))
    for found, slow in (
        (energy_pointing_game(maps, masks), lambda m, k: slow_mass(m, k, lambda v: max(v, 0))),
        (relevance_mass_accuracy(maps, masks, mass="absolute"), lambda m, k: slow_mass(m, k, abs)),
        (relevance_rank_accuracy(maps, masks), slow_rank),
        (pointing_game(maps, masks, tolerance=0), lambda m, k: slow_hit(m, k, 0)),
        (pointing_game(maps, masks, tolerance=1.5), lambda m, k: slow_hit(m, k, 1.5)),
        (pointing_game(maps, masks, tolerance=2), lambda m, k: slow_hit(m, k, 2)),
    ):
        assert found.values.tolist() == pytest.approx([slow(m, k) for m, k in rows])
        assert found.higher


@pytest.mark.parametrize(
    ("metric", "ours"),
    [
        ("RelevanceMassAccuracy", relevance_mass_accuracy),
        ("RelevanceRankAccuracy", relevance_rank_accuracy),
        ("PointingGame", lambda maps, masks: pointing_game(maps, masks, tolerance=0)),
    ],
)
@pytest.mark.filterwarnings("ignore")  # of Quantus, about itself
def test_like_quantus(metric: str, ours: Callable[..., Score]) -> None:
    quantus = pytest.importorskip("quantus")
    maps, masks = drawn(7, batch=6)
    maps = maps.abs()
    judge = getattr(quantus, metric)(
        abs=False, normalise=False, disable_warnings=True, display_progressbar=False
    )
    theirs = judge(
        model=None,
        x_batch=np.zeros((6, 1, 7, 7)),
        y_batch=np.zeros(6, dtype=int),
        a_batch=maps[:, None].numpy(),
        s_batch=masks[:, None].numpy(),
    )
    assert ours(maps, masks).values.tolist() == pytest.approx([float(v) for v in theirs])


# --- where the answer is known ---------------------------------------------------------------


@every
def test_the_mask_itself_gets_1_and_its_opposite_0(name: str) -> None:
    _, masks = drawn(1)
    options = {"tolerance": 0} if name == "pointing game" else {}
    assert PROTOCOLS[name](masks.double(), masks, **options).values.tolist() == [1.0] * 4
    assert PROTOCOLS[name](1.0 - masks.double(), masks, **options).values.tolist() == [0.0] * 4


@every
def test_random_maps_get_the_share_of_the_area(name: str) -> None:
    generator = torch.Generator().manual_seed(5)
    maps = torch.randn(2000, 8, 8, generator=generator)
    masks = torch.zeros(2000, 8, 8)
    masks[:, :2, :4] = 1
    masks[1000:, 4:, 4:] = 1
    score = PROTOCOLS[name](maps, masks)
    assert score.name == name
    assert score.chance is not None
    if name != "pointing game":
        assert score.chance == pytest.approx((8 / 64 + 24 / 64) / 2)
    assert score.mean == pytest.approx(score.chance, abs=0.03)
    assert area_shares(masks)[[0, 1999]].tolist() == [8 / 64, 24 / 64]


@every
def test_a_constant_map_has_no_advantage(name: str) -> None:
    masks = torch.zeros(3000, 4, 4)
    masks[:, :1] = 1  # where a sort that keeps the order would look first
    options = {"tolerance": 0} if name == "pointing game" else {}
    score = PROTOCOLS[name](torch.ones(3000, 4, 4), masks, **options)
    assert score.mean == pytest.approx(0.25, abs=0.03)
    assert score.counted == {"constant maps": 3000}


def test_ties_come_from_the_seed() -> None:
    masks = torch.zeros(50, 4, 4)
    masks[:, :2] = 1
    flat = torch.ones(50, 4, 4)
    for protocol in (relevance_rank_accuracy, pointing_game):
        first, again, other = (protocol(flat, masks, seed=s).values for s in (0, 0, 1))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
        assert torch.equal(protocol(flat[:20], masks[:20]).values, first[:20])


def test_a_map_without_positive_values_gets_0_and_is_counted() -> None:
    maps = -torch.rand(3, 4, 4) - 0.1
    maps[0, 0, 0] = 1
    masks = torch.ones(3, 4, 4)
    masks[:, 0, 1] = 0
    for protocol in (energy_pointing_game, relevance_mass_accuracy):
        score = protocol(maps, masks)
        assert score.values.tolist() == [1.0, 0.0, 0.0]
        assert score.counted == {"maps without positive values": 2}
    zeros = relevance_mass_accuracy(maps * 0, masks, mass="absolute")
    assert zeros.values.tolist() == [0.0] * 3
    assert zeros.counted == {"constant maps": 3, "maps of zeros": 3}


@every
def test_a_picture_without_a_mark_is_left_out_and_counted(name: str) -> None:
    maps, masks = drawn(2)
    masks[1] = False
    masks[3] = True
    score = PROTOCOLS[name](maps, masks)
    assert torch.isnan(score.values).tolist() == [False, True, False, False]
    assert score.counted == {"skipped: nothing is marked": 1, "everything is marked": 1}
    assert score.values[3] == 1
    none = PROTOCOLS[name](maps, masks & False)
    assert math.isnan(none.mean)
    assert none.chance is None


def test_a_tolerance_beyond_the_picture() -> None:
    maps, masks = torch.zeros(1, 4, 6), torch.zeros(1, 4, 6)
    maps[0, 0, 0] = masks[0, 3, 5] = 1
    assert [pointing_game(maps, masks, tolerance=d).mean for d in (5.8, 5.9, 1e300)] == [0, 1, 1]


def test_tolerance_is_in_proportion_to_the_side() -> None:
    maps, masks = torch.zeros(2, 224, 300), torch.zeros(2, 224, 300)
    maps[:, 100, 100] = 1
    masks[0, 100, 115] = masks[1, 100, 116] = 1
    assert pointing_game(maps, masks).values.tolist() == [1.0, 0.0]
    share = float((pointing_game(maps, masks, tolerance=1).chance or 0) * 224 * 300)
    assert share == pytest.approx(5)
    assert pointing_game(maps, masks, tolerance=1000).values.tolist() == [1.0, 1.0]


@every
def test_maps_with_channels_are_averaged(name: str) -> None:
    maps, masks = drawn(3)
    split = torch.stack([maps * 3, maps * -1], 1)
    expected = PROTOCOLS[name](maps, masks).values
    assert torch.allclose(PROTOCOLS[name](split, masks).values, expected)
    assert torch.allclose(PROTOCOLS[name](maps.float(), masks.int()).values, expected, atol=1e-6)


# --- bad input -------------------------------------------------------------------------------


@every
def test_protocols_need_masks(name: str) -> None:
    maps, _ = drawn(1)
    with pytest.raises(
        InputError, match=rf"the {name} needs to know where the objects are: give m"
    ):
        PROTOCOLS[name](maps, None)


@every
def test_shapes_and_values(name: str) -> None:
    maps, masks = drawn(1)
    protocol = PROTOCOLS[name]
    for wrong, message in (
        (masks[:, :5], r"masks must be of the shape \(4, 7, 7\), one for each map, got .*\(4, 5"),
        (masks.tolist(), r"masks must be of the shape \(4, 7, 7\), one for each map, got list"),
        (masks * 3.0, r"masks must be true or false \(1 or 0\), got values from 0 to 3. Compare"),
        (masks / 0.0, r"masks must be true or false"),
    ):
        with pytest.raises(InputError, match=message):
            protocol(maps, wrong)
    with pytest.raises(InputError, match=r"maps must be \(B, H, W\) or \(B, C, H, W\), got tor"):
        protocol(maps[0], masks)
    with pytest.raises(InputError, match=r"maps must be .*, got list"):
        protocol(maps.tolist(), masks)
    with pytest.raises(InputError, match="maps must be a tensor of floating-point numbers"):
        protocol(maps.long(), masks)
    maps[1, 0, 0], maps[2, 0, 0] = math.nan, math.inf
    with pytest.raises(InputError, match=r"2 of 4 maps are not finite .* the first is map 1"):
        protocol(maps, masks)


def test_options() -> None:
    maps, masks = drawn(1)
    for tolerance in (-1, "3", math.nan, True):
        wrong: Any = tolerance
        with refused("tolerance"):
            pointing_game(maps, masks, tolerance=wrong)
    unknown: Any = "negative"
    with refused("mass", "'negative'"):
        relevance_mass_accuracy(maps, masks, mass=unknown)
