"""Attention maps, rollout and generic attention, on transformers written down here."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import omenn
from omenn.attribution.attention_maps import attention_maps
from omenn.attribution.rollout import relevance_of_tokens, rolled_out
from omenn.errors import InputError, ModelError, OmennError, TargetError, UnsupportedOperator

METHODS = ["rollout", "generic-attention"]
WIDTH, HEADS = 8, 2


def by_hand(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor | None = None) -> Tensor:
    """The slow truth: softmax(q kᵀ/√d) and its product; ``hidden`` marks keys not to be seen."""
    logits = torch.stack([torch.stack([a @ b.T for a, b in zip(*pair)]) for pair in zip(q, k)])  # noqa: B905
    logits = logits / math.sqrt(q.shape[-1])
    if hidden is not None:
        logits = logits.masked_fill(hidden, -1e300)
    weights = torch.exp(logits - logits.amax(-1, keepdim=True))
    return weights / weights.sum(-1, keepdim=True)


def fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v)


def explicit(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).softmax(-1)
    return F.dropout(weights, 0.1, training=False) @ v


def flat_heads(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (t.reshape(-1, *t.shape[2:]) for t in (q, k, v))
    weights = nn.Softmax(dim=2)(torch.bmm(q, k.mT) / math.sqrt(q.shape[-1]))
    return torch.bmm(weights, v).unflatten(0, (-1, HEADS))


def einsum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    logits = torch.einsum("bhid,bhjd->bhij", q, k) / math.sqrt(q.shape[-1])
    return torch.einsum("b h j d, b h i j -> b h i d", v, torch.softmax(logits, dim=-1))


def ellipsis(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    logits = torch.einsum("...id,...jd->...ij", q, k) / math.sqrt(q.shape[-1])
    return torch.einsum("...ij,...jd->...id", torch.softmax(logits, -1), v)


SPELLINGS = [fused, explicit, flat_heads, einsum, ellipsis]


class Attention(nn.Module):
    def __init__(self, spelled: Callable[..., Tensor], keep: list[Tensor] | None = None) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.spelled, self.keep = spelled, keep

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        if self.keep is None:
            mixed = self.spelled(q, k, v)
        else:  # the truth, with what torch's autograd needs to tell the gradient of A
            weights = by_hand(q, k, v)
            weights.retain_grad()
            self.keep.append(weights)
            mixed = weights @ v
        return self.out(mixed.transpose(1, 2).flatten(2))


class Parts(nn.Module):
    """The same with ``nn.MultiheadAttention``."""

    def __init__(self, need_weights: bool = False, batch_first: bool = True) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(WIDTH, HEADS, batch_first=batch_first)
        self.need_weights, self.batch_first = need_weights, batch_first

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.batch_first else x.transpose(0, 1)
        out = self.inner(x, x, x, need_weights=self.need_weights)[0]
        return out if self.batch_first else out.transpose(0, 1)


class Transformer(nn.Module):
    """Two blocks; what it reads at the end is token 0 (``read="first"``), the last, or the mean."""

    def __init__(self, attention: Callable[[], nn.Module], read: str = "first") -> None:
        super().__init__()
        self.attention = nn.ModuleList(attention() for _ in range(2))
        self.norm = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
        self.mlp = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2))
        self.head, self.read = nn.Linear(WIDTH, 3), read

    def forward(self, x: Tensor) -> Tensor:
        for attention, norm, mlp in zip(self.attention, self.norm, self.mlp, strict=True):
            x = x + attention(norm(x))
            x = x + F.gelu(mlp(x))
        x = {"first": x[:, 0], "last": x[:, -1], "mean": x.mean(1)}[self.read]
        return self.head(torch.tanh(x))


class Pictures(nn.Module):
    """A vision transformer on 4 × 4 patches, with a class token in front and a register behind."""

    def __init__(self, tokens: bool = True, read: str = "first") -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, 4, 4)
        self.body, self.tokens = Transformer(lambda: Attention(fused), read), tokens
        self.extra = nn.Parameter(torch.ones(2, 1, 1, WIDTH))

    def forward(self, image: Tensor) -> Tensor:
        x = self.patches(image).flatten(2).transpose(1, 2)
        if self.tokens:
            first, last = (t.expand(len(x), -1, -1) for t in self.extra)
            x = torch.cat([first, x, last], 1)
        return self.body(x)


def filled(net: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(3)
    for p in net.parameters():
        p.data = torch.randn(p.shape, generator=generator) / max(p.shape[-1], 1) ** 0.5
    return net.double().eval()


def tokens(n: int = 2, length: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(4)
    return torch.randn(n, length, WIDTH, generator=generator).double()


def images(n: int = 2, height: int = 8, width: int = 12) -> Tensor:
    return torch.rand(n, 3, height, width, generator=torch.Generator().manual_seed(5)).double()


def truth(read: str = "first", cls: int = 1) -> tuple[list[Tensor], list[Tensor]]:
    """(A, ∂f/∂A) of both layers as torch's own autograd gives them."""
    keep: list[Tensor] = []
    net = filled(Transformer(lambda: Attention(fused, keep), read))
    net(tokens())[:, cls].sum().backward()
    return [a.detach() for a in keep], [a.grad for a in keep if a.grad is not None]


