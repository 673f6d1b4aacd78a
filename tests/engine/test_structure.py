"""Results have the structure and the order of the inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import omenn
from opcases.case import draw

TABLE, HEAD, DEEP = draw(20, 4), draw(4), draw(5)
IDS, X = torch.tensor([[3, 7, 11], [7, 0, 19]]), draw(2, 5)
WIDE = (TABLE[IDS] @ HEAD) / 3


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Identity()

    def forward(self, ids: Tensor, x: Tensor, scale: Any = None, lengths: Any = None) -> Tensor:
        rows = self.inside(F.embedding(ids, TABLE))
        return rows.mean(1) @ HEAD + (x @ DEEP if x is not None else 0)


def test_a_tuple_has_a_place_for_each_input() -> None:
    lengths = torch.tensor([3, 3])
    e = omenn.explain(Net().eval(), (IDS, X, None, lengths), lambda f: f)
    for part in (e.matrix, e.bias, e.weight, e.contribution, e.inputs):
        assert isinstance(part, tuple)
        assert len(part) == 4
        assert part[2] is part[3] is None
    torch.testing.assert_close(e.matrix[0], WIDE, rtol=0, atol=1e-12)
    torch.testing.assert_close(e.matrix[1], X * DEEP, rtol=0, atol=1e-12)
    rows = omenn.rows(Net().eval(), (IDS, X, None, lengths), [lambda f: f, lambda f: 2 * f])
    assert rows.weight[2] is None
    torch.testing.assert_close(rows.weight[1][:, 1], 2 * DEEP.expand(2, 5), rtol=0, atol=1e-12)


@pytest.mark.parametrize("order", [("ids", "x"), ("x", "ids")])
def test_a_dict_has_the_order_of_the_inputs(order: tuple[str, str]) -> None:
    given = {"ids": IDS, "x": X}
    e = omenn.explain(Net().eval(), {name: given[name] for name in order}, lambda f: f)
    assert tuple(e.matrix) == tuple(e.weight) == order
    torch.testing.assert_close(e.matrix["ids"], WIDE, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("inputs", "kind"), [(IDS, Tensor), ((IDS,), tuple), ({"ids": IDS}, dict)])
def test_the_type_does_not_depend_on_the_depth(inputs: Any, kind: type) -> None:
    class Ids(Net):
        def forward(self, ids: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(ids, None)  # type: ignore[arg-type]

    for options in ({}, {"at": "inside"}, {"at": ["input", "inside"]}):
        e = omenn.explain(Ids().eval(), inputs, lambda f: f, **options)
        assert type(e.matrix) is kind
        assert type(e.bias) is kind
        (one,) = [e.matrix] if kind is Tensor else e.matrix.values() if kind is dict else e.matrix
        torch.testing.assert_close(one, WIDE, rtol=0, atol=1e-12)


@pytest.mark.parametrize("inputs", [(IDS, torch.ones(2, 3).long()), {"ids": IDS}])
def test_one_explained_input_is_drawn_and_saved(inputs: Any, tmp_path: Path) -> None:
    def model(ids: Tensor, mask: Any = None) -> Tensor:
        return F.embedding(ids, TABLE).mean(1) @ HEAD

    e = omenn.explain(model, inputs, lambda f: f)
    assert e.heatmap().shape == (1, 3, 3)
    for ending in ("safetensors", "json", "png", "html"):
        assert e.save(tmp_path / f"e.{ending}").stat().st_size
    again = omenn.Explanation.load(tmp_path / "e.safetensors")
    assert type(again.matrix) is type(e.matrix)
    assert len(again.matrix) == len(inputs)
    assert e.processed("mad").matrix is not None


def test_of_several_the_one_that_is_drawn_is_named() -> None:
    e = omenn.explain(Net().eval(), (IDS, X), lambda f: f)
    with pytest.raises(omenn.InputError):
        e.heatmap()
    assert e.heatmap(input=1).shape == (1, 5, 3)
