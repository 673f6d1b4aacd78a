"""Completed rules: what a rule keeps goes to its place, so that the sum is always the output."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import omenn
from omenn.attribution import lrp_layers
from omenn.attribution.attnlrp import attnlrp
from omenn.attribution.lrp import gamma

BOOKS: dict[str, dict[str, Any]] = {
    "epsilon": {"epsilon": 0.3},
    "gamma": {"gamma": 0.4, "epsilon": 1e-3},
    "zplus": {},
    "cp-lrp": {"epsilon": 0.1},
    "attnlrp": {"epsilon": 1e-2},
    "reslrp": {"gamma": 0.5, "epsilon": 1e-2},
}


class Attention(nn.Module):
    """One attention, fused or written out, with a residual addition and a gate."""

    def __init__(self, fused: bool = False) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(4, 4) for _ in range(3))
        self.norm, self.gate, self.up = nn.LayerNorm(4), nn.Linear(4, 6), nn.Linear(4, 6)
        self.head, self.fused = nn.Linear(6, 3), fused

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.query(x), self.key(x), self.value(x)
        if self.fused:
            mixed = F.scaled_dot_product_attention(q, k, v)
        else:
            mixed = torch.softmax(q @ k.mT / 2, -1) @ v
        h = self.norm(x + mixed)
        return self.head(F.silu(self.gate(h)) * self.up(h)).mean(1)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 3)
        for norm in (self.stem_norm, self.norm):
            nn.init.uniform_(norm.running_mean, -1, 1)  # type: ignore[arg-type]
            nn.init.uniform_(norm.weight, 0.5, 2)
            nn.init.uniform_(norm.bias, -1, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = F.max_pool2d(F.relu(self.stem_norm(self.stem(x)), inplace=True), 2)
        h = F.hardswish(self.norm(self.conv(h))) + h
        return self.head(F.gelu(h).mean((2, 3)))


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "dense": (
        lambda: nn.Sequential(
            nn.Linear(5, 8), nn.Softplus(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3)
        ),
        (5,),
    ),
    "residual": (Residual, (2, 6, 6)),
    "attention": (Attention, (5, 4)),
    "fused": (lambda: Attention(True), (5, 4)),
}


def made(name: str, samples: int = 3, seed: int = 0) -> tuple[nn.Module, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        build, shape = NETS[name]
        return build().eval().double(), torch.randn(samples, *shape, dtype=torch.float64)


def completed(net: nn.Module, x: Tensor, book: str, target: Any = 1, **more: Any) -> Any:
    return omenn.explain(net, x, target, method=book, complete=True, **BOOKS[book], **more)


def worst(e: omenn.Explanation) -> float:
    return float((e.residual.detach().abs() / (1 + e.magnitude)).max())


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("book", BOOKS)
class TestEveryBook:
    def test_the_sum_is_the_output(self, book: str, net: str) -> None:
        model, x = made(net)
        e = completed(model, x, book)
        assert e.exact
        assert (e.promise, e.method) == ("exact", book)
        assert worst(e) < 1e-12
        torch.testing.assert_close(e.output, model(x)[:, 1])
        plain = omenn.explain(model, x, 1, method=book, **BOOKS[book])
        assert plain.promise != "exact"
        assert float(plain.residual.abs().max()) > 1e-6, "this book keeps nothing here"
        torch.testing.assert_close(e.contribution, plain.contribution)

    def test_placements_and_sources_have_one_sum(self, book: str, net: str) -> None:
        model, x = made(net)
        kept = completed(model, x, book, bias="separate")
        for bias in ("spatial", "bilinear", "uniform"):
            e = completed(model, x, book, bias=bias)
            assert e.exact
            torch.testing.assert_close(e.bias.flatten(1).sum(1), kept.bias)
        torch.testing.assert_close(sum(kept.sources.values()), kept.bias)

    def test_a_sample_alone_is_as_in_a_batch(self, book: str, net: str) -> None:
        model, x = made(net)
        together = completed(model, x, book)
        alone = completed(model, x[1:2], book)
        torch.testing.assert_close(together.matrix[1:2], alone.matrix)
        torch.testing.assert_close(
            completed(model, x.flip(0), book).matrix.flip(0), together.matrix
        )

    def test_rows_and_contrasts(self, book: str, net: str) -> None:
        model, x = made(net)
        rules = {"gamma": gamma, "attnlrp": attnlrp}.get(book)
        if rules is not None:
            table = rules(**BOOKS[book])
            for chunk in (1, 2):
                found = omenn.rows(model, x, [0, 1], rules=table, chunk=chunk)
                assert found.exact
                torch.testing.assert_close(found.bias[:, 1], completed(model, x, book, 1).bias)
            assert omenn.certify(model, x, 1, rules=table).exact
        e = completed(model, x, book, omenn.Contrast(0, 2))
        assert e.exact
        difference = completed(model, x, book, 0).matrix - completed(model, x, book, 2).matrix
        torch.testing.assert_close(e.matrix, difference)


@pytest.mark.parametrize(("net", "at"), [("residual", "stem_norm"), ("attention", "norm")])
def test_depths_and_mixtures(net: str, at: str) -> None:
    model, x = made(net)
    deep = completed(model, x, "gamma", at=at)
    assert deep.exact
    mixed = completed(model, x, "gamma", at=["input", at], mix=[0.25, 0.75])
    assert mixed.exact
    one = completed(model, x, "gamma")
    torch.testing.assert_close(mixed.matrix, 0.25 * one.matrix + 0.75 * deep.matrix)


# --- against the definition -----------------------------------------------------------------------


def slow_gamma(
    x: Tensor, layers: list[tuple[Tensor, Tensor]], number: float
) -> tuple[Tensor, list[Tensor]]:
    """R_i of the input and D_j of each layer, by loops: Linear and ReLU in turn, output 0."""
    values, h = [x], x
    for k, (w, b) in enumerate(layers):
        h = w @ h + b
        h = h.clamp(min=0) if k < len(layers) - 1 else h
        values.append(h)
    relevance = torch.zeros_like(h)
    relevance[0] = h[0]
    kept = []
    for k in reversed(range(len(layers))):
        (w, b), below = layers[k], values[k]
        shares, passed = torch.zeros_like(below), torch.zeros_like(relevance)
        for j in range(len(b)):
            y = float(w[j] @ below + b[j])
            parts = [float(w[j, i] * below[i]) for i in range(len(below))]
            speaks = [z + number * z * (z * y > 0) for z in parts]
            bias = float(b[j]) + number * float(b[j]) * (float(b[j]) * y > 0)
            total = sum(speaks) + bias
            for i, z in enumerate(speaks):
                given_to = z / total * float(relevance[j])
                shares[i] += given_to
                passed[j] += given_to
        kept.insert(0, relevance - passed)  # D_j = R_j − Σ_i R_{i←j}
        relevance = shares
    return relevance, kept


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), number=st.sampled_from([0.0, 0.1, 1.0, 5.0]))
def test_kept_shares_are_those_of_the_definition(seed: int, number: float) -> None:
    source = torch.Generator().manual_seed(seed)
    sizes = [4, 6, 5, 3]
    layers = [
        (
            torch.randn(n, m, generator=source, dtype=torch.float64),
            torch.randn(n, generator=source, dtype=torch.float64),
        )
        for m, n in itertools.pairwise(sizes)
    ]
    net = nn.Sequential()
    for k, (w, b) in enumerate(layers):
        linear = nn.Linear(w.shape[1], w.shape[0]).double()
        linear.weight.data, linear.bias.data = w.clone(), b.clone()
        net.append(linear)
        if k < 2:
            net.append(nn.ReLU())
    x = torch.randn(1, 4, generator=source, dtype=torch.float64)
    options: dict[str, Any] = {"gamma": number, "epsilon": 0.0, "complete": True}
    e = omenn.explain(net.eval(), x, 0, method="gamma", **options)
    relevance, kept = slow_gamma(x[0], layers, number)
    torch.testing.assert_close(e.contribution[0], relevance)
    for k, d in enumerate(kept):
        torch.testing.assert_close(e.sources[str(2 * k)][0], d.sum())


def test_what_softmax_keeps_is_what_its_taylor_rule_leaves() -> None:
    """R_i = x_i (R_i − s_i Σ_j R_j) / … keeps Σ_j g_j (s_j − x_j s_j + s_j Σ_i s_i x_i)."""
    weight = torch.randn(5, dtype=torch.float64)
    x = torch.randn(2, 5, dtype=torch.float64)
    e = omenn.explain(
        lambda t: (torch.softmax(t, 1) * weight).sum(1, keepdim=True),
        x, 0, method="attnlrp", complete=True, bias="separate",
    )  # fmt: skip
    s = torch.softmax(x, 1)
    kept = weight * (s - s * (x - (s * x).sum(1, keepdim=True)))
    torch.testing.assert_close(e.bias, kept.sum(1))
    assert e.exact


@pytest.mark.parametrize("book", ["attnlrp", "reslrp"])
def test_masked_logits_pass_and_keep_nothing(book: str) -> None:
    """A place that is masked with −∞ takes no part: the rest alone has the same map."""
    weight = torch.tensor([1.0, -2.0, 3.0, 4.0, 5.0], dtype=torch.float64)
    mask = torch.tensor([0, 0, 0, -torch.inf, -torch.inf], dtype=torch.float64)
    x = torch.randn(2, 5, dtype=torch.float64)
    options: dict[str, Any] = {"method": book, "complete": True, "bias": "separate"}
    e = omenn.explain(
        lambda t: (torch.softmax(t + mask, 1) * weight).sum(1, keepdim=True), x, 0, **options
    )
    alone = omenn.explain(
        lambda t: (torch.softmax(t, 1) * weight[:3]).sum(1, keepdim=True), x[:, :3], 0, **options
    )
    assert e.exact
    torch.testing.assert_close(e.bias, alone.bias)
    torch.testing.assert_close(e.contribution[:, :3], alone.contribution)
    assert not e.contribution[:, 3:].any()


@pytest.mark.parametrize("complete", [False, True])
@pytest.mark.parametrize("book", [*BOOKS, "composite"])
@pytest.mark.parametrize("conv", [nn.Conv1d(5, 4, 2), nn.ConvTranspose1d(5, 4, 2)])
def test_channels_are_those_that_a_convolution_mixes(
    conv: nn.Module, book: str, complete: bool
) -> None:
    net = nn.Sequential(conv, nn.ReLU(), nn.Flatten(), nn.LazyLinear(2)).double()
    x = torch.randn(2, 5, 4, dtype=torch.float64)
    net.eval()(x)
    e = omenn.explain(net, x, 0, method=book, complete=complete, **BOOKS.get(book, {}))
    assert omenn.explain(net, x, 0, method="abslrp").matrix.shape == (2, 4)
    assert e.matrix.shape == omenn.explain(net, x, 0).matrix.shape == (2, 4)
    torch.testing.assert_close(e.matrix, e.contribution.sum(1) + e.bias)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_zeros_of_the_input_in_every_precision(dtype: torch.dtype) -> None:
    """The flat rule gives an input that is zero its even share, in half precision, too."""
    net = nn.Sequential(nn.Linear(4, 1)).to(dtype).eval()
    x = torch.tensor([[0.0, 0.5, 0.0, -1.0]], dtype=dtype)
    rules = [("first", "flat")]
    e = omenn.explain(net, x, 0, method="composite", rules=rules, complete=True)
    assert e.exact
    share = net(x).detach().float().expand(1, 4) / 4
    torch.testing.assert_close(e.contribution.float(), share, rtol=2e-2, atol=1e-3)


def test_a_kept_share_that_is_wrong_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = made("residual")
    right = lrp_layers.Layer.whole
    monkeypatch.setattr(lrp_layers.Layer, "whole", lambda self, z: 1.01 * right(self, z))
    e = completed(model, x, "epsilon")
    assert not e.exact
    assert worst(e) > 1e-4


# --- derivatives ----------------------------------------------------------------------------------


@pytest.mark.parametrize("net", ["dense", "residual", "attention", "fused"])
@pytest.mark.parametrize("book", ["epsilon", "gamma", "zplus", "attnlrp", "reslrp"])
def test_derivatives_by_the_parameters(book: str, net: str) -> None:
    model, x = made(net, 2)
    parameter = next(p for n, p in model.named_parameters() if n.endswith("weight"))
    generator = torch.Generator().manual_seed(3)
    size = omenn.explain(model, x, 1).matrix.shape
    weights = torch.randn(size, generator=generator, dtype=torch.float64)

    def loss() -> Tensor:
        e = completed(model, x, book, create_graph=True)
        return (e.matrix * weights).sum() + (e.contribution**2).sum()

    (found,) = torch.autograd.grad(loss(), parameter)
    direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    step = 1e-6
    with torch.no_grad():
        parameter += step * direction
    above = loss().detach()
    with torch.no_grad():
        parameter -= 2 * step * direction
    below = loss().detach()
    slope = (above - below) / (2 * step)
    torch.testing.assert_close((found * direction).sum(), slope, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "rules", ["epsilon-plus", "epsilon-plus-flat", "epsilon-alpha2-beta1", "epsilon-gamma-box"]
)
@pytest.mark.parametrize("net", ["dense", "residual"])
def test_composites(rules: str, net: str) -> None:
    model, x = made(net)
    x[0].view(-1)[:2] = 0  # which has relevance of its own by "flat" and "box"
    options: dict[str, Any] = {"rules": rules, "complete": True}
    if "box" in rules:
        options |= {"low": float(x.min()), "high": float(x.max())}
    e = omenn.explain(model, x, 1, method="composite", **options)
    assert e.exact
    assert e.promise == "exact"
    assert worst(e) < 1e-12


class Spectral(nn.Module):
    """A linear map between two Fourier transforms, as in a Fourier neural operator."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 5, dtype=torch.complex128))
        self.head = nn.Linear(8, 2, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(torch.fft.irfft(torch.fft.rfft(x) @ self.weight)))


@pytest.mark.parametrize("book", BOOKS)
def test_complex_layers_are_as_in_the_frozen_table(book: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, x = Spectral().eval(), torch.randn(2, 8, dtype=torch.float64)
    e = completed(model, x, book, 0)
    assert e.exact
    assert worst(e) < 1e-12


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given", [{"bias": "uniform"}, {"create_graph": True}, {"mix": [1.0]}, {"at": ["input", "0"]}]
)
def test_options_of_completed_rules_need_them_completed(given: dict[str, Any]) -> None:
    model, x = made("dense")
    with pytest.raises(omenn.InputError) as error:
        omenn.explain(model, x, 0, method="gamma", **given)
    assert error.value.argument == next(iter(given))
    assert "complete=True" in (error.value.remedy or "")


def test_complete_is_true_or_false() -> None:
    model, x = made("dense")
    with pytest.raises(omenn.InputError) as error:
        omenn.explain(model, x, 0, method="gamma", complete="yes")
    assert error.value.argument == "complete"