# --- the weights ---------------------------------------------------------------------------------


@pytest.mark.parametrize("spelled", SPELLINGS)
def test_weights_and_true_gradients_of_every_spelling(spelled: Callable[..., Tensor]) -> None:
    net, (weights, gradients) = filled(Transformer(lambda: Attention(spelled))), truth()
    layers = attention_maps(net, tokens(), 1)
    assert layers[0].module.startswith("attention.0")
    for layer, weight, gradient in zip(layers, weights, gradients, strict=True):
        assert layer.weights.shape == (2, HEADS, 5, 5)
        torch.testing.assert_close(layer.weights, weight, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(layer.gradient, gradient, rtol=1e-10, atol=1e-14)
        assert gradient.abs().sum() > 1e-3


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_multihead_attention_is_seen(need_weights: bool, batch_first: bool) -> None:
    parts = filled(Transformer(lambda: Parts(need_weights, batch_first)))
    (first, second) = attention_maps(parts, tokens(), 1)
    x = parts.norm[0](tokens())
    inner = parts.attention[0].inner
    q, k, v = F.linear(x, inner.in_proj_weight, inner.in_proj_bias).chunk(3, -1)
    split = lambda t: t.unflatten(-1, (HEADS, -1)).transpose(1, 2)  # noqa: E731
    expected = by_hand(split(q), split(k), split(v))
    torch.testing.assert_close(first.weights, expected, rtol=1e-12, atol=1e-14)
    assert second.module == "attention.1.inner"


class Masked(nn.Module):
    """Fused attention with the given options, one head of queries more than of keys if grouped."""

    def __init__(self, groups: int = HEADS, **options: Any) -> None:
        super().__init__()
        self.q, self.kv = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2 * groups * WIDTH // HEADS)
        self.groups, self.options = groups, options

    def projected(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q = self.q(x).unflatten(-1, (HEADS, -1)).transpose(1, 2)
        k, v = self.kv(x).unflatten(-1, (2, self.groups, -1)).permute(2, 0, 3, 1, 4)
        return q, k, v

    def forward(self, x: Tensor) -> Tensor:
        out = F.scaled_dot_product_attention(*self.projected(x), **self.options)
        return out.transpose(1, 2).flatten(2).mean(1)


LATER = torch.ones(5, 5, dtype=torch.bool).triu(1)
SOME = torch.tensor([[0, 0, 1, 0, 1]] * 5, dtype=torch.bool)
CASES: dict[str, tuple[dict[str, Any], Tensor | None, float]] = {
    "causal": ({"is_causal": True}, LATER, 1.0),
    "boolean": ({"attn_mask": ~SOME}, SOME, 1.0),
    "additive": ({"attn_mask": SOME.double() * -1e30}, SOME, 1.0),
    "scale": ({"scale": 0.25}, None, 0.25 * math.sqrt(WIDTH / HEADS)),
    "grouped": ({"enable_gqa": True, "groups": 1}, None, 1.0),
}


@pytest.mark.parametrize("case", CASES)
def test_masks_scale_and_grouped_heads(case: str) -> None:
    options, hidden, scale = CASES[case]
    net, x = filled(Masked(**options)), tokens()
    (layer,) = attention_maps(net, x, 1)
    q, k, v = net.projected(x)
    k, v = (t.expand(-1, HEADS, -1, -1) for t in (k, v))
    torch.testing.assert_close(
        layer.weights, by_hand(q * scale, k, v, hidden), rtol=1e-12, atol=1e-14
    )


def test_a_query_that_sees_nothing_has_no_weights_and_no_gradient_of_nan() -> None:
    blind = torch.ones(5, 5, dtype=torch.bool)
    blind[2] = False
    net = filled(Masked(attn_mask=blind))
    (layer,) = attention_maps(net, tokens(), 1)
    assert torch.equal(layer.weights[:, :, 2], torch.zeros(2, HEADS, 5).double())
    torch.testing.assert_close(layer.weights.sum(-1)[:, :, 3], torch.ones(2, HEADS).double())
    assert torch.isfinite(layer.gradient).all()
    e = omenn.explain(net, tokens(), 1, method="rollout")
    torch.testing.assert_close(e.output, net(tokens())[:, 1], rtol=1e-12, atol=1e-12)


# --- rollout and generic attention ---------------------------------------------------------------


def test_two_layers_by_hand() -> None:
    first, second = torch.tensor([[0.5, 0.5], [0.25, 0.75]]), torch.tensor([[1.0, 0.0], [0.5, 0.5]])
    layers = [first.double()[None, None], second.double()[None, None]]
    read = [torch.tensor([row]).double() for row in ([1.0, 0.0], [0.0, 1.0])]
    found = torch.cat([rolled_out(layers, row) for row in read])
    # Ã_1 = ((¾, ¼), (⅛, ⅞)), Ã_2 = ((1, 0), (¼, ¾))
    expected = torch.tensor([[0.75, 0.25], [0.28125, 0.71875]]).double()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-15)
    gradients = [
        torch.tensor([[[[2.0, -1.0], [4.0, 0.0]]]]).double(),
        torch.tensor([[[[1.0, 3.0], [-2.0, 2.0]]]]).double(),
    ]
    found = torch.cat([relevance_of_tokens(layers, gradients, row) for row in read])
    # Ā_1 = ((1, 0), (1, 0)), Ā_2 = ((1, 0), (0, 1)): (I + Ā_2)(I + Ā_1)
    expected = torch.tensor([[4.0, 0.0], [2.0, 2.0]]).double()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-15)


