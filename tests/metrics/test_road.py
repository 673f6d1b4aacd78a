"""ROAD: imputation against a dense solution and Quantus', the share that stays right by a loop."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import omenn.metrics.road
from omenn.errors import InputError, TargetError
from omenn.metrics.quantus import quantus_metric
from omenn.metrics.road import painted, road
from refusals import refused


def slow_painted(image: Tensor, gone: Tensor) -> Tensor:
    """One (C, H, W), by a dense system: each missing pixel is the mean of its neighbours."""
    channels, height, width = image.shape
    places = [(r, c) for r in range(height) for c in range(width) if gone[r, c]]
    number = {place: k for k, place in enumerate(places)}
    a = torch.zeros(len(places), len(places), dtype=torch.float64)
    b = torch.zeros(len(places), channels, dtype=torch.float64)
    for (r, c), k in number.items():
        for down in (-1, 0, 1):
            for right in (-1, 0, 1):
                there = (r + down, c + right)
                outside = not (0 <= there[0] < height and 0 <= there[1] < width)
                if outside or there == (r, c):
                    continue
                weight = 1 / 6 if 0 in (down, right) else 1 / 12
                a[k, k] += weight
                if there in number:
                    a[k, number[there]] -= weight
                else:
                    b[k] += weight * image[:, there[0], there[1]]
    found = image.clone()
    solution = torch.linalg.solve(a, b)
    for (r, c), k in number.items():
        found[:, r, c] = solution[k]
    return found


@pytest.fixture
def case() -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 35, 4))
    images = 3 * torch.rand(4, 3, 9, 7)
    targets = net.requires_grad_(False)(images).argmax(1)
    return net.eval(), images, targets, torch.randn(4, 9, 7)


class TestPainting:
    @given(st.integers(0, 2**31), st.sampled_from([0.02, 0.3, 0.7, 0.95]))
    @settings(max_examples=20)
    def test_against_the_dense_solution(self, seed: int, share: float) -> None:
        g = torch.Generator().manual_seed(seed)
        images = torch.randn(2, 3, 8, 6, generator=g, dtype=torch.float64)
        gone = torch.rand(2, 1, 8, 6, generator=g) < share
        gone[:, :, 3, 4] = False
        found = painted(images, gone)
        for k in range(2):
            torch.testing.assert_close(found[k], slow_painted(images[k], gone[k, 0]))
        rough = painted(images.float(), gone)
        torch.testing.assert_close(rough, found.float(), atol=1e-5, rtol=0)

    def test_a_large_hole_in_a_large_picture(self) -> None:
        """One known pixel in a corner: all others become what it is."""
        images = torch.rand(1, 2, 64, 64, dtype=torch.float64)
        gone = torch.ones(1, 1, 64, 64, dtype=torch.bool)
        gone[..., 0, 0] = False
        found = painted(images, gone)
        torch.testing.assert_close(found, images[:, :, :1, :1].expand_as(found), atol=1e-5, rtol=0)
        # known at the left and the right edge: a ramp between them
        images = torch.zeros(1, 1, 64, 64, dtype=torch.float64)
        images[..., -1] = 1.0
        gone = torch.zeros(1, 1, 64, 64, dtype=torch.bool)
        gone[..., 1:-1] = True
        ramp = torch.linspace(0, 1, 64, dtype=torch.float64).expand(1, 1, 64, 64)
        torch.testing.assert_close(painted(images, gone), ramp, atol=1e-5, rtol=0)
        rough = painted(images.float(), gone)
        torch.testing.assert_close(rough, ramp.float(), atol=1e-4, rtol=0)

    def test_a_hole_between_black_pixels_gets_black(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Also if the picture is bright elsewhere, and without rounds that change nothing."""
        images = torch.zeros(1, 1, 32, 32)
        images[..., 20:, :] = 1.0
        gone = torch.zeros(1, 1, 32, 32, dtype=torch.bool)
        gone[..., 5:15, 5:25] = True
        rounds, plain = [], omenn.metrics.road._around
        monkeypatch.setattr("omenn.metrics.road._around", lambda x: rounds.append(1) or plain(x))
        found = painted(images, gone)
        torch.testing.assert_close(found, images, atol=1e-5, rtol=0)
        assert len(rounds) < 60

    def test_nothing_gone_and_nothing_left(self) -> None:
        images = torch.rand(2, 1, 4, 4)
        none = torch.zeros(2, 1, 4, 4, dtype=torch.bool)
        assert torch.equal(painted(images, none), images)
        none[1] = True
        with pytest.raises(InputError, match="nothing is left of a picture"):
            painted(images, none)


