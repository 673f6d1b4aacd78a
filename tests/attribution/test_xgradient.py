"""The plain gradient against torch's own, and X-Gradient against integrated gradients."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import omenn
from nets import draw, seeded
from omenn.attribution.ordinary_gradient import OrdinaryRun, recurrent


def first(out: Any) -> Tensor:
    return (out[0] if isinstance(out, tuple) else out).flatten(1).square().sum(1)


# --- the plain gradient --------------------------------------------------------------------------


def convnet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU6(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 2),
        nn.LeakyReLU(inplace=True), nn.ConvTranspose2d(4, 2, 3), nn.Hardtanh(-1, 1, inplace=True),
        nn.Upsample(scale_factor=2), nn.AvgPool2d(2), nn.PReLU(), nn.Flatten(), nn.Linear(32, 3),
    )  # fmt: skip


def norms() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.GELU(), nn.InstanceNorm2d(4, affine=True),
        nn.Hardswish(), nn.LocalResponseNorm(2), nn.SiLU(inplace=True), nn.Hardtanh(),
        nn.Flatten(), nn.LayerNorm(144), nn.RMSNorm(144), nn.Softplus(), nn.Softmax(-1),
    )  # fmt: skip


class Gated(nn.Module):
    """Products, quotients, Einstein sums and operators of which the engine knows nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
        self.kernel = nn.Linear(8, 15)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.sigmoid(self.a(x)) * self.b(x) + F.glu(self.b(x).repeat(1, 1, 2))
        y *= torch.tan(0.3 * x) / (1 + x.square().mean(-1, keepdim=True))
        y = y + torch.einsum("bij,bkj->bik", x, x) @ x + F.cosine_similarity(x, y, -1)[..., None]
        y = torch.addcmul(y, x, self.a(x)) + F.normalize(y, dim=-1) * y.norm(dim=-1, keepdim=True)
        y = torch.lerp(y, x, torch.sigmoid(x)) + 2 / (2 + x.abs()) + torch.minimum(x, y)
        weight = self.kernel(x).mean((0, 1)).reshape(5, 1, 3)
        return F.conv1d(y, weight, torch.ones(5).to(x), padding=1, groups=5) + torch.special.i0(x)


