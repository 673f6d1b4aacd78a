"""A prior on attributions as a term of a loss: its value, its derivative, and what it leaves alone.

Derivatives by the parameters are compared with central differences of the term itself, in float64.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import omenn
from nets import draw
from omenn.errors import InputError, ModelError, OmennError, TargetError, UnsupportedOperator
from omenn.models.architectures import BirdsConvNet, BirdsResNet, BirdsViT
from omenn.xdnn.priors import PRIORS, sparsity
from omenn.xdnn.priors.prior_loss import METHODS, AttributionPrior

REFERENCES = "references"


def settled(model: nn.Module) -> nn.Module:
    """Fixed random numbers for all parameters and statistics, in training mode."""
    model = model.double()
    for k, (name, t) in enumerate(model.state_dict().items()):
        if not t.is_floating_point():
            continue
        noise = draw(*t.shape, seed=k) if t.ndim else draw(1, seed=k)[0]
        fan = t[0].numel() if t.ndim > 1 else 16
        if name.endswith("running_var") or (t.ndim == 1 and "norm" in name and "weight" in name):
            noise = 1 + 0.3 * noise.abs()
        else:
            noise = noise / fan**0.5
        t.copy_(noise)
    return model.train()


def mlp(act: nn.Module) -> nn.Module:
    return nn.Sequential(
        nn.Linear(5, 8), act, nn.Dropout(0.5), nn.Linear(8, 7), act, nn.Linear(7, 3)
    )


class Tokens(nn.Module):
    """Embedded ids with positions, attention and a GELU layer; or vectors in place of ids."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.position = nn.Embedding(7, 6), nn.Parameter(torch.zeros(4, 6))
        self.norm, self.qkv, self.head = nn.LayerNorm(6), nn.Linear(6, 18), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x if x.is_floating_point() else self.embed(x)
        q, k, v = self.qkv(self.norm(x + self.position)).chunk(3, -1)
        return self.head(F.gelu(x + F.scaled_dot_product_attention(q, k, v)).mean(1))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "mlp": (lambda: mlp(nn.ReLU()), draw(4, 5)),
    "mlp with gelu": (lambda: mlp(nn.GELU()), draw(4, 5)),
    "resnet with batch norm": (lambda: BirdsResNet(4, (4, 5), (1, 1)), draw(2, 3, 12, 12)),
    "batch norm with gelu": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3),
            nn.BatchNorm2d(4),
            nn.GELU(),
            nn.BatchNorm2d(4, affine=False),
            nn.Softplus(),
            nn.Flatten(),
            nn.Linear(36, 3),
        ),
        draw(3, 3, 5, 5),
    ),
    "convnet with biases": (lambda: BirdsConvNet(4, (4, 5)), draw(2, 3, 12, 12)),
    "vit with gelu": (lambda: BirdsViT(4, 8, 1, 2, 12), draw(1, 3, 64, 64)),
    "token vectors": (Tokens, draw(3, 4, 6)),
    "token ids": (Tokens, torch.tensor([[1, 4, 2, 6], [0, 3, 3, 5]])),
}


def network(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    make, x = NETWORKS[name]
    with torch.random.fork_rng(devices=[]):
        model = settled(make())
    return model, x, torch.tensor([2, 0, 1, 2])[: len(x)]


class Mixed(nn.Module):
    """A mean mixed with a constant that is expanded to its shape."""

    def __init__(self) -> None:
        super().__init__()
        self.constant = nn.Parameter(torch.zeros(5))
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1)
        return self.head(torch.lerp(mean, self.constant.expand_as(mean), 0.3))


def curved(attributions: Tensor) -> Tensor:
    """A smooth function of all attributions: a fixed random sum, with a curve in it."""
    noise = draw(*attributions.shape, seed=3).to(attributions.dtype)
    return (attributions * noise).sum() + 0.5 * (attributions**2).sum()


def prior_of(method: str, x: Tensor, prior: Any = curved, **options: Any) -> AttributionPrior:
    if method == "integrated-gradients":
        options = {"steps": 3, "chunk": 4, "baseline": 0.1} | options
    if method == "expected-gradients":
        options = {"steps": 2, REFERENCES: draw(6, *x.shape[1:], seed=9)} | options
    return AttributionPrior(prior, options.pop("weight", 0.7), method, **options)


# --- the derivative


