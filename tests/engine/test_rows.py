"""``omenn.rows`` and ``omenn.frozen``: rows of W(x), and autograd inside of the frozen network."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import Tensor, nn

import omenn
from omenn.engine.run import FrozenRun
from omenn.explanation import Explanation
from opcases.case import draw
from opcases.linear import seeded


def network() -> nn.Module:
    return seeded(
        nn.Sequential(nn.Conv2d(2, 3, 3), nn.GELU(), nn.Flatten(), nn.Linear(12, 4), nn.SiLU())
    )


X, W = draw(2, 2, 4, 4), draw(3, 2, seed=9)


def test_each_row_is_an_explanation() -> None:
    net = network()
    r = omenn.rows(net, X, [0, 3, omenn.Contrast(1, 2)])
    assert r.exact
    assert r.weight.shape == (2, 3, 2, 4, 4)
    assert r.bias.shape == (2, 3, 4, 4)
    assert r.output.shape == r.residual.shape == (2, 3)
    for k, target in enumerate(r.targets):
        e = omenn.explain(net, X, target)
        torch.testing.assert_close(r.weight[:, k], e.weight)
        torch.testing.assert_close(r.bias[:, k], e.bias)
        torch.testing.assert_close(r.output[:, k], e.output)


def test_rows_rebuild_the_output() -> None:
    net = network()
    r = omenn.rows(net, X, range(4))
    rebuilt = (r.weight * X.unsqueeze(1)).sum((2, 3, 4)) + r.bias.sum((2, 3))
    torch.testing.assert_close(rebuilt, net(X).detach(), rtol=1e-12, atol=1e-12)


def test_difference_of_rows_is_the_contrast() -> None:
    r = omenn.rows(network(), X, [2, 0, omenn.Contrast(2, 0)])
    torch.testing.assert_close(r.weight[:, 0] - r.weight[:, 1], r.weight[:, 2])
    torch.testing.assert_close(r.bias[:, 0] - r.bias[:, 1], r.bias[:, 2])


@pytest.mark.parametrize("bias", ["spatial", "separate"])
@pytest.mark.parametrize("chunk", [2, 3, 100])
def test_rows_together_are_the_rows_one_by_one(chunk: int, bias: str) -> None:
    layer = nn.TransformerEncoderLayer(6, 2, 8, batch_first=True, activation="gelu")
    net = seeded(nn.Sequential(nn.Linear(6, 6), layer, nn.Flatten(), nn.Linear(30, 4)))
    targets = [3, omenn.Contrast(0, 1), 2, 0, 1]
    x = draw(2, 5, 6)
    one, more = (omenn.rows(net, x, targets, bias=bias, chunk=c) for c in (1, chunk))
    for name in ("output", "weight", "bias", "residual"):
        got, wanted = getattr(more, name), getattr(one, name)
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)
    assert more.exact


def test_rows_together_of_several_inputs() -> None:
    net = lambda a, b: a @ W + b.sum(1, keepdim=True)  # noqa: E731
    inputs = {"a": draw(2, 3), "b": draw(2, 4)}
    one, more = (omenn.rows(net, inputs, [0, 1, 1], chunk=c) for c in (1, 2))
    for name in ("a", "b"):
        torch.testing.assert_close(more.weight[name], one.weight[name])


def test_rows_of_the_whole_batch() -> None:
    net = network()
    targets = [lambda y: y.sum(), lambda y: y[0, 1] - y[1, 2], lambda y: y[1, 3]]
    for chunk in (1, 2):
        r = omenn.rows(net, X, targets, chunk=chunk)
        assert r.exact
        assert r.output.shape == (1, 3)


@pytest.mark.parametrize("chunk", [0, -1, 2.0, True, "all"])
def test_chunk_is_checked(chunk) -> None:
    with pytest.raises(omenn.InputError, match="chunk must be an integer of at least 1"):
        omenn.rows(network(), X, [0], chunk=chunk)


def test_rows_of_two_kinds_are_refused() -> None:
    with pytest.raises(omenn.TargetError, match="Give rows of one kind"):
        omenn.rows(network(), X, [1, lambda y: y.sum()])


def test_no_more_is_kept_than_the_rows(monkeypatch) -> None:
    """Of each explanation nothing stays but its row."""
    alive: list[weakref.ref] = []
    wrap = FrozenRun.wrap

    def counted(self, *args) -> Explanation:
        assert sum(ref() is not None for ref in alive) <= 1
        e = wrap(self, *args)
        alive.append(weakref.ref(e))
        return e

    monkeypatch.setattr(FrozenRun, "wrap", counted)
    omenn.rows(network(), X, range(4))
    assert len(alive) == 4


def test_sparse_bias_of_every_placement_keeps_its_sum() -> None:
    sums = [omenn.rows(network(), X, [0, 1], bias=b).bias for b in ("spatial", "uniform")]
    apart = omenn.rows(network(), X, [0, 1], bias="separate").bias
    assert apart.shape == (2, 2)
    for s in sums:
        torch.testing.assert_close(s.sum((2, 3)), apart)


def test_several_inputs_keep_their_structure() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 2), nn.Linear(4, 2)

        def forward(self, left: Tensor, right: Tensor) -> Tensor:
            return self.a(left) + self.b(right)

    net, inputs = seeded(Sum()), {"left": draw(2, 3), "right": draw(2, 4)}
    r = omenn.rows(net, inputs, [0, 1])
    assert r.weight.keys() == {"left", "right"}
    torch.testing.assert_close(r.weight["left"][0], net.a.weight.detach())
    torch.testing.assert_close(r.weight["right"][1], net.b.weight.detach())
    assert omenn.rows(net, tuple(inputs.values()), [1]).weight[1].shape == (2, 1, 4)


def test_rows_at_a_module() -> None:
    net = network()
    r = omenn.rows(net, X, [0, 1], at="2")
    hidden = net[:3](X).detach()
    assert r.weight.shape == (2, 2, 12)
    rebuilt = (r.weight * hidden.unsqueeze(1)).sum(2) + r.bias.sum(2)
    torch.testing.assert_close(rebuilt, net(X).detach()[:, :2])


def test_without_targets() -> None:
    with pytest.raises(omenn.TargetError, match=r"no targets were given: pass at least one"):
        omenn.rows(network(), X, [])


def test_frozen_gives_the_same_rows() -> None:
    net, x = network(), X.clone().requires_grad_()
    with omenn.frozen(x, model=net):
        y = net(x)
    torch.testing.assert_close(y.detach(), net(X).detach(), rtol=0, atol=0)
    for k in range(4):
        (w,) = torch.autograd.grad(y[:, k].sum(), x, retain_graph=True)
        torch.testing.assert_close(w, omenn.explain(net, X, k).weight)


def test_frozen_several_inputs() -> None:
    a, b = draw(2, 3).requires_grad_(), draw(2, 3, seed=1).requires_grad_()
    with omenn.frozen(a, b):
        y = (a * b).sum()
    got = torch.autograd.grad(y, (a, b))
    torch.testing.assert_close(got[0], b.detach() / 2)
    torch.testing.assert_close(got[1], a.detach() / 2)


@pytest.mark.parametrize(("products", "share"), [("left", (1, 0)), ("right", (0, 1))])
def test_frozen_choice_of_factor(products: str, share: tuple[int, int]) -> None:
    a, b = draw(2, 3).requires_grad_(), draw(2, 3, seed=1).requires_grad_()
    with omenn.frozen(a, b, products=products):
        y = (a * b).sum()
    got = torch.autograd.grad(y, (a, b), materialize_grads=True)
    torch.testing.assert_close(got[0], share[0] * b.detach())
    torch.testing.assert_close(got[1], share[1] * a.detach())


def test_frozen_is_differentiable_by_parameters() -> None:
    """W(x) = tanh(p x)/x for f = tanh(p x), so ∂W/∂p = 1 − tanh²."""
    p, x = nn.Parameter(torch.tensor(0.7).double()), draw(5).requires_grad_()
    with omenn.frozen(x, create_graph=True):
        y = torch.tanh(p * x).sum()
    (w,) = torch.autograd.grad(y, x, create_graph=True)
    (slope,) = torch.autograd.grad(w.sum(), p)
    torch.testing.assert_close(slope, (1 - torch.tanh(p * x) ** 2).sum().detach())


def test_frozen_leaves_no_trace_on_the_tensors() -> None:
    x = draw(2, 3).requires_grad_()
    with omenn.frozen(x):
        torch.tanh(x)
    assert x.__dict__ == {}
    (ordinary,) = torch.autograd.grad(torch.tanh(x).sum(), x)
    torch.testing.assert_close(ordinary, 1 - torch.tanh(x.detach()) ** 2)


def test_frozen_needs_gradients() -> None:
    remedy = r"requires_grad=True; call x.requires_grad_\(\) first"
    with pytest.raises(omenn.InputError, match=remedy), omenn.frozen(draw(2, 3)):
        pass


def test_what_is_printed_is_short_and_says_what_it_is() -> None:
    net = torch.nn.Linear(400, 30).eval()
    found = repr(omenn.rows(net, torch.randn(2, 400), range(30)))
    assert found.startswith("Rows(30 of 2 samples, targets=(0, 1, 2, 3, 4, 5, 6, 7, …), residual=")
    assert found.endswith(", exact)")
    assert len(found) < 120
