"""Homogeneity: what the operators prove, against the definition; and what they cannot prove."""

from __future__ import annotations

import dataclasses
import math
import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import omenn
import opdb
from omenn.engine.operators.degree_step import ANY
from omenn.engine.operators.table import OPERATORS
from omenn.xdnn.homogeneity import Homogeneity, check
from opcases.case import draw

X = draw(3, 4)
W = draw(4, 4, seed=5)
ONES = torch.ones(4, dtype=torch.float64)


def degree(function: Callable[..., Tensor], *inputs: Tensor) -> float | None:
    return check(function, inputs or (X,), factors=(2,)).degree


def holds(function: Callable[..., Tensor], k: float, *inputs: Tensor, rtol: float = 1e-9) -> bool:
    """F(αx) = αᵏ F(x), by its definition; powers of two, by which nothing is rounded."""
    with torch.no_grad():
        one = function(*[x.clone() for x in inputs]).double()
        for alpha in (0.0625, 2.0, 16.0):
            here = function(*[alpha * x for x in inputs]).double()
            expected = one if k == ANY else alpha**k * one
            if not torch.allclose(here, expected, rtol=rtol, atol=1e-300, equal_nan=True):
                return False
    return True


# --- the table -----------------------------------------------------------------------------------


def relu_attention(x: Tensor) -> Tensor:
    scores = F.relu(x @ W @ x.T).masked_fill(torch.ones(3, 3).triu(1).bool(), 0.0)
    return F.normalize(scores, p=1, dim=-1, eps=torch.finfo(x.dtype).tiny) @ x


def masked_attention(x: Tensor) -> Tensor:
    mask = torch.zeros(3, 3, dtype=x.dtype).masked_fill(torch.ones(3, 3).triu(1).bool(), -1e9)
    scores = F.relu(x @ x.T + mask)
    return scores / scores.sum(-1, keepdim=True) @ x


def written(x: Tensor) -> Tensor:
    out = torch.empty_like(x)
    out[:, :2] = x[:, 2:]
    out[:, 2:].copy_(x[:, :2].relu())
    return out