def difference(prior: AttributionPrior, model: nn.Module, x: Tensor, y: Tensor) -> tuple:
    """(derivative along one direction of all parameters, the same by central differences)."""
    state = prior.state_dict()
    parameters = list(model.parameters())
    found = torch.autograd.grad(prior(model, x, y), parameters, allow_unused=True)
    ways = [draw(*p.shape, seed=50 + k) for k, p in enumerate(parameters)]
    slope = sum((g * d).sum() for g, d in zip(found, ways, strict=True) if g is not None)
    step, ends = 1e-7, []
    for sign in (1, -1):
        moved = copy.deepcopy(model)
        with torch.no_grad():
            for p, d in zip(moved.parameters(), ways, strict=True):
                p += sign * step * d
        prior.load_state_dict(state)
        ends.append(float(prior(moved, x, y).detach()))
    return float(slope), (ends[0] - ends[1]) / (2 * step)


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6), nn.Linear(6, 3)), (4, 5)),
        (lambda: nn.Sequential(nn.Conv1d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3)),
         (4, 2, 5)),
        (lambda: BirdsViT(4, 8, 1, 2, 12), (1, 3, 64, 64)),
        (Mixed, (4, 3, 5)),
    ],
)  # fmt: skip
def test_the_derivative_at_constants_that_are_zero(make, shape):
    """As networks begin: zero now, but the map depends on them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = make().double()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "bias" in name or "token" in name or "position" in name:
                p.zero_()
    x = draw(*shape, seed=4)
    found, wanted = difference(prior_of("omenn", x), model, x, torch.zeros(len(x)).long())
    assert found == pytest.approx(float(wanted), rel=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("method", METHODS)
def test_derivative(name: str, method: str) -> None:
    if name == "token ids" and method != "omenn":
        return  # refused, see below
    model, x, y = network(name)
    got, wanted = difference(prior_of(method, x), model, x, y)
    assert abs(wanted) > 1e-3
    assert got == pytest.approx(wanted, rel=1e-5, abs=1e-6)


class Embedded(nn.Module):
    """Token vectors made by the caller from ids: ``vectors`` is not part of the model that runs."""

    def __init__(self) -> None:
        super().__init__()
        self.vectors, self.net = nn.Embedding(7, 6), Tokens()


@pytest.mark.parametrize("method", METHODS)
def test_derivative_by_what_x_is_made_of(method: str) -> None:
    model, ids, y = settled(Embedded()), NETWORKS["token ids"][1], torch.tensor([2, 0])
    prior = prior_of(method, draw(2, 4, 6))
    state = prior.state_dict()

    def term(table: Tensor) -> Tensor:
        prior.load_state_dict(state)
        return prior(model.net, F.embedding(ids, table), y)

    table, way, step = model.vectors.weight, draw(7, 6, seed=3), 1e-6
    (found,) = torch.autograd.grad(term(table), table)
    ends = [float(term(table + sign * step * way).detach()) for sign in (1, -1)]
    assert float((found * way).sum()) == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-6)
    assert found[5].any()


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("method", ["xgradient", "omenn"])
def test_derivative_with_every_prior(prior: str, method: str) -> None:
    model, x, y = network("mlp with gelu")
    sign = torch.tensor([1, -1, 0, 1, -1])
    context = {"mask": x > 0, "other": draw(4, 5, seed=8), "sign": sign}
    function = lambda a: PRIORS[prior](a, **context)  # noqa: E731
    got, wanted = difference(prior_of(method, x, function), model, x, y)
    assert abs(wanted) > 1e-4
    assert got == pytest.approx(wanted, rel=1e-4, abs=1e-7)


def test_derivative_through_other_attributions() -> None:
    """Consistency of an input and its mirror image pulls at both."""
    model, x, y = network("convnet with biases")
    prior = AttributionPrior("consistency", 1.0, "omenn")
    there = prior.attributions(model, x.flip(-1), y).flip(-1)
    both = torch.autograd.grad(prior(model, x, y, other=there), model.layers[0].weight)[0]
    one = torch.autograd.grad(prior(model, x, y, other=there.detach()), model.layers[0].weight)[0]
    assert not torch.allclose(both, one)


@pytest.mark.parametrize(
    "options", [{"stride": 2}, {"dilation": 2}, {"groups": 2}, {"bias": False}]
)
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_derivative_of_every_convolution(dims: int, options: dict[str, Any]) -> None:
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    layers = [kind(2, 4, 3, padding=1, **options), nn.ReLU(), kind(4, 2, 3), nn.Flatten(2)]
    model = settled(nn.Sequential(*layers, nn.Softplus(), nn.AdaptiveAvgPool1d(1), nn.Flatten()))
    x = draw(2, 2, *[9] * dims)
    got, wanted = difference(prior_of("xgradient", x), model, x, torch.tensor([0, 1]))
    assert got == pytest.approx(wanted, rel=1e-5, abs=1e-8)


class Spelled(nn.Module):
    """ReLU in every spelling, in place where the memory is shared, and an input that is changed."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.act = nn.Linear(5, 6), nn.Conv1d(1, 2, 3), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x.mul_(1.5)
        h = self.a(x)
        self.act(h)  # what it returns is not used
        part = h[:, 1:] * 0.7 - h[:, :1]
        torch.relu_(part[:, 2:])
        h = F.conv1d(
            input=part.unsqueeze(1), weight=self.b.weight, bias=self.b.bias, padding="same"
        )
        h = F.relu(h, inplace=True) + torch.relu(h - 0.1) + (h + 0.2).relu_() + h.neg().relu()
        return self.b(h[:, :1]).flatten(1)