SIZES = st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 6))


@given(SIZES, st.sampled_from(["mean", "max", "min"]))
def test_rows_of_rollout_sum_to_one(sizes: tuple[int, int, int], over: str) -> None:
    layers, heads, length = sizes
    made = [torch.rand(2, heads, length, length).double().softmax(-1) for _ in range(layers)]
    rows = torch.rand(2, length).double().softmax(-1)
    found = rolled_out(made, rows, over)
    torch.testing.assert_close(found.sum(1), torch.ones(2).double(), rtol=0, atol=1e-12)
    assert (found >= 0).all()


@pytest.mark.parametrize("spelled", SPELLINGS)
@pytest.mark.parametrize("query", range(5))
def test_the_maps_follow_the_formulas_whatever_the_spelling(spelled, query: int) -> None:
    net = filled(Transformer(lambda: Attention(spelled)))
    (a1, a2), (g1, g2) = truth()
    one = torch.eye(5).double()
    mixed = [0.5 * (a.mean(1) + one) for a in (a1, a2)]
    e = omenn.explain(net, tokens(), 1, method="rollout", query=query)
    torch.testing.assert_close(e.matrix, (mixed[1] @ mixed[0])[:, query], rtol=1e-10, atol=1e-14)
    e = omenn.explain(net, tokens(), 1, method="generic-attention", query=query)
    relevance = one
    for a, g in ((a1, g1), (a2, g2)):
        relevance = relevance + (a * g).clamp(min=0).mean(1) @ relevance
    torch.testing.assert_close(e.matrix, relevance[:, query], rtol=1e-10, atol=1e-14)
    assert e.promise == "none"


