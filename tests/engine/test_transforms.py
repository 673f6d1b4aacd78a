"""Function transforms and derivatives in a forward pass: right of constants, else refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad, functional

import omenn

func = torch.func
ONE = torch.ones(1, 4, dtype=torch.float64)
X = torch.tensor([[0.3, -1.2, 0.7, 2.0]], dtype=torch.float64)
WEIGHT = nn.Parameter(ONE.clone())
Map = Callable[[Tensor], Tensor]


def cube(w: Tensor) -> Tensor:
    return w**3


def cubes(w: Tensor) -> Tensor:
    return (w**3).sum()


def backward() -> Tensor:
    w = ONE.clone().requires_grad_()
    cubes(w).backward()
    assert w.grad is not None
    return w.grad


def tangent(f: Map) -> Tensor:
    with forward_ad.dual_level():
        found = forward_ad.unpack_dual(f(forward_ad.make_dual(ONE, ONE))).tangent
    assert found is not None
    return found


def assigned() -> Tensor:
    w = ONE.clone()
    w.requires_grad = True
    return torch.autograd.grad(cubes(w), w)[0]


def stopped() -> Tensor:
    """2 w² with one factor of w³ held: 3 in sum, with another power."""

    def held(w: Tensor) -> Tensor:
        with torch.no_grad():
            c = 1.5 * w
        return (w * w * c).sum()

    return func.grad(held)(ONE)


# Each is three everywhere.
OF_CONSTANTS: dict[str, Callable[[], Tensor]] = {
    "grad": lambda: func.grad(cubes)(ONE),
    "no_grad inside of grad": stopped,
    "vjp": lambda: func.vjp(cube, ONE)[1](ONE)[0],
    "jvp": lambda: func.jvp(cube, (ONE,), (ONE,))[1],
    "jacrev": lambda: func.jacrev(cubes)(ONE),
    "jacfwd": lambda: func.jacfwd(cubes)(ONE),
    "hessian": lambda: func.hessian(cubes)(ONE).sum((0, 1)) / 2,
    "vmap": lambda: func.vmap(lambda w: 3 * w)(ONE),
    "vmap of vmap": lambda: func.vmap(func.vmap(lambda w: 3 * w))(ONE),
    "functional.jacobian": lambda: functional.jacobian(cubes, ONE),  # pyright: ignore
    "functional.jacobian, with graph": lambda: functional.jacobian(cubes, ONE, create_graph=True),  # pyright: ignore
    "functional.hessian": lambda: functional.hessian(cubes, ONE).sum((0, 1)) / 2,  # pyright: ignore
    "functional.vjp": lambda: functional.vjp(cube, ONE, ONE)[1],
    "functional.jvp": lambda: functional.jvp(cube, ONE, ONE)[1],
    "functional.hvp": lambda: functional.hvp(cubes, ONE, ONE)[1] / 2,  # pyright: ignore
    "by a parameter": lambda: torch.autograd.grad(cubes(WEIGHT), WEIGHT)[0],
    "by a parameter, allow_unused": lambda: torch.autograd.grad(
        cubes(WEIGHT), WEIGHT, allow_unused=True
    )[0],
    "requires_grad assigned": assigned,
    "backward": backward,
    "forward mode": lambda: tangent(cube),
    "a factory with requires_grad": lambda: torch.full_like(ONE, 3.0, requires_grad=True),
}


@pytest.mark.parametrize("name", OF_CONSTANTS)
def test_of_constants(name: str) -> None:
    def model(x: Tensor) -> Tensor:
        return (OF_CONSTANTS[name]() * x).sum(1, keepdim=True)

    e = omenn.explain(model, X, 0)
    assert torch.equal(e.weight, 3 * ONE)
    assert torch.equal(e.output, model(X).detach()[:, 0])
    assert e.exact


def test_the_parameter_is_the_models() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(ONE.clone())

        def forward(self, x: Tensor) -> Tensor:
            return (torch.autograd.grad(cubes(self.w), self.w)[0] * x).sum(1, keepdim=True)

    assert torch.equal(omenn.explain(Net().eval(), X, 0).weight, 3 * ONE)


# Given x and c(x), for a c whose result is followed or frozen.
OF_THE_INPUT: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "grad": ("torch.func.grad", lambda c: func.grad(lambda w: (w * c).sum())(ONE)),
    "grad by it": ("torch.func.grad", lambda c: func.grad(cubes)(c)),
    "vjp": ("torch.func.grad", lambda c: func.vjp(lambda w: w * c, ONE)[1](ONE)[0]),
    "vjp of it": ("torch.autograd.grad", lambda c: func.vjp(cube, ONE)[1](c)[0]),
    "jvp": ("torch.func.jvp", lambda c: func.jvp(lambda w: w * c, (ONE,), (ONE,))[1]),
    "jvp along it": ("torch.func.jvp", lambda c: func.jvp(cube, (ONE,), (c,))[1]),
    "jacrev": ("torch.func.grad", lambda c: func.jacrev(lambda w: (w * c).sum())(ONE)),
    "jacfwd": ("torch.func.jvp", lambda c: func.jacfwd(lambda w: (w * c).sum())(ONE)),
    "hessian": (
        "torch.func.grad",
        lambda c: func.hessian(lambda w: (w * c).sum())(ONE).sum((0, 1)),
    ),
    "vmap": ("torch.vmap", lambda c: func.vmap(lambda row: 2 * row)(c)),
    "vmap, captured": ("torch.vmap", lambda c: func.vmap(lambda w: w * c)(ONE)[0]),
    "vmap, in_dims None": (
        "torch.vmap",
        lambda c: func.vmap(lambda w, c: w * c, in_dims=(0, None))(ONE, c)[0],
    ),
    "vmap of vmap": ("torch.vmap", lambda c: func.vmap(func.vmap(lambda v: 2 * v))(c)),
    "functional.jacobian": (
        "torch.autograd.grad",
        lambda c: functional.jacobian(lambda w: (w * c).sum(), ONE),  # pyright: ignore
    ),
    "functional.hessian": (
        "torch.autograd.grad",
        lambda c: functional.hessian(lambda w: (w * w * c).sum(), ONE).sum((0, 1)),  # pyright: ignore
    ),
    "functional.vjp": (
        "torch.autograd.grad",
        lambda c: functional.vjp(lambda w: w * c, ONE, ONE)[1],
    ),
    "functional.jvp": (
        "torch.autograd.grad",
        lambda c: functional.jvp(lambda w: w * c, ONE, ONE)[1],
    ),
    "torch.autograd.grad": (
        "torch.autograd.grad",
        lambda c: torch.autograd.grad((WEIGHT * c).sum(), WEIGHT)[0],
    ),
    "forward mode": ("torch.autograd.forward_ad", lambda c: tangent(lambda w: w * c)),
}


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("name", OF_THE_INPUT)
def test_of_the_input(name: str, frozen: bool) -> None:
    operator, derive = OF_THE_INPUT[name]

    def model(x: Tensor) -> Tensor:
        c = torch.softmax(x, 1) if frozen else x * x
        return (derive(c) + x).sum(1, keepdim=True)

    with pytest.raises(omenn.UnsupportedOperator) as caught:
        omenn.explain(model, X, 0)
    assert caught.value.operator == operator
    certificate = omenn.certify(model, X, 0)  # pyright: ignore[reportArgumentType]
    assert not certificate.exact
    assert operator in certificate.violations[0]


def test_an_ensemble_by_vmap_names_the_layer() -> None:
    """PyTorch's own recipe: stacked states, the input for all of them."""
    members = [nn.Linear(4, 2).double().eval() for _ in range(3)]
    states = func.stack_module_state(members)  # pyright: ignore[reportArgumentType]

    class Ensemble(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base, self.skip = members[0], nn.Linear(4, 2).double()

        def forward(self, x: Tensor) -> Tensor:
            each = func.vmap(
                lambda p, b, x: func.functional_call(self.base, (p, b), (x,)), in_dims=(0, 0, None)
            )(*states, x)
            return each.mean(0) + self.skip(x)

    with pytest.raises(omenn.UnsupportedOperator) as caught:
        omenn.explain(Ensemble().eval(), X, 0)
    assert (caught.value.operator, caught.value.module) == ("torch.vmap", "base")


def padded(x: Tensor, mask: Tensor) -> Tensor:
    """A mask made by vmap over pairs of places, as transformers makes that of attention."""
    places = torch.arange(3)
    seen = func.vmap(func.vmap(lambda i, j: mask[0, j] & (i >= j), (None, 0)), (0, None))
    weights = seen(places, places).to(x.dtype)
    return (weights @ x)[:, -1]


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64])
def test_masks_by_vmap_are_decisions(dtype: torch.dtype) -> None:
    x = torch.arange(6.0).reshape(1, 3, 2) + 1
    mask = torch.tensor([[1, 0, 1]])

    def model(x: Tensor, mask: Tensor) -> Tensor:
        return padded(x, mask.bool() if dtype == torch.int64 else mask)

    e = omenn.explain(model, {"x": x, "mask": mask.to(dtype)}, 0)
    weight = e.weight["x"] if isinstance(e.weight, dict) else e.weight
    assert torch.equal(weight, torch.tensor([[[1.0, 0.0], [0.0, 0.0], [1.0, 0.0]]]))


def test_numbers_made_of_ids_by_vmap_are_refused() -> None:
    table = nn.Embedding(9, 4)

    def model(ids: Tensor) -> Tensor:
        return table(func.vmap(lambda i: i + 1)(ids)).sum(1) + table(ids).sum(1)

    with pytest.raises(omenn.UnsupportedOperator) as caught:
        omenn.explain(model, torch.tensor([[1, 2, 3]]), 0)
    assert caught.value.operator == "torch.vmap"


def test_frozen_cannot_start_again() -> None:
    x = X.clone().requires_grad_()
    with pytest.raises(omenn.UnsupportedOperator) as caught, omenn.frozen(x):
        torch.autograd.grad(cubes(WEIGHT), WEIGHT)
    assert caught.value.operator == "torch.autograd.grad"