def test_every_spelling_of_relu() -> None:
    model, x, y = settled(Spelled()), draw(4, 5), torch.tensor([2, 0, 1, 2])
    leaf = x.clone().requires_grad_()
    f = model(leaf.clone()).gather(1, y[:, None]).sum()
    (grad,) = torch.autograd.grad(f, leaf, create_graph=True)
    parameters = list(model.parameters())
    wanted = torch.autograd.grad(0.7 * curved(grad), parameters, allow_unused=True)
    got = torch.autograd.grad(prior_of("gradient", x)(model, x, y), parameters, allow_unused=True)
    assert torch.equal(x, draw(4, 5))
    for g, w in zip(got, wanted, strict=True):
        assert (g is None or not g.any()) == (w is None or not w.any())
        if g is not None and w is not None:
            torch.testing.assert_close(g, w, rtol=1e-10, atol=1e-12)
    assert sum(bool(g is not None and g.any()) for g in got) == 2  # both weights


def test_gradients_by_all_that_is_learnt_are_those_of_plain_autograd() -> None:
    """Every parameter's, not one direction: against the model run as it is."""
    for name in ("resnet with batch norm", "batch norm with gelu", "convnet with biases", "mlp"):
        model, x, y = network(name)
        parameters = list(model.parameters())
        term = prior_of("xgradient", x)(model, x, y)
        got = torch.autograd.grad(term, parameters, allow_unused=True)
        model.eval()
        leaf = x.clone().requires_grad_()
        f = model(leaf).gather(1, y[:, None]).sum()
        (grad,) = torch.autograd.grad(f, leaf, create_graph=True)
        wanted = torch.autograd.grad(0.7 * curved(grad * x), parameters, allow_unused=True)
        for g, w in zip(got, wanted, strict=True):
            assert (g is None or not g.any()) == (w is None or not w.any())
            if g is not None and w is not None:
                torch.testing.assert_close(g, w, rtol=1e-10, atol=1e-12)


def test_training_with_a_prior_changes_the_attributions() -> None:
    model, x, y = network("mlp with gelu")
    prior = AttributionPrior("right-reasons", 1.0, "omenn")
    mask = torch.tensor([[1, 1, 0, 0, 0]])
    optimiser = torch.optim.Adam(model.parameters(), lr=0.02)
    before = float(prior(model, x, y, mask=mask).detach())
    for _ in range(15):
        optimiser.zero_grad()
        prior(model, x, y, mask=mask).backward()
        optimiser.step()
    assert float(prior(model, x, y, mask=mask).detach()) < 0.3 * before


# --- the value


