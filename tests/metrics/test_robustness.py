"""Sensitivity and Lipschitz estimate: slow loops, Quantus with the same noise, linear maps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from omenn.errors import InputError, TargetError
from omenn.metrics.explainers import TRIVIAL, explainer
from omenn.metrics.quantus import quantus_metric
from omenn.metrics.robustness import (
    ZEROS,
    avg_sensitivity,
    local_lipschitz,
    max_sensitivity,
    sensitivities,
)
from refusals import refused

ALL = [max_sensitivity, avg_sensitivity, local_lipschitz]


@pytest.fixture
def case() -> tuple[nn.Module, Tensor, Tensor]:
    net = nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 35, 4))
    return net.eval().requires_grad_(False), torch.rand(3, 2, 9, 7), torch.tensor([2, 0, 1])


def drawn(images: Tensor, kind: str, size: float, samples: int, seed: int) -> list[list[Tensor]]:
    """[image][sample]: the noise, drawn picture by picture."""
    g = torch.Generator().manual_seed(seed)

    def one(x: Tensor) -> Tensor:
        if kind == "uniform":
            return (2 * torch.rand(x.shape, generator=g) - 1) * size
        return torch.randn(x.shape, generator=g) * size

    return [[one(x) for _ in range(samples)] for x in images]


def slow(name: str, explain: Any, image: Tensor, target: Tensor, noise: list[Tensor]) -> float:
    """One image, one noisy picture after the other."""

    def map(x: Tensor) -> list[float]:
        values = explain(x[None], target[None])[0].flatten().tolist()
        most = max(abs(v) for v in values)
        return [v / most for v in values] if name == "lipschitz" else values

    length = lambda values: math.sqrt(sum(v * v for v in values))  # noqa: E731
    own, found = map(image), []
    for delta in noise:
        moved = length([a - b for a, b in zip(map(image + delta), own, strict=True)])
        far = length(((image + delta) - image).flatten().tolist())
        found.append(moved / (far if name == "lipschitz" else length(own)))
    return sum(found) / len(found) if name == "average" else max(found)


@pytest.mark.parametrize(
    ("metric", "name", "kind", "size"),
    [
        (max_sensitivity, "maximum", "uniform", "radius"),
        (avg_sensitivity, "average", "uniform", "radius"),
        (local_lipschitz, "lipschitz", "normal", "sigma"),
    ],
)
def test_against_the_oracle(metric: Any, name: str, kind: str, size: str, case: Any) -> None:
    net, images, targets = case
    explain = explainer(net, "omenn")
    found = metric(explain, images, targets, **{size: 0.3}, samples=5, seed=7)
    noise = drawn(images, kind, 0.3, 5, 7)
    expected = [slow(name, explain, images[k], targets[k], noise[k]) for k in range(3)]
    assert found.values.tolist() == pytest.approx(expected, rel=1e-4)
    assert not found.higher
    assert dict(found.counted) == {}


@pytest.mark.parametrize(
    ("metric", "name", "kind", "size"),
    [
        (max_sensitivity, "MaxSensitivity", "uniform", 0.2),
        (avg_sensitivity, "AvgSensitivity", "uniform", 0.2),
        (local_lipschitz, "LocalLipschitzEstimate", "normal", 0.1),
    ],
)
def test_against_quantus(
    metric: Any, name: str, kind: str, size: float, case: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At its own radius and deviation, with its noise replaced by ours."""
    pytest.importorskip("quantus")
    net, images, targets = case
    noise = drawn(images, kind, size, 6, 0)

    def steps(**_: Any) -> Any:
        return next(given)

    given: Iterator[Any] = iter(
        [torch.stack([noise[k][s] for k in range(3)]).flatten(1).numpy() for s in range(6)]
    )
    monkeypatch.setattr(f"numpy.random.{kind}", steps)
    explain = explainer(net, "omenn")
    options = {"normalise": True} if name == "LocalLipschitzEstimate" else {}
    one = quantus_metric(name, net, images, targets, explain, nr_samples=6, **options)
    assert next(given, None) is None
    found = metric(explain, images, targets, samples=6)
    torch.testing.assert_close(found.values, one.values, rtol=2e-4, atol=0)
    assert found.higher == one.higher


