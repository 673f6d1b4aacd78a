"""The conformal bound on data whose truth is known."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from omenn.calibration.conformal import cuts, fitted, hierarchical_quantile, needed
from omenn.calibration.halves import halved, sizes_from
from omenn.calibration.intervals import Interval
from omenn.calibration.interventions import Measured
from omenn.calibration.regions import SIZES

LEVEL, SHARE = 0.9, 0.05


def quantile(scores: list[Tensor], level: float) -> float:
    """The definition: the smallest score that has mass ``level`` at or below it."""
    there = [s.tolist() for s in scores if len(s)]
    for candidate in sorted(x for s in there for x in s):
        mass = sum(sum(x <= candidate for x in s) / len(s) for s in there) / (len(there) + 1)
        if mass >= level - 1e-12:
            return candidate
    return math.inf


@given(
    st.lists(st.lists(st.integers(0, 20), max_size=5), min_size=1, max_size=25),
    st.sampled_from([0.5, 0.8, 0.9]),
)
@settings(max_examples=60)
def test_the_quantile_is_that_of_its_definition(values: list[list[int]], level: float) -> None:
    scores = [torch.tensor(v, dtype=torch.float64) for v in values]
    assert hierarchical_quantile(scores, level) == quantile(scores, level)


@pytest.mark.parametrize("level", [0.5, 0.8, 0.9, 0.95])
def test_fewer_pictures_than_needed_have_no_quantile(level: float) -> None:
    scores = [torch.tensor([float(k)]) for k in range(needed(level))]
    assert hierarchical_quantile(scores, level) == needed(level) - 1
    assert hierarchical_quantile(scores[1:], level) == math.inf
    assert hierarchical_quantile([], level) == math.inf


def simulated(count: int, regions: int, g: torch.Generator) -> list[Measured]:
    """Pictures whose regions share an error and a scale: dependent, skewed, with heavy tails."""
    found = []
    for _ in range(count):
        scale = float(torch.randn((), generator=g, dtype=torch.float64).exp())
        draws = torch.randn(4, regions, generator=g, dtype=torch.float64)
        sums = scale * draws[0] * draws[1].exp()
        error = scale * (draws[2, :1] + draws[2]) * (0.2 + sums.abs()) + 0.3 * draws[3] ** 2
        shares = torch.full((regions,), SHARE, dtype=torch.float64)
        found.append(Measured(shares, sums, 1.5 * sums + 0.4 + error))
    return found


def covered(found: list[Measured], new: list[Measured]) -> tuple[float, float]:
    """How often new drops lie inside, of all regions and of the largest sum of each picture."""
    (size,) = [s for s in sizes_from(*halved(found, 0), LEVEL) if s is not None]
    hits, first = [], []
    for m in new:
        inside = (m.drops - size.fit.expected(m.sums, m.shares)).abs() <= size.half_widths(
            m.sums, LEVEL
        )
        hits.append(float(inside.double().mean()))
        first.append(float(inside[m.sums.abs().argmax()]))
    return sum(hits) / len(hits), sum(first) / len(first)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=4)
def test_intervals_hold_for_new_pictures_as_often_as_they_say(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    rounds, pictures = 24, 120
    found = [covered(simulated(pictures, 4, g), simulated(60, 4, g))[0] for _ in range(rounds)]
    # of one calibration the coverage is a Beta variable of 60 pictures, in each of three parts
    deviation = math.sqrt(LEVEL * (1 - LEVEL) * (1 / 20 + 1 / 60) / rounds)
    mean = sum(found) / rounds
    assert LEVEL - 4 * deviation <= mean <= LEVEL + 3 / 61 + 4 * deviation


def test_pictures_count_and_not_regions() -> None:
    """Easy pictures with many regions do not make intervals too narrow for hard ones with one."""
    g = torch.Generator().manual_seed(0)
    missed, pooled_missed = [], []
    for _ in range(40):
        pictures = [
            torch.rand(20, generator=g) if k % 2 else 10 + torch.rand(1, generator=g)
            for k in torch.randint(0, 2, (60,), generator=g).tolist()
        ]
        q = hierarchical_quantile(pictures, LEVEL)
        pooled = float(torch.cat(pictures).quantile(LEVEL))
        new = [0.5 if k else 10.5 for k in torch.randint(0, 2, (50,), generator=g).tolist()]
        missed.append(sum(x > q for x in new) / 50)
        pooled_missed.append(sum(x > pooled for x in new) / 50)
    assert sum(missed) / 40 <= 0.12
    assert sum(pooled_missed) / 40 > 0.3


def test_the_fit_finds_the_line_and_how_its_error_grows() -> None:
    g = torch.Generator().manual_seed(0)
    sums = torch.randn(4000, generator=g, dtype=torch.float64) * 3
    shares = 0.1 + 0.1 * torch.rand(4000, generator=g, dtype=torch.float64)
    noise = torch.randn(4000, generator=g, dtype=torch.float64)
    fit = fitted(sums, shares, 0.7 * sums + 4 * shares + 0.2 * (sums.abs() + 0.24) * noise)
    assert abs(fit.b - 0.7) < 0.02
    assert abs(fit.a - 4) < 0.2
    assert 0.8 <= fit.c <= 1
    even = fitted(sums, shares, 0.7 * sums + 4 * shares + noise)
    assert even.c < 0.1


@pytest.mark.parametrize("sums", [[0.0] * 12, [2.0] * 12])
def test_a_map_that_says_nothing_has_no_slope_of_its_own(sums: list[float]) -> None:
    m = torch.tensor(sums, dtype=torch.float64)
    p = torch.linspace(0.1, 0.2, 12, dtype=torch.float64)
    fit = fitted(m, p, 3 * p)
    assert torch.allclose(fit.expected(m, p), 3 * p, atol=1e-9)
    assert fit.c == 0
    assert torch.equal(fit.scale(m), torch.ones_like(m))


def test_thirds_only_where_each_has_enough_pictures() -> None:
    many = [torch.tensor([0.1, -1.0, 10.0], dtype=torch.float64) * (1 + k / 40) for k in range(40)]
    assert len(cuts(many, LEVEL)) == 2
    assert cuts(many[:17], LEVEL) == []
    assert cuts([one * 0 for one in many], LEVEL) == []


def test_a_size_of_too_few_pictures_has_no_interval() -> None:
    g = torch.Generator().manual_seed(1)
    sizes = sizes_from(*halved(simulated(60, 3, g), 0), LEVEL)
    assert [size is not None for size in sizes] == [
        low < SHARE <= high for low, high in itertools.pairwise(SIZES)
    ]


def test_large_sums_are_covered_as_well_as_others() -> None:
    g = torch.Generator().manual_seed(2)
    found = [covered(simulated(300, 4, g), simulated(100, 4, g))[1] for _ in range(12)]
    assert sum(found) / 12 > 0.85


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (2.0, 4.4, "costs between 2 and 4.4"),
        (-0.004, 3.2, "costs between 0 and 3.2"),
        (-1.0, 0.5, "changes the logit by −0.5 to +1"),
        (-2.0, 0.001, "adds between 0 and 2"),
        (-2.0, -1.0, "adds between 1 and 2"),
    ],
)
def test_limits_in_words(low: float, high: float, words: str) -> None:
    found = Interval(3.1, low, high, (low + high) / 2, 0.9, 0.05)
    assert found.cost == words
    assert str(found) == f"this region: +3.1, replacing it {words} (90 %)"
