"""Faithfulness: against slow loops, against Quantus with the same draws, on additive models."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from metrics.toys import signed_sum
from omenn.errors import InputError, TargetError
from omenn.metrics.explainers import explainer
from omenn.metrics.faithfulness import (
    completeness,
    faithfulness_correlation,
    faithfulness_estimate,
    monotonicity_correlation,
    sensitivity_curve,
    sensitivity_n,
)
from omenn.metrics.quantus import quantus_metric
from omenn.metrics.removal import LEVEL, filled
from refusals import refused

ALL = [faithfulness_correlation, sensitivity_n, faithfulness_estimate, monotonicity_correlation]


def network(channels: int = 2, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(5)
    net = nn.Sequential(nn.Conv2d(channels, 6, 3), nn.GELU(), nn.Flatten(), nn.Linear(6 * 35, 4))
    return net.to(dtype).eval().requires_grad_(False)


@pytest.fixture
def case() -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    images = torch.rand(3, 2, 9, 7, dtype=torch.float64)
    return network(), images, torch.tensor([2, 0, 1]), torch.randn(3, 9, 7, dtype=torch.float64)


# --- the oracle: set by set, float64 ------------------------------------------------------------


def slow_pearson(a: list[float], b: list[float]) -> float:
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    shared = sum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True))
    return shared / math.sqrt(sum((x - mean_a) ** 2 for x in a) * sum((y - mean_b) ** 2 for y in b))


def slow_ranks(a: list[float]) -> list[float]:
    return [sum(x < y for x in a) + (sum(x == y for x in a) + 1) / 2 for y in a]


def slow_drop(
    f: Callable[[Tensor], Tensor], image: Tensor, target: int, places: list[int], fill: float
) -> float:
    """What is lost as the pixels at these places get one value in all channels."""
    changed = image.clone()
    for place in places:
        changed[:, place // image.shape[2], place % image.shape[2]] = fill
    return float(f(image[None])[0, target] - f(changed[None])[0, target])


def random_sets(count: int, sizes: list[int], runs: int, images: int, seed: int) -> Any:
    """[image][size][run]: the sets that are drawn, as lists of features."""
    g = torch.Generator().manual_seed(seed)
    return [
        [torch.rand(runs, count, generator=g).topk(size, 1).indices.tolist() for size in sizes]
        for _ in range(images)
    ]


def slow_correlation(case: Any, sets: list[Any], k: int, fill: float) -> float:
    net, images, targets, maps = case
    flat = maps[k].flatten().tolist()
    sums = [sum(flat[p] for p in places) for places in sets]
    drops = [slow_drop(net, images[k], int(targets[k]), places, fill) for places in sets]
    return slow_pearson(sums, drops)


class TestAgainstTheOracle:
    @pytest.mark.parametrize("fill", ["black", "white", "mean", "zero", 0.3])
    def test_faithfulness_correlation(self, fill: Any, case: Any) -> None:
        sets = random_sets(63, [7], 12, 3, seed=4)
        found = faithfulness_correlation(*case, subset=7, runs=12, fill=fill, seed=4)
        for k in range(3):
            x = case[1][k]
            value = {"black": x.min(), "white": x.max(), "mean": x.mean(), "zero": 0}.get(
                fill, fill
            )
            expected = slow_correlation(case, sets[k][0], k, float(value))
            assert float(found.values[k]) == pytest.approx(expected, abs=1e-10)

    def test_sensitivity(self, case: Any) -> None:
        sets = random_sets(63, [1, 20, 50], 9, 3, seed=0)
        curve = sensitivity_curve(*case, sizes=[1, 20, 50], runs=9)
        for k in range(3):
            expected = [slow_correlation(case, sets[k][n], k, 0.0) for n in range(3)]
            assert curve[k].tolist() == pytest.approx(expected, abs=1e-10)
        found = sensitivity_n(*case, sizes=[1, 20, 50], runs=9)
        torch.testing.assert_close(found.values, curve.mean(1))

    @pytest.mark.parametrize("step", [1, 5, 9])  # 63 pixels: one by one, a shorter last set, even
    def test_faithfulness_estimate(self, step: int, case: Any) -> None:
        found = faithfulness_estimate(*case, step=step)
        for k in range(3):
            flat = case[3][k].flatten().tolist()
            order = sorted(range(63), key=lambda p: -flat[p])
            sets = [order[start : start + step] for start in range(0, 63, step)]
            expected = slow_correlation(case, sets, k, float(case[1][k].min()))
            assert float(found.values[k]) == pytest.approx(expected, abs=1e-10)

    @pytest.mark.parametrize("step", [1, 5, 9])
    def test_monotonicity_correlation(self, step: int, case: Any) -> None:
        net, images, targets, maps = case
        found = monotonicity_correlation(*case, step=step, samples=3, seed=6)
        g = torch.Generator().manual_seed(6)
        for k in range(3):
            low, high = float(images[k].min()), float(images[k].max())
            fills = [low + (high - low) * u for u in torch.rand(3, generator=g).tolist()]
            flat = maps[k].flatten().abs().tolist()
            order = sorted(range(63), key=lambda p: flat[p])
            sets = [order[start : start + step] for start in range(0, 63, step)]
            sums = [sum(flat[p] for p in places) for places in sets]
            squares = [
                sum(slow_drop(net, images[k], int(targets[k]), s, fill) ** 2 for fill in fills) / 3
                for s in sets
            ]
            expected = slow_pearson(slow_ranks(sums), slow_ranks(squares))
            assert float(found.values[k]) == pytest.approx(expected, abs=1e-10)

    def test_probabilities(self, case: Any) -> None:
        net, *rest = case
        sharp = lambda x: 30 * net(x)  # noqa: E731
        soft = lambda x: sharp(x).softmax(1)  # noqa: E731
        given = faithfulness_correlation(soft, *rest)
        found = faithfulness_correlation(sharp, *rest, outcome="probability")
        torch.testing.assert_close(found.values, given.values)
        assert not torch.allclose(found.values, faithfulness_correlation(sharp, *rest).values)

    def test_default_sizes(self) -> None:
        """224 of 224 x 224 pixels, and in proportion; sizes from 1 % to 80 %."""
        seen: list[int] = []

        def f(x: Tensor) -> Tensor:
            seen.extend((x == 0).flatten(1).sum(1).tolist())
            return x.flatten(1).sum(1, keepdim=True)

        images = torch.ones(1, 1, 64, 64)
        faithfulness_correlation(f, images, 0, torch.rand(1, 64, 64), fill="zero", runs=2)
        assert seen[1:] == [18, 18]
        faithfulness_correlation(
            f, torch.ones(1, 1, 224, 224), 0, torch.rand(1, 224, 224), fill="zero", runs=2
        )
        assert seen[-2:] == [224, 224]
        seen.clear()
        sensitivity_curve(f, images, 0, torch.rand(1, 64, 64), runs=2)
        sizes = seen[1::2]
        assert len(sizes) == 8
        assert (sizes[0], sizes[-1]) == (41, 3277)
        ratios = [b / a for a, b in pairwise(sizes)]
        assert max(ratios) / min(ratios) < 1.02


class TestAgainstQuantus:
    """With its random draws replaced by ours; a channel of a pixel is a feature there."""

    @pytest.fixture
    def single(self) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
        pytest.importorskip("quantus")
        images, maps = torch.rand(3, 2, 9, 7), torch.randn(3, 9, 7)
        return network(dtype=torch.float32), images, torch.tensor([2, 0, 1]), maps

    def ask(self, name: str, case: Any, **options: Any) -> Tensor:
        net, images, targets, maps = case
        given = quantus_metric(
            name, net, images, targets, lambda x, t: maps, softmax=False, **options
        )
        return given.values

    def test_faithfulness_correlation(self, single: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        sets = random_sets(126, [20], 30, 3, seed=2)
        drawn = iter([torch.tensor(sets[k][0][run]).numpy() for run in range(30) for k in range(3)])
        monkeypatch.setattr("numpy.random.choice", lambda n, size, replace: next(drawn))
        expected = self.ask("FaithfulnessCorrelation", single, subset_size=20, nr_runs=30)
        assert next(drawn, None) is None
        found = faithfulness_correlation(*single, subset=20, runs=30, features="values", seed=2)
        torch.testing.assert_close(found.values, expected, atol=2e-4, rtol=0)
        again = sensitivity_n(*single, sizes=[20], runs=30, features="values", seed=2, fill="black")
        torch.testing.assert_close(again.values, expected, atol=2e-4, rtol=0)

    @pytest.mark.parametrize("step", [1, 7])
    def test_faithfulness_estimate(self, step: int, single: Any) -> None:
        # the two channels of a pixel have the same value, and their order is not defined; so one
        _, images, targets, maps = single
        single = (network(1, torch.float32), images[:, :1], targets, maps)
        expected = self.ask("FaithfulnessEstimate", single, features_in_step=step)
        found = faithfulness_estimate(*single, step=step, features="values")
        torch.testing.assert_close(found.values, expected, atol=2e-4, rtol=0)

    def test_monotonicity_correlation(self, single: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        _, images, targets, maps = single
        single = (network(1, torch.float32), images[:, :1], targets, maps)
        g = torch.Generator().manual_seed(0)
        fills = torch.stack([torch.rand(4, generator=g) for _ in range(3)])

        def draws() -> Iterator[Any]:
            while True:
                for sample in range(4):
                    yield fills[:, sample].numpy()

        drawn = draws()
        monkeypatch.setattr("numpy.random.uniform", lambda low, high, size: next(drawn))
        expected = self.ask("MonotonicityCorrelation", single, features_in_step=7, nr_samples=4)
        found = monotonicity_correlation(*single, step=7, samples=4, low=0.0, high=1.0)
        torch.testing.assert_close(found.values, expected, atol=1e-9, rtol=0)


# --- known answers ------------------------------------------------------------------------------


@given(st.integers(0, 2**31), st.sampled_from(["black", "white", "mean", "zero", "blur", 0.7]))
@settings(max_examples=20)
def test_exact_maps_of_additive_models_are_faithful(seed: int, fill: Any) -> None:
    g = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)  # noqa: E731
    images, weight = draw(2, 3, 8, 8), draw(3, 8, 8)
    exact = (weight * (images - filled(images, fill))).sum(1)
    for sign in (1, -1):
        given: Any = (signed_sum(weight), images, 0, sign * exact)
        found = [
            faithfulness_correlation(*given, fill=fill, subset=5, runs=10),
            sensitivity_n(*given, fill=fill, sizes=[1, 9, 40], runs=10),
            faithfulness_estimate(*given, fill=fill, step=5),
        ]
        for score in found:
            assert float((score.values - sign).abs().max()) < 1e-9, score.name
            assert (score.higher, score.chance, dict(score.counted)) == (True, 0.0, {})


def test_what_matters_more_squared_is_monotone() -> None:
    """x = 0 and one fill: the drop is w · fill, so its square rises with |w|."""
    weight = torch.randn(1, 8, 8, dtype=torch.float64)
    images = torch.zeros(2, 1, 8, 8, dtype=torch.float64)
    given: Any = (signed_sum(weight), images, 0, weight.expand(2, -1, -1))
    found = monotonicity_correlation(*given, step=1, low=1.0, high=2.0)
    assert found.values.tolist() == pytest.approx([1.0, 1.0])


def test_random_maps_are_at_chance() -> None:
    """Pearson's r of m independent pairs has deviation 1/√(m − 1)."""
    weight = torch.randn(1, 16, 16, dtype=torch.float64)
    images = torch.randn(60, 1, 16, 16, dtype=torch.float64)
    maps = torch.randn(60, 16, 16, dtype=torch.float64)
    given: Any = (signed_sum(weight), images, 0, maps)
    # an image's map and drops overlap by chance, too: of 256 values, which has deviation 1/16
    spread = math.sqrt(1 / 49 + 1 / 255)
    for found in (
        faithfulness_correlation(*given, runs=50, subset=5),
        faithfulness_estimate(*given, step=5),
    ):
        assert abs(found.mean) < 4 * spread / math.sqrt(60)
    low, high = found.interval()
    assert low < found.mean < high


