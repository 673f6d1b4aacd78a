"""φ(x)/x in its several forms: closed, divided, in place, made in the backward pass."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import omenn
from omenn.engine.operators import pointwise
from opcases.case import draw

THROUGH_ZERO = [F.silu, F.hardswish, F.mish, F.elu, F.gelu, torch.tanh, F.softsign]
IN_PLACE = [F.silu, F.hardswish, F.mish, F.elu, F.celu]
# Zero, numbers without all their digits, and numbers where φ is flat.
HARD = [0.0, -0.0, 1e-310, -1e-310, 1e-160, 3.0, -3.0, 40.0, -40.0, 700.0, -700.0]
VALUES = torch.cat([torch.tensor(HARD, dtype=torch.float64), draw(9)]).reshape(2, 10)


def coefficients(function, x: Tensor) -> Tensor:
    e = omenn.explain(lambda x: function(x * 1).sum(1), x, lambda y: y)
    assert e.exact
    return e.weight


@pytest.mark.parametrize("function", THROUGH_ZERO)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_coefficient_times_x_is_the_value(function, dtype: torch.dtype) -> None:
    x = VALUES.to(dtype)
    w = coefficients(function, x)
    assert w.isfinite().all()
    tiny = torch.finfo(dtype).tiny
    torch.testing.assert_close(w * x, function(x), rtol=4 * torch.finfo(dtype).eps, atol=tiny)


@pytest.mark.parametrize("function", THROUGH_ZERO)
def test_slope_at_zero(function) -> None:
    zero = torch.zeros(1, 1, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(function(zero).sum(), zero)
    torch.testing.assert_close(coefficients(function, zero.detach()), slope)


@pytest.mark.parametrize("function", IN_PLACE)
def test_in_place_is_the_same(function) -> None:
    w = coefficients(lambda x: function(x, inplace=True), VALUES)
    torch.testing.assert_close(w, coefficients(function, VALUES), rtol=1e-15, atol=0)


@pytest.mark.parametrize("function", [torch.sigmoid, F.hardsigmoid])
def test_large_gates_are_as_small_ones(function, monkeypatch) -> None:
    late = omenn.explain(lambda x: function(x).sum(1), VALUES, lambda y: y)
    monkeypatch.setattr(pointwise, "_small", lambda call, x: False)
    early = omenn.explain(lambda x: function(x).sum(1), VALUES, lambda y: y)
    assert late.exact
    torch.testing.assert_close(late.weight, early.weight, rtol=1e-15, atol=0)
    torch.testing.assert_close(late.bias, early.bias)


def test_a_small_gate_outlives_what_it_was_made_from() -> None:
    def model(x: Tensor) -> Tensor:
        y = x * 2
        gate = torch.sigmoid(y)
        y.add_(1)
        return (gate + y).sum(1)

    e = omenn.explain(model, VALUES, lambda y: y)
    assert e.exact


@pytest.mark.parametrize("function", [F.silu, F.gelu, torch.tanh])
def test_value_that_is_kept_and_used_twice_is_not_overwritten(function) -> None:
    x, kept = draw(1, 4), []

    def model(t: Tensor) -> Tensor:
        y = function(t * 1)
        kept.append(y)
        return (y * 2 + y.flip(1)).sum(1, keepdim=True)

    first, many = omenn.explain(model, x), omenn.rows(model, x, [0])
    assert first.exact
    torch.testing.assert_close(first.weight, many.weight.reshape(first.weight.shape))
    for y in kept:
        torch.testing.assert_close(y.detach(), function(x))
    torch.testing.assert_close(first.weight, 3 * function(x) / x)


def test_graph_of_frozen_may_be_pulled_back_again() -> None:
    x = draw(1, 4).requires_grad_()
    with omenn.frozen(x):
        y = F.gelu(x * 1).sum()
    first = torch.autograd.grad(y, x, retain_graph=True)[0].clone()
    omenn.explain(lambda t: F.gelu(t * 1).sum(1), x.detach(), lambda y: y)
    assert torch.equal(torch.autograd.grad(y, x)[0], first)
