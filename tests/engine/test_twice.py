"""Explanations can be trained on: their derivatives by the parameters against differences.

The frozen coefficients depend on the parameters as they really do, so a function of the matrix
must change with a parameter exactly as central differences of ordinary explanations say.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import omenn
from omenn.explanation import leaves
from opcases.case import Case, draw
from opcases.linear import seeded
from opdb import CASES, each_case


class Scaled(nn.Module):
    """The operator behind a learned scale and shift of each input."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case = case
        self.scales = nn.ParameterList(draw(*t.shape, low=0.9, high=1.1) for t in case.inputs)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.case.call(*(x * s for x, s in zip(inputs, self.scales, strict=True)))


def weighted(tensors: list[Tensor], seed: int) -> Tensor:
    """One number from an explanation: a fixed random sum, with a curve in it."""
    total = torch.zeros((), dtype=torch.float64)
    for k, t in enumerate(tensors):
        total = total + (t * draw(*t.shape, seed=seed + k)).sum() + 0.1 * (t * t).sum()
    return total


def score(model: nn.Module, inputs, target, create_graph: bool = False, **options) -> Tensor:
    e = omenn.explain(model, inputs, target, create_graph=create_graph, **options)
    return weighted([*leaves(e.weight), *leaves(e.matrix)], 3)


def check(model: nn.Module, inputs, target, tolerance: float = 1e-6, **options) -> None:
    """The derivative along one random direction of all parameters."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    value = score(model, inputs, target, create_graph=True, **options)
    got = torch.autograd.grad(value, parameters, allow_unused=True)
    ways = [draw(*p.shape, seed=21 + k, low=-1, high=1) for k, p in enumerate(parameters)]
    slope = sum((g * d).sum() for g, d in zip(got, ways, strict=True) if g is not None)
    step, values = 1e-5, []
    for sign in (1, -1):
        with torch.no_grad():
            for p, d in zip(parameters, ways, strict=True):
                p += sign * step * d
        values.append(score(model, inputs, target, **options).detach())
        with torch.no_grad():
            for p, d in zip(parameters, ways, strict=True):
                p -= sign * step * d
    wanted = (values[0] - values[1]) / (2 * step)
    torch.testing.assert_close(torch.as_tensor(slope), wanted, rtol=tolerance, atol=tolerance)


def total(y: Tensor) -> Tensor:
    return (y.reshape(-1) * torch.linspace(-1, 1.3, y.numel(), dtype=y.dtype)).sum()


# The twin of a constant that is written through a view is not known; it is refused.
THROUGH_VIEWS = ("copy_-into_a_part",)
DIFFERENTIABLE = [
    c for c in CASES if c.tolerance < 1e-6 and "at_zero" not in c.id and c.id not in THROUGH_VIEWS
]


@each_case(DIFFERENTIABLE, few=True)
def test_operator(case: Case) -> None:
    check(Scaled(case).eval(), case.fresh(), total, tolerance=2e-5)


@pytest.mark.parametrize("case", [c for c in CASES if c.id in THROUGH_VIEWS], ids=lambda c: c.id)
def test_what_has_no_twin_is_refused(case: Case) -> None:
    with pytest.raises(omenn.UnsupportedOperator, match="cannot be differentiated twice"):
        score(Scaled(case).eval(), case.fresh(), total, create_graph=True)


class Attention(nn.Module):
    """Self-attention, fused or written out, with a residual and a norm."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.norm, self.qkv, self.head = nn.LayerNorm(4), nn.Linear(4, 12), nn.Linear(4, 3)
        self.fused = fused

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        if self.fused:
            mixed = F.scaled_dot_product_attention(q, k, v)
        else:
            mixed = ((q @ k.mT) / 2).softmax(-1) @ v
        return self.head(x + mixed).mean(1)


