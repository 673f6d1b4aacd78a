"""Coefficients that are not finite but do not reach the output: the map of what is left."""

from __future__ import annotations

import gc
import json
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import omenn
from omenn.engine.run import FrozenRun
from opcases.case import Case, draw
from opdb import each_case

LAYER = nn.Linear(4, 4).double()
HEAD = draw(4, seed=3)
X = draw(3, 3, 4)
MASK = torch.tensor([[1, 1, 0], [0, 0, 0], [1, 1, 1]])  # nothing of sample 1 counts
ZERO = torch.zeros((), dtype=torch.float64)


def outside(mask: Tensor, value: float) -> Tensor:
    return torch.zeros(mask.shape, dtype=torch.float64).masked_fill(mask == 0, value)


def attention(h: Tensor, s: Tensor, n: Tensor, mask: Tensor) -> Tensor:
    weights = torch.softmax(h.sum(-1) + outside(mask, -torch.inf), 1)
    return torch.where(n > 0, (weights.unsqueeze(1) @ h).squeeze(1), ZERO)


def in_place(h: Tensor, s: Tensor, n: Tensor, mask: Tensor) -> Tensor:
    s = s.clone()
    s /= n
    s[n[:, 0] == 0] = 0
    return s


Pooling = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
POOLINGS: dict[str, Pooling] = {
    "quotient": lambda h, s, n, m: torch.where(n > 0, s / n, ZERO),
    "masked_fill": lambda h, s, n, m: (s / n).masked_fill(n == 0, 0),
    "nan_to_num": lambda h, s, n, m: (s / n).nan_to_num(0.0),
    "in place": in_place,
    "product": lambda h, s, n, m: torch.where(n > 0, s * n.reciprocal(), ZERO),
    "power": lambda h, s, n, m: torch.where(n > 0, s * n**-1, ZERO),
    "logarithm": lambda h, s, n, m: torch.where(n > 0, s * s.square().sum(1, True).log(), ZERO),
    "attention": attention,
    "deviation": lambda h, s, n, m: torch.where(n > 0, s / (h * m.unsqueeze(2)).std(1), ZERO),
    "normalize": lambda h, s, n, m: torch.where(n > 0, F.normalize(s, dim=1, eps=0), ZERO),
    "layer norm": lambda h, s, n, m: torch.where(n > 0, F.layer_norm(s, (4,), eps=0), ZERO),
    "rms norm": lambda h, s, n, m: torch.where(n > 0, F.rms_norm(s, (4,), eps=0), ZERO),
    "mean of numbers": lambda h, s, n, m: (
        (h + outside(m, torch.nan).unsqueeze(2)).nanmean(1).nan_to_num(0.0)
    ),
    "largest": lambda h, s, n, m: (
        h.masked_fill(m.unsqueeze(2) == 0, -torch.inf).amax(1).masked_fill(n == 0, 0)
    ),
}

# As in the ordinary network, their coefficients have no derivative at zero.
SINGULAR = ("logarithm", "normalize", "layer norm", "rms norm")


def pooled(name: str, mask: Tensor) -> Callable[[Tensor], Tensor]:
    """Pooling over what counts, in one way or another, beside a part of the first token."""

    def model(x: Tensor) -> Tensor:
        h, n = torch.tanh(LAYER(x)), mask.sum(1, keepdim=True).double()
        s = (h * mask.unsqueeze(2)).sum(1)
        return (POOLINGS[name](h, s, n, mask) + 0.1 * x[:, 0]) @ HEAD

    return model


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("name", POOLINGS)
def test_a_masked_sample_is_explained_as_if_the_branch_were_not_there(
    name: str, create_graph: bool
) -> None:
    options = {"target": lambda out: out, "create_graph": create_graph}
    e = omenn.explain(pooled(name, MASK), X, **options)
    assert e.exact
    expected = torch.zeros(3, 4).double()
    expected[0] = 0.1 * HEAD  # what is beside the branch
    torch.testing.assert_close(e.weight[1].detach(), expected)
    torch.testing.assert_close(e.output[1].detach(), (X[1] * expected).sum())
    rest = [0, 2]  # the others are as they are without it
    alone = omenn.explain(pooled(name, MASK[rest]), X[rest], **options)
    for field in ("weight", "matrix", "output"):
        torch.testing.assert_close(getattr(e, field)[rest], getattr(alone, field))
    if create_graph and name not in SINGULAR:
        (found,) = torch.autograd.grad(e.matrix.square().sum(), LAYER.weight)
        total = alone.matrix.square().sum() + e.matrix[1].detach().square().sum()
        torch.testing.assert_close(found, torch.autograd.grad(total, LAYER.weight)[0])


def test_rows_operator_and_files(tmp_path: Path) -> None:
    n = torch.tensor([[2.0], [0.0]]).double()
    weight = draw(3, 4, seed=1)
    model = lambda x: torch.where(n > 0, (x @ weight) / n, ZERO)  # noqa: E731
    x = draw(2, 3)
    for chunk in (1, 3, 4):
        rows = omenn.rows(model, x, range(4), chunk=chunk)
        assert rows.exact
        torch.testing.assert_close(rows.weight[0], weight.T / 2)
        assert not rows.weight[1].any()
    with omenn.operator(model, x) as op:
        assert op.exact
        torch.testing.assert_close(op.to_dense()[:4, :3], weight.T / 2)
        assert not op.rows(slice(4, 8)).any()
    path = omenn.explain(model, x, 0).save(tmp_path / "e.json")
    assert "NaN" not in path.read_text()
    assert json.loads(path.read_text())["exact"]


def test_what_does_reach_the_output_is_told() -> None:
    """tanh(x/0) is one, of which no part is x."""
    e = omenn.explain(lambda x: torch.tanh(x / torch.zeros(3)), torch.ones(1, 3), 0)
    assert not e.exact


def test_the_model_runs_once_more_only_where_it_must() -> None:
    calls = []

    def model(x: Tensor, n: Tensor) -> Tensor:
        calls.append(0)
        return torch.where(n > 0, x.T / n, ZERO).T

    for n, most in ((0, 2), (1, 1)):
        calls.clear()
        given = (X[:, 0], torch.tensor([n] * 3))
        run = FrozenRun(model, given, None, "spatial", None, {})
        f, index = run.target(0)
        run.wrap(f, index, run.pull_back(f))
        assert len(calls) == most


def test_nothing_stays_in_memory() -> None:
    seen = []

    def model(x: Tensor) -> Tensor:
        seen.append(weakref.ref(x))
        return pooled("quotient", MASK)(x)

    gc.collect()
    gc.disable()
    try:
        omenn.explain(model, X, lambda out: out)
        assert [ref() for ref in seen] == [None] * len(seen)
    finally:
        gc.enable()


class Finite(FrozenRun):
    """From the beginning with finite numbers alone."""

    finite = property(lambda self: True, lambda self, value: None)


@each_case(few=True)
def test_finite_coefficients_stay_what_they_are(case: Case) -> None:
    def number(out: Tensor) -> Tensor:
        out = torch.view_as_real(out) if out.is_complex() else out
        return (out.reshape(-1) * draw(out.numel(), seed=5)).sum()

    found = []
    for kind in (FrozenRun, Finite):
        run = kind(case.call, case.fresh(), None, "spatial", None, {})
        f, _ = run.target(number)
        g = run.pull_back(f)
        found.append(torch.cat([t.reshape(-1) for t in (*g.inputs, *g.ones)]))
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-11)
