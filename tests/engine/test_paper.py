"""The checks of the OMENN paper (arXiv 2412.02399): each layer as its dense affine form."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import omenn
from opcases.case import draw
from opcases.linear import seeded


def rows(model: nn.Module, x: Tensor, **options) -> tuple[Tensor, Tensor, omenn.Rows]:
    """W(x) and b(x) of one sample, all outputs: (outputs, inputs) and (outputs,)."""
    n = model(x).numel()
    picks = [lambda y, k=k: y.reshape(1, -1)[:, k] for k in range(n)]
    found = omenn.rows(model, x, picks, **options)
    return found.weight[0].reshape(n, -1), found.bias[0].reshape(n, -1).sum(1), found


def matches(model: nn.Module, x: Tensor, weight: Tensor, bias: Tensor) -> None:
    """The engine's rows are the dense form, and the dense form is the layer."""
    got_weight, got_bias, found = rows(model, x)
    torch.testing.assert_close(got_weight, weight, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(got_bias, bias, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(
        weight @ x.reshape(-1) + bias, model(x).detach().reshape(-1), rtol=1e-11, atol=1e-12
    )
    assert found.exact


def two_layers() -> nn.Sequential:
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)).double().eval()
    values = ([[1.0, -1.0], [2.0, 0.0]], [0.5, -1.0], [[1.0, 2.0], [-1.0, 1.0]], [0.25, 0.0])
    for parameter, value in zip(net.parameters(), values, strict=True):
        parameter.data.copy_(torch.tensor(value))
    return net


def test_two_layer_network_against_a_matrix_computed_by_hand() -> None:
    """x = (1, 2): h = (−0.5, 1), ReLU keeps the second; f₀ = 2·h₂ + ¼ = 4x₁ − 1¾."""
    x = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    e = omenn.explain(two_layers(), x, 0)
    assert e.output.tolist() == [2.25]
    assert e.weight.tolist() == [[4.0, 0.0]]
    assert e.contribution.tolist() == [[4.0, 0.0]]
    assert e.bias_share.tolist() == [-1.75]
    assert e.sources.keys() == {"0", "2"}
    assert e.sources["0"].tolist() == [-2.0]
    assert e.sources["2"].tolist() == [0.25]
    assert e.matrix.sum().item() == 2.25
    assert e.residual.tolist() == [0.0]


def test_two_layer_network_when_placed_evenly_over_what_acts() -> None:
    x = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    e = omenn.explain(two_layers(), x, 0, bias="uniform")
    assert e.bias.tolist() == [[-1.75, 0.0]]
    assert e.matrix.tolist() == [[2.25, 0.0]]


def test_two_layer_network_where_both_hidden_units_are_active() -> None:
    """x = (2, 1): h = (1.5, 3); f₁ = −h₁ + h₂ = (2 − 1)x₁ + x₂ − 1.5."""
    x = torch.tensor([[2.0, 1.0]], dtype=torch.float64)
    weight, bias, found = rows(two_layers(), x)
    assert weight.tolist() == [[5.0, -1.0], [1.0, 1.0]]
    assert bias.tolist() == [-1.25, -1.5]
    assert found.output.tolist() == [[7.75, 1.5]]


def test_fully_connected_layer_alone() -> None:
    layer = seeded(nn.Linear(5, 3))
    matches(layer, draw(1, 5), layer.weight.detach(), layer.bias.detach())