# --- ties, counts, what must not matter ---------------------------------------------------------


@pytest.mark.parametrize("metric", ALL)
class TestEveryMetric:
    def test_constant_maps_get_chance_and_are_counted(self, metric: Any, case: Any) -> None:
        net, images, targets, maps = case
        maps = maps.clone()
        maps[1] = 0.1
        if metric in (faithfulness_estimate, monotonicity_correlation):
            metric = partial(metric, step=5)  # the last set is smaller, and so is its sum
        found = metric(net, images, targets, maps)
        assert found.values[1] == 0.0
        assert found.values[0] != 0.0
        assert dict(found.counted) == {"constant maps": 1}
        assert found.images == 3

    def test_a_model_that_never_answers_is_counted(self, metric: Any, case: Any) -> None:
        _, images, targets, maps = case
        found = metric(lambda x: torch.ones(len(x), 4), images, targets, maps)
        assert found.values.tolist() == [0, 0, 0]
        assert dict(found.counted) == {LEVEL: 3}

    def test_seeds_batches_and_chunks(self, metric: Any, case: Any) -> None:
        net, images, targets, maps = case
        maps = (2 * maps).round()  # with many ties
        if metric in (faithfulness_estimate, monotonicity_correlation):
            metric = partial(metric, step=5)
        seen = []

        def f(x: Tensor) -> Tensor:
            seen.append((len(x), torch.is_grad_enabled()))
            return net(x)

        whole = metric(net, images, targets, maps, seed=3)
        small = metric(f, images, targets, maps, seed=3, chunk=2)
        first = metric(net, images[:2], targets[:2], maps[:2], seed=3)
        torch.testing.assert_close(small.values, whole.values)
        torch.testing.assert_close(first.values, whole.values[:2])
        assert not torch.allclose(metric(net, images, targets, maps, seed=4).values, whole.values)
        assert max(seen) == (2, False)

    def test_scale_does_not_matter_and_channels_are_averaged(self, metric: Any, case: Any) -> None:
        net, images, targets, maps = case
        plain = metric(net, images, targets, maps)
        larger = metric(net, images, targets, 100 * maps)
        channels = metric(net, images, targets, torch.stack([3 * maps, -maps], 1))
        torch.testing.assert_close(larger.values, plain.values)
        torch.testing.assert_close(channels.values, plain.values)

    def test_what_the_caller_owns_is_left_alone(self, metric: Any, case: Any) -> None:
        net, images, targets, maps = case
        images.requires_grad_()
        before = [t.detach().clone() for t in (images, targets, maps, torch.get_rng_state())]
        found = metric(net, images, targets, maps)
        after = (images, targets, maps, torch.get_rng_state())
        assert all(map(torch.equal, before, after))
        assert torch.is_grad_enabled()
        assert not found.values.requires_grad
        assert found.values.dtype == torch.float64

    def test_wrong_shapes_name_both(self, metric: Any, case: Any) -> None:
        net, images, targets, maps = case
        with pytest.raises(InputError, match=r"\(3, 7, 9\) do not fit images.*\(3, 2, 9, 7\)"):
            metric(net, images, targets, maps.mT)
        with pytest.raises(InputError, match="1 of 3 maps are not finite"):
            metric(net, images, targets, maps.index_fill(0, torch.tensor([1]), torch.nan))
        with pytest.raises(TargetError, match="target 4 is not among the 4 classes"):
            metric(net, images, 4, maps)

    @pytest.mark.parametrize(
        ("option", "value"),
        [("features", "superpixels"), ("outcome", "loss"), ("chunk", 0), ("seed", -1)],
    )
    def test_shared_options(self, metric: Any, option: str, value: Any, case: Any) -> None:
        with refused(option, repr(value)):
            metric(*case, **{option: value})