def one_by_one(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """∂f_y/∂x of each sample alone."""
    found = []
    for row, c in zip(x, y, strict=True):
        leaf = row[None].clone().requires_grad_()
        found.append(torch.autograd.grad(model(leaf)[0, c], leaf)[0])
    return torch.cat(found)


@pytest.mark.parametrize("name", ["mlp with gelu", "vit with gelu", "token vectors"])
def test_values_of_gradients(name: str) -> None:
    model, x, y = network(name)
    plain = copy.deepcopy(model).eval()
    grad = one_by_one(plain, x, y)
    torch.testing.assert_close(prior_of("gradient", x).attributions(model, x, y), grad)
    torch.testing.assert_close(prior_of("xgradient", x).attributions(model, x, y), x * grad)
    points = [one_by_one(plain, 0.1 + (k + 0.5) / 3 * (x - 0.1), y) for k in range(3)]
    wanted = (x - 0.1) * sum(points) / 3
    for chunk in (1, 4, 1000):
        prior = prior_of("integrated-gradients", x, chunk=chunk)
        torch.testing.assert_close(prior.attributions(model, x, y), wanted)


def test_integrated_gradients_sum_to_the_difference() -> None:
    model, x, y = network("mlp with gelu")
    plain = copy.deepcopy(model).eval()
    prior = prior_of("integrated-gradients", x, steps=500, baseline=x[0])
    found = prior.attributions(model, x, y).sum(1)
    wanted = (plain(x) - plain(x[:1])).gather(1, y[:, None])[:, 0]
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


class Squares(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x**2).sum(1, keepdim=True)


def test_expected_gradients_of_squares() -> None:
    """(x − r) · 2 (r + α (x − r)) is x² − r² on average over α, and needs its own r and α."""
    x, r = draw(300, 3), draw(1, 3, seed=2)
    prior = prior_of("expected-gradients", x, steps=200, references=r)
    found = prior.attributions(Squares(), x)
    torch.testing.assert_close(found.mean(0), (x**2 - r**2).mean(0), rtol=0.05, atol=0.05)
    once = prior_of("expected-gradients", x, steps=1, references=r).attributions(Squares(), x)
    alpha = (once / (x - r) / 2 - r) / (x - r)
    torch.testing.assert_close(alpha, alpha[:, :1].expand(300, 3), rtol=1e-6, atol=1e-6)
    assert alpha.min() >= 0
    assert alpha.max() <= 1
    assert 0.25 < alpha.std() < 0.33
    assert len(alpha[:, 0].unique()) == 300


def test_expected_gradients_use_all_references() -> None:
    """Of a linear function they are (x − mean of those drawn) w, whatever α."""
    model = nn.Linear(2, 1).double()
    x, rows = torch.zeros(400, 2).double(), torch.tensor([[1.0, 0], [0, 1], [-3, -3]]).double()
    prior = prior_of("expected-gradients", x, references=rows, steps=1)
    drawn_rows = -prior.attributions(model, x) / model.weight
    found = {tuple(round(v) for v in row) for row in drawn_rows.tolist()}
    assert found == {(1, 0), (0, 1), (-3, -3)}


@pytest.mark.parametrize("name", NETWORKS)
def test_values_of_omenn(name: str) -> None:
    model, x, y = network(name)
    plain = copy.deepcopy(model).eval()
    found = AttributionPrior("sparsity", 1, "omenn").attributions(model, x, y)
    e = omenn.explain(plain, x, y)
    assert found.shape == e.contribution.shape
    f = plain(x).gather(1, y[:, None])[:, 0]
    torch.testing.assert_close(found.flatten(1).sum(1), f)
    if x.ndim == 4:
        torch.testing.assert_close(found.sum(1), e.matrix)
        torch.testing.assert_close(
            found[:, 0] - found[:, 1], e.contribution[:, 0] - e.contribution[:, 1]
        )
    alone = AttributionPrior("sparsity", 1, "omenn", bias="separate").attributions(model, x, y)
    torch.testing.assert_close(alone, e.contribution)


def test_the_term_is_the_weighted_prior() -> None:
    model, x, y = network("mlp")
    prior = AttributionPrior(sparsity, 3.0, "omenn")
    torch.testing.assert_close(prior(model, x, y), 3 * sparsity(prior.attributions(model, x, y)))
    assert repr(prior) == "AttributionPrior('sparsity', 3, 'omenn')"
    half = AttributionPrior("smoothness", 0.25, fraction=0.5)
    assert repr(half) == "AttributionPrior('smoothness', 0.25, 'xgradient', fraction=0.5)"


def test_a_weight_of_zero_costs_nothing() -> None:
    def model(x: Tensor) -> Tensor:
        raise AssertionError("not to be called")

    assert AttributionPrior("sparsity", 0)(model, draw(2, 3)) == 0


@pytest.mark.parametrize("method", METHODS)
def test_without_y_it_is_the_largest_output_or_the_only_one(method: str) -> None:
    model, x, _ = network("mlp with gelu")
    largest = copy.deepcopy(model).eval()(x).argmax(1)
    seen = []
    prior = prior_of(method, x, lambda a, target: seen.append((a, target)) or a.sum())
    state = prior.state_dict()
    prior(model, x)
    prior.load_state_dict(state)
    prior(model, x, largest)
    for (a, target), (b, wanted) in [seen]:
        torch.testing.assert_close(a, b)
        assert torch.equal(target, wanted)
        assert torch.equal(target, largest)
    single = nn.Sequential(model, nn.Linear(3, 1).double())
    flat = nn.Sequential(single, nn.Flatten(0))
    found = []
    for net in (single, flat):
        prior.load_state_dict(state)
        found.append(prior.attributions(net, x))
    torch.testing.assert_close(*found)


def test_arguments_beside_x_and_structured_outputs() -> None:
    class Named(nn.Module):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net

        def forward(self, keep: Tensor, values: Tensor) -> dict[str, Tensor]:
            return {"loss": values.sum(), "scores": self.net(values * keep)}

    model, x, y = network("mlp with gelu")
    keep = torch.tensor([[0, 1, 1, 1, 1], [1, 0, 1, 1, 1], [1, 1, 0, 1, 1], [1, 1, 1, 0, 1]])
    for method in METHODS:
        more = {"bias": "separate"} if method == "omenn" else {}
        more = {"baseline": 0.0} if method == "integrated-gradients" else more
        more = {REFERENCES: torch.zeros_like(x)} if method == "expected-gradients" else more
        kept = lambda a, seen: seen.append(a) or a.sum()  # noqa: E731
        prior = prior_of(method, x, kept, output="scores", fraction=0.75, **more)
        found = prior.attributions(Named(model), {"values": x, "keep": keep}, y)
        assert torch.equal(found == 0, keep == 0), method
        seen: list[Tensor] = []
        prior(Named(model), {"values": x, "keep": keep}, y, seen=seen)
        assert len(seen[0]) == 3
        assert bool((seen[0] == 0).sum(1).eq(1).all()), method  # each row with its own gap


# --- what it leaves alone


def flags(model: nn.Module) -> list[bool]:
    return [m.training for m in model.modules()]


@pytest.mark.parametrize("method", METHODS)
def test_the_model_and_the_surroundings_are_as_before(method: str) -> None:
    model, x, y = network("resnet with batch norm")
    model.stages[0].eval()  # a part that the user keeps frozen
    model.stem[0].weight.requires_grad_(False)
    before = flags(model), copy.deepcopy(model.state_dict()), torch.random.get_rng_state()
    prior_of(method, x)(model, x, y)
    kernels = [torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.math_sdp_enabled()]
    assert flags(model) == before[0]
    assert True in before[0]
    assert False in before[0]
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[1][name]), name
    assert torch.equal(torch.random.get_rng_state(), before[2])
    assert all(p.grad is None for p in model.parameters())
    assert not model.stem[0].weight.requires_grad
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert torch.is_grad_enabled()
    assert kernels == [True, True]
    assert not x.requires_grad