PROVEN: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
    "linear": (lambda x: F.linear(x, W), 1),
    "a bias of zero": (lambda x: F.linear(x, W, torch.zeros(4, dtype=x.dtype)), 1),
    "a sum": (lambda x: F.relu(x @ W) + x, 1),
    "a product": (lambda x: x * (x @ W), 2),
    "a product with itself": (lambda x: torch.matmul(x, x.T), 2),
    "three factors": (lambda x: torch.einsum("ab,cb,cd->ad", x, x, x), 3),
    "a quotient": (lambda x: x / x.norm(dim=1, keepdim=True), 0),
    "one over": (lambda x: 1 / x, -1),
    "a root": (lambda x: x.abs().sqrt(), 0.5),
    "a power": (lambda x: x.abs() ** 1.5, 1.5),
    "a power of zero": (lambda x: x**0, 0),
    "a root of a square": (lambda x: (x**2).sum(1).sqrt(), 1),
    "an inverse root": (lambda x: x * torch.rsqrt(x.square().mean(1, keepdim=True)), 0),
    "variance": (lambda x: x.var(1), 2),
    "deviation": (lambda x: x.std(1), 1),
    "variance and mean": (lambda x: torch.var_mean(x, 1)[0] / torch.var_mean(x, 1)[1], 1),
    "a product over a dimension": (lambda x: x.prod(1), 4),
    "norms": (lambda x: torch.linalg.norm(x, 1) + x.norm(math.inf) + x.norm("fro"), 1),
    "how many are not zero": (lambda x: torch.linalg.vector_norm(x, 0, 1), 0),
    "how many differ": (lambda x: torch.cdist(x, x @ W, p=0) + torch.dist(x, x @ W, 0), 0),
    "distances": (lambda x: torch.cdist(x, x @ W, p=1) + torch.dist(x, x @ W), 1),
    "any function of degree 0": (lambda x: torch.sigmoid(torch.tan(x / x.abs().amax() + 1)), 0),
    "a gate of degree 0": (lambda x: x * torch.sigmoid(F.normalize(x, eps=0.0)), 1),
    "attention without softmax": (relu_attention, 1),
    "attention with a mask that is added": (masked_attention, 1),
    "softmax attention of degree 0": (
        lambda x: F.scaled_dot_product_attention(x.sign(), x.sign(), x), 1),
    "a layer norm without ε": (lambda x: F.layer_norm(x, (4,), eps=0.0) * x, 1),
    "clipped at zero": (lambda x: x.clamp(min=0) + x.clamp(max=0) + F.threshold(x, 0, 0), 1),
    "maxima": (lambda x: torch.maximum(x, x @ W) + x.amax() + x.max(1).values[:, None], 1),
    "the larger of two": (lambda x: torch.max(x, torch.zeros_like(x)), 1),
    "sorted": (lambda x: x.sort(1).values + x.gather(1, x.argsort(1)) + x.topk(4).values, 1),
    "where": (lambda x: torch.where(x > 0, x, 0.1 * x), 1),
    "where of a comparison": (lambda x: torch.where(x > x @ W, x, 0.0), 1),
    "a mask as a factor": (lambda x: x * (x > x.mean()) + x * x.sign().relu(), 1),
    "a mask": (lambda x: x[x > 0].sum().reshape(1), 1),
    "filled with zero": (lambda x: x.masked_fill(x < 0, 0.0), 1),
    "filled with −∞": (lambda x: x.masked_fill(x < 0, -math.inf).relu(), 1),
    "concatenated": (lambda x: torch.cat([x, F.relu(x), torch.zeros_like(x)]), 1),
    "padded": (lambda x: F.pad(x, (1, 1)), 1),
    "written into what is new": (written, 1),
    "in place": (lambda x: (x @ W).relu_().mul_(2).add_(x), 1),
    "overwritten": (lambda x: (x * 2).sigmoid_().copy_(x), 1),
    "a branch": (lambda x: x @ W if x.sum() > 0 and (x == 0).any().item() else x, 1),
    "interpolated": (lambda x: F.interpolate(x[None], scale_factor=2, mode="linear")[0], 1),
    "linear interpolation": (lambda x: torch.lerp(x, x @ W, 0.3), 1),
    "quantiles": (lambda x: x.quantile(0.4, dim=1) + x.median(), 1),
    "views": (lambda x: torch.stack(torch.broadcast_tensors(x, x[:1])).detach().real, 1),
    "a batch norm without shift": (lambda x: F.batch_norm(x, 0 * ONES, ONES), 1),
    "a batch norm whose shift cancels": (
        lambda x: F.batch_norm(x, ONES, 0 * ONES, 2 * ONES, 4 * ONES, eps=0.25), 1),
    "nothing": (lambda x: x.new_zeros(3, 2) * x.sum(), 1),
    "zero": (lambda x: (x * 1).zero_(), ANY),
    "a constant": (lambda x: (x + 0 * x).new_ones(3, 1), 0),
    "the identity": (lambda x: x.to(torch.float32).double().contiguous().view_as(x), 1),
}  # fmt: skip


@pytest.mark.parametrize("name", PROVEN)
def test_what_is_homogeneous_is_proven(name: str) -> None:
    function, k = PROVEN[name]
    assert degree(lambda x: function(x.clone())) == k
    assert holds(function, k, X.clone(), rtol=1e-6)