class Gated(nn.Module):
    """A sigmoid gate, a SwiGLU product and a squared norm."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 5), nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = F.silu(self.a(x)) * self.b(x) + torch.sigmoid(self.b(x)) * self.a(x)
        return self.c(F.normalize(h, dim=-1))


class Squeezed(nn.Module):
    """Convolutions with batch norm, in-place ReLU, a squeeze-and-excitation gate and pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.down, self.up, self.head = nn.Conv2d(4, 2, 1), nn.Conv2d(2, 4, 1), nn.Linear(4, 3)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.conv(x)))
        gate = torch.sigmoid(self.up(F.gelu(self.down(x.mean((2, 3), keepdim=True)))))
        x = F.max_pool2d(x * gate, 2)
        x += 0.1
        return self.head(x.flatten(2).mean(2))


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], **options) -> None:
        super().__init__()
        self.rnn = kind(3, 3, batch_first=True, **options)
        self.head = nn.Linear(6 if options.get("bidirectional") else 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


class Tokens(nn.Module):
    """Embedded ids, a class token and a position embedding before a Transformer layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.position = nn.Embedding(7, 4), nn.Parameter(torch.zeros(5, 4))
        self.token, self.head = nn.Parameter(torch.zeros(1, 1, 4)), nn.Linear(4, 3)
        self.layer = nn.TransformerEncoderLayer(4, 2, 6, batch_first=True, activation="gelu")

    def forward(self, ids: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(len(ids), -1, -1), self.embed(ids)], 1) + self.position
        return self.head(self.layer(x)[:, 0])


def mlp(*middle: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), *middle, nn.Linear(6, 3))


ROWS, IMAGE, SERIES = draw(2, 4), draw(2, 2, 6, 6), draw(2, 4, 3)
NETWORKS = {
    "gelu": (mlp(nn.GELU()), ROWS),
    "tanh gelu": (mlp(nn.GELU("tanh")), ROWS),
    "relu": (mlp(nn.ReLU()), ROWS),
    "softplus with an origin": (mlp(nn.Softplus(), nn.Linear(6, 6), nn.Sigmoid()), ROWS),
    "layer norm": (mlp(nn.LayerNorm(6), nn.SiLU()), ROWS),
    "rms norm": (mlp(nn.RMSNorm(6), nn.Mish()), ROWS),
    "group norm": (mlp(nn.GroupNorm(2, 6), nn.ELU()), ROWS),
    "batch norm": (mlp(nn.BatchNorm1d(6), nn.Tanh()), ROWS),
    "prelu": (mlp(nn.PReLU(6)), ROWS),
    "fused attention": (Attention(True), draw(2, 3, 4)),
    "attention written out": (Attention(False), draw(2, 3, 4)),
    "multi-head attention": (Tokens().layer, draw(2, 3, 4)),
    "gates": (Gated(), ROWS),
    "convolutions": (Squeezed(), IMAGE),
    "lstm": (Recurrent(nn.LSTM), SERIES),
    "lstm both ways": (Recurrent(nn.LSTM, bidirectional=True, num_layers=2), SERIES),
    "gru": (Recurrent(nn.GRU), SERIES),
    "rnn": (Recurrent(nn.RNN), SERIES),
    "embedded ids": (Tokens(), torch.tensor([[1, 4, 2, 6], [0, 3, 3, 5]])),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_network(name: str) -> None:
    model, inputs = NETWORKS[name]
    target = total if name == "multi-head attention" else omenn.Contrast(1, 2)
    check(seeded(model), inputs, target)


@pytest.mark.parametrize("bias", ["spatial", "uniform", "separate"])
def test_every_placement(bias: str) -> None:
    check(seeded(Squeezed()), IMAGE, 0, bias=bias)


@pytest.mark.parametrize("products", ["half", "left", "right"])
def test_every_choice_of_factor(products: str) -> None:
    check(seeded(Gated()), ROWS, 0, products=products)


def test_at_a_module_in_between() -> None:
    check(seeded(mlp(nn.GELU(), nn.Linear(6, 6), nn.SiLU())), ROWS, 1, at="1")


def test_same_values_as_the_ordinary_explanation() -> None:
    model = seeded(Squeezed())
    with_graph = omenn.explain(model, IMAGE, 1, create_graph=True)
    without = omenn.explain(model, IMAGE, 1)
    assert with_graph.exact
    assert with_graph.matrix.requires_grad
    assert not without.matrix.requires_grad
    torch.testing.assert_close(with_graph.matrix, without.matrix, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(with_graph.bias, without.bias, rtol=1e-11, atol=1e-12)


def test_output_has_the_derivative_of_the_ordinary_output() -> None:
    model = seeded(Gated())
    parameters = list(model.parameters())
    e = omenn.explain(model, ROWS, 2, create_graph=True)
    got = torch.autograd.grad(e.output.sum(), parameters, retain_graph=True)
    by_sum = torch.autograd.grad(e.matrix.sum(), parameters)
    wanted = torch.autograd.grad(model(ROWS)[:, 2].sum(), parameters)
    for g, s, w in zip(got, by_sum, wanted, strict=True):
        torch.testing.assert_close(g, w)
        torch.testing.assert_close(s, w)


def test_training_on_an_explanation_changes_it() -> None:
    """Ten steps push the share of the first two inputs down."""
    model = seeded(mlp(nn.GELU()))
    optimiser = torch.optim.Adam(model.parameters(), lr=0.02)

    def share() -> Tensor:
        c = omenn.explain(model, ROWS, 0, create_graph=True).contribution.abs()
        return c[:, :2].sum() / c.sum()

    before = share().item()
    for _ in range(10):
        optimiser.zero_grad()
        share().backward()
        optimiser.step()
    assert share().item() < 0.7 * before


def test_derivative_by_the_input() -> None:
    """The matrix as a function of x, for attribution priors and for smoothing by gradients."""
    net, x, way = seeded(Squeezed()), IMAGE.clone().requires_grad_(), draw(2, 2, 6, 6, seed=4)
    e = omenn.explain(net, x, 1, create_graph=True)
    (got,) = torch.autograd.grad(weighted([e.weight, e.matrix], 3), x)
    step = 1e-6
    ends = [score(net, (x + s * step * way).detach(), 1) for s in (1, -1)]
    wanted = (ends[0] - ends[1]) / (2 * step)
    torch.testing.assert_close((got * way).sum(), wanted, rtol=1e-6, atol=1e-6)


def test_frozen_parameters_and_trained_ones() -> None:
    """Only what requires gradients gets them."""
    net = seeded(mlp(nn.GELU()))
    net[0].requires_grad_(False)
    omenn.explain(net, ROWS, 1, create_graph=True).matrix.square().sum().backward()
    assert net[0].weight.grad is None
    assert net[2].weight.grad is not None
    assert not net[0].weight.requires_grad