@pytest.mark.parametrize("method", METHODS)
def test_flags_after_an_exception(method: str) -> None:
    class Failing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise ArithmeticError("on purpose")

    model = nn.Sequential(mlp(nn.ReLU()).double(), Failing())
    model[0].eval()
    model.training = True
    before, numbers = flags(model), torch.random.get_rng_state()
    with pytest.raises(Exception, match="on purpose"):
        prior_of(method, draw(2, 5))(model, draw(2, 5))
    assert flags(model) == before
    assert torch.equal(torch.random.get_rng_state(), numbers)


@pytest.mark.parametrize("method", METHODS)
def test_under_no_grad_it_is_a_number(method: str) -> None:
    model, x, y = network("mlp with gelu")
    prior = prior_of(method, x)
    state = prior.state_dict()
    wanted = prior(model, x, y)
    assert wanted.requires_grad
    for surrounding in (torch.no_grad, torch.inference_mode):
        with surrounding():
            prior.load_state_dict(state)
            found = prior(model, x.clone(), y.clone())
        assert not found.requires_grad
        assert float(found) == pytest.approx(float(wanted.detach()), rel=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_autocast_outside_makes_no_difference(method: str) -> None:
    model, x, y = network("convnet with biases")
    model, x = model.float(), x.float()
    prior = prior_of(method, x)
    state = prior.state_dict()
    wanted = prior(model, x, y)
    with torch.autocast("cpu", torch.bfloat16):
        prior.load_state_dict(state)
        found = prior(model, x, y)
        assert torch.is_autocast_enabled("cpu")
        prior.load_state_dict(state)
        half = prior(model, x.bfloat16(), y)
    assert found.dtype == torch.float32
    assert torch.equal(found, wanted)
    torch.testing.assert_close(half, wanted, rtol=0.1, atol=0.01)


def test_autocast_outside_does_not_reach_the_prior() -> None:
    model, x, y = network("mlp with gelu")
    model, x = model.float(), x.float()
    prior = AttributionPrior(lambda a: (a @ a.T).square().mean(), 1.0)
    wanted = prior(model, x, y)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(prior(model, x, y), wanted)


def test_half_precision_reaches_the_prior_in_float32() -> None:
    model, x, y = network("mlp with gelu")
    seen: list[Tensor] = []
    prior = AttributionPrior(lambda a: seen.append(a) or a.sum(), 1.0)
    prior(model.bfloat16(), x.bfloat16(), y).backward()
    assert seen[0].dtype == torch.float32
    assert model[0].weight.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("method", METHODS)
def test_the_term_may_come_before_the_loss(method: str) -> None:
    """A forward pass in training changes running statistics in place, unseen by autograd."""
    model, x, y = network("batch norm with gelu")
    prior = prior_of(method, x)
    state = prior.state_dict()
    parameters, buffers = list(model.parameters()), dict(model.named_buffers())
    wanted = torch.autograd.grad(prior(model, x, y), parameters, allow_unused=True)
    prior.load_state_dict(state)
    term, before = prior(model, x, y), model[1].running_mean.clone()
    model(x)
    assert not torch.equal(model[1].running_mean, before)
    got = torch.autograd.grad(term, parameters, allow_unused=True)
    for g, w in zip(got, wanted, strict=True):
        assert (g is None) == (w is None)
        if g is not None:
            assert torch.equal(g, w)
    assert all(buffers[name] is t for name, t in model.named_buffers())


def test_random_numbers_that_a_model_draws_are_put_back() -> None:
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.dropout(x, 0.5, training=True) * torch.rand(1) * 2

    before = torch.random.get_rng_state()
    AttributionPrior("sparsity", 1)(Noisy(), torch.ones(4, 3))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_frozen_model_has_a_term_without_derivative() -> None:
    model, x, y = network("mlp with gelu")
    model.requires_grad_(False)
    for method in METHODS:
        assert torch.isfinite(prior_of(method, x)(model, x, y))
    model[0].requires_grad_(True)
    for method in METHODS:
        prior_of(method, x)(model, x, y).backward()
    assert model[0].weight.grad is not None
    assert model[3].weight.grad is None


# --- a part of the batch


def test_fraction_takes_the_same_rows_of_all() -> None:
    x = draw(9, 4)
    y, mask, names = torch.arange(9) % 3, x > 0, torch.arange(9)
    seen: list[tuple] = []

    def prior(attributions: Tensor, mask: Tensor, names: Tensor, target: Tensor, sign: Tensor):
        seen.append((attributions, mask, names, target, sign))
        return attributions.sum()

    model = settled(nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 3)))
    term = AttributionPrior(prior, 1.0, fraction=1 / 3)
    full = term.attributions(model, x, y)
    for _ in range(3):
        term(model, x, y, mask=mask, names=names, sign=torch.ones(4))
    rows = [s[2] for s in seen]
    for attributions, some, chosen, target, sign in seen:
        assert len(chosen.unique()) == 3
        torch.testing.assert_close(attributions, full[chosen])
        assert torch.equal(some, mask[chosen])
        assert torch.equal(target, y[chosen])
        assert sign.shape == (4,)
    assert not torch.equal(rows[0], rows[1])
    assert not torch.equal(rows[1], rows[2])