class TestKnown:
    def test_a_linear_map(self) -> None:
        """a(x) = 3x: ‖Δa‖/‖a‖ = ‖δ‖/‖x‖, and ‖Δa‖/‖δ‖ = 3."""
        triple: Callable[..., Tensor] = lambda x, t: 3 * x[:, 0]  # noqa: E731
        images = torch.rand(2, 1, 6, 5, dtype=torch.float64) + 1
        noise = drawn(images, "uniform", 0.2, 4, 0)
        expected = [
            [float(d.double().norm() / images[k].norm()) for d in noise[k]] for k in range(2)
        ]
        most, mean = sensitivities(triple, images, torch.tensor([0, 0]), samples=4)
        assert most.values.tolist() == pytest.approx([max(e) for e in expected])
        assert mean.values.tolist() == pytest.approx([sum(e) / 4 for e in expected])
        found = local_lipschitz(triple, images, 0, samples=4, normalise=False)
        assert found.values.tolist() == pytest.approx([3, 3])

    def test_a_map_that_ignores_the_picture_has_zero_and_is_counted_where_constant(self) -> None:
        images = torch.rand(3, 1, 6, 5)
        for metric in ALL:
            centre = metric(TRIVIAL["centre"], images, 0, samples=2)
            constant = metric(TRIVIAL["constant"], images, 0, samples=2)
            assert centre.values.tolist() == constant.values.tolist() == [0, 0, 0]
            assert (dict(centre.counted), dict(constant.counted)) == ({}, {"constant maps": 3})

    def test_maps_of_zeros_are_left_out_where_there_is_no_number(self) -> None:
        images = torch.rand(3, 1, 6, 5) + 1
        images[1] = 0
        plain: Callable[..., Tensor] = lambda x, t: x[:, 0]  # noqa: E731
        for metric in (max_sensitivity, avg_sensitivity):
            found = metric(plain, images, 0, samples=3)
            assert found.values.isnan().tolist() == [False, True, False]
            assert dict(found.counted) == {"constant maps": 1, ZEROS: 1}
        found = local_lipschitz(plain, images, 0, samples=3)
        assert found.images == 3

    def test_noise_stays_within_the_radius_and_has_the_deviation(self) -> None:
        seen: list[Tensor] = []

        def explain(x: Tensor, t: Tensor) -> Tensor:
            seen.append(x)
            return x[:, 0]

        images = torch.ones(1, 1, 20, 20)
        max_sensitivity(explain, images, 0, radius=0.3, samples=30)
        noise = torch.cat(seen[1:]) - 1
        assert 0.29 < float(noise.abs().max()) <= 0.3 + 1e-6
        assert abs(float(noise.mean())) < 4 * 0.3 / math.sqrt(3 * noise.numel())
        seen.clear()
        local_lipschitz(explain, images, 0, sigma=0.3, samples=30)
        noise = torch.cat(seen[1:]) - 1
        assert abs(float(noise.std()) / 0.3 - 1) < 4 / math.sqrt(2 * noise.numel())


@pytest.mark.parametrize("metric", ALL)
class TestEveryMetric:
    def test_seeds_batches_and_chunks(self, metric: Any, case: Any) -> None:
        net, images, targets = case
        explain, sizes = explainer(net, "omenn"), []

        def watched(x: Tensor, t: Tensor) -> Tensor:
            sizes.append(len(x))
            assert len(t) == len(x)
            return explain(x, t)

        whole = metric(explain, images, targets, samples=5, seed=3)
        small = metric(watched, images, targets, samples=5, seed=3, chunk=2)
        first = metric(explain, images[:2], targets[:2], samples=5, seed=3)
        torch.testing.assert_close(small.values, whole.values, rtol=1e-4, atol=0)
        torch.testing.assert_close(first.values, whole.values[:2], rtol=1e-4, atol=0)
        other = metric(explain, images, targets, samples=5, seed=4)
        assert not torch.allclose(other.values, whole.values, rtol=1e-3)
        assert max(sizes) == 2

    def test_what_the_caller_owns_is_left_alone(self, metric: Any, case: Any) -> None:
        net, images, targets = case
        before = [t.clone() for t in (images, targets, torch.get_rng_state())]
        found = metric(explainer(net, "omenn"), images, targets, samples=2)
        assert all(map(torch.equal, before, (images, targets, torch.get_rng_state())))
        assert (found.values.requires_grad, found.values.dtype) == (False, torch.float64)

    def test_errors(self, metric: Any, case: Any) -> None:
        _, images, targets = case
        plain: Callable[..., Tensor] = lambda x, t: x[:, 0]  # noqa: E731
        with pytest.raises(InputError, match=r"maps of the shape \(3, 7, 9\) do not fit images"):
            metric(lambda x, t: x[:, 0].mT, images, targets)
        with pytest.raises(InputError, match="3 of 3 maps are not finite"):
            metric(lambda x, t: x[:, 0] / 0, images, targets)
        with refused("samples", "0"):
            metric(plain, images, targets, samples=0)
        with refused("chunk", "0"):
            metric(plain, images, targets, chunk=0)
        with refused("seed", "0.5"):
            metric(plain, images, targets, seed=0.5)
        with pytest.raises(TargetError, match="one for each of the 3 images"):
            metric(plain, images, targets[:2])
        name = "sigma" if metric is local_lipschitz else "radius"
        for value in (0, -1.0, math.inf, "0.1", True):
            with pytest.raises(InputError, match=f"{name} must be"):
                metric(plain, images, targets, **{name: value})
