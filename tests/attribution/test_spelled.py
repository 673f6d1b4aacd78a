"""A function is the same for every method, however a model spells it."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import omenn

Function = Callable[[Tensor], Tensor]
METHODS = (
    "omenn libragrad fullgrad attnlrp reslrp abslrp cp-lrp epsilon gamma zplus alpha1beta0"
).split()
ROOT = math.sqrt(2 / math.pi)


def cubic(x: Tensor) -> Tensor:
    return ROOT * (x + 0.044715 * torch.pow(x, 3.0))


def in_place_swish(x: Tensor) -> Tensor:
    x = x.clone()
    return x.mul_(torch.sigmoid(x))


def in_place_gelu(x: Tensor) -> Tensor:
    y = torch.tanh(cubic(x))
    y.add_(1.0).mul_(0.5)
    y *= x
    return y


def forgotten(x: Tensor) -> Tensor:
    """Nothing but the chain itself still knows the tensor that it began with."""
    gate = torch.sigmoid(x)
    x = 3.0 * x
    return x * gate / 3.0


def powers(x: Tensor) -> Tensor:
    up, down = torch.exp(x), torch.exp(-x)
    return (up - down) / (up + down)


# As a model spells it, and as one call.
SPELLED: dict[str, tuple[Function, Function]] = {
    "gelu_new": (lambda x: 0.5 * x * (1.0 + torch.tanh(cubic(x))),
                 lambda x: F.gelu(x, approximate="tanh")),
    "gelu_fast": (lambda x: 0.5 * x * (
        1.0 + torch.tanh(x * 0.7978845608028654 * (1.0 + 0.044715 * x * x))),
        lambda x: F.gelu(x, approximate="tanh")),
    "gelu in place": (in_place_gelu, lambda x: F.gelu(x, approximate="tanh")),
    "gelu_python": (lambda x: x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0))), F.gelu),
    "gelu, summed": (lambda x: 0.5 * (x + x * torch.erf(x / math.sqrt(2.0))), F.gelu),
    "gelu, Φ(−x)": (lambda x: x * (1 - 0.5 * torch.erfc(x / math.sqrt(2.0))), F.gelu),
    "quick_gelu": (lambda x: x * torch.sigmoid(1.702 * x), lambda x: F.silu(1.702 * x) / 1.702),
    "swish": (lambda x: x * torch.sigmoid(x), F.silu),
    "swish in place": (in_place_swish, F.silu),
    "swish, divided": (lambda x: x / (1 + torch.exp(-x)), F.silu),
    "swish, forgotten": (forgotten, F.silu),
    "swish, 1 / (1 + exp)": (lambda x: x * (1 / (1 + torch.exp(-x))), F.silu),
    "swish, addcmul": (lambda x: torch.addcmul(torch.zeros_like(x), x, torch.sigmoid(x)), F.silu),
    "mish": (lambda x: x * torch.tanh(F.softplus(x)), F.mish),
    "mish, log": (lambda x: x * torch.tanh(torch.log(1 + torch.exp(x))), F.mish),
    "mish, log1p": (lambda x: x * torch.tanh(torch.log1p(torch.exp(x))), F.mish),
    "hardswish": (lambda x: x * F.relu6(x + 3.0) / 6.0, F.hardswish),
    "hardswish, clamp": (lambda x: x * (x + 3.0).clamp(0, 6) * (1 / 6), F.hardswish),
    "tanh": (lambda x: 2 * torch.sigmoid(2 * x) - 1, torch.tanh),
    "tanh, powers": (powers, torch.tanh),
    "softsign": (lambda x: x / (1 + x.abs()), F.softsign),
    "tanhshrink": (lambda x: x - torch.tanh(x), F.tanhshrink),
    "elu": (lambda x: torch.where(x > 0, x, torch.exp(x) - 1), F.elu),
    "sigmoid": (lambda x: 1 / (1 + torch.exp(-x)), torch.sigmoid),
    "sigmoid, reciprocal": (lambda x: (1 + (-x).exp()).reciprocal(), torch.sigmoid),
    "sigmoid, quotient": (lambda x: torch.exp(x) / (1 + torch.exp(x)), torch.sigmoid),
    "softplus": (lambda x: torch.log(1 + torch.exp(x)), F.softplus),
    "softplus, log1p": (lambda x: torch.log1p(x.exp()), F.softplus),
    "logsigmoid": (lambda x: torch.log(torch.sigmoid(x)), F.logsigmoid),
    "squared relu": (lambda x: F.relu(x) * F.relu(x), lambda x: F.relu(x).pow(2)),
    "squared relu, masked": (lambda x: x * x * (x > 0), lambda x: F.relu(x).pow(2)),
    "wavenet": (lambda x: torch.tanh(x) * torch.sigmoid(x),
                lambda x: torch.tanh(x) / (1 + torch.exp(-x))),
}  # fmt: skip


class Act(nn.Module):
    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def net(function: Function) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Linear(6, 16), Act(function), nn.Linear(16, 5), Act(function), nn.Linear(5, 3)
    ).double().eval()  # fmt: skip


def given(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7)).double()


def same(a: omenn.Explanation, b: omenn.Explanation, within: float = 1e-9) -> None:
    scale = float(b.matrix.abs().max())
    assert scale > 0
    assert float((a.matrix - b.matrix).abs().max()) < within * scale
    assert float((a.weight - b.weight).abs().max()) < within * float(b.weight.abs().max())
    assert torch.allclose(a.output, b.output, rtol=1e-12)


@pytest.mark.parametrize("name", SPELLED)
def test_the_spelling_of_an_activation_changes_no_method(name: str) -> None:
    spelled, native = SPELLED[name]
    x = given(2, 6)
    for method in METHODS:
        a, b = (omenn.explain(net(f), x, 1, method=method) for f in (spelled, native))
        # absLRP adds 1e-9 to what it divides by, also where a constant rescales.
        same(a, b, 1e-7 if method == "abslrp" else 1e-9)


def test_hardsigmoid_of_relu6_is_one_function_where_relevance_passes() -> None:
    x = given(2, 6)
    for method in ("attnlrp", "reslrp", "abslrp"):
        a, b = (omenn.explain(net(f), x, 1, method=method)
                for f in (lambda x: F.relu6(x + 3.0) / 6.0, F.hardsigmoid))  # fmt: skip
        same(a, b, 1e-7 if method == "abslrp" else 1e-9)


class Snake(nn.Module):
    """x + sin²(αx)/α with an α of its own for every unit."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.linspace(0.5, 2.0, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + (1 / self.alpha) * torch.sin(self.alpha * x) ** 2


