"""The dials of completed rules: each against its formula, and all of them exact together."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import omenn
from attribution.test_completed import NETS, made, worst
from attribution.test_families import shaken
from omenn.attribution import derivatives, lrp_layers
from omenn.attribution.dials import NORM, POINTWISE, SOFTMAX, rules
from omenn.bench.method_options import method_and_options

DIALS: dict[str, dict[str, Any]] = {
    "gamma": {"gamma": 0.2},
    "depth": {"gamma": (0.0, 0.3)},
    "beta": {"beta": 0.0},
    "both": {"gamma": [0.3, 0.05], "beta": 0.5},
    "softmax": {"softmax": "taylor"},
    "norm": {"norm": "derivative"},
    "tangent": {"pointwise": "tangent"},
    "identity": {"pointwise": "identity"},
    "ratio": {"residual": 0.5},
    "all": {
        "gamma": 0.1, "beta": 0.3, "softmax": "taylor", "norm": "derivative",
        "pointwise": "tangent", "residual": 0.5,
    },
    "all, by identity": {
        "gamma": (0.1, 0.4), "beta": 0.8, "softmax": "taylor", "norm": "derivative",
        "pointwise": "identity", "residual": 1.0,
    },
}  # fmt: skip


def by_rules(net: Any, x: Any, target: Any = 1, **options: Any) -> omenn.Explanation:
    return omenn.explain(net, x, target, method="rules", **options)


def alike(a: omenn.Explanation, b: omenn.Explanation, within: float = 1e-9) -> None:
    for one, other in ((a.matrix, b.matrix), (a.contribution, b.contribution)):
        torch.testing.assert_close(one, other, rtol=within, atol=within)


# --- the family -----------------------------------------------------------------------------------


@pytest.mark.parametrize("net", NETS)
def test_with_nothing_given_it_is_omenn(net: str) -> None:
    model, x = made(net)
    e, plain = by_rules(model, x), omenn.explain(model, x, 1)
    assert e.matrix.equal(plain.matrix)
    assert e.sources.keys() == plain.sources.keys()
    zero = by_rules(model, x, gamma=[0, 0], residual=0)  # the same with the rules in their place
    alike(zero, plain)


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("dials", DIALS)
def test_every_setting_is_exact(dials: str, net: str) -> None:
    model, x = made(net)
    options = DIALS[dials]
    e = by_rules(model, x, **options)
    assert e.exact
    assert (e.promise, e.method) == ("exact", "rules")
    assert worst(e) < 1e-12
    torch.testing.assert_close(e.output, model(x)[:, 1])
    alone = by_rules(model, x[1:2], **options)
    torch.testing.assert_close(e.matrix[1:2], alone.matrix)
    contrast = by_rules(model, x, omenn.Contrast(0, 2), **options)
    assert contrast.exact
    difference = by_rules(model, x, 0, **options).matrix - by_rules(model, x, 2, **options).matrix
    torch.testing.assert_close(contrast.matrix, difference)
    kept = by_rules(model, x, bias="separate", **options)
    torch.testing.assert_close(sum(kept.sources.values()), kept.bias)
    for bias in ("spatial", "bilinear", "attention", "uniform"):
        placed = by_rules(model, x, bias=bias, **options)
        assert placed.exact
        torch.testing.assert_close(placed.bias.flatten(1).sum(1), kept.bias)


@pytest.mark.parametrize(
    ("net", "dials"), [("residual", "both"), ("attention", "all"), ("fused", "all, by identity")]
)
def test_rows_depths_and_certificates(net: str, dials: str) -> None:
    model, x = made(net)
    table = rules(**DIALS[dials])
    for chunk in (1, 2):
        found = omenn.rows(model, x, [0, 1], rules=table, chunk=chunk)
        assert found.exact
        torch.testing.assert_close(found.bias[:, 1], by_rules(model, x, **DIALS[dials]).bias)
    assert omenn.certify(model, x, 1, rules=table).exact
    at = "stem_norm" if net == "residual" else "norm"
    deep = by_rules(model, x, at=at, **DIALS[dials])
    mixed = by_rules(model, x, at=["input", at], mix=[0.25, 0.75], **DIALS[dials])
    assert deep.exact
    assert mixed.exact
    own = by_rules(model, x, **DIALS[dials]).matrix
    torch.testing.assert_close(mixed.matrix, 0.25 * own + 0.75 * deep.matrix)


# --- members of the family that have a name -------------------------------------------------------


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize(
    ("name", "options", "dials"),
    [
        ("gamma", {"gamma": 0.3, "epsilon": 0.0}, {"gamma": 0.3}),
        ("cp-lrp", {"epsilon": 0.0}, {}),
        ("epsilon", {"epsilon": 0.0}, {}),
        ("attnlrp", {"epsilon": 0.0}, {"softmax": "taylor", "pointwise": "identity"}),
        (
            "reslrp",
            {"epsilon": 0.0, "gamma": 0.5},
            {"softmax": "taylor", "pointwise": "identity", "residual": 0.5},
        ),
    ],
)
def test_named_methods_are_settings(
    name: str, options: dict[str, Any], dials: dict[str, Any], net: str
) -> None:
    model, x = made(net)
    alike(omenn.explain(model, x, 1, method=name, complete=True, **options),
          by_rules(model, x, **dials))  # fmt: skip


class Normed(nn.Module):
    """A smooth network without products: of its derivative nothing is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 4, 3, padding=1), nn.GroupNorm(2, 4)
        self.more, self.batch = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 3)
        nn.init.uniform_(self.batch.running_mean, -1, 1)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        h = F.gelu(self.norm(self.conv(x)))
        h = F.mish(self.batch(self.more(F.max_pool2d(h, 2)))) + F.avg_pool2d(h, 2)
        return self.head(F.normalize(h.mean((2, 3)), dim=1))