BENT: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "bias": (lambda x: F.linear(x, W, W[0]), "linear in '(model)': its bias is a constant beside"),
    "constant": (lambda x: x + 1, "add in '(model)': a constant beside degree 1"),
    "small constant": (lambda x: 1e-8 + x, "a constant beside degree 1"),
    "in place": (lambda x: (x * 1).add_(0.5), "add in '(model)': a constant beside degree 1"),
    "sum": (lambda x: x + x * x, "add in '(model)': it joins degrees 1 and 2"),
    "joined": (lambda x: torch.cat([x, x.sign()]), "cat in '(model)': it joins degrees 1 and 0"),
    "sigmoid": (torch.sigmoid, "sigmoid in '(model)': it does not scale with its argument, which"),
    "gelu": (F.gelu, "gelu in '(model)': it does not scale with its argument, which is of degree"),
    "softmax": (lambda x: F.softmax(x, 1) @ x.T, "softmax in '(model)': it does not scale"),
    "attention": (lambda x: F.scaled_dot_product_attention(x, x, x), "softmax of degree 2"),
    "layer norm": (lambda x: F.layer_norm(x, (4,)), "degree 0 but for its ε = 1e-05: not exactly"),
    "rms norm": (lambda x: F.rms_norm(x, (4,)), "degree 0 but for its ε = 2.22045e-16"),
    "normalise": (lambda x: F.normalize(x) * x, "degree 0 but for its ε = 1e-12: not exactly"),
    "batch norm": (
        lambda x: F.batch_norm(x, ONES, ONES), "its shift is a constant beside"),
    "statistics of the batch": (
        lambda x: F.batch_norm(x, None, None, training=True), "it uses the statistics of the"),
    "clipped": (lambda x: x.clamp(-1, 1), "clamp in '(model)': a constant beside degree 1"),
    "relu6": (F.relu6, "relu6 in '(model)': a constant beside degree 1"),
    "compared": (lambda x: x * (x > 0.5), "gt in '(model)': a constant beside degree 1"),
    "compared with what scales otherwise": (
        lambda x: x * (x > x * x), "gt in '(model)': it joins degrees 1 and 2"),
    "exponent": (lambda x: torch.pow(x.abs(), x), "pow in '(model)': its exponent is not one"),
    "filled": (lambda x: x.masked_fill(x > 0, 1.0), "masked_fill in '(model)': a constant beside"),
    "where": (lambda x: torch.where(x > 0, x, 1.0), "where in '(model)': a constant beside"),
    "rounded": (lambda x: x.round(), "round in '(model)': it does not scale"),
    "whole numbers": (lambda x: x.long() * x, "long in '(model)': it rounds what is of degree 1"),
    "rounding quotient": (
        lambda x: torch.div(x, 2, rounding_mode="floor"), "div in '(model)': it rounds what is of"),
    "bits": (lambda x: x.view(torch.int64).double(), "view in '(model)': it reads the bits of a"),
    "a part": (
        lambda x: (x * 1)[:, :2].square_(), "square in '(model)': degree 2 in a part of what is"),
    "into ones": (lambda x: torch.ones_like(x).index_copy_(0, torch.tensor([0]), x[:1]),
                  "index_copy in '(model)': a constant beside degree 1"),
    "scattered products": (
        lambda x: x.scatter_reduce(1, x.argsort(1) // 2, x, "prod"), "it multiplies as many"),
    "unknown": (lambda x: torch.linalg.svdvals(x), "svdvals in '(model)': nothing is known of it"),
    "random": (lambda x: F.dropout(x, 0.5), "dropout in '(model)': it is random"),
    "random of degree 0": (lambda x: x * torch.bernoulli((x > 0).double()), "it is random"),
    "a number": (lambda x: x * x.sum().item(), "item in '(model)': nothing is known of it"),
    "numpy": (lambda x: x + torch.from_numpy(x.detach().numpy() + 1), "numpy in '(model)'"),
    "a branch": (lambda x: x if x.sum() > 1 else 2 * x, "gt in '(model)': a constant beside"),
    "a shape": (lambda x: x * x[x > 1].shape[0], "gt in '(model)': a constant beside degree 1"),
    "another shape": (lambda x: x * len(torch.nonzero(x + 1)), "add in '(model)': a constant"),
    "a sum of losses": (lambda x: x.exp().sum().log().reshape(1), "exp in '(model)': it does not"),
    "sparse": (lambda x: torch.sparse.mm(x.to_sparse(), W), "of a kind that cannot be followed"),
}  # fmt: skip


@pytest.mark.parametrize("name", BENT)
def test_what_is_not_is_named(name: str) -> None:
    function, words = BENT[name]
    found = check(lambda x: function(x.clone()), X, factors=(2,))
    assert found.degree is None
    assert not found.homogeneous
    assert found.offender is not None
    assert words in str(found.offender)
    assert found.offender.degree is None


def test_every_operator_of_the_engine_has_a_degree() -> None:
    missing = {name for name, o in OPERATORS.items() if o.degree is None and not o.composite}
    assert missing == set()


def test_every_case_of_the_database_scales_by_the_degree_that_is_proven() -> None:
    kept = set()
    for case in opdb.CASES:
        function = lambda *xs, call=case.call: call(*[x.clone() for x in xs])  # noqa: E731
        found = check(function, case.fresh(), factors=(2,))
        if found.degree is not None:
            rtol = 1e-9 if found.tolerance <= 1e-8 else 1e-4  # it may compute in float32
            assert holds(function, found.degree, *case.inputs, rtol=rtol), case.id
            kept.add(case.operator)
    assert len(kept) > 110  # it is not so careful as to prove nothing


# --- random programs -----------------------------------------------------------------------------


def part(a: Tensor) -> Tensor:
    return a[:, 1:3]


def into_zeros(a: Tensor, b: Tensor) -> Tensor:
    out = torch.zeros_like(a)
    out[0] = a[0]
    part(out).add_(part(b))
    return out


def through_data(a: Tensor, b: Tensor) -> Tensor:
    out = a.clone()
    out.data[1] = b[1]
    return out


UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu, "abs": torch.abs, "negative": torch.neg, "double": lambda a: 2 * a,
    "square": torch.square, "root": lambda a: a.abs().sqrt(), "sign": torch.sign,
    "sigmoid": torch.sigmoid, "softmax": lambda a: a.softmax(1), "one more": lambda a: a + 1,
    "nothing": lambda a: a * 0, "positive": lambda a: (a > 0).double(), "view": lambda a: a[:],
    "large": lambda a: (a > 1).double(), "detached": lambda a: a.detach(), "copy": torch.clone,
    "relu in place": lambda a: a.relu_(), "sigmoid in place": lambda a: a.sigmoid_(),
    "halve a part": lambda a: part(a).mul_(0.5).repeat(1, 2), "zero a part": lambda a:
        part(a).zero_().repeat(1, 2), "square a part": lambda a: part(a).square_().repeat(1, 2),
    "ones in a part": lambda a: part(a).fill_(1.0).repeat(1, 2), "turned": lambda a: a.flip(1),
    "normed": lambda a: a / a.norm(), "scaled": lambda a: a * a.norm(dim=1, keepdim=True),
    "clipped": lambda a: a.clamp(min=0, max=1), "lower": lambda a: a.clamp(max=0),
    "sorted": lambda a: a.sort(1).values, "branch": lambda a: a if a.sum() > 0 else 2 * a,
    "other branch": lambda a: a if (a > 1).any() else 2 * a, "maximum": lambda a: a - a.max(),
    "picked": lambda a: a[:, a.argmax(1)[:1].expand(4)], "mean": lambda a: a - a.mean(1)[:, None],
    "count": lambda a: a * a[a > 1].numel(), "to numpy": lambda a:
        torch.from_numpy(a.detach().numpy().copy()), "one less": lambda a: a.sub_(1),
}  # fmt: skip
BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sum": torch.add, "difference": torch.sub, "product": torch.mul, "quotient": torch.div,
    "mixed": lambda a, b: a @ b.T @ b, "maximum": torch.maximum, "select": lambda a, b:
        torch.where(a > b, a, b), "gate": lambda a, b: torch.where(a > 0, b, 0.5 * b),
    "add in place": lambda a, b: a.add_(b), "multiply in place": lambda a, b: a.mul_(b),
    "write": lambda a, b: a.copy_(b), "write a row": lambda a, b: a.index_copy_(
        0, torch.tensor([1]), b[:1].clone()), "write a part": lambda a, b: part(a).copy_(
        part(b).clone()).repeat(1, 2), "into zeros": into_zeros, "through data": through_data,
    "masked": lambda a, b: a.masked_fill(b > 0, 0.0), "joined": lambda a, b:
        torch.cat([part(a), part(b)], 1), "interpolated": lambda a, b: torch.lerp(a, b, 0.3),
    "weighted": lambda a, b: a.addcmul(b, b, value=0.5), "shift": lambda a, b: F.batch_norm(
        a, torch.zeros(4).double(), torch.ones(4).double(), bias=b[0]),
}  # fmt: skip

