"""The axioms of attribution: on networks without bias X-Gradient has those of the integral.

Each that a bias breaks is shown to break, on the same network with one.

Source: Sundararajan et al. 2017, arXiv 1703.01365; Hesse et al. 2021, arXiv 2111.07668.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import omenn
from omenn.xdnn.homogeneity import check
from opcases.case import draw

STEPS = 128
TARGET = 2


class Residual(nn.Module):
    """Convolutions, a residual sum, pooling and a linear head."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1, bias=bias)
        self.a, self.b = (nn.Conv2d(6, 6, 3, padding=1, bias=bias) for _ in "ab")
        self.head = nn.Linear(54, 4, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.stem(x)), 2)
        return self.head(F.avg_pool2d(x + self.b(F.leaky_relu(self.a(x))), 2, 1).flatten(1))


def mlp(bias: bool) -> nn.Module:
    return nn.Sequential(
        nn.Linear(12, 16, bias=bias), nn.ReLU(), nn.Linear(16, 16, bias=bias), nn.PReLU(),
        nn.Linear(16, 4, bias=bias),
    )  # fmt: skip


def recurrent(bias: bool) -> nn.Module:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.RNN(4, 8, nonlinearity="relu", bias=bias, batch_first=True)
            self.head = nn.Linear(8, 4, bias=bias)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.rnn(x)[0][:, -1])

    return Last()


def attention(bias: bool) -> nn.Module:
    """Weights relu(q kᵀ) / Σ relu(q kᵀ), of degree 0."""

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.head = nn.Linear(4, 12, bias=bias), nn.Linear(4, 4, bias=bias)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.qkv(x).chunk(3, -1)
            scores = F.relu(q @ k.mT)
            weights = F.normalize(scores, p=1, dim=-1, eps=torch.finfo(x.dtype).tiny)
            return self.head(F.relu(weights @ v + x).mean(1))

    return Attention()


NETWORKS: dict[str, tuple[Callable[[bool], nn.Module], Tensor]] = {
    "mlp": (mlp, draw(3, 12)),
    "residual": (Residual, draw(2, 3, 8, 8)),
    "recurrent": (recurrent, draw(2, 5, 4)),
    "attention": (attention, draw(2, 5, 4)),
}


def network(name: str, bias: bool) -> tuple[nn.Module, Tensor]:
    build, x = NETWORKS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        net = build(bias)
    for key, t in net.named_parameters():
        if "bias" in key:
            t.data.normal_(0, 0.5, generator=torch.Generator().manual_seed(1))
    return net.double().eval(), x


def attributed(net: object, x: Tensor, target: int = TARGET) -> Tensor:
    return omenn.explain(net, x, target, method="xgradient").contribution


def integrated(net: nn.Module, x: Tensor) -> Tensor:
    """Integrated gradients from a zero baseline, by captum."""
    captum = pytest.importorskip("captum.attr")
    found = captum.IntegratedGradients(net).attribute(x, 0 * x, target=TARGET, n_steps=STEPS)
    return found.detach()


def apart(a: Tensor, b: Tensor) -> float:
    """Largest difference, relative to the largest of b."""
    return float((a - b).abs().max() / b.abs().max())


@pytest.fixture(params=NETWORKS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def test_the_networks_are_homogeneous_without_a_bias_and_only_so(name: str) -> None:
    net, x = network(name, bias=False)
    assert check(net, x, factors=(0.1, 0.5, 2, 10)).homogeneous
    net, x = network(name, bias=True)
    found = check(net, x)
    assert (found.proven, found.measured) == (False, False)


def test_it_equals_integrated_gradients(name: str) -> None:
    net, x = network(name, bias=False)
    assert apart(attributed(net, x), integrated(net, x)) < 1e-5


def test_it_does_not_equal_integrated_gradients_with_a_bias(name: str) -> None:
    net, x = network(name, bias=True)
    assert apart(attributed(net, x), integrated(net, x)) > 1e-2


def gap(net: nn.Module, x: Tensor) -> float:
    """|Σ C − (F(x) − F(0))|, relative to the largest output."""
    with torch.no_grad():
        change = (net(x) - net(1e-12 * x))[:, TARGET]  # attention has no value at 0 itself
    return apart(attributed(net, x).flatten(1).sum(1), change)


def test_completeness(name: str) -> None:
    """Attributions sum to F(x) − F(0)."""
    assert gap(*network(name, bias=False)) < 1e-9


def test_completeness_is_lost_with_a_bias(name: str) -> None:
    assert gap(*network(name, bias=True)) > 1e-2


def test_sensitivity_a(name: str) -> None:
    """One feature differs from the baseline and changes the output: it gets an attribution."""
    net, x = network(name, bias=False)
    alone = torch.zeros_like(x[:1]).expand(x[0].numel(), *x.shape[1:]).clone()
    alone.flatten(1).copy_(torch.diag(x[0].flatten()))
    with torch.no_grad():
        output = net(alone)[:, TARGET]
    found = attributed(net, alone).flatten(1)
    assert bool((output.abs() > 1e-6).any())
    torch.testing.assert_close(found.diagonal(), output, rtol=1e-9, atol=1e-12)
    assert not bool((found - torch.diag(found.diagonal())).any())


def test_sensitivity_a_is_lost_with_a_bias() -> None:
    """F(x) = 1 − relu(1 − x) goes from 0 to 1 between 0 and 2, where it has no slope."""
    net = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1)).double().eval()
    for t, value in zip(net.parameters(), (-1.0, 1.0, -1.0, 1.0), strict=True):
        t.data.fill_(value)
    x = torch.full((1, 1), 2.0, dtype=torch.float64)
    assert float((net(x) - net(0 * x)).detach()) == 1
    assert float(attributed(net, x, 0)) == 0
    assert not check(net, x)


