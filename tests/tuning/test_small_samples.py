"""Intervals of few numbers: they hold the true mean as often as they say."""

from __future__ import annotations

import math

import pytest
import torch

from omenn.metrics.score import bootstrap_interval
from omenn.tuning.small_samples import measured, student_quantile


@pytest.mark.parametrize(
    ("degrees", "wanted"),  # published tables: t at 0.975
    [(1, 12.7062), (2, 4.3027), (3, 3.1824), (5, 2.5706), (30, 2.0423), (120, 1.9799)],
)
def test_student(degrees: int, wanted: float) -> None:
    assert student_quantile(0.975, degrees) == pytest.approx(wanted, abs=5e-5)
    assert student_quantile(0.5, degrees) == pytest.approx(0, abs=1e-12)


def test_many_degrees_are_normal() -> None:
    assert student_quantile(0.975, 999) == pytest.approx(student_quantile(0.975, 1001), abs=3e-3)
    assert student_quantile(0.975, 10**6) == pytest.approx(1.959964, abs=1e-5)


def test_coverage_of_eight_numbers() -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(400, 8, generator=generator, dtype=torch.float64)
    ours = [measured(row, seed=k) for k, row in enumerate(drawn)]
    held = sum(one.low <= 0 <= one.high for one in ours) / len(ours)
    plain = [bootstrap_interval(row, seed=k) for k, row in enumerate(drawn)]
    narrow = sum(low <= 0 <= high for low, high in plain) / len(plain)
    assert held == pytest.approx(0.95, abs=0.025)
    assert narrow < 0.92  # without the wider tails


def test_of_what_there_is() -> None:
    few = measured(torch.tensor([2.0]))
    assert (few.value, few.images) == (2.0, 1)
    assert math.isnan(few.low)
    assert math.isnan(measured(torch.zeros(0)).value)
    same = measured(torch.full((9,), 0.5))
    assert (same.low, same.value, same.high) == (0.5, 0.5, 0.5)
    values = torch.randn(40)
    assert measured(values, seed=1) == measured(values, seed=1)
    wide = measured(values)
    low, high = bootstrap_interval(values, resamples=10_000)
    assert wide.low < low
    assert wide.high > high
