"""What a budget buys: operations are counted, and the dear go first."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import omenn
from omenn.tuning.costs import Costs, Extent, extent, operations
from refusals import refused

COSTS = Costs("passes", 66.0, {"omenn": 3.0, "gamma": 7.0, "dear": 70.0, "dearer": 90.0}, 22.0, 4)


def test_operations_of_a_layer() -> None:
    net, x = nn.Linear(5, 7, bias=False), torch.ones(3, 5)
    with torch.no_grad():
        alone = operations(lambda: net(x))
        assert operations(lambda: [net(x), net(x)]) == 2 * alone
    assert alone >= 2 * 3 * 5 * 7
    assert operations(lambda: None) == 1


def test_a_gradient_costs_about_three_passes() -> None:
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU()).eval()
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        one = operations(lambda: net(x))

    def explained() -> object:
        return omenn.explain(net, x, lambda y: y.sum((1, 2, 3)))

    assert 2.5 < operations(explained) / one < 6
    assert operations(explained) == operations(explained)


def test_what_a_pair_of_pictures_costs() -> None:
    pair = 2 * 66 + (3 + 7 + 70 + 90) + (3 + 90) + 6 * 22
    assert COSTS.pair() == pair
    assert COSTS.pair(frozenset({"dearer", "dear"})) == 2 * 66 + 10 + (3 + 7) + 6 * 22


def test_the_dear_go_before_pictures_do() -> None:
    whole, cheap = COSTS.pair(), COSTS.pair(frozenset({"dear", "dearer"}))
    assert extent(COSTS, None, 9, 6) == Extent(9)
    assert extent(COSTS, 9 * whole, 9, 6) == Extent(9)
    assert extent(COSTS, 9 * whole - 1, 9, 6) == Extent(9, frozenset({"dearer"}))
    assert extent(COSTS, 9 * cheap, 9, 6) == Extent(9, frozenset({"dear", "dearer"}))
    assert extent(COSTS, 7.5 * cheap, 9, 6) == Extent(7, frozenset({"dear", "dearer"}))
    with refused("passes", f"{5.9 * cheap:g}"):
        extent(COSTS, 5.9 * cheap, 9, 6)


def test_one_candidate_stays() -> None:
    costs = Costs("seconds", 1.0, {"dear": 9.0, "other": 5.0}, 0.0, 4)
    assert extent(costs, 6 * costs.pair(), 9, 6) == Extent(6)
    with refused("seconds", "1"):
        extent(costs, 1.0, 9, 6)


@given(st.floats(1, 1e5), st.integers(6, 500))
def test_the_budget_is_kept(budget: float, pictures: int) -> None:
    try:
        found = extent(COSTS, budget, pictures, 6)
    except omenn.InputError:
        assert budget < 6 * COSTS.pair()
        return
    assert 6 <= found.pictures <= pictures
    assert found.pictures * COSTS.pair(found.left_out) <= budget
    assert "omenn" not in found.left_out