def test_sensitivity_b(name: str) -> None:
    """A feature on which the function does not depend gets nothing."""
    net, x = network(name, bias=False)
    half = x.shape[-1] // 2

    def ignorant(x: Tensor) -> Tensor:
        return net(torch.cat([x[..., :half], torch.zeros_like(x[..., half:])], -1))

    found = attributed(ignorant, x)
    assert not bool(found[..., half:].any())
    assert bool(found[..., :half].any())


class Rewritten(nn.Module):
    """The function of :class:`Residual`: products of patches, merged and split maps."""

    def __init__(self, net: Residual) -> None:
        super().__init__()
        self.net = net

    def convolved(self, x: Tensor, layer: nn.Conv2d) -> Tensor:
        """A convolution as a product with unfolded patches; its weight as a sum of two."""
        patches = F.unfold(x, 3, padding=1)
        weight = layer.weight.flatten(1)
        out = (0.25 * weight) @ patches + (0.75 * weight) @ patches
        if layer.bias is not None:
            out = out + layer.bias[:, None]
        return out.unflatten(2, x.shape[2:])

    def forward(self, x: Tensor) -> Tensor:
        x = self.convolved(x, self.net.stem)
        x = (0.5 * (x + x.abs())).unfold(2, 2, 2).unfold(3, 2, 2).amax((-2, -1))
        y = self.convolved(x, self.net.a)
        y = self.convolved(torch.where(y > 0, y, 0.01 * y), self.net.b)
        pooled = (x + y).unfold(2, 2, 1).unfold(3, 2, 1).mean((-2, -1)).flatten(1)
        first, last = self.net.head.weight.split([20, 34], 1)
        out = pooled[:, :20] @ first.T + pooled[:, 20:] @ last.T
        return out if self.net.head.bias is None else out + self.net.head.bias


def test_implementation_invariance() -> None:
    """Two networks of the same function have the same attributions."""
    net, x = network("residual", bias=False)
    assert isinstance(net, Residual)
    other = Rewritten(net).eval()
    torch.testing.assert_close(other(x), net(x), rtol=1e-12, atol=1e-12)
    assert check(other, x).homogeneous
    assert apart(attributed(other, x), attributed(net, x)) < 1e-12


def test_implementation_invariance_of_merged_layers() -> None:
    """Two linear maps in a row, and their product."""
    net, x = network("mlp", bias=False)
    assert isinstance(net, nn.Sequential)
    split = nn.Sequential(*[
        layer
        for k, m in enumerate(net)
        for layer in ((nn.Linear(m.in_features, 20, bias=False), nn.Linear(20, len(m.weight)))
                      if k == 0 and isinstance(m, nn.Linear) else (m,))
    ]).double().eval()  # fmt: skip
    inner, outer = split[0], split[1]
    assert isinstance(inner, nn.Linear)
    assert isinstance(outer, nn.Linear)
    outer.bias = None
    first = net[0].weight.detach()
    more, mixing = draw(4, 12), draw(16, 4)
    inner.weight.data = torch.cat([first - mixing @ more, more])
    outer.weight.data = torch.cat([torch.eye(16), mixing], 1)
    torch.testing.assert_close(split(x), net(x), rtol=1e-12, atol=1e-12)
    assert apart(attributed(split, x), attributed(net, x)) < 1e-12
    by_rules = [
        omenn.explain(n, x, TARGET, method="alpha1beta0").contribution for n in (split, net)
    ]
    assert apart(*by_rules) > 1e-2  # not every method is like this


def test_linearity(name: str) -> None:
    """The attributions of 3 F − 2 G are 3 times those of F minus 2 times those of G."""
    f, x = network(name, bias=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(12)
        g = NETWORKS[name][0](False).double().eval()

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f, self.g = f, g

        def forward(self, x: Tensor) -> Tensor:
            return 3 * self.f(x) - 2 * self.g(x)

    mixed = Mixed().eval()
    assert check(mixed, x, factors=(0.5, 2)).homogeneous
    expected = 3 * attributed(f, x) - 2 * attributed(g, x)
    assert apart(attributed(mixed, x), expected) < 1e-12
    assert apart(integrated(mixed, x), expected) < 1e-5


def symmetric(net: nn.Module) -> Callable[[Tensor], Tensor]:
    """F(a, b, …) + F(b, a, …): the first two features count alike."""
    return lambda x: net(x) + net(x[:, [1, 0, *range(2, x.shape[1])]])


def test_symmetry_is_preserved() -> None:
    """Features that count alike and have the same value get the same."""
    net, x = network("mlp", bias=False)
    x = x.clone()
    x[:, 1] = x[:, 0]
    found = attributed(symmetric(net), x)
    torch.testing.assert_close(found[:, 0], found[:, 1], rtol=1e-12, atol=1e-14)
    assert bool((found[:, 0].abs() > 1e-4).all())
    assert apart(found[:, 2], found[:, 0]) > 1e-2  # the others differ
    other = attributed(net, x)
    assert apart(other[:, 0], other[:, 1]) > 1e-2  # as do those of a function without symmetry
