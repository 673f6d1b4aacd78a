"""Unions of cells: against slow loops, on additive models, on models that answer nothing."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metrics.toys import signed_sum
from omenn.errors import InputError, TargetError
from omenn.metrics.cell_unions import Unions, cells_of, random_unions, sums_of
from omenn.metrics.masking import deletion, insertion
from omenn.metrics.removal import filled
from refusals import refused


def network() -> nn.Module:
    torch.manual_seed(5)
    net = nn.Sequential(nn.Conv2d(2, 6, 3), nn.GELU(), nn.Flatten(), nn.Linear(6 * 35, 4))
    return net.double().eval().requires_grad_(False)


@pytest.fixture
def image() -> Tensor:
    return torch.rand(1, 2, 9, 7, dtype=torch.float64)


@pytest.mark.parametrize("shape", [(9, 7, 3), (8, 8, 4), (5, 5, 5), (3, 9, 1)])
def test_cells_are_rectangles_of_nearly_one_size(shape: tuple[int, int, int]) -> None:
    height, width, across = shape
    cells = cells_of(height, width, across)
    for number in range(across * across):
        rows, columns = (cells == number).nonzero(as_tuple=True)
        tall, wide = int(rows.max() - rows.min()) + 1, int(columns.max() - columns.min()) + 1
        assert len(rows) == tall * wide  # no gaps
        assert tall - height // across in (0, 1)
        assert wide - width // across in (0, 1)
    map = torch.randn(height, width)
    expected = [float(map[cells == number].double().sum()) for number in range(across * across)]
    assert sums_of(map, cells).tolist() == pytest.approx(expected, abs=1e-12)


def test_unions_differ_and_follow_the_seed() -> None:
    first = random_unions(25, 5, 40, seed=1)
    assert first.sum(1).tolist() == [5] * 40
    assert len(first.unique(dim=0)) > 30
    assert torch.equal(first, random_unions(25, 5, 40, seed=1))
    assert not torch.equal(first, random_unions(25, 5, 40, seed=2))
    assert float(first.double().mean(0).min()) > 0.02  # none is left out


@pytest.mark.parametrize("fill", ["black", "white", "mean", "zero", "blur", 0.3])
def test_against_the_oracle(fill: Any, image: Tensor) -> None:
    net, map = network(), torch.randn(9, 7, dtype=torch.float64)
    asked = Unions.of(net, image, 2, across=3, runs=12, share=0.4, fill=fill, seed=4)
    new = filled(image, fill)
    drops, sums = [], []
    for members in random_unions(9, 4, 12, seed=4):
        gone, total = image.clone(), 0.0
        for row in range(9):
            for column in range(7):
                if members[int(cells_of(9, 7, 3)[row, column])]:
                    gone[0, :, row, column] = new[0, :, row, column]
                    total += float(map[row, column])
        drops.append(float(net(image)[0, 2] - net(gone)[0, 2]))
        sums.append(total)
    assert asked.drops.tolist() == pytest.approx(drops, abs=1e-12)
    assert asked.sums(map).tolist() == pytest.approx(sums, abs=1e-12)
    wanted = torch.corrcoef(torch.tensor([sums, drops], dtype=torch.float64))[0, 1]
    assert asked.correlation(map) == pytest.approx(float(wanted), abs=1e-10)
    assert asked.correlation(-3 * map) == pytest.approx(-float(wanted), abs=1e-10)


def test_the_exact_map_of_an_additive_model_is_right() -> None:
    weight, image = torch.randn(3, 8, 8).double(), torch.randn(1, 3, 8, 8).double()
    asked = Unions.of(signed_sum(weight), image, 0, across=4, fill="blur", seed=3)
    exact = (weight * (image - filled(image, "blur"))[0]).sum(0)
    torch.testing.assert_close(asked.sums(exact), asked.drops)
    assert asked.correlation(exact) == pytest.approx(1.0, abs=1e-12)


def test_the_target_is_the_answer_of_the_model(image: Tensor) -> None:
    net = network()
    asked = Unions.of(net, image, across=3)
    assert asked.target == int(net(image).argmax())
    assert asked.before == pytest.approx(float(net(image).max()), abs=1e-12)
    share = Unions.of(net, image, across=3, outcome="probability")
    assert share.before == pytest.approx(float(net(image).softmax(1).max()))


def test_what_says_nothing_has_no_correlation(image: Tensor) -> None:
    ones, map = torch.ones(9, 7), torch.randn(9, 7)
    asked = Unions.of(network(), image, across=3)
    assert not asked.level
    assert math.isnan(asked.correlation(ones))
    still = Unions.of(lambda x: torch.ones(len(x), 2) * 1e3, image, across=3)
    noise = Unions.of(lambda x: 1e3 + 1e-12 * x.mean((2, 3)), image, across=3)
    for level in (still, noise):
        assert level.level
        assert math.isnan(level.correlation(map))


def test_insertion_minus_deletion_is_that_of_pixels_where_cells_are_pixels() -> None:
    image, map = torch.rand(1, 2, 7, 7).double(), torch.randn(7, 7).double()
    net = nn.Sequential(nn.Conv2d(2, 6, 3), nn.GELU(), nn.Flatten(), nn.Linear(150, 4)).double()
    asked = Unions.of(net.eval(), image, 1, across=7, fill="mean")
    fill = filled(image, "mean")
    options: Any = {"step": 1, "fill": fill}
    up, down = (one(net, image, 1, map[None], **options) for one in (insertion, deletion))
    wanted = float(up.values[0] - down.values[0])
    assert asked.insertion_deletion(map, points=50) == pytest.approx(wanted, abs=1e-10)


def test_insertion_minus_deletion_prefers_the_right_order() -> None:
    weight, image = torch.rand(1, 8, 8).double(), torch.rand(1, 1, 8, 8).double()
    f = lambda x: torch.stack([(x * weight).sum((1, 2, 3)), x.sum((1, 2, 3)) * 0], 1)  # noqa: E731
    asked = Unions.of(f, image, 0, across=4, fill="zero")
    exact = (weight * image[0])[0]
    values = [asked.insertion_deletion(m) for m in (exact, torch.randn(8, 8), -exact)]
    assert values[0] > values[1] > values[2]
    assert values[0] == pytest.approx(-values[2], abs=1e-9)


def test_refused(image: Tensor) -> None:
    net = network()
    for options, argument in (
        ({"across": 8}, "across"),
        ({"across": 0}, "across"),
        ({"runs": 1}, "runs"),
        ({"share": 1.5}, "share"),
        ({"fill": "red"}, "fill"),
        ({"chunk": 0}, "chunk"),
    ):
        with refused(argument):
            Unions.of(net, image, **{"across": 3, **options})
    with refused("target", kind=TargetError):
        Unions.of(net, image, 9, across=3)
    with refused("maps"):
        Unions.of(net, image, across=3).correlation(torch.ones(3, 3))
    with pytest.raises(InputError):
        Unions.of(net, image[0], across=3)