@pytest.mark.parametrize("method", ["omenn", "attnlrp", "fullgrad", "epsilon"])
def test_snake_by_hand(method: str) -> None:
    torch.manual_seed(1)
    a, act, b = nn.Linear(6, 8), Snake(8), nn.Linear(8, 3)
    model = nn.Sequential(a, act, b).double().eval()
    x = given(2, 6)
    options = {} if method in ("omenn", "fullgrad") else {"epsilon": 1e-14}
    e = omenn.explain(model, x, 1, method=method, **options)
    with torch.no_grad():
        z = a(x)
        ratio = act(z) / z
        if method == "fullgrad":
            ratio = 1 + torch.sin(2 * act.alpha * z)
        expected = x * ((ratio * b.weight[1]) @ a.weight)
    assert torch.allclose(e.contribution, expected, atol=1e-9)


def test_relevance_passes_a_gelu_of_gpt2_unchanged() -> None:
    """AttnLRP, the identity rule: R at the units behind is R before, biases apart."""
    torch.manual_seed(1)
    a, b = nn.Linear(6, 16, bias=False), nn.Linear(16, 3, bias=False)
    model = nn.Sequential(a, Act(SPELLED["gelu_new"][0]), b).double().eval()
    e = omenn.explain(model, given(2, 6), 1, method="attnlrp", epsilon=1e-14)
    assert torch.allclose(e.matrix.sum(1), e.output, rtol=1e-9)


class Gated(nn.Module):
    """SwiGLU: two tensors, of which the gate is bounded for the frozen table."""

    def __init__(self, act: Function) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.gate, self.up, self.down = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 3)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.act(self.gate(x)) * self.up(x))


def test_a_gated_mlp_is_a_product_of_two_tensors() -> None:
    x = given(2, 6)
    for act in (F.silu, SPELLED["swish"][0]):
        model = Gated(act).double().eval()
        e = omenn.explain(model, x, 1, method="attnlrp", epsilon=1e-14)
        with torch.no_grad():
            z, up = model.gate(x), model.up(x)
            back = 0.5 * model.down.weight[1]
            to_gate = (back * up * torch.sigmoid(z)) @ model.gate.weight
            to_up = (back * F.silu(z)) @ model.up.weight
        assert torch.allclose(e.matrix, x * (to_gate + to_up), atol=1e-9)


def test_halves_of_one_tensor_are_two_tensors() -> None:
    x = given(2, 8)
    a = omenn.explain(nn.Sequential(nn.Linear(8, 8), nn.GLU()).double().eval(), x, 1)
    assert a.exact
    model = Act(lambda x: x[:, :4] * torch.sigmoid(x[:, 4:])).eval()
    e = omenn.explain(model, x, 1, method="attnlrp")
    left, right = x[:, 1], x[:, 5]
    assert torch.allclose(e.matrix[:, 1], 0.5 * left * torch.sigmoid(right), atol=1e-5)
    assert torch.allclose(e.matrix[:, 5], 0.5 * left * torch.sigmoid(right), atol=1e-5)


