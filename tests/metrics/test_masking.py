"""Insertion, deletion, flipping, SRG: slow loops, and models whose best order is known."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise, permutations
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from omenn.errors import InputError, TargetError
from omenn.metrics.maps import tie_order
from omenn.metrics.masking import (
    deletion,
    insertion,
    insertion_deletion,
    pixel_deletion,
    pixel_flipping,
    softened,
    symmetric_relevance_gain,
)
from omenn.metrics.perturbation import curve
from omenn.metrics.score import Score
from refusals import refused


def insertion_minus_deletion(*arguments: Any, **options: Any) -> Score:
    return insertion_deletion(*arguments, **options)[0]


METRICS = (deletion, insertion, insertion_minus_deletion, pixel_flipping, symmetric_relevance_gain)


@pytest.fixture
def case() -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    net = nn.Sequential(nn.Conv2d(2, 5, 3), nn.GELU(), nn.Flatten(), nn.Linear(5 * 16, 4))
    net = net.double().eval().requires_grad_(False)
    images = torch.randn(3, 2, 6, 6, dtype=torch.float64)
    return net, images, torch.tensor([2, 0, 3]), torch.randn(3, 6, 6, dtype=torch.float64)


# --- slow references: one pixel after the other -----------------------------------------------


def said(f: Callable[[Tensor], Tensor], image: Tensor, target: int, logit: bool) -> float:
    logits = f(image[None])[0].tolist()
    if logit:
        return logits[target]
    return math.exp(logits[target]) / sum(map(math.exp, logits))


def area(line: list[float]) -> float:
    return sum((a + b) / 2 for a, b in pairwise(line)) / (len(line) - 1)


def slow_area(
    f: Any, image: Tensor, target: int, map: Tensor, step: int, fill: Tensor, how: str
) -> float:
    """Pixels of the picture go, or come back, ``step`` at a time; no two values are the same."""
    height, width = map.shape
    places = [(r, c) for r in range(height) for c in range(width)]
    places.sort(key=lambda place: -float(map[place]))
    insert = how == "insertion"
    shown, other = (fill.clone(), image) if insert else (image.clone(), fill)
    line = [said(f, shown, target, how == "flipping")]
    for start in range(0, len(places), step):
        for r, c in places[start : start + step]:
            shown[:, r, c] = other[:, r, c]
        line.append(said(f, shown, target, how == "flipping"))
    assert len(line) == math.ceil(height * width / step) + 1
    return area(line)


def slow_srg(f: Any, image: Tensor, target: int, map: Tensor, side: int) -> float:
    rows, columns = map.shape[0] // side, map.shape[1] // side
    colour = image.mean((1, 2))

    def inside(patch: tuple[int, int]) -> list[tuple[int, int]]:
        r, c = patch
        return [(r * side + i, c * side + j) for i in range(side) for j in range(side)]

    patches = [(r, c) for r in range(rows) for c in range(columns)]
    patches.sort(key=lambda patch: -sum(float(map[place]) for place in inside(patch)))
    areas = []
    for order in (patches[::-1], patches):
        shown = image.clone()
        line = [said(f, shown, target, True)]
        for patch in order:
            for r, c in inside(patch):
                shown[:, r, c] = colour
            line.append(said(f, shown, target, True))
        areas.append(area(line))
    return areas[0] - areas[1]


class TestAgainstTheReference:
    @pytest.mark.parametrize("step", [None, 5, 36])
    def test_areas(self, case: Any, step: int | None) -> None:
        net, images, targets, maps = case
        options: dict[str, Any] = {"step": step, "chunk": 2}
        zero, soft = torch.zeros_like(images), softened(images)
        for metric, how, fill in (
            (deletion, "deletion", zero),
            (insertion, "insertion", soft),
            (pixel_flipping, "flipping", zero),
        ):
            found = metric(net, images, targets, maps, **options)
            expected = [
                slow_area(net, images[k], int(targets[k]), maps[k], step or 1, fill[k], how)
                for k in range(3)
            ]
            assert found.values.tolist() == pytest.approx(expected, abs=1e-12)
            assert found.higher == (how == "insertion")
            assert found.counted == {}

    def test_the_difference(self, case: Any) -> None:
        both = insertion_minus_deletion(*case, step=4)
        expected = insertion(*case, step=4).values - deletion(*case, step=4).values
        assert torch.equal(both.values, expected)
        assert both.higher

    def test_own_fill_and_logits(self, case: Any) -> None:
        net, images, targets, maps = case
        fill = torch.randn_like(images)
        options: dict[str, Any] = {"step": 3, "fill": fill}
        found = deletion(*case, **options, outcome="logit").values
        assert torch.equal(found, pixel_flipping(*case, **options).values)
        expected = [
            slow_area(net, images[k], int(targets[k]), maps[k], 3, fill[k], "flipping")
            for k in range(3)
        ]
        assert found.tolist() == pytest.approx(expected, abs=1e-12)

    @pytest.mark.parametrize("patch", [1, 2, 3, 6])
    def test_srg(self, case: Any, patch: int) -> None:
        net, images, targets, maps = case
        found = symmetric_relevance_gain(*case, patch=patch, chunk=2)
        expected = [slow_srg(net, images[k], int(targets[k]), maps[k], patch) for k in range(3)]
        assert found.values.tolist() == pytest.approx(expected, abs=1e-12)
        assert found.chance == 0

    def test_the_published_step_and_patch(self) -> None:
        """224 pixels of 224 rows, and patches of 16: as many points as published."""
        asked: list[int] = []

        def f(images: Tensor) -> Tensor:
            asked.append(len(images))
            return images[:, 0, :2, 0]

        image, map = torch.rand(1, 1, 224, 224), torch.rand(1, 224, 224)
        deletion(f, image, 0, map)
        assert sum(asked) == 225
        asked.clear()
        symmetric_relevance_gain(f, image, 0, map)
        assert sum(asked) == 2 * (14 * 14 + 1)

    def test_default_patches_divide_the_sides(self) -> None:
        for height, width, patches in ((30, 20, 150), (7, 5, 35), (28, 56, 392)):
            asked: list[int] = []

            def f(images: Tensor, asked: list[int] = asked) -> Tensor:
                asked.append(len(images))
                return images[:, 0, :2, 0]

            symmetric_relevance_gain(
                f, torch.rand(1, 1, height, width), 0, torch.rand(1, height, width)
            )
            assert sum(asked) == 2 * (patches + 1)


class TestSoftened:
    def test_pixel_by_pixel(self) -> None:
        image = torch.randn(1, 2, 7, 9, dtype=torch.float64)
        found = softened(image)

        def mirror(k: int, side: int) -> int:
            return abs(k) if k < side else 2 * (side - 1) - k

        for r, c in ((0, 0), (3, 4), (6, 8), (2, 7)):
            total, mass = torch.zeros(2, dtype=torch.float64), 0.0
            for down in range(-5, 6):
                for right in range(-5, 6):
                    w = math.exp(-(down**2 + right**2) / 50)
                    total += w * image[0, :, mirror(r + down, 7), mirror(c + right, 9)]
                    mass += w
            torch.testing.assert_close(found[0, :, r, c], total / mass)

    @pytest.mark.parametrize("shape", [(1, 1), (1, 6), (4, 4), (3, 8)])
    def test_small_pictures(self, shape: tuple[int, int]) -> None:
        images = torch.full((2, 3, *shape), 0.7)
        torch.testing.assert_close(softened(images), images)


# --- validation: the exact order of an additive model is the best -----------------------------


def linear(weight: Tensor) -> Callable[[Tensor], Tensor]:
    """Two classes: the weighted sum, and nothing."""
    return lambda images: torch.stack([images.flatten(1) @ weight, images[:, 0, 0, 0] * 0], 1)


class TestTruth:
    def test_the_exact_order_is_the_best_of_all(self) -> None:
        weight = torch.randn(6, dtype=torch.float64)
        image = torch.randn(1, 1, 2, 3, dtype=torch.float64)
        orders = torch.tensor(list(permutations(range(6))), dtype=torch.float64).view(-1, 2, 3)
        images = image.expand(len(orders), -1, -1, -1)
        exact = (weight.view(2, 3) * image[:, 0]).expand(len(orders), -1, -1)
        f, options = linear(weight), {"step": 1, "outcome": "logit", "chunk": 1000}
        for metric, best in ((deletion, torch.amin), (insertion, torch.amax)):
            fill = torch.zeros_like(images)
            every = metric(f, images, 0, orders, fill=fill, **options).values
            found = metric(f, images[:1], 0, exact[:1], fill=fill[:1], **options).values
            torch.testing.assert_close(found[0], best(every))
            assert float(every.max() - every.min()) > 0.1

    @given(st.integers(0, 2**32 - 1), st.integers(1, 16))
    @settings(max_examples=25)
    def test_no_random_order_is_better(self, seed: int, step: int) -> None:
        g = torch.Generator().manual_seed(seed)
        weight = torch.randn(16, dtype=torch.float64, generator=g)
        images = torch.randn(4, 1, 4, 4, dtype=torch.float64, generator=g)
        others = torch.randn(4, 4, 4, generator=g)
        f = linear(weight)
        fill = torch.randn(4, 1, 4, 4, dtype=torch.float64, generator=g)
        for metric, sign in ((deletion, -1), (insertion, 1)):
            exact = weight.view(4, 4) * (images - fill)[:, 0]
            found, other = (
                metric(f, images, 0, maps, fill=fill, step=step, outcome="logit").values
                for maps in (exact, others)
            )
            assert (sign * (found - other) >= -1e-9).all()
        fill = images.mean((2, 3), keepdim=True)
        exact = weight.view(4, 4) * (images - fill)[:, 0]
        found, other = (
            symmetric_relevance_gain(f, images, 0, maps, patch=1).values for maps in (exact, others)
        )
        assert (found - other.abs() >= -1e-9).all()

    def test_the_opposite_map_has_the_opposite_gain(self, case: Any) -> None:
        net, images, targets, maps = case
        up, down = (
            symmetric_relevance_gain(net, images, targets, m, patch=2).values for m in (maps, -maps)
        )
        torch.testing.assert_close(up, -down)

    def test_random_and_constant_maps_have_no_gain(self, case: Any) -> None:
        net, images = case[0], case[1][:1].expand(300, -1, -1, -1)
        for maps in (torch.randn(300, 6, 6), torch.ones(300, 6, 6)):
            found = symmetric_relevance_gain(net, images, 2, maps, patch=2)
            error = float(found.values.std()) / 300**0.5
            assert abs(found.mean) < 4 * error < 0.02

    def test_deletion_without_an_effect(self) -> None:
        """A model that looks at nothing: all areas are its one answer."""
        f = linear(torch.zeros(9))
        image, map = torch.rand(2, 1, 3, 3), torch.rand(2, 3, 3)
        assert deletion(f, image, 0, map).values.tolist() == [0.5, 0.5]
        assert insertion_minus_deletion(f, image, 0, map).values.tolist() == [0, 0]
        assert symmetric_relevance_gain(f, image, 0, map).values.tolist() == [0, 0]


class TestTies:
    def test_the_order_among_equals_is_random_from_the_seed(self, case: Any) -> None:
        net, images, targets, _ = case
        maps = torch.zeros(3, 6, 6)
        order = tie_order(3, 36, seed=4)
        for metric in (deletion, insertion, pixel_flipping):
            found = metric(net, images, targets, maps, seed=4)
            ordered = torch.zeros(3, 36).scatter(1, order, -torch.arange(36.0).expand(3, -1))
            same = metric(net, images, targets, ordered.view(3, 6, 6))
            assert torch.equal(found.values, same.values)
            assert found.counted == {"constant maps": 3}
            assert not torch.equal(found.values, metric(net, images, targets, maps).values)

    def test_an_image_has_the_same_value_in_any_batch(self, case: Any) -> None:
        net, images, targets, _ = case
        maps = torch.tensor([0.0, 1.0]).repeat(54).view(3, 6, 6)
        for metric in METRICS:
            whole = metric(net, images, targets, maps).values
            torch.testing.assert_close(
                metric(net, images[:2], targets[:2], maps[:2]).values, whole[:2]
            )
            single = metric(net, images, targets, maps, chunk=1).values
            torch.testing.assert_close(single, whole)

    def test_constant_maps_are_counted(self, case: Any) -> None:
        net, images, targets, maps = case
        maps[1] = 3.0
        for metric in METRICS:
            assert metric(net, images, targets, maps).counted == {"constant maps": 1}


class TestRefused:
    @pytest.mark.parametrize("metric", METRICS)
    def test_shapes_and_numbers(self, case: Any, metric: Callable[..., Any]) -> None:
        net, images, targets, maps = case
        with pytest.raises(InputError, match=r"maps of the shape \(3, 6, 5\) do not fit images"):
            metric(net, images, targets, maps[..., :5])
        maps[2, 3, 3] = math.nan
        with pytest.raises(InputError, match=r"1 of 3 maps are not finite .* first is map 2"):
            metric(net, images, targets, maps)
        with pytest.raises(TargetError, match="target 4 is not among the 4 classes"):
            metric(net, images, 4, torch.zeros(3, 6, 6))
        with pytest.raises(TargetError, match=r"one for each of the 3 images or one for all, got"):
            metric(net, images, torch.tensor([1, 2]), torch.zeros(3, 6, 6))
        with pytest.raises(InputError, match=r"images must be \(B, C, H, W\)"):
            metric(net, images[0], targets, maps)
        with pytest.raises(InputError, match="logits that are not finite"):
            metric(lambda x: x.flatten(1) * math.inf, images, targets, torch.zeros(3, 6, 6))
        with refused("chunk", "0"):
            metric(net, images, targets, torch.zeros(3, 6, 6), chunk=0)

    @pytest.mark.parametrize("step", [0, 37, 1.5, True, "1"])
    def test_steps(self, case: Any, step: Any) -> None:
        with refused("step", repr(step)):
            deletion(*case, step=step)

    @pytest.mark.parametrize("patch", [0, 4, -1, 1.5, True, "2"])
    def test_patches(self, case: Any, patch: Any) -> None:
        with refused("patch", repr(patch)):
            symmetric_relevance_gain(*case, patch=patch)

    def test_fills_outcomes_and_orders(self, case: Any) -> None:
        net, images, targets, _ = case
        text = r"fill has the shape \(1, 2, 6, 6\), the images \(3, 2, 6, 6\)\. Give one picture"
        with pytest.raises(InputError, match=text):
            insertion(*case, fill=images[:1])
        with refused("outcome", "'loss'"):
            deletion(*case, outcome="loss")  # type: ignore[arg-type]
        text = r"order has the shape \(3, 6, 6\), images .*\. Give the indices .*, \(3, 36\)\."
        with pytest.raises(InputError, match=text):
            curve(net, images, targets, torch.zeros(3, 6, 6), images, [0])

    def test_nothing_of_the_callers_changes(self, case: Any) -> None:
        net, images, targets, maps = case
        before = [t.clone() for t in (images, targets, maps)]
        state = torch.get_rng_state()
        for metric in METRICS:
            metric(net, images, targets, maps)
        assert all(torch.equal(a, b) for a, b in zip(before, case[1:], strict=True))
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.is_grad_enabled()


# --- DAVE's pixel deletion ------------------------------------------------------------------------


def test_pixel_deletion_is_the_slow_loop(case: Any) -> None:
    """Least relevant first, blurred, up to 90 %: the mean height of the curve by trapezoids."""
    net, images, targets, maps = case
    found = pixel_deletion(net, images, targets, maps, points=7, kernel=3, sigma=0.8)
    blur = softened(images, 3, 0.8)
    for k in range(3):
        places = [(r, c) for r in range(6) for c in range(6)]
        places.sort(key=lambda place, k=k: float(maps[k][place]))
        line = []
        for point in range(7):
            picture = images[k].clone()
            for r, c in places[: round(0.9 * 36 * point / 6)]:
                picture[:, r, c] = blur[k][:, r, c]
            line.append(said(net, picture, int(targets[k]), logit=False))
        assert float(found.values[k]) == pytest.approx(area(line), abs=1e-12)


def test_published_pixel_deletion_of_224_pixels() -> None:
    f = lambda x: torch.stack([x.flatten(1).sum(1) / 1e3, x.flatten(1).sum(1) * 0], 1)  # noqa: E731
    images, maps = torch.randn(1, 1, 224, 230).double(), torch.randn(1, 224, 230).double()
    own = pixel_deletion(f, images, 0, maps, points=3)
    published = pixel_deletion(f, images, 0, maps, points=3, kernel=31, sigma=7.0)
    assert torch.equal(own.values, published.values)


def test_pixel_deletion_refuses_what_makes_no_curve(case: Any) -> None:
    for options in ({"points": 1}, {"share": 0}, {"share": 1.5}):
        with pytest.raises(InputError):
            pixel_deletion(*case, **options)  # type: ignore[arg-type]