def test_tangents_and_derivatives_are_the_gradient() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net, x = Normed().eval().double(), torch.randn(2, 2, 6, 6, dtype=torch.float64)
    e = by_rules(net, x, pointwise="tangent", norm="derivative")
    leaf = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(net(leaf)[:, 1].sum(), leaf)
    torch.testing.assert_close(e.weight, slope)
    assert worst(e) < 1e-12


# --- layers: γ and β ------------------------------------------------------------------------------


def slow(
    x: Tensor, layers: list[tuple[Tensor, Tensor]], gammas: list[float], beta: float
) -> tuple[Tensor, list[Tensor]]:
    """R_i of the input and D_j of each layer, unit by unit: Linear and ReLU in turn, output 0."""
    values = [x]
    for k, (w, b) in enumerate(layers):
        y = w @ values[-1] + b
        values.append(y.clamp(min=0) if k < len(layers) - 1 else y)
    relevance = torch.zeros_like(values[-1])
    relevance[0] = values[-1][0]
    kept = []
    for (w, b), gamma, below in reversed(list(zip(layers, gammas, values, strict=False))):
        shares, passed = torch.zeros_like(below), torch.zeros_like(relevance)
        for j in range(len(b)):
            y = float(w[j] @ below + b[j])
            if relevance[j] == 0:
                continue
            more = lambda z, y=y, gamma=gamma: z * (1 + gamma) if z * y > 0 else z  # noqa: E731
            parts = [more(float(w[j, i] * below[i])) for i in range(len(below))]
            total = sum(parts) + beta * more(float(b[j]))
            against = beta < 1 and total * y <= 0
            share = 0.0 if against else y / total
            share = share if beta == 1 else min(share, lrp_layers.MOST)
            for i, part in enumerate(parts):
                given_to = part / y * share * float(relevance[j])
                shares[i] += given_to
                passed[j] += given_to
        kept.insert(0, relevance - passed)  # D_j = R_j − Σ_i R_{i←j}
        relevance = shares
    return relevance, kept


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    ends=st.sampled_from([(0.0, 0.0), (0.1, 0.1), (0.0, 1.0), (2.0, 0.5)]),
    beta=st.sampled_from([0.0, 0.3, 1.0]),
)
def test_layers_against_the_definition(seed: int, ends: tuple[float, float], beta: float) -> None:
    source = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=source, dtype=torch.float64)  # noqa: E731
    layers = [(draw(6, 4), draw(6)), (draw(5, 6), draw(5)), (draw(3, 5), draw(3))]
    net = nn.Sequential()
    for k, (w, b) in enumerate(layers):
        linear = nn.Linear(w.shape[1], w.shape[0]).double()
        linear.weight.data, linear.bias.data = w.clone(), b.clone()
        net.extend([linear, nn.ReLU()] if k < 2 else [linear])
    x = draw(1, 4)
    e = by_rules(net.eval(), x, 0, gamma=ends, beta=beta)
    gammas = [ends[0], (ends[0] + ends[1]) / 2, ends[1]]
    relevance, kept = slow(x[0], layers, gammas, beta)
    torch.testing.assert_close(e.contribution[0], relevance)
    for k, d in enumerate(kept):
        if f"{2 * k}" in e.sources:
            torch.testing.assert_close(e.sources[f"{2 * k}"][0], d.sum())
        else:
            assert not d.any()
    assert worst(e) < 1e-9


