"""``bias="attention"``: what sits in a class token goes along the frozen attention."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import omenn
from opcases.case import draw
from opcases.linear import seeded

TOKENS = draw(2, 5, 4)  # samples, positions, channels

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v)


def grouped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One key and value head for two queries' heads."""
    k, v = (t.mean(1, keepdim=True) for t in (k, v))
    return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)


def masked(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, mask(q.shape[-2]))


def boolean(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, mask(q.shape[-2]) > -1)


def causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The class token is the last one here, or it would see only itself."""
    q, k, v = (t.roll(-1, -2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3).roll(1, -2)


def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.transpose(-2, -1) / 2**0.5).softmax(-1) @ v


def mask(n: int) -> Tensor:
    bias = draw(n, n)
    bias[0, 3] = -torch.inf
    return bias


FORMS: dict[str, Attend] = {
    "fused": fused,
    "plain": plain,
    "grouped": grouped,
    "masked": masked,
    "boolean mask": boolean,
    "causal": causal,
}


class Block(nn.Module):
    """Attention and a residual, with a bias that only the class token has."""

    def __init__(self, attend: Attend) -> None:
        super().__init__()
        self.qkv, self.project = nn.Linear(4, 12, bias=False), nn.Linear(4, 4, bias=False)
        self.attend, self.amount = attend, draw(4)

    def heads(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.qkv(x).unflatten(-1, (3, 2, 2)).permute(2, 0, 3, 1, 4).unbind(0)

    def weights(self, x: Tensor) -> Tensor:
        """The attention weights of the class token, averaged over the heads, (B, N)."""
        q, k, v = self.heads(x)
        one_hot = torch.eye(v.shape[-2]).double().expand(*v.shape[:2], -1, -1)
        return self.attend(q, k, one_hot)[:, :, 0].mean(1)

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.project(self.attend(*self.heads(x)).transpose(1, 2).flatten(2))
        first = torch.zeros(x.shape[1], 1).double()
        first[0] = 1
        return x + (mixed + first * self.amount)


class Net(nn.Module):
    """A class token in front, two blocks, and a head on the class token."""

    def __init__(self, attend: Attend) -> None:
        super().__init__()
        self.token = nn.Parameter(draw(1, 1, 4))
        self.blocks = nn.ModuleList([Block(attend), Block(attend)])
        self.head = nn.Linear(4, 3)

    def states(self, x: Tensor) -> list[Tensor]:
        found = [torch.cat([self.token.expand(len(x), -1, -1), x], 1)]
        for block in self.blocks:
            found.append(block(found[-1]))
        return found

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.states(x)[-1][:, 0])


def expected_places(net: Net, x: Tensor) -> list[Tensor]:
    """Place of the class token before, after the first and after the second block, (B, N)."""
    n = x.shape[1]
    places = [torch.full((len(x), n), 1 / n).double()]
    for block, state in zip(net.blocks, net.states(x), strict=False):
        w = block.weights(state)
        places.append(w[:, :1] * places[-1] + w[:, 1:])
    return places


@pytest.mark.parametrize("name", FORMS)
def test_the_head_goes_where_the_last_attention_looked(name: str) -> None:
    """Of two networks that differ in constants behind the last attention, the difference."""
    net = seeded(Net(FORMS[name]))
    with torch.no_grad():
        place = expected_places(net, TOKENS)[2]
        amount = float(net.blocks[1].amount @ net.head.weight[1] + net.head.bias[1])
    e = omenn.explain(net, TOKENS, 1, bias="attention")
    net.blocks[1].amount = torch.zeros(4).double()
    nn.init.zeros_(net.head.bias)
    without = omenn.explain(net, TOKENS, 1, bias="attention")
    assert e.exact
    assert without.exact
    torch.testing.assert_close(e.bias - without.bias, place * amount)


@pytest.mark.parametrize("name", FORMS)
def test_before_the_first_attention_it_has_no_place(name: str) -> None:
    """The first block's constant lies where that block looked; the token itself everywhere."""
    net = seeded(Net(FORMS[name]))
    nn.init.zeros_(net.head.bias)
    net.blocks[1].amount = torch.zeros(4).double()
    e = omenn.explain(net, TOKENS, 1, bias="attention")
    with torch.no_grad():
        place = expected_places(net, TOKENS)[1]
    assert e.unlocated["blocks.0"].keys() == {"attention"}
    even = e.bias - e.sources["blocks.0"][:, None] * place
    torch.testing.assert_close(even, even.mean(1, keepdim=True).expand_as(even))


