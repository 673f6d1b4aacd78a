"""Layers as LRP sees them: which calls are one, what is folded into it, options of the rules."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import omenn
from attribution import oracles as o
from nets import draw, seeded
from omenn.attribution import RuleTable, propagate
from omenn.attribution.lrp_layers import alpha_beta_rule, by_layer, epsilon_rule, gamma_rule
from omenn.errors import InputError

CLASSIC = ["epsilon", "zplus", "alpha1beta0", "gamma"]
RULES = {
    "epsilon": (epsilon_rule(0.3), o.epsilon_rule(0.3)),
    "alpha 2, beta 1": (alpha_beta_rule(2, 1, 0.3), o.alpha_beta_rule(2, 1, 0.3)),
    "gamma": (gamma_rule(0.5, 0.3), o.gamma_rule(0.5, 0.3)),
    "no stabiliser": (epsilon_rule(0), o.epsilon_rule(0)),
}
W, B = draw(4, 6, seed=2), draw(4, seed=3)
SPELLINGS = {
    "linear": (lambda t: F.linear(t, W, B), B),
    "matmul": (lambda t: t @ W.T, None),
    "from the left": (lambda t: (W @ t.mT).mT, None),
    "einsum": (lambda t: torch.einsum("bi,ji->bj", t, W), None),
    "addmm": (lambda t: torch.addmm(B, t, W.T), B),
    "addmm, scaled": (lambda t: torch.addmm(B, t, W.T / 2, beta=3, alpha=2), 3 * B),
    "bmm": (lambda t: torch.bmm(t[None], W.T[None])[0], None),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_layer_is_found_however_it_is_spelled(rule: str, spelling: str) -> None:
    f, bias = SPELLINGS[spelling]
    own, slow = RULES[rule]
    x, r = draw(6), draw(4, seed=5)
    net = lambda t: f(t) * (r / f(x[None]))  # noqa: E731, R at the outputs is r
    e = propagate(net, x[None], lambda y: y.sum(1), RuleTable(by_layer(own)))
    expected = slow(x, W, torch.zeros(4).double() if bias is None else bias, r)
    torch.testing.assert_close(e.contribution[0], expected, rtol=1e-9, atol=1e-9)


CONVOLUTIONS = {
    "1d, groups": (1, {"groups": 2, "padding": 1}),
    "2d, stride": (2, {"stride": (2, 1), "padding": 1}),
    "2d, dilation": (2, {"dilation": 2, "padding": 2}),
    "2d, same": (2, {"padding": "same"}),
    "3d": (3, {}),
    "transposed": (2, {"stride": 2}),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("rule", RULES)
def test_convolutions_are_layers(name: str, rule: str) -> None:
    dims, options = CONVOLUTIONS[name]
    kind = "conv_transpose" if name == "transposed" else "conv"
    w = draw(4, 4 // options.get("groups", 1), *[2 if name == "3d" else 3] * dims, seed=2)
    x, bias = draw(4, *[3] * dims), draw(4, seed=3)
    f = lambda t: getattr(F, f"{kind}{dims}d")(t, w, bias, **options)  # noqa: E731
    y = f(x[None])
    r = draw(*y.shape, seed=5)
    own, slow = RULES[rule]
    e = propagate(
        lambda t: f(t) * (r / y), x[None], lambda t: t.flatten(1).sum(1), RuleTable(by_layer(own))
    )
    expected = slow(x.reshape(-1), *o.dense(lambda t: f(t[None]), x), r.reshape(-1))
    torch.testing.assert_close(e.contribution.reshape(-1), expected, rtol=1e-8, atol=1e-8)


def norm(channels: int, dims: int) -> nn.Module:
    return seeded((nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d)[dims](channels), seed=3)


def folded(net: nn.Module, x: Tensor) -> Tensor:
    e = omenn.explain(net.eval(), x[None], lambda y: y.flatten(1).sum(1), method="zplus")
    return e.contribution.reshape(-1)


def test_a_batch_norm_behind_a_layer_is_a_part_of_it() -> None:
    together = {
        "linear": (nn.Sequential(seeded(nn.Linear(6, 4)), norm(4, 0)), draw(6)),
        "conv": (nn.Sequential(seeded(nn.Conv1d(3, 4, 2)), norm(4, 1)), draw(3, 5)),
        "no bias": (
            nn.Sequential(seeded(nn.Conv2d(3, 4, 2, bias=False)), norm(4, 2)),
            draw(3, 3, 3),
        ),
    }
    for net, x in together.values():
        y = net(x[None]).reshape(-1).detach()
        rule = o.alpha_beta_rule(1, 0, 1e-6)
        expected = rule(x.reshape(-1), *o.dense(lambda t, net=net: net(t[None]), x), y)
        torch.testing.assert_close(folded(net, x), expected, rtol=1e-9, atol=1e-9)


def test_a_batch_norm_of_other_channels_is_not() -> None:
    """(N, C, L): a linear layer makes L, the norm has its channels in C; both are 4 here."""
    linear, after = seeded(nn.Linear(6, 4)), norm(4, 1)
    x = draw(4, 6)
    y = linear(x[None])[0].detach()
    scale = after.weight / (after.running_var + after.eps).sqrt()
    r = (y * scale[:, None]).reshape(-1).detach()  # as in the frozen book: the shift keeps its R
    expected = o.alpha_beta_rule(1, 0, 1e-6)(x.reshape(-1), *o.dense(linear, x), r)
    torch.testing.assert_close(folded(nn.Sequential(linear, after), x), expected, rtol=1e-9, atol=0)


class Twice(nn.Module):
    """A convolution, whose output goes through a batch norm, and is used once more."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = seeded(nn.Conv2d(2, 3, 2)), norm(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.norm(y) + y


