"""The gradient at the values of an attention, in blocks, against the weights written out."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import omenn
from omenn.engine.kernels import softmax
from omenn.engine.kernels.softmax import Softmax, at_values, weights
from opcases.case import draw

sdpa = F.scaled_dot_product_attention
MASKS = ("none", "allowed", "dark", "additive", "each head", "keys")


def mask_of(kind: str, lead: tuple[int, ...], rows: int, keys: int) -> Tensor | None:
    allowed = draw(rows, keys, seed=5) > -0.5
    allowed[:, 0] = True
    return {
        "none": None,
        "allowed": allowed,
        "dark": allowed & (torch.arange(rows) != 1)[:, None],
        "additive": draw(rows, keys, seed=6),
        "each head": draw(*lead, rows, keys, seed=7),
        "keys": draw(*[1] * len(lead), 1, keys, seed=8),
    }[kind]


def gradients(q: Tensor, k: Tensor, v: Tensor, grad: Tensor, **options) -> tuple[Tensor, Tensor]:
    """(as the frozen network gives it, Aᵀ g with A written out)."""
    leaf = v.clone().requires_grad_()
    with omenn.frozen(leaf):
        out = sdpa(q, k, leaf, **options)
    assert torch.equal(out.detach(), sdpa(q, k, v, **options)), "the forward pass changed"
    (got,) = torch.autograd.grad(out, leaf, grad)
    ordinary = v.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(sdpa(q, k, ordinary, **options), ordinary, grad)
    return got, wanted


@pytest.mark.parametrize("block", [4, 40, 1 << 18])
@pytest.mark.parametrize(("mask", "causal"), [("none", True), *((m, False) for m in MASKS)])
@pytest.mark.parametrize("width", [4, 3])
def test_blocks_give_the_gradient_of_the_ordinary_attention(
    block: int, mask: str, causal: bool, width: int, monkeypatch
) -> None:
    monkeypatch.setattr(softmax, "BLOCK", block)
    q, k, v = draw(2, 3, 9, 4), draw(2, 3, 7, 4, seed=1), draw(2, 3, 7, width, seed=2)
    given = mask_of(mask, (2, 3), 9, 7)
    got, wanted = gradients(q, k, v, draw(2, 3, 9, width, seed=3),
                            attn_mask=given, is_causal=causal, scale=0.7)  # fmt: skip
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(
    lead=st.lists(st.integers(1, 3), max_size=3).map(tuple),
    rows=st.integers(1, 12),
    keys=st.integers(1, 12),
    block=st.integers(1, 60),
    causal=st.booleans(),
    seen=st.sampled_from(["all", "first", "last", "none"]),
    mask=st.sampled_from(MASKS),
)
def test_any_shape_in_any_blocks(lead, rows, keys, block, causal, seen, mask) -> None:
    q, k = draw(*lead, rows, 4), draw(*lead, keys, 4, seed=1)
    grad = draw(*lead, rows, 3, seed=2)
    hidden = {"first": slice(1, None), "last": slice(0, -1), "none": slice(None)}
    if seen in hidden:
        grad[..., hidden[seen], :] = 0
    given, how = mask_of(mask, lead, rows, keys), Softmax(causal, 0.6, False)
    found = weights(q, k, given, how)
    before, softmax.BLOCK = softmax.BLOCK, block
    try:
        got = at_values(grad, q, k, given, how)
    finally:
        softmax.BLOCK = before
    torch.testing.assert_close(got, found.mT @ grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("causal", [False, True])
def test_heads_that_share_a_key(causal: bool) -> None:
    q, k, v = draw(2, 6, 5, 4), draw(2, 2, 5, 4, seed=1), draw(2, 2, 5, 4, seed=2)
    got, wanted = gradients(q, k, v, draw(2, 6, 5, 4, seed=3), enable_gqa=True, is_causal=causal)
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


def test_heads_that_share_a_key_in_rows_that_travel_together() -> None:
    def model(x: Tensor) -> Tensor:
        q, k = x.unflatten(-1, (4, -1)).mT, x[..., :4].unflatten(-1, (2, -1)).mT
        return sdpa(q.mT.transpose(1, 2), k.mT.transpose(1, 2), 2 * k.mT.transpose(1, 2),
                    enable_gqa=True).transpose(1, 2).flatten(2).mean(1)  # fmt: skip

    x = draw(2, 5, 8)
    one, all_ = (omenn.rows(model, x, range(4), chunk=n) for n in (1, 4))
    torch.testing.assert_close(all_.weight, one.weight, rtol=1e-12, atol=1e-12)
    assert one.exact
    assert bool(one.weight.any())


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("extra", ["add_bias_kv", "add_zero_attn"])
def test_the_causal_hint_of_the_attention_module(extra: str, need_weights: bool) -> None:
    """With it PyTorch does not read the mask, and so hides keys that are added at the end."""
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(8, 2, batch_first=True, **{extra: True}).double().eval()
    mask = torch.ones(6, 6, dtype=torch.bool).triu(1)

    def model(x: Tensor) -> Tensor:
        out, _ = layer(x, x, x, attn_mask=mask, is_causal=True, need_weights=need_weights)
        return out.mean(1)

    x = draw(2, 6, 8)
    e = omenn.explain(model, x, 1)
    assert e.exact
    torch.testing.assert_close(e.output, model(x)[:, 1].detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_weights_are_those_of_the_native_kernel(dtype: torch.dtype) -> None:
    q, k, v = (draw(1, 2, 40, 8, seed=s).to(dtype) for s in range(3))
    leaf = v.clone().requires_grad_()
    with omenn.frozen(leaf):
        out = sdpa(q, k, leaf)
    (got,) = torch.autograd.grad(out, leaf, torch.ones_like(out))
    exact = weights(q.double(), k.double(), None, Softmax(False, 8**-0.5, False)).sum(-2)
    torch.testing.assert_close(got[..., 0].double(), exact, rtol=8e-3, atol=8e-3)


def test_no_matrix_of_all_weights_is_made() -> None:
    """1,500 queries and keys: a matrix of 9 MB in float32, in blocks of 1 MB."""
    q, k, v = (draw(1, 1, 1500, 4, seed=s).float() for s in range(3))
    leaf = v.requires_grad_()
    with omenn.frozen(leaf):
        out = sdpa(q, k, leaf)
    with torch.profiler.profile(profile_memory=True) as seen:
        torch.autograd.grad(out, leaf, torch.ones_like(out))
    largest = max(e.self_cpu_memory_usage / max(1, e.count) for e in seen.key_averages())
    assert largest < 2 * 4 * softmax.BLOCK