@pytest.mark.parametrize("gamma", [0.0, 0.5])
def test_a_denominator_near_zero_is_held(gamma: float) -> None:
    """z′ = y − b = 1e-12, and of the other sign: |V| ≤ 2 (1 + γ) |W|, and 0."""
    net = nn.Linear(2, 2).double().eval()
    net.weight.data = torch.tensor([[1.0, -1.0], [-2.0, 1.0]], dtype=torch.float64)
    net.bias.data = torch.tensor([1.0, 3.0], dtype=torch.float64)
    x = torch.tensor([[1.0, 1.0 - 1e-12]], dtype=torch.float64)
    e = by_rules(net, x, 0, gamma=gamma, beta=0.0)
    assert bool((e.weight.abs() <= 2 * (1 + gamma)).all())
    if gamma == 0:
        torch.testing.assert_close(e.weight[0], 2 * net.weight[0].detach())
    against = by_rules(net, x, 1, gamma=0.1 * gamma, beta=0.0)
    assert not against.contribution.any()
    torch.testing.assert_close(against.sources[""], net(x)[:, 1].detach())
    assert e.exact
    assert against.exact


def test_a_batch_norm_that_stands_alone_is_a_layer_with_beta() -> None:
    net: Any = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2, bias=False)).eval().double()
    norm, head = net[0], net[1].weight.detach()
    norm.running_mean.copy_(torch.tensor([1.0, -2.0, 0.5]))
    norm.bias.data = torch.tensor([0.2, 1.0, -3.0], dtype=torch.float64)
    x = torch.tensor([[3.0, 1.0, 4.0]], dtype=torch.float64)
    y = norm(x)[0].detach()
    scale = norm.weight.detach() / (norm.running_var + norm.eps).sqrt()
    e = by_rules(net, x, 0, beta=0.0)
    expected = []
    for i in range(3):
        z = float(scale[i] * x[0, i])
        share = 0.0 if z * float(y[i]) <= 0 else min(float(y[i]) / z, 2.0)
        expected.append(float(head[0, i]) * z * share)
    torch.testing.assert_close(e.contribution[0], torch.tensor(expected, dtype=torch.float64))
    assert worst(e) < 1e-12
    alike(by_rules(net, x, 0, gamma=0.5), omenn.explain(net, x, 0, method="gamma", gamma=0.5,
          epsilon=0.0, complete=True))  # fmt: skip


# --- softmax --------------------------------------------------------------------------------------