Program = list[tuple[str, int, int]]


def run(program: Program, x: Tensor) -> Tensor:
    values = [x.clone()]
    for name, i, j in program:
        a, b = values[i % len(values)], values[j % len(values)]
        values.append(UNARY[name](a) if name in UNARY else BINARY[name[1:]](a, b))
    return values[-1]


instructions = st.tuples(
    st.sampled_from([*UNARY, *(f"2{name}" for name in BINARY)]),
    st.integers(0, 5),
    st.integers(0, 5),
)


@settings(max_examples=300)
@given(st.lists(instructions, min_size=1, max_size=7))
def test_no_program_scales_otherwise_than_is_proven(program: Program) -> None:
    """Also where memory is shared, overwritten in parts, and read back under another name."""

    def function(x: Tensor) -> Tensor:
        return run(program, x)

    try:
        found = check(function, X, factors=(2,))
    except omenn.InputError as error:
        assert "not a number" in str(error)  # noqa: PT017
        return
    if found.degree is None or (abs(found.degree) > 30 and found.degree != ANY):
        return
    assert holds(function, found.degree, X)


# --- networks ------------------------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self, run: Callable[..., Tensor], *parts: nn.Module) -> None:
        super().__init__()
        self.parts, self.run = nn.ModuleList(parts), run

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x, *self.parts)


def conv(bias: bool = False) -> nn.Module:
    return nn.Conv2d(4, 4, 3, padding=1, bias=bias)


def in_place(x: Tensor, a: nn.Module) -> Tensor:
    y = a(x)
    y += x
    return y