def test_a_layer_that_is_used_besides_its_batch_norm_is_itself_there() -> None:
    net, x = Twice().eval(), draw(2, 3, 3)
    conv = net.conv(x[None]).reshape(-1).detach()
    both = net.norm(net.conv(x[None])).reshape(-1).detach()
    rule = o.alpha_beta_rule(1, 0, 1e-6)
    flat = x.reshape(-1)
    expected = rule(flat, *o.dense(lambda t: net.norm(net.conv(t[None])), x), both)
    expected = expected + rule(flat, *o.dense(lambda t: net.conv(t[None]), x), conv)
    torch.testing.assert_close(folded(net, x), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("method", [*CLASSIC, "omenn"])
def test_a_layer_whose_input_was_overwritten_goes_by_what_it_saw(method: str) -> None:
    conv, after = seeded(nn.Conv2d(2, 3, 2)), norm(3, 2)

    def net(x: Tensor, overwritten: bool) -> Tensor:
        x = x * 2
        y = conv(x)
        if overwritten:
            x.relu_()
        return after(y).flatten(1).sum(1, keepdim=True)

    found, wanted = (
        omenn.explain(lambda x, o=o: net(x, o), draw(1, 2, 3, 3), 0, method=method).matrix
        for o in (True, False)
    )
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("method", CLASSIC)
def test_frozen_attention_weights_are_no_layer(method: str) -> None:
    """A V shares in proportion, whether it is fused or spelled out, also for the z⁺-rule."""
    q, k, v = draw(3, 1, 4, 6)
    spelled = lambda v: torch.softmax(v @ k.mT, -1) @ v  # noqa: E731
    fused = lambda v: F.scaled_dot_product_attention(v, k, v, scale=1.0)  # noqa: E731
    found = [
        omenn.explain(f, v, lambda y: y[:, 1].sum(-1), method=method).matrix
        for f in (spelled, fused)
    ]
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-12)
    assert q.shape == v.shape


@pytest.mark.parametrize("method", [*CLASSIC, "cp-lrp", "attnlrp", "reslrp"])
def test_without_a_stabiliser_a_silent_unit_gives_no_nan(method: str) -> None:
    net = seeded(nn.Sequential(nn.Linear(4, 5, bias=False), nn.ReLU(), nn.Linear(5, 2, bias=False)))
    x = torch.zeros(2, 4).double()
    x[1] = draw(4)
    e = omenn.explain(net, x, 0, method=method, epsilon=0.0)
    assert torch.isfinite(e.matrix).all()
    assert not e.matrix[0].any()
    assert e.matrix[1].any()


BAD = [-1.0, float("nan"), float("inf"), "0.1", None, True]
OPTIONS = [
    *[(method, "epsilon") for method in (*CLASSIC, "cp-lrp", "attnlrp", "reslrp")],
    ("gamma", "gamma"),
    ("reslrp", "gamma"),
]


@pytest.mark.parametrize(("method", "option"), OPTIONS)
@pytest.mark.parametrize("value", BAD)
def test_a_bad_strength_is_refused(method: str, option: str, value: object) -> None:
    with pytest.raises(InputError, match=f"^{option} must be a finite number of at least 0"):
        omenn.explain(nn.Linear(2, 2).eval(), torch.ones(1, 2), 0, method=method, **{option: value})