def by_parts(z: Tensor) -> Tensor:
    e = torch.exp(z - z.amax(-1, keepdim=True))
    return e / e.sum(-1, keepdim=True)


def without_the_largest(z: Tensor) -> Tensor:
    return z.exp() / z.exp().sum(-1, keepdim=True)


class Weights(nn.Module):
    """An attention with its softmax written in one of several ways."""

    def __init__(self, softmax: Callable[[Tensor], Tensor] | None) -> None:
        super().__init__()
        self.qkv, self.head, self.softmax = nn.Linear(4, 12), nn.Linear(4, 3), softmax

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        if self.softmax is None:
            return self.head(F.scaled_dot_product_attention(q, k, v)).mean(1)
        return self.head(self.softmax(q @ k.mT / 2) @ v).mean(1)


@pytest.mark.parametrize("softmax", ["frozen", "taylor"])
@pytest.mark.parametrize("norm", NORM)
@pytest.mark.parametrize("pointwise", POINTWISE)
def test_softmax_is_the_same_in_any_spelling(softmax: str, norm: str, pointwise: str) -> None:
    options: dict[str, Any] = {"softmax": softmax, "norm": norm, "pointwise": pointwise}
    x, found = torch.randn(2, 5, 4, dtype=torch.float64), []
    for spelled in (None, lambda z: torch.softmax(z, -1), by_parts, without_the_largest):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            net = Weights(spelled).eval().double()
        found.append(by_rules(net, x, **options))
        assert worst(found[-1]) < 1e-12
    for other in found[1:]:
        alike(other, found[0])


@pytest.mark.parametrize("spelled", [lambda z: torch.softmax(z, -1), by_parts])
def test_what_the_taylor_rule_of_softmax_keeps(spelled: Callable[[Tensor], Tensor]) -> None:
    weight, x = (torch.randn(*s, dtype=torch.float64) for s in ((5,), (2, 5)))
    net = lambda t: (spelled(t) * weight).sum(1, keepdim=True)  # noqa: E731
    e = by_rules(net, x, 0, softmax="taylor", bias="separate")
    for row in range(2):
        s, kept = torch.softmax(x[row], 0), 0.0
        for j in range(5):
            passed = sum(s[j] * (float(i == j) - s[i]) * x[row, i] for i in range(5))
            kept += float(weight[j] * (s[j] - passed))
        assert float(e.bias[row]) == pytest.approx(kept, rel=1e-9)
    assert e.exact


def test_a_quotient_that_is_no_softmax_stays_what_it_is() -> None:
    x = torch.randn(2, 5, dtype=torch.float64)
    net = lambda t: (t.exp() / (1 + t.exp().sum(1, keepdim=True)) * t).sum(1, keepdim=True)  # noqa: E731
    alike(by_rules(net, x, 0, softmax="taylor"), omenn.explain(net, x, 0))


# --- normalisations -------------------------------------------------------------------------------


def spelled_layer_norm(x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt(centred.pow(2).mean(-1, keepdim=True) + 1e-5)


def with_var(x: Tensor) -> Tensor:
    var = x.var(-1, keepdim=True, unbiased=False)
    return (x - x.mean(-1, keepdim=True)) * torch.rsqrt(var + 1e-5)


def with_power(x: Tensor) -> Tensor:
    mean = x.mean(-1, keepdim=True)
    var = (x * x).mean(-1, keepdim=True) - mean * mean
    return (x - mean) * (var + 1e-5) ** -0.5


def with_inverse(x: Tensor) -> Tensor:
    var, mean = torch.var_mean(x, -1, keepdim=True, correction=0)
    return (x - mean) * (1 / (var + 1e-5).sqrt())


def in_place(x: Tensor) -> Tensor:
    y = x - x.mean(-1, keepdim=True)
    return y.mul_(y.square().mean(-1, keepdim=True).add_(1e-5).rsqrt_())


def spelled_rms(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)


def spelled_unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True).clamp_min(1e-12)