def gated(x: Tensor, a: nn.Module) -> Tensor:
    z = a(x)
    return x * torch.sigmoid(z / z.square().mean((1, 2, 3), keepdim=True).sqrt())


BLOCKS: dict[str, tuple[Callable[[], nn.Module], bool]] = {
    "convolution": (conv, True),
    "relu": (lambda: Block(lambda x, a, r: r(a(x)), conv(), nn.ReLU(inplace=True)), True),
    "residual": (lambda: Block(lambda x, a: x + F.leaky_relu(a(x)), conv()), True),
    "residual in place": (lambda: Block(in_place, conv()), True),
    "twice": (lambda: Block(lambda x, a: a(F.relu(a(x))), conv()), True),
    "pooled": (lambda: nn.MaxPool2d(3, 1, 1), True),
    "averaged": (lambda: nn.AvgPool2d(3, 1, 1), True),
    "prelu": (lambda: nn.PReLU(4), True),
    "norm as initialised": (lambda: nn.BatchNorm2d(4), True),
    "gate of degree 0": (lambda: Block(gated, conv()), True),
    "recurrent": (lambda: Block(
        lambda x, m: m(x.flatten(2).mT)[0].mT.unflatten(2, x.shape[2:]),
        nn.RNN(4, 4, nonlinearity="relu", bias=False, batch_first=True)), True),
    "dropout": (lambda: nn.Dropout2d(0.5), True),
    "halves": (lambda: Block(lambda x: torch.cat([F.relu(x[:, :2]), x[:, 2:]], 1)), True),
    "bias": (lambda: conv(bias=True), False),
    "norm": (lambda: nn.Sequential(nn.BatchNorm2d(4)), False),
    "gelu": (lambda: nn.GELU(), False),
    "sigmoid gate": (lambda: Block(lambda x, a: x * torch.sigmoid(a(x)), conv()), False),
    "group norm": (lambda: nn.GroupNorm(2, 4), False),
    "swish in place": (lambda: Block(lambda x, a, s: s(a(x)), conv(), nn.SiLU(True)), False),
    "lstm": (lambda: Block(lambda x, m: m(x.flatten(2).mT)[0].mT.unflatten(2, x.shape[2:]),
                           nn.LSTM(4, 4, batch_first=True)), False),
    "attention": (lambda: Block(
        lambda x, m: m(*[x.flatten(2).mT] * 3)[0].mT.unflatten(2, x.shape[2:]),
        nn.MultiheadAttention(4, 2, batch_first=True)), False),
}  # fmt: skip


