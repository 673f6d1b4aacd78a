"""What no gradient reaches is left out, and nothing else: columns of linear layers."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import omenn
from omenn.engine.kernels import columns
from omenn.engine.operators import attention, linear, products
from opcases.case import draw
from opcases.linear import seeded


class Fused(nn.Module):
    """Self-attention with one projection, cut in one of the ways that models have."""

    def __init__(self, cut: str, written_out: bool = False, bias: bool = True, heads: int = 2):
        super().__init__()
        self.cut, self.written_out, self.heads = cut, written_out, heads
        self.qkv, self.proj = nn.Linear(6, 18, bias=bias), nn.Linear(6, 3)

    def parts(self, y: Tensor) -> tuple[Tensor, ...]:
        lead, h = y.shape[:-1], self.heads
        if self.cut == "unbind":
            return y.reshape(*lead, 3, h, -1).transpose(-4, -2).movedim(-3, 0).unbind(0)
        if self.cut == "permute":
            wide = y.flatten(0, -3).view(-1, lead[-1], 3, h, 6 // h).permute(2, 0, 3, 1, 4)
            return wide[0], wide[1], wide[2]
        parts = y.chunk(3, -1) if self.cut == "chunk" else y.split([6, 6, 6], dim=-1)
        return tuple(t.unflatten(-1, (h, -1)).transpose(-2, -3) for t in parts)

    def forward(self, x: Tensor) -> Tensor:
        y = self.qkv(x)
        q, k, v = self.parts(y)
        if self.written_out:
            out = (q @ k.mT).softmax(-1) @ v
        else:
            out = F.scaled_dot_product_attention(q, k, v)
        out = out.transpose(-2, -3).flatten(-2)
        return self.proj(out.reshape(-1, out.shape[-2], 6)).mean(1)


class Log(list):
    """The connected values: whether each took the short way."""

    def __init__(self, monkeypatch, short: bool = True) -> None:
        super().__init__()

        def connected(call, v: Tensor) -> Tensor:
            near = columns.connected(call, v) if short else v
            self.append(near is not v)
            return near

        for module in (attention, products):
            monkeypatch.setattr(module, "connected", connected)


def both(model, inputs, monkeypatch, target=1, **options):
    """(explanation by the short way, by the plain way), and whether the short way was taken."""
    with monkeypatch.context() as patch:
        log = Log(patch)
        short = omenn.explain(model, inputs, target, **options)
    with monkeypatch.context() as patch:
        Log(patch, short=False)
        plain = omenn.explain(model, inputs, target, **options)
    return short, plain, any(log)


def equal(a, b) -> None:
    for name in ("weight", "bias", "matrix", "output"):
        torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=1e-12, atol=1e-12)
    assert a.sources.keys() == b.sources.keys()
    for name, value in a.sources.items():
        torch.testing.assert_close(value, b.sources[name], rtol=1e-12, atol=1e-12)
    assert a.exact
    assert b.exact


X = draw(2, 5, 6)


@pytest.mark.parametrize("bias", ["spatial", "uniform", "separate"])
@pytest.mark.parametrize("biased", [True, False], ids=["biased", "no bias"])
@pytest.mark.parametrize("written_out", [False, True], ids=["fused", "written out"])
@pytest.mark.parametrize("cut", ["unbind", "permute", "chunk", "split"])
def test_fused_projection(cut: str, written_out: bool, biased: bool, bias: str, monkeypatch):
    model = seeded(Fused(cut, written_out, biased))
    short, plain, taken = both(model, X, monkeypatch, bias=bias)
    assert taken, "the short way was not taken"
    equal(short, plain)


@settings(max_examples=25, deadline=None)
@given(
    lead=st.lists(st.integers(1, 3), min_size=2, max_size=3).map(tuple),
    cut=st.sampled_from(["unbind", "chunk", "split"]),
    written_out=st.booleans(),
    heads=st.sampled_from([1, 2, 3, 6]),
)
def test_any_shape(lead, cut, written_out, heads) -> None:
    model, x = seeded(Fused(cut, written_out, heads=heads)), draw(*lead, 6)
    patch = pytest.MonkeyPatch()
    short, plain, _ = both(lambda t: model(t).reshape(-1, 3).sum(0)[None], x[None], patch)
    equal(short, plain)


def test_the_backward_pass_reads_the_columns_of_the_value_alone(monkeypatch) -> None:
    """Weights of query and key that are NaN in the backward pass would be seen."""
    model = seeded(Fused("unbind"))
    before = columns.product_of
    seen: list[int] = []

    def noted(x: Tensor):
        product = before(x)
        return lambda grad, w: seen.append(w.shape[0]) or product(grad, w)

    for module in (columns, linear):
        monkeypatch.setattr(module, "product_of", noted)
    omenn.explain(model, X, 1)
    assert seen == [3, 6], "proj, then six of the eighteen columns of qkv"


def used_twice(model: Fused, x: Tensor) -> Tensor:
    y = model.qkv(x)
    q, k, v = model.parts(y)
    out = F.scaled_dot_product_attention(q, k, v).transpose(-2, -3).flatten(-2)
    return (model.proj(out) + y[..., :3] + v.sum((1, 3))[..., None]).mean(1)


def written_after(model: Fused, x: Tensor) -> Tensor:
    """The value is written into before it is used: the layer's columns are no longer it."""
    y = model.qkv(x)
    q, k, v = (
        t.unflatten(-1, (2, 3)).transpose(1, 2) for t in (y[..., :6], y[..., 6:12], y[..., 12:])
    )
    y.mul_(2)
    return model.proj(F.scaled_dot_product_attention(q, k, v).transpose(-2, -3).flatten(-2)).mean(1)


