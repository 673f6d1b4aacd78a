"""Scores and their intervals: what is left out, and whether an interval covers the truth."""

from __future__ import annotations

import math
import random

import pytest
import torch

from omenn.errors import InputError
from omenn.metrics import score as module
from omenn.metrics.score import Score, bootstrap_interval

NAN = float("nan")


def test_what_is_left_out_does_not_count() -> None:
    score = Score("x", torch.tensor([1.0, NAN, 4.0, NAN]), {"left out": 2, "constant maps": 0})
    assert score.mean == 2.5
    assert score.images == 2
    assert score.valid.tolist() == [1.0, 4.0]
    low, high = score.interval()
    assert 1.0 <= low <= 2.5 <= high <= 4.0
    assert repr(score) == f"Score(x=2.5 [{low:.4g}, {high:.4g}], 2 images, 2 left out)"


def test_a_score_of_nothing() -> None:
    score = Score("x", torch.tensor([NAN, NAN]))
    assert math.isnan(score.mean)
    assert all(map(math.isnan, score.interval()))
    assert score.images == 0


def test_scores_compare_by_identity() -> None:
    score = Score("x", torch.zeros(2))
    assert score in [score]
    assert score != Score("x", torch.zeros(2))


def test_interval_against_a_slow_bootstrap() -> None:
    values = torch.randn(40, dtype=torch.float64)
    draw = random.Random(0)
    means = sorted(
        sum(float(values[draw.randrange(40)]) for _ in range(40)) / 40 for _ in range(4000)
    )
    low, high = bootstrap_interval(values, resamples=4000)
    # the standard error of such a quantile is about 0.006
    assert low == pytest.approx(means[100], abs=0.03)
    assert high == pytest.approx(means[3900], abs=0.03)


def test_one_value_has_no_interval() -> None:
    assert all(map(math.isnan, bootstrap_interval(torch.ones(1))))
    assert all(map(math.isnan, Score("x", torch.tensor([NAN, 2.0])).interval()))
    one = Score("x", torch.tensor([1.0, 2.0]), groups=torch.tensor([7, 7]))
    assert all(map(math.isnan, one.interval()))


def test_values_of_an_image_are_drawn_together() -> None:
    """Against a slow bootstrap over images, each with copies of one value."""
    each = torch.randn(30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    count = [1 + k % 4 for k in range(30)]
    values = torch.cat([each[k].expand(n) for k, n in enumerate(count)])
    groups = torch.cat([torch.full((n,), 100 - k) for k, n in enumerate(count)])
    draw, means = random.Random(0), []
    for _ in range(4000):
        rows = [draw.randrange(30) for _ in range(30)]
        total = sum(count[k] * float(each[k]) for k in rows)
        means.append(total / sum(count[k] for k in rows))
    means.sort()
    low, high = Score("x", values, groups=groups).interval(resamples=4000)
    assert low == pytest.approx(means[100], abs=0.03)
    assert high == pytest.approx(means[3899], abs=0.03)
    apart = bootstrap_interval(values, resamples=4000)
    assert apart[1] - apart[0] < 0.8 * (high - low)


def test_coverage() -> None:
    """Of 300 samples of 40 skewed numbers, the intervals of about 95 % hold the true mean, 1."""
    held = 0
    for trial in range(300):
        values = -torch.rand(40, dtype=torch.float64).log()
        low, high = bootstrap_interval(values, seed=trial, resamples=400)
        held += low <= 1 <= high
    assert 0.88 <= held / 300 <= 0.99


def test_a_lower_level_is_narrower() -> None:
    values = torch.randn(30)
    wide, narrow = bootstrap_interval(values), bootstrap_interval(values, level=0.5)
    assert wide[0] < narrow[0] < float(values.mean()) < narrow[1] < wide[1]


def test_the_same_in_pieces_and_for_a_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.randn(17)
    whole = bootstrap_interval(values, seed=3)
    assert bootstrap_interval(values, seed=3) == whole
    assert bootstrap_interval(values, seed=4) != whole
    monkeypatch.setattr(module, "RESAMPLED", 100)
    assert bootstrap_interval(values, seed=3) == whole


def test_the_callers_random_numbers_stay() -> None:
    before = torch.get_rng_state()
    bootstrap_interval(torch.randn(3, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(torch.get_rng_state(), before)


def test_refused() -> None:
    text = r"needs finite numbers \(N,\), got the shape \(2,\) with 1 that are not finite. Leave"
    with pytest.raises(InputError, match=text):
        bootstrap_interval(torch.tensor([1.0, NAN]))
    with pytest.raises(InputError, match=r"got the shape \(2, 2\) with 0 that are not finite"):
        bootstrap_interval(torch.zeros(2, 2))
    with pytest.raises(InputError, match="with 1 that are not finite"):
        Score("x", torch.tensor([1.0, math.inf])).interval()