def network(names: list[str]) -> nn.Sequential:
    """Blocks between two linear maps; ``norm`` has statistics, as if it had been trained."""
    generator = torch.Generator().manual_seed(3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        net = nn.Sequential(*(BLOCKS[name][0]() for name in names), nn.Flatten())
        net.append(nn.Linear(64, 3, bias=False))
    for name, block in zip(names, net, strict=False):
        if name == "norm":
            block[0].running_mean += torch.rand(4, generator=generator)
    return net.double().eval()


IMAGE = draw(2, 4, 4, 4)


@settings(max_examples=40)
@given(st.lists(st.sampled_from(sorted(BLOCKS)), min_size=1, max_size=6))
def test_random_networks(names: list[str]) -> None:
    """Degree 1 exactly where every block is, each of the others named; by the definition, too."""
    net = network(names)
    found = check(net, IMAGE, factors=(0.5, 2))
    bent = list(dict.fromkeys(str(k) for k, name in enumerate(names) if not BLOCKS[name][1]))
    named = list(dict.fromkeys(o.module.split(".")[0] for o in found.offenders))
    if {"group norm", "lstm"} & set(names):  # what is behind may be of degree 0
        assert named[:1] == bent[:1]
    else:
        assert named == bent
    assert found.homogeneous == found.proven == (not bent)
    assert found.measured == holds(net, 1, IMAGE, rtol=1e-7)


def test_the_modules_with_a_bias_are_the_ones_that_are_named() -> None:
    torchvision = pytest.importorskip("torchvision")
    with torch.random.fork_rng(devices=[]):
        net = torchvision.models.vgg11(weights=None, num_classes=10).eval()
    x = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    own = [name for name, m in net.named_modules() if getattr(m, "bias", None) is not None]
    for name in own[1:]:
        net.get_submodule(name).bias.data.fill_(0.1)
    net.get_submodule(own[0]).bias.data.zero_()  # which adds nothing
    found = check(net, x, factors=(2,))
    assert [each.module for each in found.offenders] == own[1:]
    assert len(own) == 11
    for name in own:
        net.get_submodule(name).bias = None
    assert check(net, x, factors=(0, 2)).homogeneous


# --- what cannot be seen -------------------------------------------------------------------------


class Hidden(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        with torch._C.DisableTorchFunction():
            return x + 1

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


class Seen(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return F.relu(x) * 3

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


def nested(x: Tensor) -> Tensor:
    return x * torch.nested.nested_tensor([x[0], x[1], x[2]]).to_padded_tensor(0.0)


def test_code_that_cannot_be_seen_is_not_taken_for_a_constant() -> None:
    found = check(lambda x: Hidden.apply(x) * x, X)
    assert found.offender is not None
    assert str(found.offender).startswith("Hidden in '(model)': it is code that cannot be seen")
    assert found.degree is None
    assert degree(Seen.apply) == 1
    assert degree(torch.no_grad()(lambda x: Hidden.apply(x) * x)) is None
    with warnings.catch_warnings():  # PyTorch warns of it once in a process
        warnings.filterwarnings("ignore", "The PyTorch API of nested tensors")
        found = check(nested, X)
    assert "nested_tensor in '(model)': what is in it cannot be followed" in str(found.offender)


def test_scripted_code_is_not_taken_for_a_constant() -> None:
    with pytest.warns(DeprecationWarning, match="torch.jit.script"):
        scripted = torch.jit.script(torch.nn.functional.softsign)
    assert degree(lambda x: x + scripted(2 * x)) is None


def test_memory_that_is_used_again_is_not_taken_for_what_it_held() -> None:
    def function(x: Tensor) -> Tensor:
        for _ in range(30):
            x.square()
            x = x * torch.full((3, 4), 1.5, dtype=torch.float64)
        return x

    assert degree(function) == 1


TRANSFORMED: dict[str, tuple[Callable[[Tensor], Tensor], float | None]] = {
    "vmap": (lambda x: torch.vmap(lambda row: F.relu(row @ W))(x), 1),
    "vmap with a constant": (lambda x: torch.vmap(lambda row: row @ W + 1)(x), None),
    "a gradient": (lambda x: torch.func.grad(lambda t: t.pow(3).sum())(x), None),
    "checkpointed": (lambda x: torch.utils.checkpoint.checkpoint(
        lambda t: F.relu(t @ W), x, use_reentrant=False), 1),
    "inference mode": (torch.inference_mode()(lambda x: F.relu(x @ W)), 1),
    "no grad": (torch.no_grad()(lambda x: F.relu(x @ W) + 1), None),
    "a parameter of it": (lambda x: nn.Parameter(x) * 2, 1),
    "out=": (lambda x: torch.mul(x, x, out=torch.empty(3, 4).double()), 2),
    "out= into a part": (lambda x: torch.mul(x, x, out=torch.ones(4, 4).double()[:3]), None),
    "rows": (lambda x: sum(row.relu_() for row in x * 1), 1),
    "packed": (lambda x: nn.utils.rnn.pad_packed_sequence(
        nn.utils.rnn.pack_padded_sequence(x[None], [3], batch_first=True))[0], 1),
    "complex": (lambda x: torch.fft.ifft(torch.fft.fft(x) * 2j).imag, 1),
    "data that is exchanged": (lambda x: (x * x).set_(x.detach()), 1),
}  # fmt: skip


@pytest.mark.parametrize("name", TRANSFORMED)
def test_what_surrounds_a_call(name: str) -> None:
    function, k = TRANSFORMED[name]
    assert degree(function) == k
    if k is not None:
        assert holds(function, k, X, rtol=1e-7)


def test_inside_of_an_explanation_and_around_one() -> None:
    seen: list[Homogeneity] = []

    def outer(x: Tensor) -> Tensor:
        seen.append(check(F.gelu, torch.ones(1, 2), factors=(2,)))
        own = omenn.explain(lambda t: t @ W, torch.ones(1, 4).double(), 0).weight
        return x @ W * own

    assert degree(outer) == 1
    assert seen
    assert not any(seen)
    omenn.explain(outer, X, 0)
    with pytest.raises(omenn.InputError, match="an explanation inside of another one"):
        check(lambda x: omenn.explain(lambda t: t @ W, x, 0).weight, X)


# --- numbers -------------------------------------------------------------------------------------


def test_the_errors_are_those_of_the_ordinary_model() -> None:
    net = network(["bias", "relu"])
    found = check(net, IMAGE, factors=(0, 0.5, 3))
    with torch.no_grad():
        one = net(IMAGE)
        expected = {
            a: float((net(a * IMAGE) - a * one).abs().max() / (max(a, 1) * one.abs().max()))
            for a in (0.0, 0.5, 3.0)
        }
    assert list(found.errors) == [0.0, 0.5, 3.0]
    assert found.errors == pytest.approx(expected, rel=1e-9)


def test_what_the_structure_cannot_prove_but_the_numbers_show() -> None:
    found = check(lambda x: F.layer_norm(x, (4,), eps=1e-15) * x.norm() * 4, X)
    assert (found.proven, found.measured, found.homogeneous) == (False, True, False)
    assert "warning    the structure cannot prove what the numbers show at this input" in str(found)


def test_what_the_structure_proves_but_the_numbers_deny() -> None:
    found = check(lambda x: x.square() / x, X)
    assert (found.degree, found.measured, found.homogeneous) == (1, False, False)
    assert found.errors[0.0] == math.inf
    assert "for α > 0, but an output is not finite" in str(found)
    seeds = iter(range(100))

    def noisy(x: Tensor) -> Tensor:  # noise that reaches the tensor unseen
        scale = torch.Generator().manual_seed(next(seeds)).initial_seed()
        return x * (scale + 1)

    found = check(noisy, X)
    assert (found.proven, found.measured, found.homogeneous) == (True, False, False)
    assert "the structure proves degree 1, but the numbers differ" in str(found)


def test_equal_infinities_are_equal_and_zero_is_zero() -> None:
    assert check(lambda x: x.masked_fill(x < 0, -math.inf), X, factors=(0.5, 2)).homogeneous
    assert check(lambda x: x.masked_fill(x < 0, -math.inf), X).errors[0] == math.inf
    assert check(lambda x: x * 0, X).homogeneous
    assert check(lambda x: (x * 1).zero_(), X).homogeneous
    assert check(lambda x: x.new_ones(3) + 0 * x.sum(), X).errors[2.0] == pytest.approx(0.5)
    assert check(lambda x: x[:0].sum() + (x > 0.5).sum().reshape(1) * 0.0, 0 * X).measured


def test_single_precision_has_its_own_tolerance() -> None:
    assert check(network(["residual"] * 4).float(), IMAGE.float()).homogeneous
    found = check(lambda x: F.relu(x.float() @ W.float()).double(), X)
    assert found.homogeneous
    assert found.tolerance == 1e-4
    assert check(lambda x: F.relu(x @ W), X).tolerance == 1e-8


# --- inputs --------------------------------------------------------------------------------------


class Words(nn.Module):
    def __init__(self, position: bool = False) -> None:
        super().__init__()
        self.table, self.places = nn.Embedding(7, 4), nn.Embedding(5, 4)
        self.head, self.position = nn.Linear(4, 3, bias=False), position

    def forward(self, ids: Tensor, scale: Tensor | None = None) -> dict[str, Tensor]:
        vectors = self.table(ids) * (ids != 0)[..., None]
        if self.position:
            vectors = vectors + self.places(torch.arange(ids.shape[1]))
        if scale is not None:
            vectors = vectors + scale[:, None]
        return {"attentions": vectors, "scores": self.head(F.relu(vectors)).mean(1)}


def test_several_inputs_ids_and_structured_outputs() -> None:
    ids, scale = torch.tensor([[1, 2, 0], [4, 5, 1]]), draw(2, 4).float()
    for inputs in (ids, (ids,), {"ids": ids}, (ids, scale), {"ids": ids, "scale": scale}):
        found = check(Words().eval(), inputs, output="scores")
        assert found.homogeneous, str(found)
        assert found.errors[0.0] == 0
    placed = check(Words(position=True).eval(), {"ids": ids, "scale": scale}, output="scores")
    assert not placed.measured
    assert str(placed.offender) == "add in '(model)': a constant beside degree 1"
    assert check(lambda a, b: a @ b.T, (X, X)).degree == 2
    assert check(lambda a, b: (a, a * b), {"a": X, "b": X}, output=1).degree == 2


MISTAKES: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "training": (lambda: check(nn.Linear(4, 2), X), omenn.ModelError, "Call model.eval() first"),
    "shape": (lambda: check(nn.Linear(3, 2).double().eval(), X), omenn.InputError,
              "the model cannot take an input of the shape (3, 4) float64: mat1 and mat2"),
    "an error at zero": (lambda: check(lambda x: 1 / int(x.any()) * x, X), omenn.InputError,
                         "the model cannot take 0 times the input: division by zero."),
    "not a number": (lambda: check(lambda x: x / 0 * 0, X), omenn.InputError,
                     "the model's output is not a number (NaN), so there is nothing to compare."),
    "an index": (lambda: check(lambda x: x.argmax(1), X), omenn.TargetError,
                 "the output has the type torch.int64 and 3 elements; numbers were expected."),
    "nothing": (lambda: check(lambda x: x[:0], X), omenn.TargetError, "and 0 elements; numbers"),
    "no tensor": (lambda: check(lambda x: 3, X), omenn.TargetError, "Say where it is with output="),
    "ids alone": (lambda: check(lambda x: x, torch.ones(1, 2).long()), omenn.InputError,
                  "the integer inputs never reached an embedding"),
}  # fmt: skip


@pytest.mark.parametrize("factors", [(), (1, -1), "ab"])
def test_no_factors(factors: Any) -> None:
    with pytest.raises(omenn.InputError) as caught:
        check(F.relu, X, factors=factors)
    assert (caught.value.argument, caught.value.got) == ("factors", repr(factors))
    assert caught.value.expected.startswith("one or more finite numbers of at least 0")


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes(name: str) -> None:
    call, kind, words = MISTAKES[name]
    with pytest.raises(kind, match=re.escape(words)):
        call()


# --- nothing of the caller changes ---------------------------------------------------------------


class Counting(nn.Module):
    """Writes into its own buffers, draws random numbers, and may fail."""

    count: Tensor
    last: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.long))
        self.register_buffer("last", torch.zeros(3, 4, dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(4, dtype=torch.float64))
        self.body = nn.Linear(4, 4, bias=False).double()
        self.fails = False

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        self.last.copy_(x)
        self.mean = 0.9 * self.mean + x.mean(0)
        torch.rand(3)
        if self.fails:
            raise RuntimeError("it failed")
        return self.body(self.last)


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_and_the_world_around_it_are_as_before(fails: bool) -> None:
    net, x = Counting().eval(), X.clone()
    net.fails = fails
    handle = net.body.register_forward_hook(lambda *_: None)
    before, buffers = {k: v.clone() for k, v in net.state_dict().items()}, dict(net.named_buffers())
    random, hooks = torch.get_rng_state(), list(net.body._forward_hooks)
    with torch.no_grad():
        if fails:
            with pytest.raises(omenn.InputError, match="it failed"):
                check(net, x)
        else:
            assert check(net, x).homogeneous
        assert not torch.is_grad_enabled()
    after = net.state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items())
    assert all(t is buffers[k] and not t.requires_grad for k, t in net.named_buffers())
    assert not any(t.__dict__ for t in (*net.buffers(), *net.parameters(), x))
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.equal(x, X)
    assert list(net.body._forward_hooks) == hooks
    assert not net.training
    assert net.body.weight.grad is None
    handle.remove()


