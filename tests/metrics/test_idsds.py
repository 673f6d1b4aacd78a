"""Single deletion of cells: against scipy and a slow loop, and on models whose truth is known."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from omenn.errors import InputError, TargetError
from omenn.metrics import explainers
from omenn.metrics.idsds import cell_mask, cell_sums, falls, filling, idsds, single_deletion
from omenn.metrics.keep_remove import blurred
from refusals import refused

SIDE = 8


def network() -> nn.Module:
    torch.manual_seed(3)
    net = nn.Sequential(nn.Conv2d(2, 6, 3), nn.GELU(), nn.Flatten(), nn.Linear(216, 3))
    return net.double().eval()


def case(batch: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(8)
    images = torch.randn(batch, 2, SIDE, SIDE, generator=generator, dtype=torch.float64)
    maps = torch.randn(batch, SIDE, SIDE, generator=generator, dtype=torch.float64)
    return images, torch.arange(batch) % 3, maps


def additive(images: Tensor) -> Tensor:
    """Two classes; each logit is a sum over the pixels, of one channel."""
    weight = torch.linspace(-1, 2, SIDE**2, dtype=images.dtype)
    return torch.stack([images[:, k].flatten(1) @ weight.roll(5 * k) for k in (0, 1)], 1)


def truth(images: Tensor, targets: Tensor) -> Tensor:
    """What each pixel adds to the target's logit of :func:`additive`."""
    weight = torch.linspace(-1, 2, SIDE**2, dtype=images.dtype)
    rows = [
        image[int(k)] * weight.roll(5 * int(k)).view(SIDE, SIDE)
        for image, k in zip(images, targets, strict=True)
    ]
    return torch.stack(rows)


def test_published_blur_has_zeros_beyond_the_edges() -> None:
    images, targets, maps = case()
    wide = torch.nn.functional.pad(images, (30, 30, 30, 30))
    kernel, sigma = 3, 41 * SIDE / 224
    inside = blurred(wide, kernel, sigma)[..., 30:-30, 30:-30]
    torch.testing.assert_close(filling(images, "blur", published=True), inside)
    assert not torch.allclose(filling(images, "blur"), inside)
    net = network()
    found = idsds(net, images, targets, maps, fill="blur", published=True)
    expected = torch.tensor(slow(net, images, targets, maps, inside, 4), dtype=torch.float64)
    torch.testing.assert_close(found.values, expected)


# --- the oracle: scipy, cell by cell ---------------------------------------------------------


def slow(
    f: Any, images: Tensor, targets: Tensor, maps: Tensor, instead: Tensor, cells: int
) -> list[float]:
    size = SIDE // cells
    found = []
    for image, target, map, other in zip(images, targets, maps, instead, strict=True):
        sums, drops = [], []
        with torch.no_grad():
            whole = float(f(image[None])[0, target])
            for row in range(cells):
                for column in range(cells):
                    down = slice(row * size, row * size + size)
                    across = slice(column * size, column * size + size)
                    gone = image.clone()
                    gone[:, down, across] = other[:, down, across]
                    sums.append(float(map[down, across].sum()))
                    drops.append(whole - float(f(gone[None])[0, target]))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a constant has no correlation
            found.append(float(stats.spearmanr(sums, drops).statistic))
    return found


@pytest.mark.parametrize("cells", [2, 4])
@pytest.mark.parametrize("fill", ["zeros", "blur", "random"])
def test_like_scipy_on_a_slow_loop(cells: int, fill: Any) -> None:
    images, targets, maps = case()
    instead = {"zeros": images * 0, "blur": blurred(images)}
    if fill == "random":
        generator = torch.Generator().manual_seed(2)
        rows = [torch.rand(2, SIDE, SIDE, generator=generator) for _ in images]
        instead["random"] = (2 * torch.stack(rows) - 1).double()
    net = network()
    score = idsds(net, images, targets, maps, cells=cells, fill=fill, seed=2, chunk=3)
    expected = slow(net, images, targets, maps, instead[fill], cells)
    assert score.values.tolist() == pytest.approx(expected, abs=1e-12)
    assert score.name == "idsds"
    assert (score.higher, score.chance, score.counted) == (True, 0.0, {})
    plain = single_deletion(net, images, targets, maps, cells=cells, fill=fill, seed=2)
    assert plain.name == "single deletion of cells"
    assert torch.allclose(plain.values, score.values)


def test_ties_share_their_ranks_as_in_scipy() -> None:
    images, targets, maps = case()
    maps = maps.round()
    maps[:, :4] = 0
    score = idsds(network(), images, targets, maps)
    expected = slow(network(), images, targets, maps, images * 0, 4)
    assert score.values.tolist() == pytest.approx(expected, abs=1e-12)


# --- where the answer is known ---------------------------------------------------------------


def test_exact_maps_of_an_additive_model_get_1() -> None:
    images, _, _ = case(12)
    targets = torch.arange(12) % 2
    maps = truth(images, targets)
    assert torch.allclose(maps.flatten(1).sum(1), additive(images)[range(12), targets])
    assert idsds(additive, images, targets, maps).values.tolist() == pytest.approx([1.0] * 12)
    assert idsds(additive, images, targets, -3 * maps).values.tolist() == pytest.approx([-1] * 12)
    assert torch.allclose(falls(additive, images, targets), cell_sums(maps))
    channels = torch.stack([maps * 5, maps * -3], 1)
    assert idsds(additive, images, targets, channels).mean == pytest.approx(1)
    other = idsds(additive, images, 1 - targets, maps)
    assert other.mean < 0.9