@pytest.mark.parametrize(
    ("metric", "option", "value"),
    [
        (faithfulness_correlation, "subset", 64),
        (faithfulness_correlation, "subset", 2.5),
        (faithfulness_correlation, "runs", 1),
        (faithfulness_estimate, "step", 32),
        (monotonicity_correlation, "step", 0),
        (monotonicity_correlation, "samples", 0),
    ],
)
def test_numbers_out_of_range(metric: Any, option: str, value: Any, case: Any) -> None:
    with refused(option, repr(value)):
        metric(*case, **{option: value})


@pytest.mark.parametrize(
    ("metric", "option", "text"),
    [
        (faithfulness_correlation, {"fill": "blak"}, "fill='blak' is not known: did you mean 'bl"),
        (faithfulness_correlation, {"fill": torch.ones(1)}, r"fill has the shape \(1,\), the imag"),
        (faithfulness_correlation, {"fill": True}, "fill=True is not known: known are black"),
        (sensitivity_n, {"sizes": []}, "sizes must be a list of how many"),
        (sensitivity_n, {"sizes": [3, 0]}, "a size of sizes must be an integer"),
    ],
)
def test_options_out_of_range(metric: Any, option: Any, text: str, case: Any) -> None:
    with pytest.raises(InputError, match=text):
        metric(*case, **option)


