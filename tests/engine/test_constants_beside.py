"""Parameters beside what depends on the input: with second derivatives as without."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import omenn
from omenn.errors import OmennError
from opcases.case import Case, draw
from opdb import CASES

pytestmark = pytest.mark.slow  # every operator with every argument

PARTS = [
    (case, k)
    for case in CASES
    if len(case.inputs) > 1 and case.name != "through a view"  # cannot be differentiated twice
    for k, t in enumerate(case.inputs)
    if t.is_floating_point()
]
# What a model does with a parameter, and with a tensor of the same values.
SHAPES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "expand_as": lambda p, h: p.expand_as(h),
    "expand_as keyword": lambda p, h: p.expand_as(other=h),
    "view_as": lambda p, h: p.repeat(3, 1).view_as(h),
    "reshape_as": lambda p, h: p.repeat(3, 1).reshape_as(h),
    "type_as": lambda p, h: p.type_as(h).expand(h.shape),
    "to": lambda p, h: p.to(h).expand(3, 4),
    "to copy": lambda p, h: p.to(h, copy=True).expand(3, 4),
    "new_zeros": lambda p, h: h.new_zeros(h.shape) + p,
    "new_tensor": lambda p, h: h.new_tensor([1.0]) * p.expand(3, 4),
    "full_like": lambda p, h: torch.full_like(h, 1.0) * p,
    "ones_like": lambda p, h: torch.ones_like(input=h) * p,
    "interpolate": lambda p, h: F.interpolate(p[None, None], size=h.shape[1])[0].expand(3, 4),
    "is_same_size": lambda p, h: p.expand(3, 4) if not p.is_same_size(h) else h,
    "in place": lambda p, h: torch.empty_like(h).copy_(p),
}


def of(
    model: Callable[..., Tensor], inputs: tuple[Tensor, ...], create_graph: bool
) -> list[Tensor]:
    """The weight and the sum of the constants, flat."""

    def number(out: Tensor) -> Tensor:
        out = torch.view_as_real(out) if out.is_complex() else out
        return (out.reshape(-1) * draw(out.numel(), seed=5)).sum()

    e = omenn.explain(model, inputs, number, create_graph=create_graph)
    assert e.exact
    weights = e.weight if isinstance(e.weight, tuple) else (e.weight,)
    return [torch.cat([w.detach().reshape(-1) for w in weights]), e.bias_share.detach()]


@pytest.mark.parametrize(
    ("case", "k"), PARTS, ids=lambda v: v.id if isinstance(v, Case) else str(v)
)
def test_an_argument_that_is_a_parameter(case: Case, k: int) -> None:
    """It carries nothing, whether its own history is kept or not."""
    inputs = [t for n, t in enumerate(case.fresh()) if n != k]
    parameter = nn.Parameter(case.inputs[k].clone())

    def model(*rest: Tensor) -> Tensor:
        return case.call(*rest[:k], parameter * 1, *rest[k:])

    try:
        wanted = of(model, tuple(inputs), False)
    except OmennError as error:
        with pytest.raises(type(error)):
            of(model, tuple(inputs), True)
        return
    for got, value in zip(of(model, tuple(inputs), True), wanted, strict=True):
        torch.testing.assert_close(got, value, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_carries_nothing(name: str, create_graph: bool) -> None:
    """h γ + γ of h = W x + b: the weight is Wᵀ(v ⊙ γ), the constant Σ v (γ b + γ)."""
    torch.manual_seed(0)
    layer, x, v = nn.Linear(5, 4).double(), draw(3, 5), draw(3, 4, seed=1)
    gamma = nn.Parameter(draw(4, seed=2))

    def model(x: Tensor) -> Tensor:
        h = layer(x)
        there = SHAPES[name](gamma, h)
        return ((h * there + there) * v).sum(1)

    e = omenn.explain(model, x, lambda out: out, create_graph=create_graph)
    torch.testing.assert_close(e.weight, (v * gamma) @ layer.weight)
    torch.testing.assert_close(e.bias_share, (v * (gamma * layer.bias + gamma)).sum(1))
    assert e.exact
    assert not e.frozen_constants
    if create_graph:
        (found,) = torch.autograd.grad(e.contribution.square().sum(), gamma)
        other = ((v * gamma) @ layer.weight * x).square().sum()
        torch.testing.assert_close(found, torch.autograd.grad(other, gamma)[0])


def test_a_carried_bias_of_a_product_of_constants() -> None:
    """F.linear(c, W, x): x is added, and c Wᵀ is a constant."""
    c, w, x = draw(2, 3), draw(4, 3, seed=1), draw(1, 4, seed=2)
    e = omenn.explain(lambda x: F.linear(c, w, x[0]).sum(0), x, lambda out: out.sum())
    torch.testing.assert_close(e.weight, torch.full((1, 4), 2.0).double())
    torch.testing.assert_close(e.bias_share, (c @ w.T).sum().reshape(1))
