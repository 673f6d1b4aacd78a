"""Rank correlations, against scipy and a regression of ranks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from omenn.metrics.ranking import mean_ranks, partial_rank_correlation, pearson, spearman

rows = st.lists(st.integers(-3, 3), min_size=5, max_size=5)


def pair(a: list[int], b: list[int]) -> tuple[Tensor, Tensor]:
    return torch.tensor([a], dtype=torch.float64), torch.tensor([b], dtype=torch.float64)


@given(rows)
def test_mean_ranks(row: list[int]) -> None:
    assert mean_ranks(torch.tensor([row])).tolist() == [stats.rankdata(row).tolist()]


@given(rows, rows)
def test_correlations(a: list[int], b: list[int]) -> None:
    found = [float(of(*pair(a, b))) for of in (pearson, spearman)]
    if len(set(a)) == 1 or len(set(b)) == 1:
        assert all(map(math.isnan, found))
    else:
        expected = [stats.pearsonr(a, b).statistic, stats.spearmanr(a, b).statistic]
        assert found == pytest.approx(expected, abs=1e-12)


def test_correlations_stay_in_their_range() -> None:
    a = torch.rand(200, 3, dtype=torch.float64)
    assert pearson(a, 1e-9 * a).max() <= 1
    assert pearson(a, -3 * a).min() >= -1


def test_rows_are_apart() -> None:
    a, b = torch.randn(3, 6), torch.randn(3, 6)
    b[1] = 2.0
    found = spearman(a, b)
    assert found.isnan().tolist() == [False, True, False]
    torch.testing.assert_close(spearman(a[2:], b[2:]), found[2:])


def regressed(a: Tensor, b: Tensor, given: Tensor) -> float:
    """The correlation of what a regression on the given ranks leaves of the ranks of a and of b."""

    def centred(t: Tensor) -> np.ndarray:
        rows = [stats.rankdata(row) for row in t.numpy()]
        return np.concatenate([row - row.mean() for row in rows])

    x, y, z = map(centred, (a, b, given))
    rest = [v - z * (v @ z) / (z @ z) for v in (x, y)]
    return float(rest[0] @ rest[1] / math.sqrt((rest[0] @ rest[0]) * (rest[1] @ rest[1])))


def test_partial_correlation_against_a_regression() -> None:
    for _ in range(20):
        a, b, given = torch.randn(3, 4, 5)
        b = b + a + given
        assert partial_rank_correlation(a, b, given) == pytest.approx(regressed(a, b, given))


def test_what_says_nothing_of_its_own_gets_chance() -> None:
    a, b, given = torch.randn(3, 4, 5)
    assert partial_rank_correlation(given, b, given) == 0
    assert partial_rank_correlation(-given, b, given) == 0
    assert partial_rank_correlation(a, given.exp(), given) == 0
    assert partial_rank_correlation(torch.ones(4, 5), b, given) == 0
    assert partial_rank_correlation(a, torch.ones(4, 5), given) == 0


def test_nothing_to_take_away_leaves_the_plain_correlation() -> None:
    a, b = torch.randn(2, 1, 7)
    plain = float(spearman(a, b))
    assert partial_rank_correlation(a, b, torch.ones(1, 7)) == pytest.approx(plain)


def test_two_noisy_copies_of_a_third_have_little_in_common_beyond_it() -> None:
    """Little, not nothing: the rank among five says less than the quantity."""
    left = []
    for count in (5, 50):
        given = torch.randn(1000, count)
        a, b = given + 0.5 * torch.randn(1000, count), given + 0.5 * torch.randn(1000, count)
        assert float(spearman(a, b).nanmean()) > 0.6
        left.append(abs(partial_rank_correlation(a, b, given)))
    assert left[1] < 0.06 < left[0] < 0.2