@pytest.mark.parametrize(
    ("fraction", "count"), [(0.07, 7), (0.071, 8), (0.5, 50), (1e-9, 1), (1, 100)]
)
def test_fraction_is_rounded_up(fraction: float, count: int) -> None:
    seen: list[int] = []
    prior = AttributionPrior(lambda a: seen.append(len(a)) or a.sum(), 1.0, fraction=fraction)
    prior(nn.Linear(2, 2), torch.ones(100, 2))
    assert seen == [count]


@pytest.mark.parametrize("method", ["xgradient", "expected-gradients"])
def test_a_resumed_training_draws_the_same(method: str) -> None:
    model, x, y = network("mlp with gelu")
    whole = prior_of(method, x, fraction=0.5, seed=4)
    wanted = [float(whole(model, x, y).detach()) for _ in range(6)]
    assert len(set(wanted)) > 1
    first = prior_of(method, x, fraction=0.5, seed=4)
    got = [float(first(model, x, y).detach()) for _ in range(3)]
    second = prior_of(method, x, fraction=0.5, seed=0)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    got += [float(second(model, x, y).detach()) for _ in range(3)]
    assert got == wanted
    other = prior_of(method, x, fraction=0.5, seed=5)
    assert [float(other(model, x, y).detach()) for _ in range(6)] != wanted


@pytest.mark.parametrize("state", [{}, {"generator": 3}, {"generator": torch.ones(3)}, 7])
def test_another_state_is_refused(state: Any) -> None:
    with pytest.raises(InputError, match="not the state of an attribution prior"):
        AttributionPrior("sparsity", 1).load_state_dict(state)


@pytest.mark.parametrize(
    ("prior", "name"),
    [("right-reasons", "mask"), ("consistency", "other"), ("expected-sign", "sign")],
)
@pytest.mark.parametrize("rows", [2, 3, 6])
def test_rows_of_another_batch_are_refused(prior: str, name: str, rows: int) -> None:
    """Also as many rows as samples are taken, which would be paired with any of them."""
    model, x = nn.Linear(4, 2), torch.ones(5, 4)
    term = AttributionPrior(prior, 1.0, fraction=0.4)
    message = rf"{name} \({rows}, 4\) has {rows} rows for a batch of 5 samples\. Give one for each"
    with pytest.raises(InputError, match=message):
        term(model, x, **{name: torch.ones(rows, 4)})
    assert term(model, x, **{name: torch.ones(5, 4)}) >= 0