@pytest.mark.parametrize(("stride", "padding", "groups"), [(1, 1, 1), (2, 0, 1), (1, 0, 2)])
def test_convolution_alone(stride: int, padding: int, groups: int) -> None:
    """The Toeplitz matrix, entry by entry: W[(o, i, j), (c, p, q)] = kernel[o, c, p−i, q−j]."""
    layer = seeded(nn.Conv2d(2, 4, 3, stride, padding, groups=groups))
    x = draw(1, 2, 5, 4)
    height, width = layer(x).shape[2:]
    dense = torch.zeros(4, height, width, 2, 5, 4, dtype=torch.float64)
    inside = 2 // groups
    for o in range(4):
        for i in range(height):
            for j in range(width):
                for c in range(inside):
                    for a in range(3):
                        for b in range(3):
                            p, q = i * stride + a - padding, j * stride + b - padding
                            if 0 <= p < 5 and 0 <= q < 4:
                                source = c + inside * (o // (4 // groups))
                                dense[o, i, j, source, p, q] = layer.weight[o, c, a, b]
    bias = layer.bias.detach().repeat_interleave(height * width)
    matches(layer, x, dense.reshape(4 * height * width, -1), bias)


class Values(nn.Module):
    """One head: softmax(x A xᵀ) x W_v + b, of which the attention weights are held."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(3, 2)

    def weights(self, x: Tensor) -> Tensor:
        return torch.softmax(self.q(x) @ self.k(x).mT / 2, -1)

    def forward(self, x: Tensor) -> Tensor:
        return self.weights(x) @ self.v(x)


class FusedValues(Values):
    def forward(self, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x))


@pytest.mark.parametrize("kind", [Values, FusedValues])
def test_attention_through_the_kronecker_identity(kind: type[Values]) -> None:
    """vec(A X Wᵀ) = (A ⊗ W) vec(X), rows first; the bias passes because rows of A sum to one."""
    layer, x = seeded(kind()), draw(1, 4, 3)
    attention = layer.weights(x)[0].detach()
    weight = torch.kron(attention, layer.v.weight.detach())
    matches(layer, x, weight, layer.v.bias.detach().repeat(4))


def test_layer_normalisation_alone() -> None:
    """γ (I − 11ᵀ/n)/σ."""
    layer, x = seeded(nn.LayerNorm(4)), draw(1, 4)
    sigma = (x.var(unbiased=False) + layer.eps).sqrt()
    centre = torch.eye(4, dtype=torch.float64) - 1 / 4
    weight = torch.diag(layer.weight.detach()) @ centre / sigma
    matches(layer, x, weight, layer.bias.detach())


def test_batch_normalisation_alone() -> None:
    """γ/√(v + ε) on the diagonal, β − γ m/√(v + ε) as bias."""
    layer, x = seeded(nn.BatchNorm1d(4)), draw(1, 4)
    gain = layer.weight.detach() / (layer.running_var + layer.eps).sqrt()
    matches(layer, x, torch.diag(gain), layer.bias.detach() - gain * layer.running_mean)


@pytest.mark.parametrize("phi", [F.relu, F.gelu, F.silu, torch.tanh, F.softplus])
def test_activation_alone(phi) -> None:
    """(φ(x) − φ(0))/x on the diagonal, φ(0) as bias."""

    class Activation(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return phi(x)

    x = draw(1, 6)
    origin = phi(torch.zeros(6, dtype=torch.float64))
    matches(Activation().eval(), x, torch.diag(((phi(x) - origin) / x)[0]), origin)


def test_max_pooling_alone() -> None:
    """A row of zeros with a one where the largest value of the window is."""
    x = torch.tensor([[[3.0, 1.0, 4.0, 1.5]]], dtype=torch.float64)
    weight = torch.tensor([[1.0, 0, 0, 0], [0, 0, 1.0, 0]], dtype=torch.float64)
    matches(nn.MaxPool1d(2).eval(), x, weight, torch.zeros(2, dtype=torch.float64))


def test_layers_compose_by_multiplication() -> None:
    """W = W₃ D W₁ and b = W₃ (D b₁ + φ(0)) + b₃, for a network of three layers."""
    net, x = seeded(nn.Sequential(nn.Linear(4, 5), nn.Softplus(), nn.Linear(5, 3))), draw(1, 4)
    hidden = net[0](x).detach()[0]
    origin = F.softplus(torch.zeros(5, dtype=torch.float64))
    diagonal = torch.diag((F.softplus(hidden) - origin) / hidden)
    first, last = net[0], net[2]
    weight = (last.weight @ diagonal @ first.weight).detach()
    bias = (last.weight @ (diagonal @ first.bias + origin) + last.bias).detach()
    matches(net, x, weight, bias)


def test_residual_block_adds_the_identity() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.inner(x)

    block, x = seeded(Block()), draw(1, 4)
    weight = torch.eye(4, dtype=torch.float64) + block.inner.weight.detach()
    matches(block, x, weight, block.inner.bias.detach())


def test_bias_free_relu_network_is_input_times_gradient() -> None:
    """Without constants and with ReLU alone, C_w is the gradient and C_b is zero."""
    layers = [nn.Linear(4, 6, bias=False), nn.ReLU(), nn.Linear(6, 3, bias=False)]
    net, x = seeded(nn.Sequential(*layers)), draw(2, 4)
    e = omenn.explain(net, x, 1)
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(net(leaf)[:, 1].sum(), leaf)
    torch.testing.assert_close(e.weight, gradient)
    torch.testing.assert_close(e.matrix, x * gradient)
    assert not e.bias.any()


def test_gradient_of_a_smooth_network_is_not_the_dynamic_weight() -> None:
    """The secant, not the tangent: input × gradient does not sum to the output, Σ C does."""
    net, x = seeded(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))), draw(2, 4)
    e = omenn.explain(net, x, 0)
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(net(leaf)[:, 0].sum(), leaf)
    assert (e.weight - gradient).abs().max() > 0.05
    torch.testing.assert_close(e.matrix.sum(1), e.output)
