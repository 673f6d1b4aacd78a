"""An output that is rounding is no false alarm, and a small output is compared strictly."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import omenn
from opcases.case import draw

X = draw(2, 5, 3)


class Either(nn.Module):
    """One function in its frozen pass, and another in its ordinary one."""

    def __init__(self, frozen: Callable[[Tensor], Tensor], ordinary: Callable[[Tensor], Tensor]):
        super().__init__()
        self.frozen, self.ordinary = frozen, ordinary

    def forward(self, x: Tensor) -> Tensor:
        return self.frozen(x) if x.requires_grad else self.ordinary(x)


def explained(frozen: Callable[[Tensor], Tensor], ordinary: Callable[[Tensor], Tensor], x=X):
    return omenn.explain(Either(frozen, ordinary).eval(), x, 0)


def centred(x: Tensor) -> Tensor:
    """Zero but for rounding."""
    y = torch.tanh(x + 1)
    return (y - y.mean(1, keepdim=True)).sum(1)


def backwards(x: Tensor) -> Tensor:
    """The same added up in another order."""
    y = torch.tanh(x + 1)
    y = y - sum(reversed(y.unbind(1))).unsqueeze(1) / y.shape[1]
    return sum(reversed(y.unbind(1)))


@pytest.mark.parametrize(
    ("dtype", "scale"),
    [
        (torch.float64, 1.0),
        (torch.float64, 1e6),
        (torch.float64, 1e-12),
        (torch.float32, 1.0),
        (torch.float32, 1e-12),
    ],
)
def test_rounding_is_no_difference(dtype: torch.dtype, scale: float) -> None:
    x = X.to(dtype)
    assert not torch.equal(backwards(x), centred(x))
    e = explained(lambda x: backwards(x) * scale, lambda x: centred(x) * scale, x)
    assert e.exact, e
    assert e.fidelity is not None
    assert 0 < e.fidelity <= e.fidelity_tolerance


def test_what_is_left_of_a_cancellation_is_no_difference() -> None:
    """A few digits are left of it."""
    tail = lambda x: 1e-11 * x.sum(1)  # noqa: E731
    assert explained(lambda x: backwards(x) + tail(x), lambda x: centred(x) + tail(x)).exact


@pytest.mark.parametrize("scale", [1.0, 1e-12, 1e-100])
def test_a_small_output_is_compared_strictly(scale: float) -> None:
    def ordinary(x: Tensor) -> Tensor:
        return torch.tanh(x + 1).sum(1) * scale

    assert explained(lambda x: ordinary(x) * (1 + 1e-14), ordinary).exact
    e = explained(lambda x: ordinary(x) * (1 + 1e-11), ordinary)
    assert not e.exact
    assert e.fidelity == pytest.approx(1e-11, rel=1e-3)


@pytest.mark.parametrize("by", [1.0, 1e-6, 1e-13])
def test_a_difference_beyond_the_noise_is_found(by: float) -> None:
    assert not explained(lambda x: centred(x) + by * x.mean(1), centred).exact


def test_decisions_on_ties_are_no_noise() -> None:
    """``floor`` falls if a one is moved down, ``>`` holds if it is moved up."""
    ones = torch.ones(1, 4, 2, dtype=torch.float64)

    def ordinary(x: Tensor) -> Tensor:
        return (x * x.floor() + x * (x > 1)).sum(1)

    assert explained(ordinary, ordinary, ones).exact
    assert not explained(lambda x: ordinary(x) + 0.01 * x.sum(1), ordinary, ones).exact


@pytest.mark.parametrize("by", [0.0, 1e-12])
def test_ids_and_views_that_are_written_into(by: float) -> None:
    table = draw(7, 3)

    def model(ids: Tensor) -> Tensor:
        x = F.embedding(ids, table)
        x[:, :2] += 1
        return backwards(x) + by * x.sum(1) if x.requires_grad else centred(x)

    e = omenn.explain(model, torch.tensor([[1, 2, 5, 6], [0, 3, 3, 4]]), 0)
    assert e.exact == (by == 0)


@pytest.mark.parametrize("scale", [1.0, 1e-5, 1e-12, 1e-100])
def test_a_wrong_sum_of_small_numbers_is_found(scale: float) -> None:
    w, b = draw(3, 4, seed=2), draw(3, seed=3)

    def model(x: Tensor) -> Tensor:
        return F.gelu(F.linear(x, w.T, b[:1])) @ w.T * scale + b * scale

    x = draw(2, 3, seed=4)
    e = omenn.explain(model, x, 1)
    assert e.exact
    assert e.scale == min(1.0, 1000 * float(model(x).abs().max()))
    assert not e.with_matrix(e.matrix * 1.01).exact
    assert omenn.certify(model, x, 1).exact
    with omenn.operator(model, x) as op:
        assert op.exact


def test_zero_is_exact() -> None:
    found = omenn.certify(lambda x: x.sum(1) * 0, X, 1)
    assert found.exact
    assert not found.relative.any()