class Fused(nn.Module):
    """Attention by the fused operator, causal and masked."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (2, 4)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        mask = torch.tensor([[0.0, -torch.inf, 1.0, 0.0, 2.0]], dtype=x.dtype)
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return a + F.scaled_dot_product_attention(q, k, v, mask, scale=0.3)


class Attention(nn.Module):
    def __init__(self, weights: bool) -> None:
        super().__init__()
        self.inner, self.weights = nn.MultiheadAttention(8, 2, batch_first=True), weights

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x, x, x, need_weights=self.weights)[0]


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return 3 * ctx.saved_tensors[0] ** 2 * grads[0]


NETWORKS: dict[str, tuple[Callable[[], Any], tuple[int, ...]]] = {
    "convolutions": (convnet, (2, 3, 8, 8)),
    "norms": (norms, (2, 3, 8, 8)),
    "transformer": (lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), (2, 5, 8)),
    "attention": (lambda: Attention(False), (2, 5, 8)),
    "attention with weights": (lambda: Attention(True), (2, 5, 8)),
    "fused attention": (Fused, (2, 5, 8)),
    "lstm": (lambda: nn.LSTM(8, 4, 2, batch_first=True, bidirectional=True), (2, 5, 8)),
    "gru": (lambda: nn.GRU(8, 4, batch_first=True), (2, 5, 8)),
    "rnn": (lambda: nn.RNN(8, 4, nonlinearity="relu", batch_first=True), (2, 5, 8)),
    "products": (Gated, (2, 5, 8)),
    "own function": (lambda: lambda x: Cube.apply(x) * torch.sigmoid(x), (2, 4)),
}


@pytest.mark.parametrize("bias", ["none", "spatial"])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_plain_gradient_is_that_of_torch(name: str, bias: str) -> None:
    build, shape = NETWORKS[name]
    net, x = build(), draw(*shape)
    net = seeded(net) if isinstance(net, nn.Module) else net
    run = OrdinaryRun(net, x, bias=bias)
    f, _ = run.target(first)
    found = run.pull_back(f).inputs[0]
    leaf = x.clone().requires_grad_()
    expected = first(net(leaf))
    (gradient,) = torch.autograd.grad(expected.sum(), leaf)
    torch.testing.assert_close(f.detach(), expected.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found, gradient, rtol=1e-12, atol=1e-12)
    assert found.abs().sum() > 0


def test_a_clipped_value_has_the_slope_of_torch_at_the_edge() -> None:
    x = torch.tensor([[0.0, 6.0, 3.0, -1.0, 7.0]], dtype=torch.float64)
    for clip in (F.relu6, lambda t: t.clamp(0, 6), lambda t: torch.maximum(t, torch.zeros_like(t))):
        run = OrdinaryRun(clip, x)
        found = run.pull_back(run.target(first)[0]).inputs[0]
        leaf = x.clone().requires_grad_()
        assert torch.equal(found, torch.autograd.grad(first(clip(leaf)).sum(), leaf)[0])


def test_what_the_model_detaches_is_followed() -> None:
    def net(x: Tensor) -> Tensor:
        with torch.no_grad():
            y = x.square()
        return y * x.detach()

    e = omenn.explain(net, torch.full((1, 2), 2.0), lambda out: out.sum(1), method="xgradient")
    assert torch.allclose(e.weight, torch.full((1, 2), 12.0))


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * g


def test_functions_with_a_derivative_of_their_own_beside_another_input() -> None:
    x, z, w = torch.rand(3, 4), torch.rand(3, 4), torch.rand(4, 2)
    inputs = {"x": x, "z": z}
    e = omenn.explain(lambda x, z: Square.apply(x) @ w + z @ w, inputs, 1, method="xgradient")
    torch.testing.assert_close(e.weight["x"], 2 * x * w[:, 1])
    torch.testing.assert_close(e.weight["z"], w[:, 1].expand(3, 4))


def test_an_output_without_a_derivative_is_refused() -> None:
    with pytest.raises(omenn.TargetError, match="have no derivative"):
        omenn.explain(
            nn.Linear(3, 2).eval(),
            torch.ones(1, 3),
            lambda out: out.argmax(1).float(),
            method="xgradient",
        )


def test_attention_dropout_is_refused() -> None:
    def net(x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, x, x, dropout_p=0.5)

    with pytest.raises(omenn.UnsupportedOperator, match="dropout is active"):
        omenn.explain(net, draw(1, 5, 8), first, method="xgradient")


def test_recurrent_kernels_of_a_gpu_are_refused() -> None:
    def refuse(why: str, remedy: str) -> omenn.UnsupportedOperator:
        return omenn.UnsupportedOperator("lstm", "rnn", why, remedy)

    call: Any = SimpleNamespace(active=[SimpleNamespace(is_cuda=True)], refuse=refuse)
    said = r"have no derivative in evaluation mode\. Explain the model on a CPU\."
    with pytest.raises(omenn.UnsupportedOperator, match=said):
        recurrent(call)


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(7, 4), nn.Linear(4, 3)

    def forward(self, ids: Tensor, scale: Tensor) -> dict[str, Tensor]:
        vectors = F.gelu(self.table(ids)) * scale[:, None]
        return {"scores": self.head(vectors.mean(1)), "other": vectors}


def test_ids_dicts_structured_outputs_and_contrasts() -> None:
    net = seeded(Words())
    ids, scale = torch.tensor([[1, 2, 3], [4, 5, 1]]), draw(2, 4)
    given = {"ids": ids, "scale": scale}
    target = omenn.Contrast(2, "runner-up")
    e = omenn.explain(net, given, target, method="xgradient", output="scores")
    vectors, leaf = net.table(ids).detach().requires_grad_(), scale.clone().requires_grad_()
    scores = net.head((F.gelu(vectors) * leaf[:, None]).mean(1))
    other = scores.detach().index_fill(1, torch.tensor([2]), -torch.inf).argmax(1)
    f = scores[:, 2] - scores.gather(1, other[:, None])[:, 0]
    to_vectors, to_scale = torch.autograd.grad(f.sum(), [vectors, leaf])
    torch.testing.assert_close(e.weight["ids"], to_vectors)
    torch.testing.assert_close(e.weight["scale"], to_scale)
    torch.testing.assert_close(e.contribution["ids"], to_vectors * vectors.detach())
    assert e.matrix["ids"].shape == (2, 3)


def test_a_later_module() -> None:
    net, x = seeded(convnet()), draw(2, 3, 8, 8)
    e = omenn.explain(net, x, 1, method="xgradient", at="3", resample="none")
    leaf = net[:4](x).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(net[4:](leaf.clone())[:, 1].sum(), leaf)
    torch.testing.assert_close(e.contribution, gradient * leaf.detach(), rtol=1e-12, atol=1e-12)
    brought = omenn.explain(net, x, 1, method="xgradient", at="3")
    assert brought.matrix.shape == (2, 8, 8)
    torch.testing.assert_close(brought.total, e.total)


# --- X-Gradient ----------------------------------------------------------------------------------


class Residual(nn.Module):
    """A network of convolutions with a residual sum, homogeneous if it has no bias."""

    def __init__(self, bias: bool = False, pooling: type[nn.Module] = nn.MaxPool2d) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1, bias=bias)
        self.a, self.b = (nn.Conv2d(6, 6, 3, padding=1, bias=bias) for _ in "ab")
        self.pool, self.head = pooling(2), nn.Linear(96, 4, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = self.pool(x + self.b(F.leaky_relu(self.a(x))))
        return self.head(x.flatten(1))


def integrated_gradients(net: nn.Module, x: Tensor, target: int, steps: int = 200) -> Tensor:
    """x ⊙ ∫₀¹ ∇f(αx) dα by the middles of many steps."""
    total = torch.zeros_like(x)
    for k in range(steps):
        leaf = ((k + 0.5) / steps * x).requires_grad_()
        total += torch.autograd.grad(net(leaf)[:, target].sum(), leaf)[0]
    return x * total / steps


@pytest.mark.parametrize("pooling", [nn.MaxPool2d, nn.AvgPool2d])
def test_it_is_integrated_gradients_on_homogeneous_networks(pooling: type[nn.Module]) -> None:
    net, x = seeded(Residual(pooling=pooling)), draw(2, 3, 8, 8)
    e = omenn.explain(net, x, 2, method="xgradient", check=True)
    expected = integrated_gradients(net, x, 2)
    torch.testing.assert_close(e.contribution, expected, rtol=1e-10, atol=1e-12)
    assert e.exact
    assert e.promise == "approximate"


BENT: dict[str, Callable[[], nn.Module]] = {
    "bias": lambda: Residual(bias=True),
    "norm": lambda: nn.Sequential(Residual(), nn.LayerNorm(4, elementwise_affine=False)),
    "gelu": lambda: nn.Sequential(Residual(), nn.GELU()),
}


@pytest.mark.parametrize("name", BENT)
def test_elsewhere_it_shows_that_it_is_not(name: str) -> None:
    net, x = seeded(BENT[name]()), draw(2, 3, 8, 8)
    e = omenn.explain(net, x, 2, method="xgradient")
    difference = (e.contribution - integrated_gradients(net, x, 2)).abs().amax()
    assert not e.exact
    assert "approximate" in repr(e)
    assert difference > 1e-3 * e.contribution.abs().amax()


SAID = {
    "bias": r"f\(0\) is not 0 but .*Constants are added in 'stem', 'a', 'b' and 1 more\.",
    "norm": r"f\(2 x\) misses 2 f\(x\) by .*Not homogeneous are layer_norm in '1'\.",
    "gelu": r"f\(0\.5 x\) misses 0\.5 f\(x\) by .*Not homogeneous are gelu in '1'\.",
}


@pytest.mark.parametrize("name", BENT)
def test_the_check_says_by_how_much_and_where(name: str) -> None:
    net, x = seeded(BENT[name]()), draw(2, 3, 8, 8)
    with pytest.raises(omenn.ModelError, match=SAID[name]) as caught:
        omenn.explain(net, x, 2, method="xgradient", check=True)
    assert "method='omenn', which is exact for any" in str(caught.value)


def test_the_miss_is_the_one_that_is_measured() -> None:
    net, x = seeded(Residual(bias=True)), draw(1, 3, 8, 8)
    with torch.no_grad():
        at_zero = float(net(0 * x)[0, 2].abs())
        doubled = float((net(2 * x) - 2 * net(x))[0, 2].abs())
    with pytest.raises(omenn.ModelError) as caught:
        omenn.explain(net, x, 2, method="xgradient", check=True)
    assert f"f(0) is not 0 but {at_zero:.3g}" in str(caught.value)
    assert f"f(2 x) misses 2 f(x) by {doubled:.3g}" in str(caught.value)


def test_the_check_works_at_a_module_and_at_ids() -> None:
    net, x = seeded(Residual(bias=True)), draw(2, 3, 8, 8)
    with torch.no_grad():
        net.head.bias.zero_()
    assert omenn.explain(net, x, 2, method="xgradient", at="pool", check=True).exact
    words = seeded(Words())
    given = {"ids": torch.tensor([[1, 2, 3]]), "scale": draw(1, 4)}
    with pytest.raises(omenn.ModelError, match="not homogeneous at this input"):
        omenn.explain(words, given, 0, method="xgradient", output="scores", check=True)


def test_the_check_calls_what_is_not_finite_at_zero_a_miss() -> None:
    with pytest.raises(omenn.ModelError, match=r"f\(0\) is not 0 but inf"):
        omenn.explain(
            lambda x: x / x.norm(dim=1, keepdim=True) * x.norm(dim=1, keepdim=True),
            draw(1, 3),
            1,
            method="xgradient",
            check=True,
        )


def test_an_unknown_check_is_refused() -> None:
    with pytest.raises(omenn.InputError, match=r"^check must be True or False"):
        omenn.explain(
            Residual().eval(), torch.rand(1, 3, 8, 8), 0, method="xgradient", check="warn"
        )


def test_neighbours_in_the_batch_and_precision_change_nothing() -> None:
    net, x = seeded(Residual(bias=True)), draw(3, 3, 8, 8)
    together = omenn.explain(net, x, 1, method="xgradient").matrix
    alone = torch.cat([omenn.explain(net, r[None], 1, method="xgradient").matrix for r in x])
    torch.testing.assert_close(together, alone, rtol=1e-10, atol=1e-12)
    single = omenn.explain(net.float(), x.float(), 1, method="xgradient").matrix
    torch.testing.assert_close(single.double(), together, rtol=1e-3, atol=1e-4)


def test_nothing_of_the_caller_changes() -> None:
    net, x = seeded(Residual(bias=True)), draw(1, 3, 8, 8)
    before, given = {k: v.clone() for k, v in net.state_dict().items()}, x.clone()
    with torch.no_grad(), pytest.raises(omenn.ModelError):
        omenn.explain(net, x, 0, method="xgradient", at="stem", check=True)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert torch.equal(x, given)
    assert not any(m._forward_hooks for m in net.modules())
    assert all(p.grad is None and p.requires_grad for p in net.parameters())
