"""Keep and remove: against a slow loop over pixels, on a model whose best order is known."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from metrics.toys import signed_sum
from omenn.errors import InputError, TargetError
from omenn.metrics.keep_remove import FRACTIONS, VARIANTS, blurred, keep_remove
from refusals import refused

# --- the oracle: pixel by pixel, float64 ------------------------------------------------------


def slow_blur(image: Tensor, kernel: int, sigma: float) -> Tensor:
    """One (C, H, W): each pixel as the weighted mean of the square around it."""

    def mirror(k: int, side: int) -> int:
        k = abs(k)
        return k if k < side else 2 * (side - 1) - k

    channels, height, width = image.shape
    out = torch.zeros_like(image)
    reach = kernel // 2
    for c in range(channels):
        for row in range(height):
            for column in range(width):
                total = mass = 0.0
                for down in range(-reach, reach + 1):
                    for right in range(-reach, reach + 1):
                        w = math.exp(-((down / (2 * sigma)) ** 2) - (right / (2 * sigma)) ** 2)
                        there = image[c, mirror(row + down, height), mirror(column + right, width)]
                        total += w * float(there)
                        mass += w
                out[c, row, column] = total / mass
    return out


def slow_curve(
    f: Callable[[Tensor], Tensor],
    image: Tensor,
    target: int,
    map: Tensor,
    name: str,
    blur: Tensor,
    published: bool = False,
) -> list[float]:
    """The curve of one image; no two values of the map are the same."""
    height, width = map.shape
    places = [(row, column) for row in range(height) for column in range(width)]
    if name[1] == "p":
        order = sorted((p for p in places if map[p] > 0), key=lambda p: -float(map[p]))
    elif name[1] == "n":
        order = sorted((p for p in places if map[p] < 0), key=lambda p: float(map[p]))
    else:
        order = sorted(places, key=lambda p: -abs(float(map[p])))
    curve = []
    for k in range(16):
        count = min(round(0.01 * 100 ** (k / 15) * height * width), len(order))
        chosen = set(order[:count])
        if published and name[0] == "r":  # the smallest of the sign stay, and they alone
            chosen = {p for p in places if p not in order[len(order) - count :]}
        masked = image.clone()
        for p in places:
            shown = (p in chosen) if name[0] == "k" else (p not in chosen)
            if not shown:
                masked[:, p[0], p[1]] = blur[:, p[0], p[1]]
        logits = f(masked[None])[0]
        right = float(max(range(len(logits)), key=lambda c: float(logits[c])) == target)
        curve.append(right if name[1] == "a" else float(logits[target]))
    return curve


def slow_area(curve: list[float]) -> float:
    x = [0.01 * 100 ** (k / 15) for k in range(16)]
    return sum((x[k + 1] - x[k]) * (curve[k] + curve[k + 1]) / 2 for k in range(15))


def network(channels: int = 2) -> nn.Module:
    net = nn.Sequential(nn.Conv2d(channels, 6, 3), nn.GELU(), nn.Flatten(), nn.LazyLinear(4))
    net = net.double().eval()
    net(torch.zeros(1, channels, 9, 7, dtype=torch.float64))
    return net.requires_grad_(False)


@pytest.fixture
def case() -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    images = torch.randn(3, 2, 9, 7, dtype=torch.float64)
    return network(), images, torch.tensor([2, 0, 1]), torch.randn(3, 9, 7, dtype=torch.float64)


class TestAgainstTheOracle:
    @pytest.mark.parametrize("name", VARIANTS)
    def test_every_metric(self, name: str, case: Any) -> None:
        net, images, targets, maps = case
        found = keep_remove(net, images, targets, maps, variants=[name], kernel=5, sigma=1.5)
        for k in range(3):
            blur = slow_blur(images[k], 5, 1.5)
            slow = slow_curve(net, images[k], int(targets[k]), maps[k], name, blur)
            expected = torch.tensor(slow, dtype=torch.float64)
            torch.testing.assert_close(found.curves[name][k], expected)
            assert float(found.areas[name][k]) == pytest.approx(slow_area(slow), abs=1e-12)

    def test_published_removes_what_is_not_among_the_last_of_the_sign(self, case: Any) -> None:
        net, images, targets, maps = case
        options: dict[str, Any] = {"kernel": 5, "sigma": 1.5}
        found = keep_remove(net, images, targets, maps, published=True, **options)
        own = keep_remove(net, images, targets, maps, **options)
        blur = blurred(images, 5, 1.5)
        for name in VARIANTS:
            for k in range(3):
                given = net, images[k], int(targets[k]), maps[k], name, blur[k]
                expected = torch.tensor(slow_curve(*given, published=True), dtype=torch.float64)
                torch.testing.assert_close(found.curves[name][k], expected)
        for name, metric in VARIANTS.items():
            same = torch.equal(found.curves[name], own.curves[name])
            assert same == metric.keep

    def test_accuracies_are_of_the_labels(self, case: Any) -> None:
        net, images, targets, maps = case
        labels = torch.tensor([0, 1, 3])
        options: dict[str, Any] = {"kernel": 5, "sigma": 1.5}
        found = keep_remove(net, images, targets, maps, labels=labels, **options)
        of_targets, of_labels = (
            keep_remove(net, images, named, maps, **options) for named in (targets, labels)
        )
        for name, metric in VARIANTS.items():
            other = of_targets if metric.sign else of_labels
            torch.testing.assert_close(found.curves[name], other.curves[name])
        assert not torch.equal(of_targets.curves["ram"], of_labels.curves["ram"])

    def test_accuracies_are_both_right_and_wrong_in_this_case(self, case: Any) -> None:
        found = keep_remove(*case[:3], case[3], kernel=5, sigma=1.5)
        assert {0.0, 1.0} <= set(found.curves["kam"].unique().tolist())

    def test_maps_of_few_pixels_of_a_sign_are_capped(self, case: Any) -> None:
        net, images, targets, maps = case
        few = torch.where(maps > 1.5, maps, -maps.abs())
        found = keep_remove(net, images, targets, few, variants=["kpm", "rpm"])
        blur = blurred(images)
        everything = few[:, None] > 0
        ends = torch.where(everything, images, blur), torch.where(everything, blur, images)
        for name, end in zip(("kpm", "rpm"), ends, strict=True):
            logit = net(end).detach().gather(1, targets[:, None])[:, 0]
            torch.testing.assert_close(found.curves[name][:, -1], logit)
            torch.testing.assert_close(found.curves[name][:, -2], logit)

    def test_the_ends_of_the_absolute_curves(self, case: Any) -> None:
        """All kept is the picture, all removed is the blurred one."""
        net, images, targets, maps = case
        found = keep_remove(net, images, targets, maps)
        for name, end in (("kam", images), ("ram", blurred(images))):
            right = (net(end).argmax(1) == targets).double()
            torch.testing.assert_close(found.curves[name][:, -1], right)

    @pytest.mark.parametrize(("kernel", "sigma"), [(3, 0.7), (7, 41.0)])
    def test_blur(self, kernel: int, sigma: float) -> None:
        images = torch.randn(1, 2, 9, 7, dtype=torch.float64)
        expected = slow_blur(images[0], kernel, sigma)
        torch.testing.assert_close(blurred(images, kernel, sigma)[0], expected)

    def test_published_blur_at_224_and_in_proportion_elsewhere(self) -> None:
        large, small = torch.randn(1, 1, 224, 230), torch.randn(1, 1, 64, 64)
        torch.testing.assert_close(blurred(large), blurred(large, 51, 41.0))
        torch.testing.assert_close(blurred(small), blurred(small, 15, 41 * 64 / 224))

    def test_published_fractions(self) -> None:
        expected = torch.logspace(-2, 0, 16, dtype=torch.float64)
        torch.testing.assert_close(torch.tensor(FRACTIONS, dtype=torch.float64), expected)
        assert FRACTIONS[-1] == 1


# --- properties -------------------------------------------------------------------------------


@given(st.integers(0, 2**31), st.sampled_from(["sorted", "random", "signs", "rough"]))
@settings(max_examples=30)
def test_no_order_beats_the_exact_one_on_an_additive_model(seed: int, kind: str) -> None:
    g = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)  # noqa: E731
    images, weight = draw(2, 3, 8, 8), draw(3, 8, 8)
    exact = (weight * (images - blurred(images))).sum(1)  # what each pixel adds to the blurred
    other = {
        "sorted": exact.flatten(1).sort(1).values.view_as(exact),
        "random": draw(2, 8, 8),
        "signs": exact.sign(),
        "rough": exact + 0.1 * draw(2, 8, 8),
    }[kind]
    best, rest = (keep_remove(signed_sum(weight), images, 0, m) for m in (exact, other))
    for name in ("kpm", "knm", "rpm", "rnm"):
        gain = (best.curves[name] - rest.curves[name]) * (1 if VARIANTS[name].higher else -1)
        assert float(gain.min()) > -1e-9, name
        assert VARIANTS[name].higher == (name in ("kpm", "rnm"))


def test_the_same_map_with_the_other_sign_swaps_positive_and_negative(case: Any) -> None:
    net, images, targets, maps = case
    there = keep_remove(net, images, targets, maps)
    back = keep_remove(net, images, targets, -maps)
    for one, other in (("kpm", "knm"), ("rpm", "rnm"), ("kam", "kam"), ("ram", "ram")):
        assert torch.equal(there.curves[one], back.curves[other])


def test_only_the_order_of_a_map_counts_and_channels_are_averaged(case: Any) -> None:
    net, images, targets, maps = case
    plain = keep_remove(net, images, targets, maps)
    steep = keep_remove(net, images, targets, (7 * maps**3).float().double())
    channels = torch.stack([maps * 3, -maps], 1)
    for name in VARIANTS:
        assert torch.equal(plain.areas[name], steep.areas[name])
        averaged = keep_remove(net, images, targets, channels)
        assert torch.equal(plain.areas[name], averaged.areas[name])


def test_chunks_and_batches_do_not_change_the_result(case: Any) -> None:
    net, images, targets, _ = case
    maps = torch.randint(-1, 2, (3, 9, 7)).double()  # with many ties
    seen = []

    def f(x: Tensor) -> Tensor:
        seen.append((len(x), torch.is_grad_enabled()))
        return net(x)

    whole = keep_remove(net, images, targets, maps)
    parts = keep_remove(f, images, targets, maps, chunk=2)
    assert set(seen) == {(2, False)}
    assert len(seen) == 6 * 3 * 16 // 2
    first = keep_remove(net, images[:2], targets[:2], maps[:2])
    for name in VARIANTS:
        torch.testing.assert_close(parts.areas[name], whole.areas[name])
        torch.testing.assert_close(first.areas[name], whole.areas[name][:2])


def test_what_the_caller_owns_is_left_alone(case: Any) -> None:
    net, images, targets, maps = case
    images.requires_grad_()
    before = images.detach().clone(), maps.clone(), targets.clone(), torch.get_rng_state()
    found = keep_remove(net, images, targets, maps)
    assert not any(curve.requires_grad for curve in found.curves.values())
    assert all(map(torch.equal, before, (images, maps, targets, torch.get_rng_state())))
    assert torch.is_grad_enabled()


def test_a_result_shows_its_scores_and_can_be_sent_elsewhere(case: Any) -> None:
    found = keep_remove(*case[:3], case[3], variants=["kam", "rpm"])
    mean = float(found.areas["kam"].mean())
    assert repr(found).startswith(f"KeepRemove(kam={mean:.4g}, rpm=")
    assert repr(found).endswith("images=3, constant=0)")
    assert pickle.loads(pickle.dumps(found)).means == found.means
    with pytest.raises(AttributeError):
        found.constant = 1  # type: ignore[misc]


# --- ties -------------------------------------------------------------------------------------


def kept(maps: Tensor, name: str, fraction: float, seed: int = 0) -> Tensor:
    """(B, H, W): which pixels the model was shown, seen from inside of it."""
    shown: list[Tensor] = []
    images = (
        torch.arange(float(maps[0].numel())).view(1, 1, *maps.shape[1:]).repeat(len(maps), 1, 1, 1)
    )
    images = images**2  # a curved picture, so that no blurred pixel equals its own
    blur = blurred(images)
    assert not (blur == images).any()

    def f(x: Tensor) -> Tensor:
        shown.append(x)
        return torch.zeros(len(x), 2)

    keep_remove(
        f, images, 0, maps, variants=[name], fractions=[fraction, 1.0], seed=seed, chunk=10**6
    )
    first, _ = shown[0].view(len(maps), 2, *images.shape[1:]).unbind(1)  # of the two fractions
    return (first == images)[:, 0]


class TestTies:
    def test_equal_pixels_favour_no_place(self) -> None:
        """Of 600 constant maps a quarter is shown; each pixel about equally often."""
        shown = kept(torch.ones(600, 12, 12), "kpm", 0.25)
        assert (shown.flatten(1).sum(1) == 36).all()
        share = shown.double().mean(0)
        spread = math.sqrt(0.25 * 0.75 / 600)
        assert float((share - 0.25).abs().max()) < 4.5 * spread
        assert float((share[:6, :6].mean() - share[6:, 6:].mean()).abs()) < 4 * spread / 6

    def test_each_image_and_each_seed_has_its_own_order_and_keeps_it(self) -> None:
        maps = torch.ones(4, 12, 12)
        one = kept(maps, "kpm", 0.25)
        assert torch.equal(one, kept(maps, "kpm", 0.25))
        assert torch.equal(one[:2], kept(maps[:2], "kpm", 0.25))
        assert not torch.equal(one[0], one[1])
        assert not torch.equal(one, kept(maps, "kpm", 0.25, seed=1))

    def test_ties_are_broken_among_equal_pixels_alone(self) -> None:
        maps = torch.ones(5, 12, 12)
        maps[:, 3:9, 3:9] = 2.0
        assert torch.equal(kept(maps, "kpm", 0.25), maps == 2)
        shown = kept(maps, "kpm", 0.5)
        assert shown[:, 3:9, 3:9].all()
        assert (shown.flatten(1).sum(1) == 72).all()

    def test_constant_and_empty_maps_are_scored_and_counted(self, case: Any) -> None:
        net, images, targets, maps = case
        maps = maps.clone()
        maps[0], maps[1] = 0.0, 3.0
        found = keep_remove(net, images, targets, maps)
        assert found.constant == 2
        assert found.empty == {"kpm": 1, "knm": 2, "kam": 0, "rpm": 1, "rnm": 2, "ram": 0}
        assert all(len(areas) == 3 for areas in found.areas.values())
        f = lambda x: net(x).detach()[0, targets[0]].expand(16)  # noqa: E731
        for name in ("kpm", "knm"):  # nothing is kept
            torch.testing.assert_close(found.curves[name][0], f(blurred(images)))
        for name in ("rpm", "rnm"):  # nothing is removed
            torch.testing.assert_close(found.curves[name][0], f(images))


# --- errors -----------------------------------------------------------------------------------

X, NET = torch.randn(2, 1, 6, 6), signed_sum(torch.ones(1, 6, 6))


@pytest.mark.parametrize(
    ("maps", "text"),
    [
        (
            torch.ones(2, 6, 5),
            r"maps of the shape \(2, 6, 5\) do not fit images of the shape \(2, 1, 6, 6\). "
            r"Give one map for each image, \(2, 6, 6\)",
        ),
        (torch.ones(3, 6, 6), r"shape \(3, 6, 6\) do not fit images of the shape \(2, 1, 6, 6\)"),
        (torch.ones(6, 6), r"shape \(6, 6\) do not fit"),
        (torch.ones(2, 0, 6, 6), r"shape \(2, 0, 6, 6\) do not fit"),
        (torch.ones(2, 6, 6).long(), "maps must be a tensor of floating-point numbers, got torch"),
        ([[1.0]], "maps must be a tensor of floating-point numbers, got list"),
        (
            torch.stack([torch.ones(6, 6), torch.full((6, 6), torch.nan)]),
            r"1 of 2 maps are not finite \(NaN or infinite\), the first is map 1: .* Repair",
        ),
        (torch.full((2, 6, 6), torch.inf), r"2 of 2 maps are not finite .* the first is map 0"),
    ],
)  # fmt: skip
def test_maps_that_cannot_be_scored(maps: Any, text: str) -> None:
    with pytest.raises(InputError, match=text):
        keep_remove(NET, X, 0, maps)


@pytest.mark.parametrize(
    ("options", "got"),
    [
        ({"variants": ["kpn"]}, "kpn"),
        ({"variants": "kpm"}, "kpm"),
        ({"variants": []}, "[]"),
        ({"fractions": [0.5]}, "[0.5]"),
        ({"fractions": [0.5, 0.1]}, "[0.5, 0.1]"),
        ({"fractions": [0.0, 0.1]}, "[0.0, 0.1]"),
        ({"fractions": [0.1, 1.1]}, "[0.1, 1.1]"),
        ({"fractions": ["a", "b"]}, "['a', 'b']"),
        ({"kernel": 4}, "4"),
        ({"kernel": 1}, "1"),
        ({"kernel": 13}, "13"),
        ({"sigma": 0}, "0"),
        ({"sigma": math.inf}, "inf"),
        ({"sigma": "1"}, "'1'"),
        ({"seed": -1}, "-1"),
        ({"chunk": 0}, "0"),
        ({"chunk": 2.0}, "2.0"),
    ],
)
def test_options_that_cannot_be_used(options: dict[str, Any], got: str) -> None:
    with refused(*options, got):
        keep_remove(NET, X, 0, torch.ones(2, 6, 6), **options)


@pytest.mark.parametrize(
    ("images", "text"),
    [
        (torch.ones(2, 6, 6), r"images must be \(B, C, H, W\) and not empty, got .*\(2, 6, 6\)"),
        (torch.ones(0, 1, 6, 6), r"and not empty, got .*\(0, 1, 6, 6\)"),
        (torch.ones(2, 1, 6, 6).byte(), "images must be a tensor of floating-point numbers, got "),
    ],
)
def test_images_of_another_kind(images: Tensor, text: str) -> None:
    with pytest.raises(InputError, match=text):
        keep_remove(NET, images, 0, torch.ones(2, 6, 6))


@pytest.mark.parametrize(
    ("targets", "text"),
    [
        (2, "target 2 is not among the 2 classes of the logits. Choose from 0 to 1"),
        (torch.tensor([0, 5]), "target 5 is not among the 2 classes"),
        (-1, "targets must be class indices from 0, one for each of the 2 images .* got -1"),
        (torch.tensor([0, 1, 0]), r"got torch.int64 of the shape \(3,\)"),
        (torch.tensor([0.0, 1.0]), r"got torch.float32 of the shape \(2,\)"),
        ("bird", "got str"),
        (True, "got bool"),
    ],
)
def test_targets_that_are_no_classes(targets: Any, text: str) -> None:
    with pytest.raises(TargetError, match=text):
        keep_remove(NET, X, targets, torch.ones(2, 6, 6))


@pytest.mark.parametrize(
    ("out", "text"),
    [
        (torch.ones(2), r"of the shape \(32, classes\) for 32 images, but returned torch"),
        (torch.ones(3, 4), r"but returned .* of the shape \(3, 4\)"),
        ({"logits": 1}, "but returned dict. Give a function that picks them"),
        (torch.full((32, 3), torch.nan), "f returned logits that are not finite"),
    ],
)  # fmt: skip
def test_models_that_return_something_else(out: Any, text: str) -> None:
    with pytest.raises(InputError, match=text):
        keep_remove(lambda _: out, X, 0, torch.ones(2, 6, 6))