def written_through_a_view(model: Fused, x: Tensor) -> Tensor:
    y = model.qkv(x)
    y[..., 12:].add_(1)
    q, k, v = model.parts(y)
    return model.proj(F.scaled_dot_product_attention(q, k, v).transpose(-2, -3).flatten(-2)).mean(1)


def input_written(model: Fused, x: Tensor) -> Tensor:
    x = x * 1
    q, k, v = model.parts(model.qkv(x))
    x.mul_(3)
    out = F.scaled_dot_product_attention(q, k, v).transpose(-2, -3).flatten(-2)
    return (model.proj(out) + x[..., :3]).mean(1)


def overwritten_afterwards(model: Fused, x: Tensor) -> Tensor:
    y = model.qkv(x)
    q, k, v = (t.contiguous() if n < 2 else t for n, t in enumerate(model.parts(y)))
    out = F.scaled_dot_product_attention(q, k, v).transpose(-2, -3).flatten(-2)
    y.zero_()
    return model.proj(out).mean(1) + y[:, 0, :3]


def not_a_view(model: Fused, x: Tensor) -> Tensor:
    q, k, v = model.parts(model.qkv(x))
    out = F.scaled_dot_product_attention(q, k, v.clone() * 2).transpose(-2, -3).flatten(-2)
    return model.proj(out).mean(1)


def a_part_of_the_tokens(model: Fused, x: Tensor) -> Tensor:
    q, k, v = model.parts(model.qkv(x))
    out = F.scaled_dot_product_attention(q, k[:, :, 1:], v[:, :, 1:]).transpose(-2, -3).flatten(-2)
    return model.proj(out).mean(1)