LAYER = lambda x: F.layer_norm(x, x.shape[-1:])  # noqa: E731
RMS = lambda x: F.rms_norm(x, x.shape[-1:], eps=1e-5)  # noqa: E731
UNIT = lambda x: F.normalize(x, dim=-1)  # noqa: E731
LOCAL = lambda x: F.local_response_norm(x, 3)  # noqa: E731
SAME: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "layer norm": (spelled_layer_norm, LAYER),
    "layer norm, var": (with_var, LAYER),
    "layer norm, power": (with_power, LAYER),
    "layer norm, inverse": (with_inverse, LAYER),
    "layer norm, in place": (in_place, LAYER),
    "rms norm": (spelled_rms, RMS),
    "unit length": (spelled_unit, UNIT),
    "group norm": (lambda x: F.group_norm(x.flatten(0, 1), 1).view_as(x), LAYER),
    "local response": (LOCAL, LOCAL),
}  # fmt: skip


class Around(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.head, self.function = nn.Linear(4, 6), nn.Linear(6, 3), function

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.function(self.first(x))).mean(1)


def around(function: Callable[[Tensor], Tensor]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(4)
        return Around(function).eval().double()


@pytest.mark.parametrize("name", SAME)
@pytest.mark.parametrize("pointwise", POINTWISE)
def test_a_normalisation_has_its_derivative_in_any_spelling(name: str, pointwise: str) -> None:
    spelled, native = SAME[name]
    x = torch.randn(2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    options: dict[str, Any] = {"norm": "derivative", "pointwise": pointwise}
    a, b = (by_rules(around(f), x, **options) for f in (spelled, native))
    alike(a, b)
    leaf = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(around(native)(leaf)[:, 1].sum(), leaf)
    torch.testing.assert_close(b.weight, slope)
    assert worst(a) < 1e-12


@pytest.mark.parametrize("native", [LAYER, RMS, UNIT])
def test_what_the_derivative_of_a_normalisation_keeps(native: Callable[[Tensor], Tensor]) -> None:
    """t_j = y_j − Σ_i x_i ∂y_j/∂x_i by central differences."""
    x = torch.randn(2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    weight = torch.linspace(-1, 2, 5, dtype=torch.float64)
    net = lambda t: (native(t) * weight).sum(1, keepdim=True)  # noqa: E731
    e = by_rules(net, x, 0, norm="derivative", bias="separate")
    for row in range(2):
        kept = 0.0
        for j in range(5):
            passed = 0.0
            for i in range(5):
                up, down = x[row].clone(), x[row].clone()
                up[i] += 1e-6
                down[i] -= 1e-6
                slope = (native(up[None])[0, j] - native(down[None])[0, j]) / 2e-6
                passed += float(slope * x[row, i])
            kept += float(weight[j]) * (float(native(x[row : row + 1])[0, j]) - passed)
        assert float(e.bias[row]) == pytest.approx(kept, rel=1e-6, abs=1e-8)


# --- functions of each element, residual additions ------------------------------------------------

CURVES: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "silu in place": lambda x: F.silu(x * 1, inplace=True),
    "gelu, spelled": lambda x: 0.5 * x * (1 + torch.erf(x / math.sqrt(2))),
    "softplus": F.softplus,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "elu": F.elu,
    "hardswish": F.hardswish,
    "squared": lambda x: F.relu(x).pow(2),
    "clipped": F.relu6,
}


@pytest.mark.parametrize("name", CURVES)
def test_tangents(name: str) -> None:
    """V = φ′(x), and φ(x) − φ′(x) x is kept, by central differences."""
    function = CURVES[name]
    x = torch.linspace(-3.1, 7, 6, dtype=torch.float64)[None]
    weight = torch.linspace(-1, 2, 6, dtype=torch.float64)
    e = by_rules(lambda t: (function(t) * weight).sum(1, keepdim=True), x, 0,
                 pointwise="tangent", bias="separate")  # fmt: skip
    kept = 0.0
    for i in range(6):
        up, down = x[0, i : i + 1] + 1e-6, x[0, i : i + 1] - 1e-6
        slope = float((function(up) - function(down)) / 2e-6)
        assert float(e.weight[0, i]) == pytest.approx(slope * float(weight[i]), rel=1e-6, abs=1e-7)
        value = float(function(x[0, i : i + 1]))
        kept += float(weight[i]) * (value - slope * float(x[0, i]))
    assert float(e.bias) == pytest.approx(kept, rel=1e-6, abs=1e-6)
    assert worst(e) < 1e-12


@pytest.mark.parametrize(
    "function",
    [
        F.relu6,
        lambda x: F.relu6(x * 1, inplace=True),
        lambda x: (x * 1).clamp_(-2, 3),
        lambda x: x.clamp(min=1),
        torch.sigmoid,
        lambda x: (x * 1).sigmoid_(),
        F.softplus,
    ],
)
def test_relevance_passes_unchanged(function: Callable[[Tensor], Tensor]) -> None:
    """V = φ(x)/x, and all of it; but what is clipped away from zero is a constant."""
    x = torch.tensor([[-4.0, -1.5, 0.25, 2.0, 7.0]], dtype=torch.float64)
    weight = torch.linspace(-1, 2, 5, dtype=torch.float64)
    e = by_rules(lambda t: (function(t) * weight).sum(1, keepdim=True), x, 0,
                 pointwise="identity", bias="separate")  # fmt: skip
    y, raised = function(x), function(torch.zeros_like(x)) == function(x)
    kept = torch.where(raised, y * weight, 0)
    torch.testing.assert_close(e.contribution, y * weight - kept, rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(e.bias, kept.sum(1), rtol=1e-7, atol=1e-7)
    assert worst(e) < 1e-12


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = (nn.Linear(n, m) for n, m in ((3, 4), (3, 4), (4, 2)))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.a(x) + self.b(x))


@pytest.mark.parametrize("number", [0.0, 0.5, 3.0])
def test_residual_additions_by_ratio(number: float) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net, x = Branches().eval().double(), torch.randn(1, 3, dtype=torch.float64)
    e = by_rules(net, x, 1, residual=number)
    net.requires_grad_(False)
    a, b, head = net.a(x)[0], net.b(x)[0], net.head.weight[1]
    expected = torch.zeros(3, dtype=torch.float64)
    for j in range(4):
        z = float(a[j] + b[j])
        more = [(1 + number * (float(t) * z > 0)) * float(t) for t in (a[j], b[j])]
        for branch, own, part in ((net.a, a[j], more[0]), (net.b, b[j], more[1])):
            r = float(head[j]) * z * part / sum(more)  # what a branch has of R_j
            for i in range(3):
                expected[i] += float(branch.weight[j, i] * x[0, i]) / float(own) * r
    torch.testing.assert_close(e.contribution[0], expected)
    assert worst(e) < 1e-12


# --- networks that are drawn ----------------------------------------------------------------------


class Gate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.sigmoid(self.gate(x)) * F.silu(self.up(x)))


class SelfAttention(nn.Module):
    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.qkv, self.fused = nn.Linear(8, 24), fused

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (2, 4)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        if self.fused:
            out = F.scaled_dot_product_attention(q, k, v)
        else:
            out = by_parts(q @ k.mT / 2) @ v
        return out.transpose(1, 2).flatten(2)


class Block(nn.Module):
    """A part of a network over tokens (B, T, 8), maybe with a residual addition around it."""

    def __init__(self, kind: str, norm: str, residual: bool) -> None:
        super().__init__()
        norms = {"layer": nn.LayerNorm(8), "rms": nn.RMSNorm(8), "none": nn.Identity()}
        parts = {
            "gate": Gate,
            "fused": lambda: SelfAttention(True),
            "attention": lambda: SelfAttention(False),
            "mlp": lambda: nn.Sequential(nn.Linear(8, 6), nn.GELU(), nn.Linear(6, 8)),
        }
        self.norm, self.part, self.residual = norms[norm], parts[kind](), residual

    def forward(self, x: Tensor) -> Tensor:
        out = self.part(self.norm(x))
        return x + out if self.residual else out


class Drawn(nn.Module):
    """A convolution of patches, blocks of tokens, a head."""

    def __init__(self, blocks: list[tuple[str, str, bool]], batch_norm: bool) -> None:
        super().__init__()
        self.patches = nn.Conv2d(2, 8, 2, 2)
        self.batch = nn.BatchNorm2d(8) if batch_norm else nn.GroupNorm(2, 8)
        self.blocks = nn.Sequential(*(Block(*block) for block in blocks))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.batch(self.patches(x)), inplace=True)
        return self.head(self.blocks(h.flatten(2).mT).mean(1))


