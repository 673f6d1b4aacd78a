"""AttnLRP and ResLRP: attention however it is spelled, the ratio rule and its bound, options."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import omenn
from nets import Tokens, draw, seeded
from omenn.attribution.attnlrp import ratio
from omenn.errors import UnsupportedOperator

sdpa = F.scaled_dot_product_attention


# --- attention ------------------------------------------------------------------------------------


def spelled(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    logits = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    if mask is not None and mask.dtype == torch.bool:
        logits = logits.masked_fill(~mask, -torch.inf)
    elif mask is not None:
        logits = logits + mask
    return torch.softmax(logits, -1) @ v


LOWER = torch.ones(4, 4, dtype=torch.bool).tril()
FORMS = {
    "plain": ({}, None),
    "causal": ({"is_causal": True}, LOWER),
    "allowed": ({"attn_mask": LOWER}, LOWER),
    "added": ({"attn_mask": draw(4, 4, seed=8)}, draw(4, 4, seed=8)),
    "hidden": ({"attn_mask": LOWER.double().log()}, LOWER.double().log()),
}


@pytest.mark.parametrize("method", ["abslrp", "attnlrp", "reslrp"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("constant", ["none", "query", "key", "value"])
def test_fused_attention_is_the_one_that_is_spelled_out(method, form, constant) -> None:
    options, mask = FORMS[form]
    x, w, fixed = draw(2, 4, 6), draw(18, 6, seed=2), draw(1, 4, 6, seed=3)

    def net(attend, x: Tensor) -> Tensor:
        parts = dict(zip(("query", "key", "value"), F.linear(x, w).chunk(3, -1), strict=True))
        if constant != "none":
            parts[constant] = fixed.expand(len(x), -1, -1)
        heads = [t.unflatten(-1, (2, 3)).transpose(1, 2) for t in parts.values()]
        return attend(*heads).transpose(1, 2).flatten(2)

    target = lambda y: y[:, 2].sum(-1)  # noqa: E731
    exact = {} if method == "abslrp" else {"epsilon": 0.0}  # the product with a constant has an ε
    fused, plain = (
        omenn.explain(partial(net, attend), x, target, method=method, **exact)
        for attend in (partial(sdpa, **options), partial(spelled, mask=mask))
    )
    assert torch.isfinite(plain.matrix).all()
    assert plain.matrix.abs().amax() > 0
    torch.testing.assert_close(fused.matrix, plain.matrix, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("method", ["abslrp", "attnlrp"])
def test_heads_that_share_keys_are_as_if_these_were_repeated(method: str) -> None:
    x, w = draw(2, 5, 6), draw(4 * 3 + 2 * 3 + 2 * 3, 6, seed=2)

    def net(x: Tensor, grouped: bool) -> Tensor:
        q, k, v = F.linear(x, w).split([12, 6, 6], -1)
        q, k, v = (t.unflatten(-1, (-1, 3)).transpose(1, 2) for t in (q, k, v))
        if grouped:
            return sdpa(q, k, v, enable_gqa=True)
        return spelled(q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1))

    target = lambda y: y[:, 1, 2].sum(-1)  # noqa: E731
    found = omenn.explain(partial(net, grouped=True), x, target, method=method).matrix
    expected = omenn.explain(partial(net, grouped=False), x, target, method=method).matrix
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("method", ["abslrp", "attnlrp", "reslrp"])
@pytest.mark.parametrize("kind", [torch.bool, torch.float64])
def test_a_query_that_sees_nothing_has_no_relevance(method: str, kind: torch.dtype) -> None:
    mask = LOWER.clone()
    mask[1] = False
    mask = mask if kind == torch.bool else mask.double().log()
    q, k, v = draw(3, 1, 1, 4, 6)
    net = lambda q, k, v: sdpa(q, k, v, attn_mask=mask)  # noqa: E731
    e = omenn.explain(net, (q, k, v), lambda y: y.sum((1, 2, 3)), method=method)
    assert all(bool(torch.isfinite(c).all()) for c in e.contribution)
    assert not e.contribution[0][..., 1, :].any()
    assert e.contribution[0].any()


@pytest.mark.parametrize("method", ["abslrp", "attnlrp", "reslrp"])
@pytest.mark.parametrize("weights", [True, False])
def test_multi_head_attention_is_the_one_that_is_spelled_out(method: str, weights: bool) -> None:
    layer = seeded(nn.MultiheadAttention(6, 2, batch_first=True))
    x, padding = draw(2, 4, 6), torch.tensor([[False] * 4, [False, False, False, True]])

    def module(x: Tensor) -> Tensor:
        return layer(x, x, x, key_padding_mask=padding, need_weights=weights)[0]

    def plain(x: Tensor) -> Tensor:
        weights = zip(layer.in_proj_weight.chunk(3), layer.in_proj_bias.chunk(3), strict=True)
        q, k, v = (F.linear(x, w, b).unflatten(-1, (2, 3)).transpose(1, 2) for w, b in weights)
        y = spelled(q, k, v, ~padding[:, None, None, :]).transpose(1, 2).flatten(2)
        return F.linear(y, layer.out_proj.weight, layer.out_proj.bias)

    target = lambda y: y[:, 0].sum(-1)  # noqa: E731
    found = omenn.explain(module, x, target, method=method).matrix
    expected = omenn.explain(plain, x, target, method=method).matrix
    assert not expected[1, 3].any()
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("gate", [torch.sigmoid, torch.tanh])
def test_a_gate_and_what_it_lets_pass_have_a_half_each(gate) -> None:
    a, b = draw(2, 5), draw(2, 5, seed=2)
    weight = draw(2, 5, seed=3)
    net = lambda a, b: a * gate(b) * weight  # noqa: E731
    e = omenn.explain(net, (a, b), lambda y: y.sum(1), method="attnlrp", epsilon=0.0)
    half = net(a, b) / 2
    for found in e.contribution:
        torch.testing.assert_close(found, half, rtol=1e-7, atol=1e-9)
    frozen = omenn.explain(net, (a, b), lambda y: y.sum(1), method="cp-lrp", epsilon=0.0)
    torch.testing.assert_close(frozen.contribution[0], net(a, b), rtol=1e-9, atol=1e-12)
    assert not frozen.contribution[1].any()


# --- the ratio rule of ResLRP ---------------------------------------------------------------------

numbers = st.floats(-1e3, 1e3, allow_subnormal=False).filter(lambda v: v == 0 or abs(v) > 1e-9)


@given(numbers, numbers, st.floats(0.05, 20), st.floats(-10, 10))
@example(1.0, -1.0, 1.0, 3.0)  # nothing is left of the sum, and no relevance
def test_a_sum_shares_out_no_more_than_its_bound(
    a: float, b: float, gamma: float, r: float
) -> None:
    """|R_a| + |R_b| ≤ (1 + 2/γ) |R|, also where a and b nearly cancel."""
    a, b = torch.tensor([a]).double(), torch.tensor([b]).double()
    z = a + b
    g = r / z if z else torch.ones_like(z)  # where z is zero, R is
    to_a, to_b = ratio(a, b, gamma)
    total = float((a * to_a * g).abs() + (b * to_b * g).abs())
    assert total <= (1 + 2 / gamma) * float((z * g).abs()) * (1 + 1e-9) + 1e-12


@given(numbers, numbers, st.floats(0, 20))
def test_a_sum_keeps_the_whole_of_its_relevance(a: float, b: float, gamma: float) -> None:
    a, b = torch.tensor([a]).double(), torch.tensor([b]).double()
    to_a, to_b = ratio(a, b, gamma)
    scale = float(a.abs() + b.abs())
    assert float(a * to_a + b * to_b) == pytest.approx(float(a + b), abs=1e-9 * scale + 1e-12)


def test_without_a_preference_it_is_attnlrp() -> None:
    net, x = seeded(Tokens()), draw(2, 5, 4)
    plain = omenn.explain(net, x, 1, method="attnlrp").contribution
    found = omenn.explain(net, x, 1, method="reslrp", gamma=0.0).contribution
    torch.testing.assert_close(found, plain, rtol=1e-9, atol=1e-12)
    near = omenn.explain(net, x, 1, method="reslrp", gamma=1e-7).contribution
    torch.testing.assert_close(near, plain, rtol=1e-4, atol=1e-5)
    far = omenn.explain(net, x, 1, method="reslrp").contribution
    assert (far - plain).abs().amax() > 1e-3


SPELLED = {
    "+": lambda a, b: a + b,
    "torch.add": torch.add,
    "reversed": lambda a, b: b + a,
    "in place": lambda a, b: a.clone().add_(b),
}


@pytest.mark.parametrize("name", SPELLED)
def test_a_sum_is_a_sum_however_it_is_spelled(name: str) -> None:
    a, weight = draw(2, 3, 4), draw(2, 3, 4, seed=3)
    other = a.flip(-1) * 0.5
    e = omenn.explain(
        lambda a: SPELLED[name](a, a.flip(-1) * 0.5),
        a,
        lambda y: (y * weight).sum((1, 2)),
        method="reslrp",
    )
    z = a + other
    w_a, w_b = (1 + (torch.sign(t) == torch.sign(z)).double() for t in (a, other))
    share = weight * z / (w_a * a + w_b * other)
    expected = w_a * a * share + (w_b * other * share).flip(-1)
    torch.testing.assert_close(e.contribution, expected, rtol=1e-9, atol=1e-12)


def test_summands_that_broadcast_have_the_sum_of_their_parts() -> None:
    a, b = draw(2, 3, 4), draw(2, 1, 4, seed=2)
    e = omenn.explain(torch.add, (a, b), lambda y: y.sum((1, 2)), method="reslrp")
    z = a + b
    w_a, w_b = (1 + (torch.sign(t) == torch.sign(z)).double() for t in (a, b))
    share = z / (w_a * a + w_b * b)
    torch.testing.assert_close(e.contribution[0], w_a * a * share, rtol=1e-9, atol=1e-12)
    expected = (w_b * b * share).sum(1, keepdim=True)
    torch.testing.assert_close(e.contribution[1], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", ["reslrp", "abslrp"])
def test_a_model_may_write_into_a_part_that_it_has_added_to(method: str) -> None:
    x, w = draw(2, 4, 3), draw(3, 3, seed=2)

    def plain(t: Tensor) -> Tensor:
        y = t @ w
        return torch.cat([y[:, :2] + t[:, :2], y[:, 2:]], 1).sum(1)

    def writing(t: Tensor) -> Tensor:
        y = t @ w
        y[:, :2] = y[:, :2] + t[:, :2]
        return y.sum(1)

    expected = omenn.explain(plain, x, 1, method=method).matrix
    found = omenn.explain(writing, x, 1, method=method).matrix
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_dropout_that_is_active_in_an_attention_is_refused() -> None:
    q = draw(1, 3, 4)
    for method in ("attnlrp", "reslrp", "abslrp", "cp-lrp"):
        with pytest.raises(UnsupportedOperator, match=r"dropout is active\. Call model"):
            omenn.explain(lambda q: sdpa(q, q, q, dropout_p=0.5), q, 0, method=method)