def test_a_method_of_omenn_is_exact_on_a_linear_network() -> None:
    net = nn.Sequential(nn.Conv2d(2, 3, 3, bias=False), nn.Flatten(), nn.Linear(108, 3))
    net = net.double().eval()
    images, targets, _ = case()
    maps = explainers.explainer(net, "omenn", bias="separate")(images, targets)
    assert idsds(net, images, targets, maps).values.tolist() == pytest.approx([1.0] * 5)


def test_random_maps_get_0() -> None:
    images = torch.randn(400, 2, SIDE, SIDE)
    targets = torch.arange(400) % 2
    score = idsds(additive, images, targets, explainers.random(images, targets))
    low, high = score.interval()
    assert low < 0 < high
    assert abs(score.mean) < 0.05


# --- what has no correlation -----------------------------------------------------------------


def test_constant_maps_count_as_0_or_are_left_out_as_published() -> None:
    images, targets, maps = case()
    maps[1], maps[4] = 0.1, 0.0
    net = network()
    score = idsds(net, images, targets, maps)
    published = idsds(net, images, targets, maps, published=True)
    expected = slow(net, images, targets, maps, images * 0, 4)
    assert [math.isnan(v) for v in expected] == [False, True, False, False, True]
    assert torch.isnan(published.values).tolist() == [False, True, False, False, True]
    assert score.values[[1, 4]].tolist() == [0, 0]
    assert score.counted == {"constant maps": 2}
    assert published.counted == {"constant maps": 2, "skipped: no correlation": 2}
    assert published.name == "published idsds"
    assert published.mean == pytest.approx(sum(expected[k] for k in (0, 2, 3)) / 3)
    assert score.mean == pytest.approx(published.mean * 3 / 5)


def test_logits_that_no_cell_changes() -> None:
    images, targets, maps = case()
    images[2] = 0
    score = idsds(network(), images, targets, maps)
    assert score.values[2] == 0
    assert score.counted == {"logits that no cell changes more than another": 1}
    assert idsds(network(), images, targets, maps, published=True).images == 4


def test_maps_whose_cells_are_equal_though_they_are_not_constant() -> None:
    images, targets, _ = case()
    maps = torch.tensor([[0.0, 1.0], [2.0, 4.0]]).repeat(5, 4, 4)
    score = idsds(network(), images, targets, maps)
    assert score.values.tolist() == [0.0] * 5
    assert score.counted == {"equal sums in all cells": 5}


def test_constant_maps_have_equal_sums_to_the_last_bit() -> None:
    maps = torch.full((1, 224, 224), 0.1, dtype=torch.float64)
    sums = cell_sums(maps, 7)
    assert (sums == sums[:, :1]).all()
    assert sums[0, 0] == pytest.approx(102.4)


# --- parts -----------------------------------------------------------------------------------


def test_cells_are_counted_row_by_row() -> None:
    images = torch.zeros(3, 1, 4, 8)
    mask = cell_mask(torch.tensor([0, 3, -1]), images, 2)
    assert mask.shape == (3, 1, 4, 8)
    assert mask[0, 0].nonzero().tolist() == [[r, c] for r in (0, 1) for c in range(4)]
    assert mask[1, 0].nonzero().tolist() == [[r, c] for r in (2, 3) for c in range(4, 8)]
    assert not mask[2].any()
    assert cell_sums(mask[:, 0].double(), 2).tolist() == [[8, 0, 0, 0], [0, 0, 0, 8], [0] * 4]


def test_random_filling_is_the_same_in_any_batch() -> None:
    images = torch.zeros(6, 3, 8, 8)
    before = torch.get_rng_state()
    whole = filling(images, "random", 4)
    assert torch.equal(whole[:2], filling(images[:2], "random", 4))
    assert not torch.equal(whole, filling(images, "random", 5))
    assert -1 <= whole.min() < -0.9
    assert 0.9 < whole.max() <= 1
    assert torch.equal(before, torch.get_rng_state())


# --- bad input -------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [idsds, single_deletion])
def test_bad_input(protocol: Any) -> None:
    images, targets, maps = case()
    net = network()
    for cells in (1, 3, 2.0, True):
        with refused("cells", str(cells)):
            protocol(net, images, targets, maps, cells=cells)
    with refused("fill", "grey"):
        protocol(net, images, targets, maps, fill="grey")
    with pytest.raises(InputError, match=r"maps of the shape \(5, 4, 8\) do not fit"):
        protocol(net, images, targets, maps[:, :4])
    with pytest.raises(InputError, match="1 of 5 maps are not finite"):
        protocol(net, images, targets, maps.index_fill(0, torch.tensor([2]), math.nan))
    with pytest.raises(TargetError, match="target 3 is not among the 3 classes"):
        protocol(net, images, 3, maps)
    with pytest.raises(InputError, match="f must return logits of the shape"):
        protocol(lambda x: x, images, targets, maps)