def test_a_prior_of_ones_own_may_have_tensors_of_any_shape() -> None:
    prior = AttributionPrior(lambda a, between: (a @ between).sum(), 1.0, fraction=0.4)
    assert prior(nn.Linear(4, 2), torch.ones(5, 4), between=torch.ones(4, 2)).isfinite()


def test_a_context_that_may_be_either() -> None:
    model, x = nn.Linear(4, 2), torch.ones(4, 4)
    prior = AttributionPrior("expected-sign", 1, fraction=0.5)
    with pytest.raises(InputError, match=r"sign \(4,\) may be one sample or a row for each of 4"):
        prior(model, x, sign=torch.ones(4))
    assert prior(model, x, sign=torch.ones(1, 4)) >= 0


# --- errors


# Arguments and options, the argument at fault, how it is quoted, and a word of the message.
BAD = [
    (("sparsety", 1), {}, "prior", "sparsety", "did you mean 'sparsity'"),
    (("sparsity", 1, "x-gradient"), {}, "method", "'x-gradient'", "did you mean 'xgradient'"),
    (("sparsity", torch.nan), {}, "weight", "nan", "at least 0"),
    (("sparsity", True), {}, "weight", "True", "at least 0"),
    (("sparsity", "much"), {}, "weight", "'much'", "at least 0"),
    (("sparsity", -1), {}, "weight", "-1", "at least 0"),
    (("sparsity", 1), {"fraction": 0}, "fraction", "0", "above 0"),
    (("sparsity", 1), {"fraction": 1.5}, "fraction", "1.5", "from 0 to 1"),
    (("sparsity", 1), {"seed": 0.5}, "seed", "0.5", "an integer"),
    (("sparsity", 1), {"seed": 2**64}, "seed", str(2**64), "an integer"),
    (("sparsity", 1), {"step": 4}, "step", "", "did you mean 'steps'"),
    (("sparsity", 1), {"steps": 4}, "steps", "", "it has none"),
    (("sparsity", 1, "omenn"), {"at": "1"}, "at", "", "known are bias"),
    (("sparsity", 1, "omenn"), {"bias": "here"}, "bias", "'here'", "Choose one of"),
    (("sparsity", 1, "omenn"), {"products": 2}, "products", "2", "Choose one of"),
    (("sparsity", 1, "omenn"), {"steps": 2}, "steps", "", "its options are bias, products"),
    (("sparsity", 1, "integrated-gradients"), {"steps": 0}, "steps", "0", "at least 1"),
    (("sparsity", 1, "integrated-gradients"), {"chunk": 0.5}, "chunk", "0.5", "an integer"),
    (("sparsity", 1, "expected-gradients"), {}, REFERENCES, "None", "training rows"),
    (("sparsity", 1, "expected-gradients"), {REFERENCES: [1]}, REFERENCES, "[1]", "a tensor"),
    (
        ("sparsity", 1, "expected-gradients"),
        {REFERENCES: torch.ones(0, 3)},
        REFERENCES,
        "tensor([], size=(0, 3))",
        "a tensor",
    ),
    (
        ("sparsity", 1, "expected-gradients"),
        {REFERENCES: torch.ones(1, 3) / 0},
        REFERENCES,
        "",
        "infinite",
    ),
]


@pytest.mark.parametrize(("arguments", "options", "argument", "got", "word"), BAD)
def test_what_cannot_be_a_prior(
    arguments: tuple, options: dict[str, Any], argument: str, got: str, word: str
) -> None:
    with pytest.raises(InputError) as caught:
        AttributionPrior(*arguments, **options)
    assert (caught.value.argument, caught.value.got) == (argument, got)
    assert word in str(caught.value)


NET = nn.Linear(3, 2)
X = torch.ones(4, 3)


@pytest.mark.parametrize("method", ["xgradient", "integrated-gradients", "omenn"])
def test_an_index_out_of_range(method: str) -> None:
    with pytest.raises(TargetError, match="target 2 is out of range: the model has 2 outputs"):
        prior_of(method, X)(NET, X, torch.tensor([0, 1, 2, 0]))


@pytest.mark.parametrize(
    ("y", "got", "expected"),
    [
        (torch.tensor([0, 1, -100, 0]), "-100", "at least 0"),
        (torch.tensor([0, 1, 0]), "(3,)", "(4,)"),
        (torch.zeros(4, 1).long(), "(4, 1)", "(4,)"),
        (torch.zeros(4), "tensor([0., 0., 0., 0.])", "the index of an output for each sample"),
        ([0, 1, 0, 1], "[0, 1, 0, 1]", "the index of an output for each sample"),
    ],
)
def test_y_that_names_no_output(y: Any, got: str, expected: str) -> None:
    with pytest.raises(TargetError) as caught:
        prior_of("xgradient", X)(NET, X, y)
    error = caught.value
    assert (error.argument, error.got, error.expected) == ("y", got, expected)