# --- the result ----------------------------------------------------------------------------------


def test_it_prints_itself() -> None:
    net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3), nn.Sigmoid()).double().eval()
    found = check(net, X)
    first, *lines = str(found).splitlines()
    assert first == "NOT HOMOGENEOUS"
    assert lines[0] == "structure  not homogeneous, the first call in each module:"
    assert [line.split()[0:3] for line in lines[1:4]] == [
        ["linear", "in", "'0':"], ["linear", "in", "'2':"], ["sigmoid", "in", "'3':"]
    ]  # fmt: skip
    assert "at α = 0.1" in str(found)
    assert re.match(
        r"Homogeneity\(NOT HOMOGENEOUS, degree=none, error=\d\.\de[-+]\d\d, offender=linear in '0'",
        repr(found),
    )
    found = check(net[1], X)
    assert str(found).splitlines()[:2] == [
        "homogeneous", "structure  1 operators prove that the output is of degree 1"
    ]  # fmt: skip
    assert repr(found) == "Homogeneity(homogeneous, degree=1, error=0.0e+00)"
    assert "output is of degree 2, not 1" in str(check(torch.square, X))
    assert "degree 0: the output does not change" in str(check(torch.sign, X))
    assert str(found.operators[0]) == "relu in '1': degree 1 → 1".replace("1'", "(model)'")


def test_it_is_a_frozen_value() -> None:
    found = check(F.relu, X)
    assert found
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.degree = 2  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.operators[0].degree = 2  # type: ignore[misc]


def test_an_operator_beside_the_output_does_not_count() -> None:
    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        return F.relu(x @ W), torch.sigmoid(x)[:, :2]

    found = check(function, X)
    assert found.homogeneous
    assert found.offender is None
    assert [o.operator for o in found.operators if o.degree is None] == ["sigmoid"]
    assert check(function, X, output=1).offenders[0].operator == "sigmoid"