def slow_road(case: Any, k: int, shares: list[float], least: bool) -> float:
    net, images, targets, maps = case
    flat = maps[k].flatten().tolist()
    order = sorted(range(63), key=lambda p: flat[p] if least else -flat[p])
    right = 0
    for share in shares:
        gone = torch.zeros(63, dtype=torch.bool)
        gone[order[: int(63 * share / 100)]] = True
        picture = slow_painted(images[k].double(), gone.view(9, 7)).float()
        right += int(net(picture[None]).argmax()) == int(targets[k])
    return right / len(shares)


@pytest.mark.parametrize("least", [False, True])
def test_against_the_oracle(least: bool, case: Any) -> None:
    shares = [5.0, 20.0, 50.0, 90.0, 98.0]
    found = road(*case, percentages=shares, noise=0, least_first=least)
    expected = [slow_road(case, k, shares, least) for k in range(4)]
    assert found.values.tolist() == expected
    assert len(set(expected)) > 1
    assert found.higher == least
    assert found.name == ("road, least first" if least else "road")


def test_against_quantus(case: Any) -> None:
    """On pictures with channels, pixel by pixel, without its noise."""
    pytest.importorskip("quantus")
    net, images, targets, maps = case
    explain = lambda x, t: maps  # noqa: E731
    shares = list(range(3, 99, 6))
    given = quantus_metric("ROAD", net, images, targets, explain, percentages=shares, noise=0.0)
    found = road(*case, percentages=shares, noise=0)
    torch.testing.assert_close(found.values, given.values)
    assert found.higher == given.higher
    assert len(set(found.values.tolist())) > 1


def test_ties_favour_no_place_and_are_counted(case: Any) -> None:
    net, images, targets, _ = case
    seen: list[Tensor] = []

    def f(x: Tensor) -> Tensor:
        seen.append(x)
        return net(x)

    flat = torch.zeros(4, 9, 7)
    found = road(f, images, targets, flat, percentages=[30], noise=0)
    assert dict(found.counted) == {"constant maps": 4}
    changed = (torch.cat(seen) != images).any(1)
    assert changed.flatten(1).sum(1).tolist() == [18] * 4
    assert not torch.equal(changed[0], changed[1])


def test_noise(case: Any) -> None:
    """It lies on what is painted in, and nowhere else."""
    net, images, targets, maps = case
    seen: list[Tensor] = []

    def f(x: Tensor) -> Tensor:
        seen.append(x)
        return net(x)

    for noise in (0, 0.3):
        road(f, images, targets, maps, percentages=[40, 60], noise=noise)
    off = seen[1] - seen[0]
    moved = (off != 0).all(1)
    assert moved.flatten(1).sum(1).tolist() == [25, 37] * 4
    assert torch.equal(moved, (off != 0).any(1))
    values = off[(off != 0)]
    assert abs(float(values.std()) / 0.3 - 1) < 4 / math.sqrt(2 * len(values))


def test_seeds_batches_and_chunks(case: Any) -> None:
    net, images, targets, maps = case
    sizes: list[int] = []

    def f(x: Tensor) -> Tensor:
        sizes.append(len(x))
        return net(x)

    randomness = torch.get_rng_state()
    maps = maps.round()
    whole = road(*case[:3], maps, noise=2.0, seed=1)
    small = road(f, images, targets, maps, noise=2.0, seed=1, chunk=5)
    first = road(net, images[:2], targets[:2], maps[:2], noise=2.0, seed=1)
    assert torch.equal(small.values, whole.values)
    assert torch.equal(first.values, whole.values[:2])
    assert not torch.equal(road(*case[:3], maps, noise=2.0, seed=2).values, whole.values)
    assert max(sizes) == 5
    assert torch.equal(torch.get_rng_state(), randomness)


def test_errors(case: Any) -> None:
    net, images, targets, maps = case
    for shares in ([], [0], [100], [5, "6"]):
        with pytest.raises(InputError, match=r"percentages must be numbers above 0 and below 100"):
            road(*case, percentages=shares)  # type: ignore[arg-type]
    with refused("noise", "-1"):
        road(*case, noise=-1)
    with refused("chunk", "0"):
        road(*case, chunk=0)
    with refused("seed", "None"):
        road(*case, seed=None)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"\(4, 7, 9\) do not fit images"):
        road(net, images, targets, maps.mT)
    with pytest.raises(TargetError, match="target 7 is not among the 4 classes"):
        road(net, images, 7, maps)
