"""The output of the frozen pass is held against the ordinary one, on every call."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.autograd import functional

import omenn
from omenn.engine.fidelity import distance

X = torch.tensor([[0.3, -1.2, 0.7, 2.0]], dtype=torch.float64)
ONE = torch.ones(1, 4, dtype=torch.float64)


def other(x: Tensor) -> Tensor:
    """Its derivative of a softmax, which is frozen, is zero under omenn."""
    inner = functional.jacobian(lambda w: torch.softmax(w * x, 1)[:, 0].sum(), ONE)
    assert isinstance(inner, Tensor)
    return (inner + x).sum(1, keepdim=True) + 1


def test_another_output_is_not_exact() -> None:
    e = omenn.explain(other, X, 0)
    assert not e.exact
    assert not e.faithful
    difference = float((e.output - other(X)[:, 0]).abs() / other(X).abs().max())
    assert e.fidelity == pytest.approx(difference)
    assert "the model's own output differs" in repr(e)
    assert not omenn.rows(other, X, [0]).exact
    with omenn.operator(other, X) as op:
        assert not op.exact
    certificate = omenn.certify(other, X, 0)  # pyright: ignore[reportArgumentType]
    assert not certificate.exact
    assert certificate.fidelity == pytest.approx(difference)


def test_the_same_output_is_told() -> None:
    net = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).double().eval()
    e = omenn.explain(net, X, 1)
    assert e.fidelity is not None
    assert e.fidelity <= e.fidelity_tolerance == 1e-12


def test_random_numbers_are_drawn_alike() -> None:
    def noisy(x: Tensor) -> Tensor:
        return ((x + torch.rand_like(x)) ** 2).sum(1, keepdim=True)

    torch.manual_seed(3)
    e = omenn.explain(noisy, X, 0)
    assert e.exact
    torch.manual_seed(3)
    assert torch.equal(e.output, noisy(X)[:, 0])


def test_the_ordinary_pass_gets_the_input_as_it_was() -> None:
    def centred(x: Tensor) -> Tensor:
        return x.sub_(x.mean(1, keepdim=True)).relu().sum(1, keepdim=True)

    e = omenn.explain(centred, X.clone(), 0)
    assert e.exact
    assert torch.equal(e.output, centred(X.clone())[:, 0])


def test_a_part_is_compared_with_that_part() -> None:
    net = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).double().eval()
    with omenn.operator(net, X, to="0") as op:
        assert op.exact
        assert torch.equal(op.value, net[0](X).detach()[0])


def test_distance() -> None:
    inf, nan = float("inf"), float("nan")
    a = torch.tensor([1.0, -4.0, -inf, nan])
    assert distance(a, a) == 0
    assert distance(a, torch.tensor([2.0, -4.0, -inf, nan])) == 0.25
    assert distance(a, a[:2]) == inf
    assert distance(torch.tensor([1 + 1j]), torch.tensor([1 + 3j])) == pytest.approx(2 / 3)


class Failing(nn.Module):
    """Fails in some of its ordinary passes, with an error that is PyTorch's or its own."""

    def __init__(self, fails: str) -> None:
        super().__init__()
        self.fails = fails

    def forward(self, x: Tensor) -> Tensor:
        ordinary = not x.requires_grad
        if self.fails == "always" and ordinary:
            raise ValueError("no gradients")
        if self.fails == "without" and ordinary and not torch.is_grad_enabled():
            raise ValueError("no gradients")
        return x.sum(1, keepdim=True) + torch.from_numpy(np.ones(1))


def test_a_model_that_fails_without_gradients_is_held_against_its_other_pass() -> None:
    e = omenn.explain(Failing("without").eval(), X, 0)
    assert e.exact
    assert e.faithful


def test_a_model_whose_ordinary_form_fails_says_so() -> None:
    for ask in (omenn.explain, omenn.certify):
        with pytest.raises(omenn.InputError) as failed:
            ask(Failing("always").eval(), X, 0)
        assert isinstance(failed.value.__cause__, ValueError)