@pytest.mark.parametrize(
    ("call", "short_way"),
    [
        (used_twice, True),
        (written_after, False),
        (written_through_a_view, False),
        (input_written, False),
        (overwritten_afterwards, True),
        (not_a_view, False),
        (a_part_of_the_tokens, False),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_other_uses_of_the_projection(call, short_way: bool, monkeypatch) -> None:
    model = seeded(Fused("unbind"))
    short, plain, taken = both(lambda x: call(model, x), X, monkeypatch)
    assert taken == short_way
    equal(short, plain)


@pytest.mark.parametrize("written", ["weight", "bias"])
def test_a_layer_that_is_overwritten_afterwards(written: str) -> None:
    """Its coefficients are those that it had when it was called."""
    model = seeded(Fused("unbind"))

    def call(x: Tensor, overwritten: bool) -> Tensor:
        kept = {"weight": model.qkv.weight.clone(), "bias": model.qkv.bias.clone()}
        x = 2 * x
        q, k, v = model.parts(F.linear(x, **kept))
        if overwritten:
            kept[written].zero_()
        out = F.scaled_dot_product_attention(q, k, v)
        return model.proj(out.transpose(-2, -3).flatten(-2)).mean(1)

    found, wanted = (omenn.explain(lambda x, o=o: call(x, o), X, 1) for o in (True, False))
    assert found.exact
    for name in ("output", "weight", "matrix", "bias"):
        torch.testing.assert_close(getattr(found, name), getattr(wanted, name))


def test_at_the_projection(monkeypatch) -> None:
    """Explained at qkv its output is the input: nothing may pass by."""
    short, plain, taken = both(seeded(Fused("unbind")), X, monkeypatch, at="qkv")
    assert not taken
    equal(short, plain)
    short, plain, taken = both(
        nn.Sequential(nn.Linear(6, 6), seeded(Fused("unbind"))).double().eval(), X, monkeypatch,
        at="0",
    )  # fmt: skip
    assert taken
    equal(short, plain)


def test_gradients_in_the_open_take_the_plain_way(monkeypatch) -> None:
    """In ``frozen`` the caller may ask for the gradient at the projection itself."""
    model, log = seeded(Fused("unbind")), Log(monkeypatch)
    kept: list[Tensor] = []
    handle = model.qkv.register_forward_hook(lambda m, i, out: kept.append(out))
    x = X.clone().requires_grad_()
    with omenn.frozen(x, model=model):
        y = model(x)[:, 1].sum()
    handle.remove()
    at_qkv, at_x = torch.autograd.grad(y, (kept[0], x))
    torch.testing.assert_close(at_qkv @ model.qkv.weight, at_x)
    assert not any(log)
    assert float(at_qkv[..., :12].abs().max()) == 0


def test_differentiable_explanations_take_the_plain_way(monkeypatch) -> None:
    short, plain, taken = both(seeded(Fused("unbind")), X, monkeypatch, create_graph=True)
    assert not taken
    equal(short, plain)


def test_nothing_more_is_kept_alive(monkeypatch) -> None:
    """Neither the layer's input nor its output outlives the attention."""
    log, alive = Log(monkeypatch), []
    model = seeded(Fused("unbind"))

    def call(x: Tensor) -> Tensor:
        inside = x * 2
        y = model.qkv(inside)
        alive[:] = weakref.ref(inside), weakref.ref(y)
        q, k, v = model.parts(y)
        out = F.scaled_dot_product_attention(q, k, v).transpose(-2, -3).flatten(-2)
        del inside, y, q, k, v
        assert all(ref() is None for ref in alive)
        return model.proj(out).mean(1)

    gc.disable()  # by counting alone: no cycles
    try:
        assert omenn.explain(call, X, 1).exact
    finally:
        gc.enable()
    assert any(log)


def test_the_bias_of_the_values_is_not_made_from_the_input() -> None:
    """It is taken over where frozen weights meet the values, but it is the layer's own."""
    model = seeded(Fused("unbind"))

    def call(x: Tensor) -> Tensor:
        q, k, v = model.parts(model.qkv(x))
        weights = torch.softmax(q @ k.transpose(-2, -1), -1)
        return model.proj((weights @ v).transpose(-2, -3).flatten(-2)).mean(1)

    e = omenn.explain(call, X, 1)
    assert e.exact
    assert e.frozen_constants == ()
