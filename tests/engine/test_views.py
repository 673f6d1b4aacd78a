"""Outputs that torch returns as views of tensors of its own, and what a model does with them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import omenn
from opcases.case import Case, draw
from opdb import CASES

pytestmark = pytest.mark.slow  # every view with every follower

# What reads a view, and what writes into it or into a part of it.
AFTER: dict[str, Callable[[Tensor], Tensor]] = {
    "product": lambda y: y @ draw(y.shape[-1], 2),
    "bmm": lambda y: torch.bmm(y, draw(y.shape[0], y.shape[-1], 2)),
    "attention": lambda y: torch.softmax(y @ y.mT, -1) @ y,
    "kernel": lambda y: F.scaled_dot_product_attention(y, y, y),
    "gate": lambda y: y.mul_(torch.sigmoid(y)),
    "relu": lambda y: y.relu_(),
    "add": lambda y: y.add_(1.5),
    "item": lambda y: _with_item(y),
    "part": lambda y: _with_part(y),
}


def _with_item(y: Tensor) -> Tensor:
    y[..., 0] = y[..., -1] * 0.5 + 1
    return y


def _with_part(y: Tensor) -> Tensor:
    y[..., :1].mul_(torch.sigmoid(y[..., :1]))
    return y


# They have no defined value where they are written into, or none that a copy has.
OVERLAPPING = ("unfold", "expand", "broadcast_to", "broadcast_tensors", "meshgrid", "as_strided")


def views() -> list[Case]:
    """Of each operator and each kind of base one case whose output is a view."""
    found: dict[tuple[str, bool], Case] = {}
    for case in CASES:
        x = case.fresh()
        y = case.call(*x)
        if y._is_view() and y.ndim and case.operator not in OVERLAPPING:
            found.setdefault((case.operator, any(y._base is t for t in x)), case)
    return list(found.values())


def explained(model: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> omenn.Explanation:
    def target(out: Tensor) -> Tensor:
        return (out * draw(*out.shape, seed=5)).sum()

    return omenn.explain(model, inputs, target, bias="uniform")


@pytest.mark.parametrize("case", views(), ids=lambda c: c.id)
def test_a_view_is_used_like_its_copy(case: Case) -> None:
    """Whatever comes next, the map is that of the same model with a copy in between."""
    seen = 0
    for name, after in AFTER.items():
        try:
            after(case.call(*case.fresh()).clone())
        except (RuntimeError, IndexError):  # not for tensors of this shape
            continue
        seen += 1
        e = explained(lambda *x, g=after: g(case.call(*x)), case.fresh())
        right = explained(lambda *x, g=after: g(case.call(*x).clone()), case.fresh())
        assert e.exact, name
        assert right.exact, name
        for got, wanted in zip(e.weight, right.weight, strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-10, msg=lambda m: m + name)  # noqa: B023
    assert seen > 3


PARTS: dict[str, Callable[[Tensor], tuple[Tensor, ...]]] = {
    "chunk": lambda y: y.chunk(2, 1),
    "split": lambda y: torch.split(y, 2, -1),
    "sizes": lambda y: y.split([1, 3], dim=1),
    "tensor_split": lambda y: y.tensor_split((1,), 1),
    "hsplit": lambda y: torch.hsplit(y, 2),
    "unbind": lambda y: tuple(t[:, None] for t in y.unbind(1)),
}


@pytest.mark.parametrize("cut", PARTS.values(), ids=PARTS.keys())
def test_parts_of_a_tensor_are_written_into(cut) -> None:
    """Inference allows it, and the whole has what was written into its parts."""
    w = draw(4, 4)

    def model(x: Tensor, copy: bool) -> Tensor:
        y = F.linear(x, w)
        a, b = cut(y)[:2]
        if copy:
            return torch.cat([a * torch.sigmoid(a), torch.relu(b), *cut(y)[2:]], 1)
        a.mul_(torch.sigmoid(a))
        b.relu_()
        return y

    x = (draw(3, 4, seed=2),)
    e, right = explained(lambda x: model(x, False), x), explained(lambda x: model(x, True), x)
    assert e.exact
    torch.testing.assert_close(e.weight[0], right.weight[0])


@pytest.mark.parametrize("factor", [torch.relu, torch.tanh, torch.sigmoid, torch.clone])
@pytest.mark.parametrize("how", ["mul_", "part", "addcmul_"])
def test_a_product_in_place_with_a_factor_made_of_itself(factor, how: str) -> None:
    w = draw(4, 4)

    def model(x: Tensor, copy: bool) -> Tensor:
        y = F.linear(x, w)
        if how == "mul_":
            return y * factor(y) if copy else y.mul_(factor(y))
        if how == "addcmul_":
            r = F.linear(x, w.T)
            return r + y * factor(y) if copy else r.addcmul_(y, factor(y))
        if copy:
            return torch.cat([y[:, :2] * factor(y[:, 2:]), y[:, 2:]], 1)
        y[:, :2].mul_(factor(y[:, 2:]))
        return y

    x = (draw(3, 4, seed=2),)
    e, right = explained(lambda x: model(x, False), x), explained(lambda x: model(x, True), x)
    assert e.exact
    torch.testing.assert_close(e.weight[0], right.weight[0])
