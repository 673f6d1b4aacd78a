"""Sparseness, complexity, effective complexity: slow sums, Quantus, maps whose score is known."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from omenn.errors import InputError
from omenn.metrics.complexity import complexity, effective_complexity, sparseness
from omenn.metrics.quantus import quantus_metric
from refusals import refused

ALL = [sparseness, complexity, effective_complexity]


def slow(name: str, map: Tensor) -> float:
    """From the definitions: Gini as the mean difference of two pixels over twice the mean."""
    values = [abs(v) for v in map.flatten().tolist()]
    n, total = len(values), sum(values)
    if name == "sparseness":
        return sum(abs(a - b) for a in values for b in values) / (2 * n * total)
    if name == "complexity":
        return -sum(v / total * math.log(v / total) for v in values if v)
    return sum(v > 1e-5 * max(values) for v in values)


@given(st.integers(0, 2**31), st.floats(-6, 6))
@settings(max_examples=25)
def test_against_the_definitions(seed: int, power: float) -> None:
    g = torch.Generator().manual_seed(seed)
    maps = torch.randn(3, 5, 7, generator=g, dtype=torch.float64)
    maps[0] = maps[0].round()
    maps[1] = maps[1] ** 15  # some below a 100 000th of the largest
    maps *= 10**power
    for metric in ALL:
        expected = [slow(metric.__name__, m) for m in maps]
        if metric is effective_complexity:
            expected = [slow("effective", m) for m in maps]
        assert metric(maps).values.tolist() == pytest.approx(expected, rel=1e-9), metric


@pytest.mark.parametrize(
    ("metric", "name", "tolerance"),
    [
        # Quantus adds 1e-7 to values whose sum is at least 1, so n · 1e-7 of the coefficient
        (sparseness, "Sparseness", 63 * 1e-7),
        (complexity, "Complexity", 63 * 1e-12 + 1e-9),  # and 1e-12 to the shares
        (effective_complexity, "EffectiveComplexity", 0),
    ],
)
def test_against_quantus(metric: Any, name: str, tolerance: float) -> None:
    pytest.importorskip("quantus")
    maps = torch.randn(4, 9, 7) ** 5
    images, net = torch.rand(4, 3, 9, 7), torch.nn.Flatten().eval()
    one = quantus_metric(name, net, images, 0, lambda x, t: maps, normalise=True)
    found = metric(maps)
    assert float((found.values - one.values).abs().max()) <= tolerance
    assert found.higher == one.higher


class TestKnown:
    def test_one_pixel_of_many(self) -> None:
        map = torch.zeros(1, 4, 5)
        map[0, 2, 3] = -3.0
        assert sparseness(map).values.tolist() == pytest.approx([1 - 1 / 20])
        assert complexity(map).values.tolist() == [0.0]
        assert effective_complexity(map).values.tolist() == [1.0]

    @pytest.mark.parametrize("value", [0.0, 2.0, -1e-30, 0.1])
    def test_constant_maps_are_counted_and_not_rewarded(self, value: float) -> None:
        """Zero everywhere is as constant as any other value, and gets the same."""
        maps = torch.stack([torch.full((4, 5), value), torch.eye(4, 5)])
        for metric, expected in zip(ALL, (0.0, math.log(20), 20.0), strict=True):
            found = metric(maps)
            assert float(found.values[0]) == pytest.approx(expected, abs=1e-12)
            assert dict(found.counted) == {"constant maps": 1}
            worse = found.values[0] < found.values[1]
            assert bool(worse) == found.higher

    def test_normal_numbers(self) -> None:
        """E|a − b| / (2 E a) of two half-normal numbers is √2 − 1."""
        found = sparseness(torch.randn(40, 50, 50))
        spread = float(found.values.std()) / math.sqrt(40)
        assert abs(found.mean - (math.sqrt(2) - 1)) < 4 * spread + 1 / 2500

    def test_the_share_that_counts(self) -> None:
        map = torch.tensor([[[1.0, -0.5], [0.25, 0.0]]])
        counts = [effective_complexity(map, eps=e).values[0] for e in (0, 0.25, 0.3, 0.5, 0.9)]
        assert counts == [3, 2, 2, 1, 1]


@pytest.mark.parametrize("metric", ALL)
class TestEveryMetric:
    def test_scale_sign_and_batch_do_not_matter(self, metric: Any) -> None:
        maps = torch.randn(3, 6, 5)
        found = metric(maps).values
        scaled = maps * torch.tensor([1e-20, -7.0, 1e9]).view(3, 1, 1)
        torch.testing.assert_close(metric(scaled).values, found, rtol=1e-6, atol=0)
        torch.testing.assert_close(metric(maps[1:2]).values, found[1:2])

    def test_channels_are_averaged(self, metric: Any) -> None:
        maps = torch.randn(3, 2, 6, 5, dtype=torch.float64)
        assert torch.equal(metric(maps).values, metric(maps.mean(1)).values)

    def test_the_maps_are_left_alone(self, metric: Any) -> None:
        maps = torch.randn(2, 3, 4, requires_grad=True)
        before = maps.detach().clone()
        found = metric(maps)
        assert torch.equal(maps, before)
        assert (found.values.requires_grad, found.values.dtype) == (False, torch.float64)

    def test_what_is_no_map(self, metric: Any) -> None:
        with pytest.raises(
            InputError, match=r"maps must be \(B, H, W\), or \(B, C, H, W\).*\(4,\)"
        ):
            metric(torch.ones(4))
        with pytest.raises(InputError, match="with channels, got list"):
            metric([1.0])
        with pytest.raises(InputError, match="maps must be a tensor of floating-point numbers"):
            metric(torch.ones(1, 2, 2, dtype=torch.int64))
        with pytest.raises(InputError, match=r"1 of 2 maps are not finite.* map 1"):
            metric(torch.tensor([[[0.0]], [[torch.inf]]]))


@pytest.mark.parametrize("eps", [-0.1, 1, True, "small", math.nan])
def test_a_share_out_of_range(eps: Any) -> None:
    with refused("eps", str(eps)):
        effective_complexity(torch.ones(1, 2, 2), eps=eps)