def test_it_is_routed_and_not_located() -> None:
    net = seeded(Net(plain))
    spatial = omenn.explain(net, TOKENS, 1)
    routed = omenn.explain(net, TOKENS, 1, bias="attention")
    assert spatial.reasons.keys() == {"token"}
    assert routed.reasons.keys() == {"token", "attention"}
    assert routed.located == spatial.located
    assert routed.bias_placement == "attention"
    torch.testing.assert_close(routed.weight, spatial.weight)
    torch.testing.assert_close(routed.bias_share, spatial.bias_share)
    assert "attention" in str(omenn.certify(net, TOKENS, 1, bias="attention"))


def test_what_has_a_place_stays_there() -> None:
    """Without a class token both options are the same, bit by bit."""
    block = seeded(Block(fused))
    spatial, routed = (
        omenn.explain(block, TOKENS, lambda y: y[:, 0].sum(1), bias=bias)
        for bias in ("spatial", "attention")
    )
    assert torch.equal(spatial.bias, routed.bias)
    assert spatial.located == routed.located == 1.0


@pytest.mark.parametrize("need_weights", [True, False])
def test_multi_head_attention_module(need_weights: bool) -> None:
    attention = seeded(nn.MultiheadAttention(4, 2, batch_first=True, bias=False))
    token, amount = draw(1, 1, 4), draw(4)

    def model(x: Tensor) -> Tensor:
        x = torch.cat([token.expand(len(x), -1, -1), x], 1)
        return attention(x, x, x, need_weights=need_weights)[0][:, 0] + amount

    e = omenn.explain(model, TOKENS, 2, bias="attention")
    with torch.no_grad():
        x = torch.cat([token.expand(2, -1, -1), TOKENS], 1)
        weights = attention(x, x, x)[1][:, 0]
        place = weights[:, :1] / 5 + weights[:, 1:]
    even = e.bias - amount[2] * place  # the token itself goes through the values, evenly
    torch.testing.assert_close(even, even.mean(1, keepdim=True).expand_as(even))


def test_learned_queries_look_where_their_attention_looks() -> None:
    queries = draw(1, 2, 4)

    def model(x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(queries.expand(len(x), -1, -1), x, x) + 1.5

    e = omenn.explain(model, TOKENS, lambda y: y[:, 1, 0], bias="attention")
    with torch.no_grad():
        weights = (queries[0, 1] @ TOKENS.mT / 2).softmax(-1)
    torch.testing.assert_close(e.bias, 1.5 * weights)
    assert e.reasons == {"attention": 1.0}


def test_the_mixture_follows_the_parameters_when_it_is_differentiated() -> None:
    """With create_graph the place depends on the query's weights, as it really does."""
    net = seeded(Net(fused))
    e = omenn.explain(net, TOKENS, 1, bias="attention", create_graph=True)
    (g,) = torch.autograd.grad(e.bias[:, 0].sum(), net.blocks[1].qkv.weight)
    assert bool(g[:4].any())  # the query's rows
    step = 1e-6 * torch.randn_like(g)
    with torch.no_grad():
        net.blocks[1].qkv.weight += step
    after = omenn.explain(net, TOKENS, 1, bias="attention")
    torch.testing.assert_close(
        (after.bias - e.bias)[:, 0].sum(), (g * step).sum(), rtol=1e-3, atol=1e-12
    )