@pytest.mark.parametrize("method", ["xgradient", "integrated-gradients", "omenn"])
def test_labels_for_a_single_output(method: str) -> None:
    labels = torch.tensor([0, 1, 0, 1])
    with pytest.raises(TargetError, match=r"y is 1, .* the model has one\.") as caught:
        prior_of(method, X)(nn.Linear(3, 1), X, labels)
    assert (caught.value.argument, caught.value.expected) == ("y", "0")


@pytest.mark.parametrize(
    ("model", "x", "kind", "argument", "got"),
    [
        ("net", X, ModelError, "model", "'net'"),
        (NET, [1.0], InputError, "x", "[1.0]"),
        (NET, torch.ones(3), InputError, "x", "(3,)"),
        (NET, torch.ones(0, 3), InputError, "x", "(0, 3)"),
        (NET, {"a": X, "b": X}, InputError, "x", "2 tensors"),
        (NET, X.long(), InputError, "x", "int64"),
        (NET, X / 0, InputError, "x", ""),
        (lambda x: NET.weight[:1].expand(4, 3), X, TargetError, "y", ""),
    ],
)
def test_what_has_no_attributions(
    model: Any, x: Any, kind: type[OmennError], argument: str, got: str
) -> None:
    with pytest.raises(kind) as caught:
        AttributionPrior("sparsity", 1)(model, x)
    assert (caught.value.argument, caught.value.got) == (argument, got)


def test_shapes_beside_the_input() -> None:
    with pytest.raises(InputError) as caught:
        AttributionPrior("right-reasons", 1)(NET, X, 0, mask=torch.ones(4, 2))
    assert (caught.value.argument, caught.value.got) == ("mask", "(4, 2)")
    with pytest.raises(InputError) as caught:
        prior_of("expected-gradients", X, references=torch.ones(5, 2))(NET, X, 0)
    assert (caught.value.argument, caught.value.expected) == ("references", "(N, 3)")
    with pytest.raises(InputError) as caught:
        prior_of("integrated-gradients", X, baseline=torch.ones(2))(NET, X, 0)
    assert (caught.value.argument, caught.value.got) == ("baseline", "tensor([1., 1.])")


def with_name(attributions: Tensor, mask: Tensor | None = None) -> Any:
    return attributions.mean()


@pytest.mark.parametrize(
    ("prior", "text"),
    [
        (lambda a: a.mean(0), r"returned a tensor \(3,\) of float32; it must return one real num"),
        (lambda a: float(a.detach().mean()), "returned float; it must return one real number"),
        (lambda a: a.argmax(), r"returned a tensor \(\) of int64"),
        (lambda a: a.detach().mean(), "has no derivative: its value does not depend on the attr"),
        (lambda a: (a * torch.inf).mean(), "is inf at finite attributions, times the weight 1"),
    ],
)
def test_a_prior_that_is_none(prior: Any, text: str) -> None:
    with pytest.raises(InputError, match=text):
        AttributionPrior(prior, 1)(NET, X.abs() * NET.weight[0].sign().detach(), 0)


def test_a_weight_that_leads_out_of_the_numbers() -> None:
    message = r"times the weight 1e\+300, which is too large: the loss would not be finite"
    with pytest.raises(InputError, match=message):
        AttributionPrior(lambda a: a.square().mean() + 1, 1e300)(NET, X, 0)


def test_a_context_that_the_prior_does_not_take() -> None:
    with pytest.raises(InputError, match="'with_name' does not take msk=: did you mean 'mask'"):
        AttributionPrior(with_name, 1)(NET, X, 0, msk=X)
    assert AttributionPrior(with_name, 1)(NET, X, 0, mask=X).requires_grad


def test_a_module_as_a_prior() -> None:
    class Learnt(nn.Module):
        def forward(self, attributions: Tensor) -> Tensor:
            return attributions.square().mean()

    assert AttributionPrior(Learnt(), 1)(NET, X, 0).requires_grad


def test_what_omenn_refuses_is_told_as_it_is() -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.linalg.inv(x[:, None] * x[:, :, None] + torch.eye(3))[:, 0]

    with pytest.raises(UnsupportedOperator, match="inv"):
        AttributionPrior("sparsity", 1, "omenn")(Odd(), X)


def test_a_model_without_a_gradient() -> None:
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x * 2

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Tensor:
            raise RuntimeError("one way only")

    with pytest.raises(ModelError, match="has no gradient by its input: one way only"):
        AttributionPrior("sparsity", 1)(lambda x: Once.apply(x), X)