KINDS = st.tuples(
    st.sampled_from(["gate", "fused", "attention", "mlp"]),
    st.sampled_from(["layer", "rms", "none"]),
    st.booleans(),
)
SETTINGS = st.fixed_dictionaries(
    {
        "gamma": st.sampled_from([0.0, 0.1, (0.0, 0.5), 3.0]),
        "beta": st.sampled_from([0.0, 0.5, 1.0]),
        "softmax": st.sampled_from(SOFTMAX),
        "norm": st.sampled_from(NORM),
        "pointwise": st.sampled_from(POINTWISE),
        "residual": st.sampled_from([None, 0.0, 1.0]),
    }
)


def drawn(seed: int, blocks: list[tuple[str, str, bool]], batch: bool) -> tuple[nn.Module, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = Drawn(blocks, batch).eval().double()
        for p in [*net.parameters(), *net.buffers()]:
            if p.ndim == 1:
                p.data += 0.3 * torch.rand_like(p)
        return net, torch.randn(2, 2, 6, 6, dtype=torch.float64)


@example(
    seed=0,
    blocks=[("fused", "layer", False), ("gate", "layer", False)],
    batch=False,
    options={"softmax": "taylor", "norm": "derivative"},
)
@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1000),
    blocks=st.lists(KINDS, max_size=3),
    batch=st.booleans(),
    options=SETTINGS,
)
def test_the_sum_of_drawn_networks(
    seed: int, blocks: list[tuple[str, str, bool]], batch: bool, options: dict[str, Any]
) -> None:
    net, x = drawn(seed, blocks, batch)
    e = by_rules(net, x, **options)
    assert worst(e) < 1e-9
    torch.testing.assert_close(e.output, net(x)[:, 1].detach())
    alone = by_rules(net, x[:1], **options)
    torch.testing.assert_close(alone.matrix, e.matrix[:1], rtol=1e-6, atol=1e-9)


