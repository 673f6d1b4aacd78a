"""The grid pointing game: against a slow loop over pixels, and where the answer is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from omenn.errors import InputError, TargetError
from omenn.metrics import explainers
from omenn.metrics.grid_pointing import grid_pointing_game
from refusals import refused

CLASSES, SIDE = 6, 6


def colours(x: Tensor) -> Tensor:
    """A class for each channel: additive in the pixels, of any size."""
    return 40 * x.mean((2, 3))


def pictures(each: int = 3) -> tuple[Tensor, Tensor]:
    """Of a class: its channel is bright, the others dim; all are classified with confidence."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(CLASSES).repeat(each)
    images = 0.2 * torch.rand(len(labels), CLASSES, SIDE, SIDE, generator=generator).double()
    images[torch.arange(len(labels)), labels] += 0.8
    return images, labels


def rough(images: Tensor, targets: Tensor) -> Tensor:
    """Maps without meaning, with both signs, that depend on image and target alone."""
    rows = torch.arange(len(images))
    return torch.sin(37 * images[rows, targets] + 11 * images[rows, (targets + 1) % CLASSES])


def exact(images: Tensor, targets: Tensor) -> Tensor:
    """What each pixel adds to the target's logit, against the mean of the others."""
    rows = torch.arange(len(images))
    return images[rows, targets] - images.mean(1)


# --- the oracle ------------------------------------------------------------------------------