@pytest.mark.parametrize("heads", ["max", "min"])
def test_other_ways_over_the_heads(heads: str) -> None:
    weights, _ = truth()
    total = torch.eye(5).double()
    for a in weights:
        larger = torch.maximum if heads == "max" else torch.minimum
        both = larger(a[:, 0], a[:, 1])
        both = 0.5 * (both + torch.eye(5))
        total = both / both.sum(-1, keepdim=True) @ total
    net = filled(Transformer(lambda: Attention(explicit)))
    e = omenn.explain(net, tokens(), 1, method="rollout", heads=heads)
    torch.testing.assert_close(e.matrix, total[:, 0], rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(("read", "query"), [("first", 0), ("last", -1), ("mean", "mean")])
@pytest.mark.parametrize("method", METHODS)
def test_the_row_is_that_of_the_tokens_that_the_output_reads(method, read, query) -> None:
    net = filled(Transformer(lambda: Attention(fused), read))
    found = omenn.explain(net, tokens(), 1, method=method).matrix
    asked = omenn.explain(net, tokens(), 1, method=method, query=query).matrix
    torch.testing.assert_close(found, asked, rtol=1e-12, atol=1e-14)
    other = omenn.explain(net, tokens(), 1, method=method, query=2).matrix
    assert (found - other).abs().max() > 1e-3


def test_rollout_is_the_same_for_every_class_and_generic_attention_is_not() -> None:
    net = filled(Transformer(lambda: Attention(fused)))
    first, second = (omenn.explain(net, tokens(), k, method="rollout") for k in (0, 2))
    assert torch.equal(first.matrix, second.matrix)
    assert not torch.equal(first.output, second.output)
    assert "same map for every class" in omenn.methods()["rollout"].summary
    first, second = (omenn.explain(net, tokens(), k, method="generic-attention") for k in (0, 2))
    assert (first.matrix - second.matrix).abs().max() > 1e-3


# --- places --------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_tokens_of_a_picture_are_spread_evenly_over_their_patch(method: str) -> None:
    net, x = filled(Pictures()), images()
    e = omenn.explain(net, x, 1, method=method)
    layers = attention_maps(net, x, 1)
    start = torch.eye(8).double()[:1].expand(2, -1)
    weights = [layer.weights for layer in layers]
    if method == "rollout":
        shares = rolled_out(weights, start)
    else:
        shares = relevance_of_tokens(weights, [layer.gradient for layer in layers], start)
    patches = shares[:, 1:-1].reshape(2, 2, 3)  # 8 × 12 pixels; class token and register are cut
    expected = torch.kron(patches, torch.ones(4, 4).double()) / 16
    torch.testing.assert_close(e.matrix, expected, rtol=1e-10, atol=1e-16)
    torch.testing.assert_close(e.contribution.sum(1), e.matrix, rtol=1e-10, atol=1e-16)
    assert not e.bias.any()
    assert not e.weight.any()
    torch.testing.assert_close(e.output - e.total, e.residual, rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_bilinear_resampling_keeps_the_sum(method: str) -> None:
    net, x = filled(Pictures()), images()
    near = omenn.explain(net, x, 1, method=method).matrix
    smooth = omenn.explain(net, x, 1, method=method, resample="bilinear").matrix
    torch.testing.assert_close(near.sum((1, 2)), smooth.sum((1, 2)), rtol=1e-10, atol=1e-14)
    steps = lambda t: (t[:, :, 1:] - t[:, :, :-1]).abs().amax()  # noqa: E731
    assert steps(smooth) < 0.5 * steps(near)


def test_the_mean_row_is_over_the_tokens_that_have_a_place() -> None:
    net, x = filled(Pictures()), images()
    each = [omenn.explain(net, x, 1, method="rollout", query=k).matrix for k in range(1, 7)]
    mean = omenn.explain(net, x, 1, method="rollout", query="mean").matrix
    torch.testing.assert_close(mean, torch.stack(each).mean(0), rtol=1e-10, atol=1e-16)
    bare = filled(Pictures(tokens=False, read="mean"))
    e = omenn.explain(bare, x, 1, method="rollout")
    torch.testing.assert_close(e.matrix.sum((1, 2)), torch.ones(2).double(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_ids_have_one_number_per_token(method: str) -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.body = nn.Embedding(9, WIDTH), Transformer(lambda: Attention(fused))

        def forward(self, ids: Tensor) -> Tensor:
            return self.body(self.words(ids))

    net, ids = filled(Words()), torch.tensor([[1, 5, 2, 8], [0, 3, 3, 4]])
    e = omenn.explain(net, {"ids": ids}, 1, method=method)
    assert e.matrix["ids"].shape == (2, 4)
    with torch.no_grad():
        vectors = net.words(ids)
    direct = omenn.explain(net.body, vectors, 1, method=method).matrix
    torch.testing.assert_close(e.matrix["ids"], direct, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("method", METHODS)
def test_alone_or_in_a_batch_and_the_model_as_it_was(method: str) -> None:
    net, x = filled(Pictures()), images(3)
    before = {name: t.clone() for name, t in net.state_dict().items()}
    state = torch.get_rng_state()
    together = omenn.explain(net, x, 1, method=method).matrix
    alone = torch.cat([omenn.explain(net, row[None], 1, method=method).matrix for row in x])
    torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-14)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())
    assert not any(m._forward_hooks for m in net.modules())
    assert x.grad is None
    assert not x.requires_grad


# --- what is refused -----------------------------------------------------------------------------


def attending(mix: Callable[[Tensor], Tensor]) -> nn.Module:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = Part(mix)

        def forward(self, x: Tensor) -> Tensor:
            return self.first(x).mean(1)

    class Part(nn.Module):
        def __init__(self, mix: Callable[[Tensor], Tensor]) -> None:
            super().__init__()
            self.mix = mix

        def forward(self, x: Tensor) -> Tensor:
            return self.mix(x)

    return Net().double().eval()


def windows(x: Tensor) -> Tensor:
    parts = x.unflatten(1, (2, 3)).flatten(0, 1)
    return fused(parts, parts, parts).unflatten(0, (-1, 2)).flatten(1, 2)


def channels(x: Tensor) -> Tensor:
    y = x.transpose(1, 2)
    return ((y @ y.mT).softmax(-1) @ y).transpose(1, 2)


def shorter(x: Tensor) -> Tensor:
    x = fused(x, x, x)
    x = F.avg_pool1d(x.transpose(1, 2), 2).transpose(1, 2)
    return fused(x, x, x)


def swapped(x: Tensor) -> Tensor:
    x = fused(x, x, x).flip(1)
    return fused(x, x, x)


def turned(x: Tensor) -> Tensor:
    weights = (x @ x.mT).softmax(-1)
    return (x.mT @ weights.mT).mT


REFUSED = {
    "it looks at windows, not at all tokens of the input": windows,
    "it weighs channels and not tokens (cross-covariance attention)": channels,
    "2 queries look at 6 keys (cross-attention, pooling, reduced keys)": (
        lambda x: fused(x[:, :2], x, x)
    ),
    "its queries are other tokens than its keys (cross-attention)": (
        lambda x: fused(x.flip(1), x, x)
    ),
    "the number of tokens changes, 6 in module 'first' and 3 here": shorter,
    "its tokens are not those of module 'first'": swapped,
    "but are not multiplied with values as weights @ values": turned,
}


@pytest.mark.parametrize("why", REFUSED)
@pytest.mark.parametrize("method", METHODS)
def test_attention_that_is_no_map_between_tokens_is_refused_by_name(method, why) -> None:
    with pytest.raises(UnsupportedOperator) as refusal:
        omenn.explain(attending(REFUSED[why]), tokens(2, 6), 1, method=method)
    assert why in str(refusal.value)
    assert "in module 'first'" in str(refusal.value)
    assert "another method" in str(refusal.value)


@pytest.mark.parametrize("method", METHODS)
def test_queries_that_are_learned_or_of_another_input_are_refused(method: str) -> None:
    learned = lambda x: fused(torch.ones(len(x), 5, WIDTH).double(), x, x)[:, 0]  # noqa: E731
    text = re.escape("its queries are other tokens than its keys (cross-attention)")
    with pytest.raises(UnsupportedOperator, match=text):
        omenn.explain(learned, tokens(), 1, method=method)
    across = lambda x, y: fused(x, y, y)[:, 0]  # noqa: E731
    with pytest.raises(UnsupportedOperator, match=text):
        omenn.explain(across, (tokens(), tokens() + 1), 1, method=method)
    both = lambda x, y: fused(x + y, x + y, x + y)[:, 0]  # noqa: E731
    e = omenn.explain(both, (tokens(), tokens() + 1), 1, method="rollout")
    torch.testing.assert_close(e.matrix[0], e.matrix[1], rtol=1e-12, atol=0)
    torch.testing.assert_close(
        sum(m.sum(1) for m in e.matrix), torch.ones(2).double(), rtol=1e-12, atol=0
    )


@pytest.mark.parametrize("method", METHODS)
def test_tokens_made_in_two_ways_are_known_as_the_same(method: str) -> None:
    def net(x: Tensor) -> Tensor:  # two means of the same words: other grids, the same places
        pairs = x.unflatten(1, (3, 2)).mean(2)
        again = F.avg_pool1d(x.transpose(1, 2), 2).transpose(1, 2)
        return fused(pairs, again, again)[:, 0]

    e = omenn.explain(net, tokens(2, 6), 1, method=method, query=0)
    torch.testing.assert_close(e.matrix[:, ::2], e.matrix[:, 1::2], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("method", METHODS)
def test_a_model_without_attention(method: str) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(5 * WIDTH, 3)).double().eval()
    with pytest.raises(ModelError, match="the model has no softmax attention, so there are no"):
        omenn.explain(net, tokens(), 1, method=method)
    gate = nn.Sequential(nn.Flatten(), nn.Linear(5 * WIDTH, 3), nn.Softmax(-1)).double().eval()
    with pytest.raises(ModelError, match="no softmax attention"):
        omenn.explain(gate, tokens(), 1, method=method)


BAD: list[tuple[dict[str, Any], type[OmennError], str]] = [
    ({"query": 5}, InputError, "5"),
    ({"query": "-6"}, InputError, "-6"),
    ({"query": "cls"}, InputError, "'cls'"),
    ({"resample": "cubic"}, InputError, "'cubic'"),
    ({"heads": "median"}, InputError, "'median'"),
    ({"target": lambda out: out.sum()}, TargetError, "1 numbers"),
    ({"target": lambda out: torch.ones(2).double()}, TargetError, ""),
]


@pytest.mark.parametrize(("options", "kind", "got"), BAD)
def test_bad_options_are_told(options: dict[str, Any], kind: type[OmennError], got: str) -> None:
    net = filled(Transformer(lambda: Attention(fused)))
    with pytest.raises(kind) as caught:
        omenn.explain(net, tokens(), **{"target": 1, "method": "rollout", **options})
    assert (caught.value.argument, caught.value.got) == (next(iter(options)), got)


def test_a_class_that_is_not_there_is_told() -> None:
    net = filled(Transformer(lambda: Attention(fused)))
    with pytest.raises(TargetError, match="target 7 is out of range"):
        omenn.explain(net, tokens(), 7, method="rollout")


def test_dropout_and_training_are_refused() -> None:
    with pytest.raises(UnsupportedOperator, match="dropout is active"):
        attention_maps(filled(Masked(dropout_p=0.1)), tokens(), 1)
    with pytest.raises(ModelError, match="training mode"):
        attention_maps(Transformer(lambda: Attention(fused)).double(), tokens(), 1)