def test_pieces_of_a_chain_may_be_used_elsewhere() -> None:
    """The gate of a swish that is also an output: both uses count, each by its own rule."""
    x = given(2, 6)
    torch.manual_seed(1)
    layer = nn.Linear(6, 4).double()

    def both(swish: Function) -> nn.Module:
        def forward(x: Tensor) -> Tensor:
            z = layer(x)
            gate = torch.sigmoid(z)
            return swish(z) * 2 + gate

        return Act(forward).eval()

    pair = (both(lambda z: z * torch.sigmoid(z)), both(F.silu))
    for method in ("omenn", "fullgrad"):
        a, b = (omenn.explain(m, x, 1, method=method) for m in pair)
        same(a, b)


def test_what_was_written_into_since_starts_no_chain() -> None:
    """x changes between its gate and the product: two tensors, and the value is the model's."""

    def forward(x: Tensor) -> Tensor:
        x = x * 1.0
        gate = torch.sigmoid(x)
        x.add_(1.0)
        return x * gate

    x = given(2, 4)
    e = omenn.explain(Act(forward).eval(), x, 1)
    assert torch.allclose(e.weight[:, 1], torch.sigmoid(x[:, 1]))
    assert torch.allclose(e.bias.sum(1), torch.sigmoid(x[:, 1]))
    assert e.exact


def test_the_divisor_of_a_norm_stays_constant() -> None:
    def normed(x: Tensor) -> Tensor:
        v = x.pow(2).mean(-1, keepdim=True)
        return x * (1 / torch.sqrt(v + 1e-6))

    x = given(2, 4)
    for method in ("omenn", "attnlrp"):
        e = omenn.explain(Act(normed).eval(), x, 1, method=method)
        assert torch.allclose(e.weight[:, 1], 1 / (x.pow(2).mean(-1) + 1e-6).sqrt())
        assert float(e.weight[:, [0, 2, 3]].abs().max()) == 0


def test_a_learned_shift_is_the_bias_of_a_layer() -> None:
    """(x Wᵀ) + b with b a parameter: AttnLRP leaves the bias its share, also before a swish."""
    torch.manual_seed(1)
    layer = nn.Linear(6, 4).double()

    class Apart(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            z = x @ self.layer.weight.T + self.layer.bias
            return z * torch.sigmoid(z)

    x = given(2, 6)
    pair = (Apart().eval(), nn.Sequential(layer, nn.SiLU()).eval())
    a, b = (omenn.explain(m, x, 1, method="attnlrp", epsilon=1e-14) for m in pair)
    same(a, b)


def test_a_differentiable_explanation_has_the_same_derivative() -> None:
    x = given(2, 6)
    found = []
    for act in (SPELLED["hardswish"][0], F.hardswish, SPELLED["gelu_new"][0],
                SPELLED["gelu_new"][1]):  # fmt: skip
        model = net(act)
        e = omenn.explain(model, x, 1, create_graph=True)
        e.matrix.square().sum().backward()
        found.append(next(model.parameters()).grad)
    assert torch.allclose(found[0], found[1], atol=1e-9)
    assert torch.allclose(found[2], found[3], atol=1e-9)


def test_published_cp_lrp_stops_at_the_gate() -> None:
    """lxt: the activated gate is a constant, and all relevance goes to the other factor."""
    x = given(2, 6)
    for act in (F.silu, SPELLED["gelu_new"][0], F.relu):
        model = Gated(act).double().eval()
        e = omenn.explain(model, x, 1, method="cp-lrp", epsilon=0.0, published=True)
        with torch.no_grad():
            gate = act(model.gate(x))
            expected = x * ((model.down.weight[1] * gate) @ model.up.weight)
        assert torch.allclose(e.matrix, expected, atol=1e-9)
        halves = omenn.explain(model, x, 1, method="cp-lrp", epsilon=0.0)
        assert not torch.allclose(halves.matrix, expected, atol=1e-3)


def test_published_cp_lrp_names_a_product_without_a_gate() -> None:
    torch.manual_seed(1)
    a, b = nn.Linear(6, 4).double(), nn.Linear(6, 4).double()
    bare = Act(lambda x: a(x) * b(x)).eval()
    with pytest.raises(omenn.UnsupportedOperator, match="neither is an activation"):
        omenn.explain(bare, given(2, 6), 1, method="cp-lrp", published=True)
    both = Act(lambda x: F.gelu(a(x)) * F.gelu(b(x))).eval()
    with pytest.raises(omenn.UnsupportedOperator, match="both are activations"):
        omenn.explain(both, given(2, 6), 1, method="cp-lrp", published=True)
