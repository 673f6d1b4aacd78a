"""Operators without a rule are refused where the explained number depends on them, and only there.

The right values are those of the same network without what stands beside it.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import omenn
from nets.small import ROWS
from opcases.case import draw
from opcases.linear import seeded

HEAD: Any = seeded(nn.Linear(4, 3))
BODY: Any = seeded(nn.Linear(4, 4))
LABELS = torch.tensor([0, 2, 1])


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x * x

    @staticmethod
    def backward(ctx, *grads: Tensor) -> Tensor:
        return grads[0]


BESIDE: dict[str, Callable[[Tensor], Any]] = {
    "cross_entropy": lambda z: F.cross_entropy(z, LABELS),
    "nll_loss of log_softmax": lambda z: F.nll_loss(F.log_softmax(z, 1), LABELS),
    "bce": lambda z: F.binary_cross_entropy_with_logits(z, torch.ones_like(z)),
    "mse_loss": lambda z: F.mse_loss(z, torch.zeros_like(z)),
    "quantile": lambda z: torch.quantile(z, 0.5),
    "rsample": lambda z: torch.distributions.Normal(z, 1.0).rsample(),
    "categorical": lambda z: torch.distributions.Categorical(logits=z).log_prob(LABELS),
    "cdist": lambda z: torch.cdist(z, z).topk(2).values.mean(),
    "histc": lambda z: torch.histc(z, 4),
    "svd": lambda z: torch.linalg.svd(z),
    "refused form": lambda z: z.clamp(min=z.mean()),
    "out=": lambda z: torch.add(z, 1, out=torch.empty(3, 3).double()),
    "unseen": Square.apply,
    "unseen, followed": lambda z: Square.apply(z).sum() + 1,
    "in place, of a copy": lambda z: z.clone().i0_().add_(1),
    "written into a constant": lambda z: torch.zeros(3, 4).double().index_copy_(
        1, torch.tensor([1, 2, 3]), torch.i0(z)
    ),
    "caught": lambda z: _caught(z),
}  # fmt: skip


HAVE_RULES = ("caught", "svd", "categorical", "quantile", "rsample", "cdist")


def _caught(z: Tensor) -> Tensor | None:
    try:
        return torch.linalg.cholesky(z)  # not square: the model's own error, as it is without omenn
    except RuntimeError:
        return None


@pytest.mark.parametrize("name", BESIDE)
@pytest.mark.parametrize("first", [True, False])
def test_what_stands_beside_the_explained_number(name: str, first: bool) -> None:
    def model(x: Tensor) -> Any:
        z = HEAD(torch.relu(BODY(x)))
        return (z, BESIDE[name](z)) if first else {"loss": BESIDE[name](z), "logits": z}

    e = omenn.explain(model, ROWS, 1)
    right = omenn.explain(lambda x: HEAD(torch.relu(BODY(x))), ROWS, 1)
    assert e.exact
    assert torch.equal(e.weight, right.weight)
    assert torch.equal(e.matrix, right.matrix)


@pytest.mark.parametrize("name", [n for n in BESIDE if n not in HAVE_RULES])
def test_the_same_is_refused_where_it_is_explained(name: str) -> None:
    def model(x: Tensor) -> Tensor:
        z = HEAD(x)
        return z + BESIDE[name](z).double().sum()

    direct = [lambda x: BESIDE[name](HEAD(x)), model]
    for refused in direct:
        with pytest.raises(omenn.UnsupportedOperator) as caught:
            omenn.explain(refused, ROWS, lambda y: y.sum())
        assert caught.value.operator == "add" if name == "out=" else caught.value.operator != "add"
        assert not omenn.certify(refused, ROWS, lambda y: y.sum()).exact


def test_the_error_is_that_of_the_first_cause() -> None:
    class Deep(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.lgamma(x.abs()).erfinv() * 2 + torch.special.i1(x)

    net = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.ReLU(), Deep()), nn.Softmax(1))
    for target in (1, lambda y: y.sum(), omenn.Contrast(0, 1)):
        with pytest.raises(omenn.UnsupportedOperator) as caught:
            omenn.explain(seeded(net), ROWS, target)
        assert (caught.value.operator, caught.value.module) == ("lgamma", "1.1")


class Neighbours(nn.Module):
    """An edge convolution: differences to the nearest points, by cdist or written out."""

    def __init__(self, distances: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.distances: Any = distances
        self.inner, self.outer = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, p: Tensor) -> Tensor:
        near = self.distances(p).topk(4, -1, largest=False).indices
        rows = torch.arange(p.shape[0])[:, None, None]
        n = p[rows, near]
        pairs = torch.cat([p.unsqueeze(2).expand_as(n), n - p.unsqueeze(2)], -1)
        return self.outer(F.relu(self.inner(pairs)).amax((1, 2)))


def _written_out(p: Tensor) -> Tensor:
    return (p[:, :, None] - p[:, None]).square().sum(-1)


def test_neighbours_by_distance_are_decisions() -> None:
    points = draw(2, 10, 3)
    by_cdist = seeded(Neighbours(lambda p: torch.cdist(p, p)))
    by_hand = copy.deepcopy(by_cdist)
    by_hand.distances = _written_out  # pyright: ignore
    e, right = omenn.explain(by_cdist, points, 1), omenn.explain(by_hand, points, 1)
    assert e.exact
    assert torch.equal(e.weight, right.weight)
    assert omenn.certify(by_cdist, points, 1).exact


CODES = draw(5, 4, seed=3)

DECISIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "nearest code": lambda x: x + CODES[torch.cdist(x, CODES).argmin(1)],
    "Gumbel arg-max": lambda x: x * (torch.special.i0(x).argmax(1) + 1)[:, None],
    "mask": lambda x: torch.where(torch.i0(x) > 0, x, 2 * x),
    "truth value": lambda x: 3 * x if bool(torch.quantile(x, 0.5) > -9) else x,
    "nonzero": lambda x: x[torch.i0(x).sum(1).ge(-1e9).nonzero()[:, 0]] * 2,
    "unique": lambda x: x * torch.unique((torch.i0(x) > 0).long()).numel(),
    "sort": lambda x: x[:, torch.cdist(x.T, x.T)[0].sort().indices],
    "assertion": lambda x: x if torch.isfinite(torch.i0(x)).all() else x.i0(),
}


@pytest.mark.parametrize("name", DECISIONS)
def test_what_is_decided_by_it_is_held(name: str) -> None:
    """The reference decides in the same way, of a copy that is not followed."""
    model = DECISIONS[name]
    e = omenn.explain(model, ROWS, lambda y: y.sum(1))
    x = ROWS.clone().requires_grad_()
    (right,) = torch.autograd.grad(model(x).sum(), x)
    assert e.exact
    torch.testing.assert_close(e.weight, right)


def _into(write: Callable[[Tensor, Tensor], Any]) -> Callable[[Tensor], Tensor]:
    def model(x: Tensor) -> Tensor:
        h = BODY(x)
        write(h, torch.i0(x))
        return HEAD(h)

    return model


WRITES: dict[str, Callable[[Tensor], Tensor]] = {
    "whole": _into(lambda h, o: h.copy_(o)),
    "column": _into(lambda h, o: h.__setitem__((slice(None), 1), o[:, 1])),
    "view": _into(lambda h, o: h[:, 1:].mul_(o[:, 1:])),
    "view of a view": _into(lambda h, o: h.T[2:].T.add_(o[:, 2:])),
    "in place": _into(lambda h, o: h.i0_()),
    "view in place": _into(lambda h, o: h[0].i0_()),
    "one of several views": _into(lambda h, o: h.chunk(2, 1)[0].i0_()),
    "detached": _into(lambda h, o: h.detach().i0_()),
    "unseen": lambda x: HEAD(Square.apply(torch.i0(x))),
    "parameter": lambda x: HEAD(x) + HEAD(nn.Parameter(torch.i0(x))),
    "view of it, unseen": lambda x: HEAD(Square.apply(torch.i0(x)[:, :])),
    "detached, unseen": lambda x: HEAD(x + Square.apply(torch.i0(x).detach())),
    "constant it was written into, unseen": lambda x: HEAD(
        x + Square.apply(torch.zeros(3, 4).double().copy_(torch.i0(x)))
    ),
    "part of a constant": lambda x: HEAD(x) + _part(torch.i0(x)),
    "bits": lambda x: HEAD(x) + torch.i0(x).sum().view(torch.int64).view(torch.float64),
    "to another shape": lambda x: HEAD(torch.i0(x).T.reshape(4, 3).T.contiguous().view(3, 4)),
    "times zero": lambda x: HEAD(x) + 0 * torch.i0(x).sum(),
}  # fmt: skip


def _part(o: Tensor) -> Tensor:
    whole = torch.zeros(6, 4).double()
    other = whole[2:5]
    whole[3:].copy_(o)
    return other[:, :3]


@pytest.mark.parametrize("name", WRITES)
def test_what_it_is_written_into_is_refused(name: str) -> None:
    with pytest.raises(omenn.UnsupportedOperator):
        omenn.explain(WRITES[name], ROWS, lambda y: y.sum())


def test_a_write_into_something_else_is_not() -> None:
    def model(x: Tensor) -> Tensor:
        scratch = torch.zeros(3, 8).double()
        scratch[:, :4] = torch.i0(x)
        scratch[:, 4:].copy_(x).i0_()
        h = BODY(x)
        h.clone()[:, 1:].i0_()
        return HEAD(h)

    right = omenn.explain(lambda x: HEAD(BODY(x)), ROWS, 1)
    assert torch.equal(omenn.explain(model, ROWS, 1).weight, right.weight)


def test_the_model_is_not_written_into() -> None:
    class Keeps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros(3, 4).double())

        def forward(self, x: Tensor) -> Tensor:
            self.seen.copy_(torch.i0(x))
            return HEAD(x)

    net = Keeps().eval()
    with pytest.raises(omenn.UnsupportedOperator):
        omenn.explain(net, ROWS, 1)
    assert not net.seen.any()


def test_frozen_has_no_gradient_through_it() -> None:
    x = ROWS.clone().requires_grad_()
    with omenn.frozen(x):
        z = HEAD(x)
        loss = F.cross_entropy(z, LABELS)
        both = z.sum() + torch.i0(x).sum()
    (w,) = torch.autograd.grad(z.sum(), x)
    torch.testing.assert_close(w, HEAD.weight.sum(0).expand(3, 4).detach())
    for value, operator in ((loss, "cross_entropy"), (both, "i0")):
        with pytest.raises(omenn.UnsupportedOperator) as caught:
            torch.autograd.grad(value, x)
        assert caught.value.operator == operator
        with pytest.raises(omenn.UnsupportedOperator):
            value.backward()
    assert x.grad is None


def test_frozen_refuses_a_write_into_its_tensor() -> None:
    x = ROWS.clone().requires_grad_()
    with pytest.raises(omenn.UnsupportedOperator), omenn.frozen(x), torch.no_grad():
        x.i0_()
    assert torch.equal(x.detach(), ROWS)


def test_rows_operator_and_methods() -> None:
    class Beside(nn.Module):
        def __init__(self, first: bool) -> None:
            super().__init__()
            self.first = first

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            z = HEAD(x)
            o = torch.i0(z)
            return (z, o) if self.first else (o, z)

    net, wrong = Beside(True).eval(), Beside(False).eval()
    rows = omenn.rows(net, ROWS, [0, 1, 2])
    torch.testing.assert_close(rows.weight[0], HEAD.weight.detach())
    with omenn.operator(net, ROWS[:1]) as op:
        torch.testing.assert_close(op.to_dense(), HEAD.weight.detach())
    for call in (
        lambda: omenn.rows(wrong, ROWS, [0, 1]),
        lambda: omenn.operator(wrong, ROWS[:1]),
        lambda: omenn.explain(wrong, ROWS, 1, create_graph=True),
    ):
        with pytest.raises(omenn.UnsupportedOperator) as caught:
            call()
        assert caught.value.operator == "i0"


def test_an_error_can_be_copied_and_pickled() -> None:
    with pytest.raises(omenn.UnsupportedOperator) as caught:
        omenn.explain(torch.i0, ROWS, 1)
    for twin in (copy.deepcopy(caught.value), pickle.loads(pickle.dumps(caught.value))):
        assert str(twin) == str(caught.value)
        assert (twin.operator, twin.module) == ("i0", "")