def slow_value(map: Tensor, cell: int, n: int, smooth: int) -> float:
    side, reach = len(map), smooth // 2
    own = total = 0.0
    for row in range(side):
        for column in range(side):
            value = 0.0
            for r in range(row - reach, row + reach + 1):
                for c in range(column - reach, column + reach + 1):
                    if 0 <= r < side and 0 <= c < side:
                        value += float(map[r, c]) / smooth**2
            if value > 0:
                total += value
                if (row // (side // n)) * n + column // (side // n) == cell:
                    own += value
    return own / total if total > 0 else 0.0


def slow_mosaic(images: Tensor, n: int, reduce: bool) -> Tensor:
    side = SIDE // n if reduce else SIDE
    mosaic = torch.zeros(images.shape[1], n * side, n * side, dtype=images.dtype)
    for k, image in enumerate(images):
        for row in range(side):
            for column in range(side):
                if reduce:
                    square = image[:, row * n : row * n + n, column * n : column * n + n]
                    pixel = square.mean((1, 2))
                else:
                    pixel = image[:, row, column]
                mosaic[:, (k // n) * side + row, (k % n) * side + column] = pixel
    return mosaic


@pytest.mark.parametrize(("n", "size", "smooth"), [(2, "full", 1), (2, "full", 3), (2, "model", 1)])
def test_like_a_slow_loop(n: int, size: Any, smooth: int) -> None:
    images, labels = pictures()
    options = {"cells": n, "size": size, "smooth": smooth, "grids": 3}
    game = grid_pointing_game(colours, rough, images, labels, **options)
    assert game.cells.shape == game.members.shape == (3, n * n)
    for members, values in zip(game.members, game.cells, strict=True):
        mosaic = slow_mosaic(images[members], n, size == "model")[None]
        for cell, picture in enumerate(members.tolist()):
            map = rough(mosaic, labels[picture, None])[0]
            assert values[cell] == pytest.approx(slow_value(map, cell, n, smooth), abs=1e-12)
    assert torch.equal(game.score.values, game.cells.mean(1))


def test_nine_cells_of_nine_classes() -> None:
    images = torch.eye(9)[:, :, None, None].repeat(2, 1, 3, 3)
    labels = torch.arange(9).repeat(2)
    options = {"cells": 3, "size": "model", "confidence": 0.9}
    game = grid_pointing_game(colours, exact, images, labels, **options)
    assert game.cells.tolist() == [[1.0] * 9] * 2
    assert game.score.chance == 1 / 9
    assert game.score.name == "grid pointing game 3x3"


# --- where the answer is known ---------------------------------------------------------------


def test_exact_maps_win_and_others_get_chance() -> None:
    images, labels = pictures(40)

    def game(explain: Any) -> Any:
        return grid_pointing_game(colours, explain, images, labels, grids=60).score

    assert game(exact).mean > 0.99
    assert game(explainers.constant).mean == pytest.approx(0.25)
    mosaics = game(explainers.constant).images
    assert 50 < mosaics <= 60
    assert game(explainers.constant).counted["constant maps"] == 4 * mosaics
    assert game(explainers.centre).mean == pytest.approx(0.25)
    noise = game(explainers.random)
    low, high = noise.interval()
    assert low < 0.25 < high
    assert noise.chance == 0.25
    nothing = game(lambda x, t: -exact(x, t).abs())
    assert nothing.mean == 0
    assert nothing.counted["maps without positive values"] == 4 * mosaics


def test_percentiles_are_those_of_all_cells() -> None:
    images, labels = pictures(6)
    game = grid_pointing_game(colours, rough, images, labels)
    expected = np.percentile(game.cells.numpy(), [25, 50, 75, 100])
    assert list(game.percentiles) == [25, 50, 75, 100]
    assert list(game.percentiles.values()) == pytest.approx(expected.tolist())
    assert repr(game).startswith("GridScore(Score(grid pointing game 2x2=")


def test_a_method_of_omenn_on_a_network() -> None:
    net = nn.Sequential(nn.Conv2d(CLASSES, CLASSES, 1, bias=False), nn.ReLU())
    net.extend([nn.AdaptiveAvgPool2d(1), nn.Flatten()]).double().eval()
    net[0].weight.data = 40 * torch.eye(CLASSES)[:, :, None, None].double()
    images, labels = pictures()
    game = grid_pointing_game(net, explainers.explainer(net, "omenn"), images, labels)
    by_hand = grid_pointing_game(net, lambda x, t: x[range(len(x)), t], images, labels)
    assert torch.allclose(game.cells, by_hand.cells)
    assert 0.6 < game.score.mean < 1  # dim pixels of the class lie in the other cells, too


# --- the draw --------------------------------------------------------------------------------


def test_mosaics_have_distinct_classes_and_no_picture_twice() -> None:
    images, labels = pictures(8)
    game = grid_pointing_game(colours, rough, images, labels, grids=9)
    assert len(game.members.unique()) == 36 == game.members.numel()
    for members in game.members:
        assert len(labels[members].unique()) == 4
    assert game.score.counted == {}
    most = grid_pointing_game(colours, rough, images, labels, grids=13)
    assert len(most.members.unique()) == most.members.numel() > 36
    assert most.score.counted == {"mosaics fewer than asked for": 13 - most.score.images}


def test_only_pictures_that_are_classified_with_confidence() -> None:
    images, labels = pictures(2)
    wrong = labels.clone()
    wrong[3] = 4
    images[5] = images[5] * 0.1  # right, but not for sure
    game = grid_pointing_game(colours, rough, images, wrong, grids=9)
    assert not set(game.members.flatten().tolist()) & {3, 5}
    unsure = grid_pointing_game(colours, rough, images, wrong, grids=9, confidence=0)
    assert unsure.score.counted["pictures not classified with confidence"] == 1
    assert 3 not in unsure.members
    assert game.score.counted["pictures not classified with confidence"] == 2
    assert game.score.counted["mosaics fewer than asked for"] == 9 - len(game.members)
    certain = colours(images).softmax(1)[range(12), labels]
    least = grid_pointing_game(colours, rough, images, labels, confidence=0, grids=1)
    for picture in least.members[0].tolist():  # the most certain one of its class
        assert certain[picture] == certain[labels == labels[picture]].max()


def test_confidence_by_sigmoid() -> None:
    images, labels = pictures(2)
    with refused("images", "0 classes"):
        grid_pointing_game(
            lambda x: colours(x) - 60, rough, images, labels, certainty="sigmoid", confidence=0.5
        )
    game = grid_pointing_game(lambda x: colours(x) - 60, rough, images, labels, confidence=0.5)
    assert game.score.images >= 2


def test_the_same_seed_gives_the_same_mosaics_in_any_chunks() -> None:
    images, labels = pictures(8)
    before, ticks = torch.get_rng_state(), []
    first, again, other, chunked = (
        grid_pointing_game(
            colours, rough, images, labels, grids=5, seed=seed, chunk=chunk, tick=tick
        )
        for seed, chunk, tick in (
            (3, 16, lambda: None),
            (3, 16, lambda: None),
            (4, 16, lambda: None),
            (3, 5, lambda: ticks.append(1)),
        )
    )
    assert torch.equal(first.members, again.members)
    assert torch.equal(first.members, chunked.members)
    assert torch.allclose(first.cells, chunked.cells)
    assert not torch.equal(first.members, other.members)
    assert len(ticks) == 5
    assert torch.equal(before, torch.get_rng_state())


def test_no_more_at_once_than_asked_for() -> None:
    images, labels = pictures(4)
    seen: list[int] = []

    def counting(x: Tensor, targets: Tensor) -> Tensor:
        seen.append(len(x))
        return rough(x, targets)

    def network(x: Tensor) -> Tensor:
        seen.append(len(x))
        return colours(x)

    grid_pointing_game(network, counting, images, labels, chunk=3)
    assert max(seen) == 3


# --- bad input -------------------------------------------------------------------------------


def test_a_model_that_takes_one_size_only() -> None:
    images, labels = pictures()
    net = nn.Sequential(nn.Flatten(), nn.Linear(CLASSES * SIDE**2, CLASSES)).double()
    net[1].weight.data = torch.eye(CLASSES).double().repeat_interleave(SIDE**2, 1)
    with pytest.raises(InputError, match=r"cannot take mosaics of 12 x 12 pixels \(mat1 .*'model'"):
        grid_pointing_game(net, rough, images, labels)
    game = grid_pointing_game(net, rough, images, labels, size="model")
    assert game.score.images == 4
    with pytest.raises(InputError, match=r"6 x 6 pixels cannot be reduced to 1/4: 4 must divide"):
        grid_pointing_game(net, rough, images, labels, size="model", cells=4)


def test_memory_that_runs_out_is_not_the_size() -> None:
    images, labels = pictures()

    def hungry(x: Tensor) -> Tensor:
        if x.shape[2] > SIDE:
            raise torch.OutOfMemoryError("no more")
        return colours(x)

    with pytest.raises(torch.OutOfMemoryError, match="no more"):
        grid_pointing_game(hungry, rough, images, labels)


def test_too_few_classes() -> None:
    images, labels = pictures()
    message = (
        r"a mosaic needs 4 classes, but only 3 have a picture .* confidence of 0.95 \(3 of 3 pic"
    )
    with pytest.raises(InputError, match=message):
        grid_pointing_game(colours, rough, images[:3], labels[:3])


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("cells", 1), ("grids", 0), ("chunk", 0), ("smooth", 2.0), ("confidence", 95),
        ("certainty", "logit"), ("size", "half"),
    ],
)  # fmt: skip
def test_options(option: str, value: Any) -> None:
    with refused(option, repr(value)):
        grid_pointing_game(colours, rough, *pictures(), **{option: value})


def test_a_filter_without_a_middle() -> None:
    with pytest.raises(InputError, match="smooth must be odd"):
        grid_pointing_game(colours, rough, *pictures(), smooth=4)


def test_what_is_no_map_or_label() -> None:
    images, labels = pictures()
    with pytest.raises(InputError, match=r"shape \(16, 3, 3\) do not fit images .*\(16, 6, 12, 12"):
        grid_pointing_game(colours, lambda x, t: rough(x, t)[:, :3, :3], images, labels)
    with pytest.raises(InputError, match=r"16 of 16 maps are not finite"):
        grid_pointing_game(colours, lambda x, t: rough(x, t) / 0, images, labels)
    with pytest.raises(TargetError, match="target 6 is not among the 6 classes"):
        grid_pointing_game(colours, rough, images, labels + 1)