def test_pictures_as_fill(case: Any) -> None:
    net, images, targets, maps = case
    fill = torch.rand_like(images)
    found = faithfulness_correlation(*case, fill=fill, subset=63 // 3)
    sets = random_sets(63, [21], 100, 3, seed=0)[1][0]
    flat = maps[1].flatten()
    drops = []
    for places in sets:
        changed = images[1].flatten(1).clone()
        changed[:, places] = fill[1].flatten(1)[:, places]
        drops.append(float((net(images[1:2]) - net(changed.view(1, 2, 9, 7)))[0, targets[1]]))
    expected = slow_pearson([float(flat[p].sum()) for p in sets], drops)
    assert float(found.values[1]) == pytest.approx(expected, abs=1e-10)


class TestCompleteness:
    def test_exact_maps_and_those_without_the_bias(self, case: Any) -> None:
        net, images, targets, _ = case
        with_bias = explainer(net, "omenn")(images, targets)
        without = explainer(net, "input-x-gradient")(images, targets)
        assert completeness(net, images, targets, with_bias).values.tolist() == [1, 1, 1]
        assert completeness(net, images, targets, without).values.tolist() == [0, 0, 0]
        filled_in = completeness(net, images, targets, with_bias, fill="mean")
        assert filled_in.values.tolist() == [0, 0, 0]

    def test_tolerance_and_channels(self, case: Any) -> None:
        net, images, targets, _ = case
        off = 1.01 * explainer(net, "omenn")(images, targets)
        for tolerance, expected in ((0.011, 1.0), (0.009, 0.0)):
            found = completeness(net, images, targets, off, tolerance=tolerance)
            assert found.values.tolist() == [expected] * 3
        weight = torch.randn(2, 9, 7, dtype=torch.float64)
        difference = weight * (images - filled(images, "black"))
        found = completeness(signed_sum(weight), images, 0, difference, fill="black")
        assert found.values.tolist() == [1, 1, 1]
        flat = completeness(net, images, targets, torch.ones(3, 9, 7))
        assert dict(flat.counted) == {"constant maps": 3}
        with refused("tolerance", "2"):
            completeness(net, images, targets, off, tolerance=2)