# --- rules that are broken on purpose -------------------------------------------------------------


@pytest.mark.parametrize("dials", ["gamma", "beta", "all"])
def test_a_share_of_a_layer_that_is_wrong_is_seen(
    dials: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = made("residual")
    right = lrp_layers.Layer.whole
    monkeypatch.setattr(lrp_layers.Layer, "whole", lambda self, z: 1.01 * right(self, z))
    e = by_rules(model, x, **DIALS[dials])
    assert not e.exact
    assert worst(e) > 1e-4


@pytest.mark.parametrize(("dials", "net"), [("tangent", "dense"), ("norm", "attention")])
def test_a_kept_share_that_is_wrong_is_seen(
    dials: str, net: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = made(net)

    def kept_twice(call: Any) -> Any:
        return call.attach(derivatives_before(call), torch.ones((), dtype=torch.float64))

    name = "tangent" if dials == "tangent" else "differentiated"
    derivatives_before = getattr(derivatives, name)
    monkeypatch.setattr(derivatives, name, kept_twice)
    e = by_rules(model, x, **DIALS[dials])
    assert not e.exact
    assert worst(e) > 1e-4


# --- derivatives ----------------------------------------------------------------------------------


@pytest.mark.parametrize("net", ["dense", "residual", "attention", "fused"])
@pytest.mark.parametrize("dials", DIALS)
def test_derivatives_by_the_parameters(dials: str, net: str) -> None:
    model, x = made(net, 2)
    options = DIALS[dials]
    name = "norm.weight" if net in ("attention", "fused") else ""
    every = dict(model.named_parameters())
    parameter = every.get(name, next(p for n, p in every.items() if n.endswith("weight")))
    generator = torch.Generator().manual_seed(3)
    size = omenn.explain(model, x, 1).matrix.shape
    weights = torch.randn(size, generator=generator, dtype=torch.float64)

    def loss() -> Tensor:
        e = by_rules(model, x, create_graph=True, **options)
        return (e.matrix * weights).sum() + (e.contribution**2).sum()

    (found,) = torch.autograd.grad(loss(), parameter)
    direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    ends = []
    for step in (1e-6, -1e-6):
        with torch.no_grad():
            parameter += step * direction
        ends.append(loss().detach())
        with torch.no_grad():
            parameter -= step * direction
    slope = (ends[0] - ends[1]) / 2e-6
    torch.testing.assert_close((found * direction).sum(), slope, rtol=1e-5, atol=1e-6)


# --- networks that people use ---------------------------------------------------------------------

TIMM = {
    "resnet18": 64,
    "vit_tiny_patch16_224": 224,
    "convnext_atto": 64,
    "swin_tiny_patch4_window7_224": 224,
    "efficientnet_b0": 64,
}


@pytest.mark.slow
@pytest.mark.parametrize("dials", ["gamma", "both", "all", "all, by identity"])
@pytest.mark.parametrize("name", TIMM)
def test_single_precision_on_timm(name: str, dials: str) -> None:
    timm = pytest.importorskip("timm")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = shaken(timm.create_model(name, pretrained=False, num_classes=7)).float()
        x = torch.randn(1, 3, TIMM[name], TIMM[name])
    e = by_rules(net, x, 3, **DIALS[dials])
    assert e.exact
    assert worst(e) < 1e-5
    torch.testing.assert_close(e.output, net(x)[:, 3].detach(), rtol=1e-4, atol=1e-5)


# --- options --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("gamma", -0.1),
        ("gamma", "much"),
        ("gamma", [0.1]),
        ("gamma", (0.1, -1.0)),
        ("beta", 1.1),
        ("beta", -0.1),
        ("softmax", "half"),
        ("norm", True),
        ("pointwise", "linear"),
        ("residual", -1.0),
        ("complete", "yes"),
    ],
)
def test_values_out_of_range(option: str, value: Any) -> None:
    model, x = made("dense")
    with pytest.raises(omenn.InputError) as error:
        by_rules(model, x, **{option: value})
    assert error.value.argument == option
    assert error.value.got


def test_they_can_be_left_incomplete() -> None:
    model, x = made("residual")
    e = by_rules(model, x, gamma=0.3, complete=False)
    full = by_rules(model, x, gamma=0.3)
    assert (e.promise, full.promise) == ("approximate", "exact")
    assert e.contribution.equal(full.contribution)
    assert not e.bias.any()
    found = omenn.methods()["rules"]
    assert found.promise == "exact"
    assert found.options["complete"] is True
    assert found.promised({}) == "exact"
    assert found.promised({"complete": False}) == "approximate"


def test_options_on_the_command_line() -> None:
    name, options = method_and_options("rules[gamma=0.2,0.1;softmax=taylor;residual=none]")
    assert name == "rules"
    assert options == {"gamma": [0.2, 0.1], "softmax": "taylor", "residual": None}
    assert method_and_options("rules[gamma=0.1;beta=0]")[1] == {"gamma": 0.1, "beta": 0}
