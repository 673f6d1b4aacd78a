"""Rows beside the batch that every sample uses: each gets the share that they have in its number.

What is right is told by the sample alone, and by the constants of the model written out.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import omenn
from opcases.case import draw
from opcases.linear import seeded
from products import spread

Model = Callable[[Tensor], Tensor]
BIASES = ["spatial", "attention", "uniform", "separate"]
W, B, OUT = draw(5, 7, seed=1), draw(7, seed=2), draw(7, 3, seed=3)
CONV = seeded(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 7, 3)))


def hidden(x: Tensor) -> Tensor:
    return torch.relu(x @ W + B)


def behind(x: Tensor, ref: Tensor) -> Tensor:
    h = hidden(torch.cat([x, ref]))
    return (h[: len(x)] - h[-1:]) @ OUT


def in_front(x: Tensor, ref: Tensor) -> Tensor:
    h, k = hidden(torch.cat([ref, x])), len(ref)
    return (h[k:] - h[:k].mean(0)) @ OUT


def each_with_each(x: Tensor, ref: Tensor) -> Tensor:
    h, n = hidden(torch.cat([x, ref])), len(x)
    return (h[:n, None] - h[None, n:]).abs().sum(1) @ OUT


def attended(x: Tensor, ref: Tensor) -> Tensor:
    h, n = hidden(torch.cat([x, ref])), len(x)
    return torch.softmax(h[:n] @ h[n:].T, -1) @ h[n:] @ OUT


def stacked(x: Tensor, ref: Tensor) -> Tensor:
    h = hidden(torch.stack([*x, *ref]))
    return (h[: len(x)] - h[-1]) @ OUT


def padded(x: Tensor, ref: Tensor) -> Tensor:
    h, k = hidden(F.pad(x, (0, 0, len(ref), 0), value=1.5)), len(ref)
    return (h[k:] - h[0]) @ OUT


def written(x: Tensor, ref: Tensor) -> Tensor:
    rows = x.new_zeros(len(x) + len(ref), 5)
    rows[: len(x)], rows[len(x) :] = x, ref
    h = hidden(rows)
    return (h[: len(x)] - h[-1:]) @ OUT


def across(x: Tensor, ref: Tensor) -> Tensor:
    h = torch.relu(W.T @ torch.cat([x.T, ref.T], 1) + B[:, None])
    return (h[:, : len(x)] - h[:, -1:]).T @ OUT


def prototypes(x: Tensor, ref: Tensor) -> Tensor:
    return torch.cdist(x, ref) @ OUT[: len(ref)]


def prototypes_first(x: Tensor, ref: Tensor) -> Tensor:
    return torch.tanh(torch.cdist(ref, x) - 1).T @ OUT[: len(ref)]


def manhattan(x: Tensor, ref: Tensor) -> Tensor:
    return torch.cdist(ref, x, p=1).T @ OUT[: len(ref)]


TABLES = [behind, in_front, each_with_each, attended, stacked, padded, written, across, prototypes,
          prototypes_first, manhattan]  # fmt: skip


def pictures(x: Tensor, ref: Tensor) -> Tensor:
    h, n = CONV(torch.cat([x, ref])), len(x)
    return (h[:n] - h[n:].mean(0, keepdim=True)).abs().mean((2, 3)) @ OUT


def stacked_pictures(x: Tensor, ref: Tensor) -> Tensor:
    h = CONV(torch.stack([*ref, *x])).amax((2, 3))
    return (h[len(ref) :] - h[:1]) @ OUT


def padded_pictures(x: Tensor, ref: Tensor) -> Tensor:
    h = CONV(F.pad(x, (1, 0, 1, 1, 0, 0, 0, len(ref)), value=0.7)).mean((2, 3))
    return (h[: len(x)] - h[-1:]) @ OUT


def alike(model: Model, x: Tensor, bias: str) -> None:
    """Exact for every sample, and each as if it were alone."""
    e = omenn.explain(model, x, 1, bias=bias)
    assert e.exact
    alone = [omenn.explain(model, row[None], 1, bias=bias) for row in x]
    for name in ("matrix", "bias_share", "weight"):
        right = torch.cat([getattr(a, name) for a in alone])
        torch.testing.assert_close(getattr(e, name), right, rtol=0, atol=1e-12)
    total = torch.stack(list(e.sources.values())).sum(0)
    torch.testing.assert_close(total, e.bias_share, rtol=0, atol=1e-12)
    assert set(e.reasons) == {reason for a in alone for reason in a.reasons}


@pytest.mark.parametrize(("model", "count", "bias"), spread(TABLES, [1, 2, 3, 6], BIASES, one_in=4))
def test_tables(model: Callable[..., Tensor], count: int, bias: str) -> None:
    alike(lambda x: model(x, draw(count, 5, seed=4)), draw(3, 5), bias)


@pytest.mark.parametrize(
    ("model", "count", "bias"),
    spread([pictures, stacked_pictures, padded_pictures], [1, 2, 3], BIASES, one_in=4),
)
def test_pictures(model: Callable[..., Tensor], count: int, bias: str) -> None:
    alike(lambda x: model(x, draw(count, 3, 8, 8, seed=4)), draw(3, 3, 8, 8), bias)


def test_the_share_of_a_sample() -> None:
    """What the reference adds to a number is written out: −Σ_i h_i(reference) w_i + Σ b_i w_i."""
    x, ref = draw(3, 5), draw(1, 5, seed=4)
    e = omenn.explain(lambda x: behind(x, ref), x, 1)
    active = (x @ W + B > 0).double()
    right = (active * B - hidden(ref)) @ OUT[:, 1]
    torch.testing.assert_close(e.bias_share, right, rtol=0, atol=1e-12)
    torch.testing.assert_close(e.weight, (active * OUT[:, 1]) @ W.T, rtol=0, atol=1e-12)


@pytest.mark.parametrize("bias", BIASES)
def test_several_inputs(bias: str) -> None:
    ref, other = draw(1, 5, seed=4), draw(2, 5, seed=5)

    def model(x: Tensor, y: Tensor) -> Tensor:
        h, g = hidden(torch.cat([x + y, ref])), hidden(torch.cat([other, y]))
        return (h[:-1] * torch.tanh(g[2:]) - h[-1:] + g[:1]) @ OUT

    given = draw(3, 5), draw(3, 5, seed=6)
    e = omenn.explain(model, given, 1, bias=bias)
    assert e.exact
    for k in range(3):
        alone = omenn.explain(model, tuple(t[k : k + 1] for t in given), 1, bias=bias)
        for both, one in zip(e.matrix, alone.matrix, strict=True):
            torch.testing.assert_close(both[k], one[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("chunk", [1, 2, 3])
@pytest.mark.parametrize("bias", BIASES)
def test_rows(bias: str, chunk: int) -> None:
    x, ref = draw(3, 5), draw(2, 5, seed=4)
    model = lambda x: in_front(x, ref)  # noqa: E731
    rows = omenn.rows(model, x, [0, 1, 2], bias=bias, chunk=chunk)
    assert rows.exact
    for k in range(3):
        e = omenn.explain(model, x, k, bias=bias)
        torch.testing.assert_close(rows.bias[:, k], e.bias, rtol=0, atol=1e-12)


def test_operator() -> None:
    x, ref = draw(3, 5), draw(2, 5, seed=4)
    with omenn.operator(lambda x: behind(x, ref), x) as op:
        assert op.exact
        torch.testing.assert_close(op @ op.input + op.constant, behind(x, ref).flatten())


def test_second_derivatives() -> None:
    """The map of a batch is trained on as those of its samples are."""
    ref = draw(1, 5, seed=4).requires_grad_()
    model, x = lambda x: behind(x, ref), draw(3, 5)

    def trained(x: Tensor) -> Tensor:
        e = omenn.explain(model, x, 1, create_graph=True)
        return torch.autograd.grad((e.matrix**2).sum(), ref)[0]

    right = torch.stack([trained(row[None]) for row in x]).sum(0)
    torch.testing.assert_close(trained(x), right, rtol=0, atol=1e-12)


def test_one_pass_where_nothing_is_common(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows beside the batch take a pass back for each sample; no other model does."""
    passes = []
    pull = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: passes.append(1) or pull(*a, **k))

    def count(model: Model) -> int:
        passes.clear()
        omenn.explain(model, draw(3, 5), 1)
        return len(passes)

    one = count(lambda x: hidden(x) @ OUT)
    assert count(lambda x: torch.cat([hidden(x), draw(3, 2)], 1) @ draw(9, 3)) == one
    assert count(lambda x: prototypes(x, draw(2, 5, seed=4))) == one
    assert count(lambda x: behind(x, draw(1, 5, seed=4))) == one + 3
