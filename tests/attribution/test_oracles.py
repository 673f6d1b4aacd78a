"""Each book on small networks against the rules written out unit by unit."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import omenn
from attribution import oracles as o
from nets import Plain, Residual, Tokens, draw, seeded

EPS = 1e-6
RULES = {
    "epsilon": o.epsilon_rule(EPS),
    "zplus": o.alpha_beta_rule(1, 0, EPS),
    "alpha1beta0": o.alpha_beta_rule(1, 0, EPS),
    "gamma": o.gamma_rule(0.25, EPS),
}
LAYERED = [*RULES, "cp-lrp", "attnlrp", "reslrp"]


def close(found: Tensor, expected: Tensor) -> None:
    assert expected.abs().amax() > 1e-3
    bound = 1e-9 * float(expected.abs().amax())
    torch.testing.assert_close(found.reshape(-1), expected.reshape(-1), rtol=0, atol=bound)


def explained(net: nn.Module, x: Tensor, method: str, target: int = 1, **options) -> Tensor:
    return omenn.explain(net, x[None], target, method=method, **options).contribution[0]


def start(y: Tensor, target: int = 1) -> Tensor:
    return torch.zeros_like(y).index_fill_(0, torch.tensor(target), 1) * y


@pytest.mark.parametrize("method", LAYERED)
@pytest.mark.parametrize("target", [0, 1, 2])
def test_a_plain_network_is_as_its_layers_one_by_one(method: str, target: int) -> None:
    net, x = seeded(Plain(), seed=13), draw(2, 4, 4)
    folds = method in RULES
    rule = RULES.get(method, RULES["epsilon"])
    act = [net.first(x[None])[0]]
    act.append(net.norm(act[0][None])[0])
    act.append(F.max_pool2d(F.relu(act[1]), 2))
    act.append(F.relu(net.second(act[2][None]))[0])
    act.append(act[3].mean((1, 2)))
    act.append(F.relu(net.hidden(act[4])))
    act = [t.detach() for t in act]
    r = start(net.head(act[5]).detach(), target)
    r = rule(act[5], net.head.weight.detach(), net.head.bias.detach(), r)
    r = rule(act[4], net.hidden.weight.detach(), net.hidden.bias.detach(), r)
    average = o.dense(lambda t: t.mean((1, 2)), act[3])
    r = o.proportional(act[3].reshape(-1), *average, r)
    r = rule(act[2].reshape(-1), *o.dense(lambda t: net.second(t[None])[0], act[2]), r)
    r = o.winners(F.relu(act[1]), act[2], r)
    if folds:
        together = o.dense(lambda t: net.norm(net.first(t[None]))[0], x)
        r = rule(x.reshape(-1), *together, r.reshape(-1))
    else:
        alone = o.dense(lambda t: net.norm(t[None])[0], act[0])
        r = o.proportional(act[0].reshape(-1), *alone, r.reshape(-1))
        r = rule(x.reshape(-1), *o.dense(lambda t: net.first(t[None])[0], x), r)
    close(explained(net, x, method, target), r)


@pytest.mark.parametrize("method", LAYERED)
def test_a_residual_sum_shares_as_the_book_says(method: str) -> None:
    net, x = seeded(Residual(), seed=1), draw(2, 4, 4)
    rule = RULES.get(method, RULES["epsilon"])
    stem = F.relu(net.stem(x[None]))[0].detach()
    pool = F.max_pool2d(stem, 2)
    conv = net.conv(pool[None])[0].detach()
    branch = net.norm(conv[None])[0].detach()
    total = branch + pool
    last = F.relu(total)
    r = start(net.head(last.mean((1, 2))).detach())
    r = rule(last.mean((1, 2)), net.head.weight.detach(), net.head.bias.detach(), r)
    r = o.proportional(last.reshape(-1), *o.dense(lambda t: t.mean((1, 2)), last), r)
    r, z = r.reshape(total.shape), total
    if method == "reslrp":  # γ = 1
        a, b = (1 + (torch.sign(t) == torch.sign(z)).double() for t in (branch, pool))
        whole = a * branch + b * pool
        to_branch, to_pool = a * branch / whole * r, b * pool / whole * r
    else:
        to_branch, to_pool = branch / z * r, pool / z * r
    if method in RULES:
        w = o.dense(lambda t: net.norm(net.conv(t[None]))[0], pool)
        back = rule(pool.reshape(-1), *w, to_branch.reshape(-1))
    else:
        w = o.dense(lambda t: net.norm(t[None])[0], conv)
        back = o.proportional(conv.reshape(-1), *w, to_branch.reshape(-1))
        back = rule(pool.reshape(-1), *o.dense(lambda t: net.conv(t[None])[0], pool), back)
    r = o.winners(stem, pool, to_pool + back.reshape(pool.shape))
    r = rule(x.reshape(-1), *o.dense(lambda t: net.stem(t[None])[0], x), r.reshape(-1))
    close(explained(net, x, method), r)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("method", ["attnlrp", "reslrp", "cp-lrp", "epsilon"])
def test_a_transformer_block_is_as_its_operators_one_by_one(method: str, fused: bool) -> None:
    net, x = seeded(Tokens(fused=fused)), draw(3, 4)
    rule, gamma = RULES["epsilon"], 1.0 if method == "reslrp" else 0.0
    n, d = x.shape

    def layer(module: nn.Linear, at: Tensor, r: Tensor) -> Tensor:
        w, b = module.weight.detach(), module.bias.detach()
        return torch.stack([rule(at[t], w, b, r[t]) for t in range(n)])

    def added(a: Tensor, b: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
        w_a, w_b = (1 + gamma * (torch.sign(t) == torch.sign(a + b)).double() for t in (a, b))
        return w_a * a / (w_a * a + w_b * b) * r, w_b * b / (w_a * a + w_b * b) * r

    normed = net.norm(x).detach()
    q, k, v = net.qkv(normed).detach().chunk(3, -1)
    logits = q @ k.T * d**-0.5
    weights = torch.softmax(logits, -1)
    y = weights @ v
    out = net.out(y).detach()
    one = x + out
    gelu = F.gelu(net.mlp(one)).detach()
    two = one + gelu
    r = start(net.head(two.mean(0)).detach())
    r = rule(two.mean(0), net.head.weight.detach(), net.head.bias.detach(), r)
    r = o.proportional(two.reshape(-1), *o.dense(lambda t: t.mean(0), two), r).reshape(n, d)
    r, branch = added(one, gelu, r)  # GELU passes R
    r = r + layer(net.mlp, one, branch)
    r, branch = added(x, out, r)
    branch = layer(net.out, y, branch)
    if method in ("attnlrp", "reslrp"):
        to_weights, to_v = o.halves(weights, v, branch)
        to_q, to_k = o.halves(q, k.T, o.taylor_softmax(logits, to_weights))
        to_k = to_k.T
    else:  # the weights are constants
        to_v = torch.zeros_like(v)
        for i in range(n):
            for j in range(n):
                to_v[j] += weights[i, j] * v[j] / y[i] * branch[i]
        to_q, to_k = torch.zeros_like(q), torch.zeros_like(k)
    branch = layer(net.qkv, normed, torch.cat([to_q, to_k, to_v], -1))
    w = o.centring(x, net.norm.weight.detach(), net.norm.eps)
    b = net.norm.bias.detach().repeat(n)
    r = r + o.proportional(x.reshape(-1), w, b, branch.reshape(-1)).reshape(n, d)
    close(explained(net, x, method), r)


def operator(f, x: Tensor, method: str, **options) -> tuple[Tensor, Tensor]:
    """(R at x, R at the output) of f, with a drawn g at each of its outputs."""
    y = f(x[None])[0]
    weight = draw(*y.shape, seed=9)
    e = omenn.explain(
        f, x[None], lambda out: (out * weight).flatten(1).sum(1), method=method, **options
    )
    return e.contribution[0], y * weight


def test_softmax_has_the_published_rule() -> None:
    x = draw(2, 5)
    found, r = operator(lambda t: torch.softmax(t, -1), x, "attnlrp")
    close(found, o.taylor_softmax(x, r))
    hidden = torch.tensor([[False, True, False, False, True]] * 2)
    masked = x.masked_fill(hidden, -torch.inf)
    found, r = operator(
        lambda t: torch.softmax(t.masked_fill(hidden, -torch.inf), -1), x, "attnlrp"
    )
    close(found, o.taylor_softmax(masked, r))


@pytest.mark.parametrize("spelled", ["matmul", "einsum", "bmm", "operator"])
def test_a_product_of_two_tensors_shares_in_halves(spelled: str) -> None:
    a, b = draw(3, 4), draw(4, 2, seed=2)
    products = {
        "matmul": torch.matmul,
        "bmm": torch.bmm,
        "operator": lambda s, t: s @ t,
        "einsum": partial(torch.einsum, "bik,bkj->bij"),
    }
    weight, y = draw(3, 2, seed=9), a @ b
    e = omenn.explain(
        products[spelled],
        (a[None], b[None]),
        lambda out: (out * weight).sum((1, 2)),
        method="attnlrp",
    )
    for found, expected in zip(e.contribution, o.halves(a, b, y * weight), strict=True):
        close(found, expected)


POINTWISE = (
    "gelu silu elu softplus mish tanh sigmoid logsigmoid hardsigmoid hardswish erf relu exp exp2"
)


@pytest.mark.parametrize("name", POINTWISE.split())
def test_pointwise_functions_pass_relevance_on(name: str) -> None:
    f = getattr(torch, name, None) or getattr(F, name)
    found, r = operator(f, draw(6), "attnlrp", epsilon=0.0)
    torch.testing.assert_close(found, r.detach(), rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("norm", ["layer", "rms", "group"])
def test_the_deviation_of_a_norm_is_a_constant(norm: str) -> None:
    x, gamma = draw(2, 6), draw(6, seed=3)
    if norm == "layer":
        f = lambda t: F.layer_norm(t, (6,), gamma)  # noqa: E731
        w = o.centring(x, gamma, 1e-5)
    elif norm == "rms":
        f = lambda t: F.rms_norm(t, (6,), gamma, 1e-5)  # noqa: E731
        w = torch.diag((gamma / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()).reshape(-1))
    else:  # each row of x is a channel, and a group
        f = lambda t: F.group_norm(t, 2, eps=1e-5)  # noqa: E731
        w = o.centring(x, torch.ones(6).double(), 1e-5)
    found, r = operator(f, x, "attnlrp")
    close(found, o.proportional(x.reshape(-1), w, torch.zeros(12).double(), r.reshape(-1)))
