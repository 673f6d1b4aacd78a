"""Homogeneous layers against slow formulas, and what is put in the place of what."""

from __future__ import annotations

import copy
import io
import math
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import omenn
from omenn.engine.operators.degrees import bounded, smooth
from omenn.engine.operators.table import OPERATORS
from omenn.errors import ModelError
from omenn.xdnn import check, convert, obstacles
from omenn.xdnn.homogeneous_layers import (
    ScaleNorm,
    UnitGate,
    relu_attention,
    relu_multi_head,
    relu_softmax,
    unit_gate,
    unit_glu,
)

F64 = torch.float64


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


# --- ScaleNorm -----------------------------------------------------------------------------------


def slow_moment(x: Tensor, channel: int) -> list[float]:
    """Mean of the squares of each channel, entry by entry."""
    rows = x.movedim(channel, 0).flatten(1)
    return [math.fsum(v * v for v in row.tolist()) / rows.shape[1] for row in rows]


@pytest.mark.parametrize(
    ("shape", "dim"),
    [((6, 3), 1), ((4, 3, 5), 1), ((2, 3, 4, 5), 1), ((2, 5, 3), -1), ((4, 3), -1)],
)
def test_scale_norm_in_training(shape: tuple[int, ...], dim: int) -> None:
    norm = ScaleNorm(3, dim=dim, eps=1e-3, momentum=0.3).double()
    norm.weight.data = torch.tensor([0.5, 2.0, -1.0], dtype=F64)
    x = randn(*shape) + 1
    y = norm(x)
    moments = slow_moment(x, dim)
    columns, results = x.movedim(dim, 0).flatten(1), y.movedim(dim, 0).flatten(1)
    for c, moment in enumerate(moments):
        expected = norm.weight[c] * columns[c] / math.sqrt(moment + 1e-3)
        torch.testing.assert_close(results[c], expected)
    running = torch.tensor([0.7 + 0.3 * m for m in moments], dtype=F64)
    torch.testing.assert_close(norm.running_square, running)
    assert norm.num_batches_tracked == 1


def test_scale_norm_after_training_multiplies_by_a_fixed_factor() -> None:
    norm = ScaleNorm(3, momentum=0.5).double()
    batches = [randn(8, 3, 2, seed=s) * (s + 1) for s in range(3)]
    running = [1.0, 1.0, 1.0]
    for batch in batches:
        norm(batch)
        running = [0.5 * r + 0.5 * m for r, m in zip(running, slow_moment(batch, 1), strict=True)]
    norm.eval()
    x = randn(2, 3, 2, seed=9)
    factor = torch.tensor([1 / math.sqrt(r + 1e-5) for r in running], dtype=F64)
    torch.testing.assert_close(norm(x), x * factor[:, None])
    torch.testing.assert_close(norm.running_square, torch.tensor(running, dtype=F64))
    assert torch.equal(norm(2 * x), 2 * norm(x))
    assert not norm(torch.zeros_like(x)).any()


def test_scale_norm_without_momentum_keeps_the_mean_of_all_batches() -> None:
    norm = ScaleNorm(2, momentum=None).double()
    batches = [randn(5, 2, seed=s) for s in range(4)]
    for batch in batches:
        norm(batch)
    mean = [sum(column) / 4 for column in zip(*(slow_moment(b, 1) for b in batches), strict=True)]
    torch.testing.assert_close(norm.running_square, torch.tensor(mean, dtype=F64))


def test_scale_norm_has_the_derivative_of_its_formula() -> None:
    norm = ScaleNorm(2, affine=False).double()
    norm.running_square.requires_grad_(False)
    x = randn(3, 2, 2).requires_grad_()
    assert torch.autograd.gradcheck(norm, x)
    assert torch.autograd.gradgradcheck(norm, x)
    silent = torch.zeros(3, 2, dtype=F64, requires_grad=True)
    norm(silent).sum().backward()
    assert torch.isfinite(silent.grad).all()


def test_scale_norm_computes_in_float32() -> None:
    norm = ScaleNorm(2)
    x = torch.full((4, 2, 64), 300.0, dtype=torch.float16)  # its sum of squares is beyond float16
    y = norm(x)
    assert y.dtype == torch.float16
    assert torch.allclose(y.float(), torch.ones(4, 2, 64), atol=2e-3)
    assert norm.running_square.dtype == torch.float32
    assert norm.running_square[0] == pytest.approx(0.9 + 0.1 * 90_000)


def test_scale_norm_prints_what_it_is() -> None:
    assert repr(ScaleNorm(3, dim=-1)) == "ScaleNorm(3, eps=1e-05, momentum=0.1, dim=-1)"


# --- attention -----------------------------------------------------------------------------------


def slow_weights(scores: Tensor, open_: Tensor) -> Tensor:
    """Row by row: positive parts by their sum; even where there is none."""
    out = torch.zeros_like(scores)
    for index in torch.cartesian_prod(*(torch.arange(n) for n in scores.shape[:-1])).reshape(
        -1, scores.ndim - 1
    ):
        row, free = scores[tuple(index)].tolist(), open_[tuple(index)].tolist()
        positive = [max(v, 0.0) if o else 0.0 for v, o in zip(row, free, strict=True)]
        total = math.fsum(positive)
        for j, value in enumerate(positive):
            if total:
                out[(*tuple(index), j)] = value / total
            elif free[j]:
                out[(*tuple(index), j)] = 1 / sum(free)
    return out


@given(st.lists(st.lists(st.floats(-4, 4), min_size=3, max_size=3), min_size=1, max_size=4))
def test_relu_softmax_by_its_formula(rows: list[list[float]]) -> None:
    scores = torch.tensor(rows, dtype=F64)
    allowed = torch.ones_like(scores, dtype=torch.bool)
    torch.testing.assert_close(relu_softmax(scores), slow_weights(scores, allowed))


def test_relu_softmax_along_another_dimension() -> None:
    scores = randn(3, 4)
    torch.testing.assert_close(relu_softmax(scores, 0), relu_softmax(scores.T).T)


@pytest.mark.parametrize("low", [-math.inf, -1e9, torch.finfo(F64).min])
def test_masked_scores_get_nothing_even_where_no_score_is_positive(low: float) -> None:
    scores = torch.tensor([[-1.0, -2.0, low], [3.0, 1.0, low], [low, low, low]], dtype=F64)
    expected = torch.tensor([[0.5, 0.5, 0], [0.75, 0.25, 0], [0, 0, 0]], dtype=F64)
    assert torch.equal(relu_softmax(scores), expected)


def test_the_lowest_number_of_a_type_is_a_mask() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        scores = torch.tensor([-1.0, torch.finfo(dtype).min], dtype=dtype)
        assert relu_softmax(scores).tolist() == [1, 0]
        assert relu_softmax(scores).dtype == dtype


def test_relu_softmax_has_derivatives_also_where_no_score_is_positive() -> None:
    scores = torch.tensor([[1.0, 2.0, -1.0], [-1.0, -2.0, -0.5]], dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(relu_softmax, scores)
    assert torch.autograd.gradgradcheck(relu_softmax, scores)
    zero = torch.zeros(1, 3, dtype=F64, requires_grad=True)
    (relu_softmax(zero) * torch.arange(3)).sum().backward()
    assert not zero.grad.any()


@pytest.mark.parametrize("alpha", [1e-3, 0.1, 0.5, 2, 10])
def test_relu_attention_is_of_degree_one(alpha: float) -> None:
    q, k, v = (randn(2, 2, 5, 4, seed=s) for s in range(3))
    once = relu_attention(q, k, v)
    torch.testing.assert_close(
        relu_attention(alpha * q, alpha * k, alpha * v), alpha * once, rtol=1e-12, atol=0
    )
    assert not relu_attention(0 * q, 0 * k, 0 * v).any()


def test_relu_attention_by_its_formula_under_masks() -> None:
    q, k, v = randn(2, 2, 4, 3), randn(2, 2, 5, 3, seed=1), randn(2, 2, 5, 3, seed=2)
    scores = torch.stack([torch.stack([q[b, h] @ k[b, h].T for h in range(2)]) for b in range(2)])
    mask = torch.rand(4, 5, generator=torch.Generator().manual_seed(0)) > 0.3
    for given_mask, causal in [(None, False), (mask, False), (None, True)]:
        allowed = torch.ones(4, 5, dtype=torch.bool)
        if given_mask is not None:
            allowed = given_mask
        if causal:
            allowed = torch.ones(4, 5, dtype=torch.bool).tril()
        expected = slow_weights(scores, allowed.expand(2, 2, 4, 5)) @ v
        torch.testing.assert_close(relu_attention(q, k, v, given_mask, 0.0, causal), expected)
    added = torch.where(mask, 0.7, -math.inf)  # 0.7 is an additive term, and is left out
    torch.testing.assert_close(relu_attention(q, k, v, added), relu_attention(q, k, v, mask))


def test_relu_attention_of_grouped_queries() -> None:
    q, k, v = randn(1, 4, 3, 2), randn(1, 2, 3, 2, seed=1), randn(1, 2, 3, 2, seed=2)
    wide = [t[:, [0, 0, 1, 1]] for t in (k, v)]
    expected = relu_attention(q, *wide)
    torch.testing.assert_close(relu_attention(q, k, v, enable_gqa=True), expected)


def softmax_attention_with_parts(
    module: nn.MultiheadAttention, x: Tensor, allowed: Tensor
) -> tuple[Tensor, Tensor]:
    """(output, weights by head) of a module without biases on (B, L, D), head by head."""
    heads, width = module.num_heads, module.embed_dim // module.num_heads
    q, k, v = (x @ w.T for w in module.in_proj_weight.chunk(3))
    outs, weights = [], []
    for h in range(heads):
        part = slice(h * width, (h + 1) * width)
        a = slow_weights(q[..., part] @ k[..., part].transpose(1, 2), allowed)
        weights.append(a)
        outs.append(a @ v[..., part])
    return torch.cat(outs, -1) @ module.out_proj.weight.T, torch.stack(weights, 1)


@pytest.mark.parametrize("need", [True, False])
def test_multi_head_attention_by_its_formula(need: bool) -> None:
    whole = nn.MultiheadAttention(6, 2, batch_first=True, dtype=F64).eval()
    module = convert(whole, stand_ins="attention")
    assert obstacles(module) == ()
    x = randn(2, 5, 6)
    padding = torch.zeros(2, 5, dtype=torch.bool)
    padding[1, 3:] = True
    mask = torch.ones(5, 5, dtype=torch.bool).triu(1)
    for options, closed in [
        ({}, torch.zeros(2, 5, 5, dtype=torch.bool)),
        ({"key_padding_mask": padding}, padding[:, None].expand(2, 5, 5)),
        ({"attn_mask": mask}, mask.expand(2, 5, 5)),
        ({"attn_mask": mask, "is_causal": True}, mask.expand(2, 5, 5)),
        ({"attn_mask": mask, "key_padding_mask": padding}, mask | padding[:, None]),
    ]:
        expected, weights = softmax_attention_with_parts(module, x, ~closed)
        out, found = module(x, x, x, need_weights=need, average_attn_weights=False, **options)
        torch.testing.assert_close(out, expected)
        assert (found is None) == (not need)
        if need:
            torch.testing.assert_close(found, weights)
            mean = module(x, x, x, **options)[1]
            torch.testing.assert_close(mean, weights.mean(1))


def test_multi_head_attention_without_a_batch_and_with_zeros_beside() -> None:
    module = nn.MultiheadAttention(4, 2, add_zero_attn=True, bias=False, dtype=F64).eval()
    free = convert(module, stand_ins="attention")
    x = randn(3, 4)
    one = free(x, x, x)[0]
    torch.testing.assert_close(free(x[:, None], x[:, None], x[:, None])[0][:, 0], one)
    torch.testing.assert_close(free(2 * x, 2 * x, 2 * x)[0], 2 * one)


def test_multi_head_attention_with_widths_of_its_own() -> None:
    module = nn.MultiheadAttention(4, 2, kdim=3, vdim=5, bias=False, dtype=F64).eval()
    free = convert(module, stand_ins="attention")
    q, k, v = randn(3, 1, 4), randn(6, 1, 3, seed=1), randn(6, 1, 5, seed=2)
    assert free(q, k, v)[0].shape == (3, 1, 4)
    torch.testing.assert_close(free(2 * q, 2 * k, 2 * v)[0], 2 * free(q, k, v)[0])


def test_attention_drops_weights_in_training_only() -> None:
    module = nn.MultiheadAttention(4, 1, dropout=0.5, bias=False, dtype=F64).eval()
    free = convert(module, stand_ins="attention")
    x = randn(6, 1, 4)
    still = free(x, x, x)[1]
    torch.testing.assert_close(still.sum(-1), torch.ones(1, 6, dtype=F64))
    dropped = free.train()(x, x, x)[1]
    kept = dropped != 0
    assert 0 < kept.sum() < (still != 0).sum()
    torch.testing.assert_close(dropped[kept], 2 * still[kept])


def test_static_keys_are_refused() -> None:
    x = randn(2, 1, 4)
    with pytest.raises(NotImplementedError, match="static keys and values"):
        relu_multi_head(query=x, key=x, value=x, static_k=x)


# --- gates ---------------------------------------------------------------------------------------


def test_unit_gate_by_its_formula() -> None:
    z = randn(3, 4, 2)
    for sample, gate in zip(z, unit_gate(z), strict=True):
        size = math.sqrt(math.fsum(v * v for v in sample.flatten().tolist()) / 8)
        torch.testing.assert_close(gate, torch.sigmoid(sample / size))
    assert torch.equal(unit_gate(0 * z), torch.full_like(z, 0.5))
    torch.testing.assert_close(unit_gate(z[:1]), unit_gate(z)[:1])  # of each sample alone
    torch.testing.assert_close(unit_gate(z[0, 0]), unit_gate(z[0, :1].T[None])[0, :, 0])


def test_unit_gates_have_derivatives_also_at_zero() -> None:
    z = randn(2, 3).requires_grad_()
    assert torch.autograd.gradcheck(unit_gate, z)
    zero = torch.zeros(2, 3, dtype=F64, requires_grad=True)
    unit_gate(zero).sum().backward()
    assert not zero.grad.any()


def test_unit_glu_gates_one_half_by_the_other() -> None:
    x = randn(2, 6)
    torch.testing.assert_close(unit_glu(x), x[:, :3] * unit_gate(x[:, 3:]))
    torch.testing.assert_close(unit_glu(x.T, 0)[:, 0], x.T[:3, 0] * unit_gate(x.T[3:])[:, 0])


# --- modules -------------------------------------------------------------------------------------


class Swish(nn.Module):
    """An activation as other libraries have them: known by its name."""

    def forward(self, x: Tensor) -> Tensor:
        return x * x.sigmoid()


class TinyRMSNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.5, 1.5, width))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


class LayerNorm2d(nn.LayerNorm):
    """Over the channels of a map, as timm and torchvision have it."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


SMOOTH = [n for n, o in OPERATORS.items() if o.degree in (smooth, bounded) and not o.composite]
CURVED = [
    nn.GELU(), nn.SiLU(), nn.ELU(), nn.SELU(), nn.CELU(), nn.Softplus(), nn.Mish(), nn.Hardswish(),
    nn.Tanh(), nn.Softsign(), nn.LogSigmoid(), nn.Tanhshrink(), nn.Softshrink(), nn.Hardshrink(),
    nn.Hardtanh(), nn.ReLU6(), nn.Threshold(0.5, 0.0), Swish(),
]  # fmt: skip


@pytest.mark.parametrize("act", CURVED, ids=lambda m: type(m).__name__)
def test_activations_become_relu(act: nn.Module) -> None:
    net = nn.Sequential(nn.Linear(3, 4), act).double().eval()
    (found,) = obstacles(net)
    assert (found.module, found.what, found.stand_in) == ("1", type(act).__name__, "activations")
    free = convert(net, stand_ins="activations")
    x = randn(5, 3)
    assert torch.equal(free(x), F.relu(free[0](x)))
    assert obstacles(free) == ()


@pytest.mark.parametrize("name", sorted(SMOOTH))
def test_every_operator_that_does_not_scale_is_an_obstacle(name: str) -> None:
    homes = (torch, F, torch.special)
    function = next((getattr(home, name) for home in homes if hasattr(home, name)), None)
    one = torch.ones(1).double()
    more = {
        "softmax": (-1,), "log_softmax": (-1,), "logsumexp": (-1, True), "logcumsumexp": (-1,),
        "logaddexp": (one,), "logaddexp2": (one,), "local_response_norm": (2,),
    }.get(name, ())  # fmt: skip

    class Net(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * (2.0**x if name == "rpow" else function(x, *more))

    x = randn(2, 3, 4).abs() + 1
    (found,) = [o for o in obstacles(Net().eval(), x) if o.module == ""]
    assert name.replace("_", "") in found.what.replace("_", "")


@pytest.mark.parametrize("act", [nn.ReLU(), nn.LeakyReLU(), nn.PReLU(), nn.RReLU(), nn.Identity()])
def test_what_is_homogeneous_stays(act: nn.Module) -> None:
    net = nn.Sequential(nn.Linear(3, 4), act).eval()
    assert obstacles(net) == ()
    assert type(convert(net, stand_ins="all")[1]) is type(act)


NORMS = {
    "layer": (nn.LayerNorm(4), (2, 3, 4), (4,), -1),
    "layer-2": (nn.LayerNorm((3, 4)), (2, 3, 4), (3, 4), -1),
    "map": (LayerNorm2d(4), (2, 4, 3, 3), (4,), 1),
    "group": (nn.GroupNorm(2, 4), (2, 4, 3), (4,), 1),
    "instance": (nn.InstanceNorm2d(4, affine=True), (2, 4, 3, 3), (4,), 1),
    "rms": (nn.RMSNorm(4), (2, 3, 4), (4,), -1),
    "foreign": (TinyRMSNorm(4), (2, 3, 4), (4,), -1),
}


@pytest.mark.parametrize("name", NORMS)
def test_norms_become_scale_norms(name: str) -> None:
    norm, shape, features, dim = NORMS[name]
    norm = copy.deepcopy(norm).double().eval()
    with torch.no_grad():
        norm.weight.uniform_(0.5, 1.5)
    (found,) = obstacles(norm)
    assert (found.stand_in, found.module) == ("norms", "")
    free = convert(norm, stand_ins="norms")
    assert isinstance(free, ScaleNorm)
    assert (free.shape, free.dim) == (features, dim)
    assert torch.equal(free.weight, norm.weight)
    assert not free.training
    assert free.train()(randn(*shape)).shape == shape
    with torch.no_grad():
        x = randn(*shape)
        torch.testing.assert_close(free.eval()(3 * x), 3 * free(x))


def test_an_activation_inside_of_a_norm_stays_behind_it() -> None:
    class LayerNormAct(nn.LayerNorm):
        def __init__(self, width: int) -> None:
            super().__init__(width)
            self.act = nn.GELU()

        def forward(self, x: Tensor) -> Tensor:
            return self.act(super().forward(x))

    net = LayerNormAct(3).double().eval()
    x = randn(4, 3)
    only = convert(net, stand_ins="norms")
    plain = x / math.sqrt(1 + 1e-5)
    torch.testing.assert_close(only(x), F.gelu(plain))
    both = convert(net, stand_ins=["activations", "norms"])
    torch.testing.assert_close(both(x), F.relu(plain))
    assert list(both.state_dict()) == ["weight", "running_square", "num_batches_tracked"]


@pytest.mark.parametrize(
    ("module", "formula"),
    [
        (nn.Sigmoid(), lambda x: unit_gate(x)),
        (nn.Hardsigmoid(), lambda x: unit_gate(x, F.hardsigmoid)),
        (nn.GLU(1), lambda x: unit_glu(x, 1)),
        (nn.Softmax(1), lambda x: relu_softmax(x, 1)),
        (nn.Softmax2d(), lambda x: relu_softmax(x, -3)),
    ],
    ids=["sigmoid", "hardsigmoid", "glu", "softmax", "softmax2d"],
)
def test_gates_and_softmax(module: nn.Module, formula: object) -> None:
    x = randn(2, 4, 3, 3)
    free = convert(nn.Sequential(module), stand_ins=("gates", "attention"), inputs=x)
    torch.testing.assert_close(free(x), formula(x))  # type: ignore[operator]
    assert obstacles(free, x) == ()


@pytest.mark.parametrize(
    ("shape", "dim"), [((3,), 0), ((3, 4), 1), ((2, 3, 4), 0), ((1, 2, 3, 4), 1)]
)
def test_a_softmax_without_a_dimension(shape: tuple[int, ...], dim: int) -> None:
    x = randn(*shape)
    free = convert(nn.Sequential(nn.Softmax()), stand_ins="attention")
    torch.testing.assert_close(free(x), relu_softmax(x, dim))


# --- functions -----------------------------------------------------------------------------------


class Calls(nn.Module):
    """A layer, then a function."""

    def __init__(self, function: object) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.layer(x))  # type: ignore[operator]


FUNCTIONS = {
    "F.gelu": lambda x: F.gelu(x, approximate="tanh"),
    "F.silu inplace": lambda x: F.silu(x, inplace=True),
    "torch.selu": torch.selu,
    "F.celu": F.celu,
    "F.elu_": F.elu_,
    "torch.tanh": torch.tanh,
    "Tensor.tanh_": lambda x: x.tanh_(),
    "written": lambda x: (x.tanh_(), x)[1],
    "F.softplus": lambda x: F.softplus(input=x),
    "F.relu6": F.relu6,
    "F.hardtanh": lambda x: F.hardtanh(x, -2.0, 2.0),
    "F.threshold": lambda x: F.threshold(x, 0.1, 0.0),
    "F.logsigmoid": F.logsigmoid,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_become_relu(name: str) -> None:
    x = randn(5, 4)
    net = Calls(FUNCTIONS[name]).double().eval()
    assert [o.stand_in for o in obstacles(net, x)] == ["activations"]
    free = convert(net, stand_ins="activations", inputs=x)
    assert torch.equal(free(x), F.relu(free.layer(x)))
    assert obstacles(free, x) == ()
    assert check(free, x).homogeneous


GATES = {
    "sigmoid": (lambda x: x * x.sigmoid(), lambda x: x * unit_gate(x)),
    "sigmoid_": (lambda x: x * x.clone().sigmoid_(), lambda x: x * unit_gate(x)),
    "special": (lambda x: x * torch.special.expit(x), lambda x: x * unit_gate(x)),
    "hard": (lambda x: x * F.hardsigmoid(x), lambda x: x * unit_gate(x, F.hardsigmoid)),
    "glu": (lambda x: F.glu(x, -1), unit_glu),
    "softmax": (lambda x: x * F.softmax(x, -1), lambda x: x * relu_softmax(x)),
    "typed": (
        lambda x: x * torch.softmax(x, 1, torch.float64),
        lambda x: x * relu_softmax(x, 1),
    ),
    "narrow": (
        lambda x: x.float() * torch.softmax(x, 1, dtype=torch.bfloat16),
        lambda x: x.float() * relu_softmax(x.bfloat16(), 1),
    ),
    "method": (lambda x: x * x.softmax(dim=0), lambda x: x * relu_softmax(x, 0)),
}


@pytest.mark.parametrize("name", GATES)
def test_functions_become_gates_and_weights(name: str) -> None:
    function, formula = GATES[name]
    x = randn(5, 4)
    free = convert(Calls(function).double().eval(), stand_ins="all", inputs=x)
    torch.testing.assert_close(free(x), formula(free.layer(x)))
    assert obstacles(free, x) == ()
    assert check(free, x).homogeneous


class Base(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x)


class Derived(Base):
    """Calls functions in a method that is not ``forward``, and its parent's ``forward``."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.plain = nn.Linear(4, 4)

    def features(self, x: Tensor) -> Tensor:
        return F.silu(self.layer(x))

    def other(self, x: Tensor) -> Tensor:
        return F.tanh(x)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.plain(self.features(x)))


def test_a_method_that_calls_functions_can_be_called_alone() -> None:
    x = randn(5, 4)
    net = Derived().double().eval()
    free = convert(net, stand_ins="all", inputs=x)
    assert torch.equal(free.features(x), F.relu(free.layer(x)))
    assert torch.equal(free(x), F.relu(free.plain(free.features(x))))
    assert torch.equal(free.other(x), F.tanh(x))  # was never called, so nothing is known of it
    assert isinstance(free, Derived)
    assert type(free) is not Derived
    assert repr(free).startswith("Derived(")
    assert type(free.layer) is nn.Linear
    assert type(net) is Derived
    assert [n for n in net.state_dict() if n not in free.state_dict()] == [
        "layer.bias",
        "plain.bias",
    ]


def test_an_exchanged_module_can_be_copied_and_pickled() -> None:
    x = randn(5, 4)
    free = convert(Derived().double().eval(), stand_ins="all", inputs=x)
    buffer = io.BytesIO()
    torch.save(free, buffer)
    buffer.seek(0)
    for twin in (
        copy.deepcopy(free),
        pickle.loads(pickle.dumps(free)),
        torch.load(buffer, weights_only=False),
    ):
        assert torch.equal(twin(x), free(x))
        assert type(twin) is type(free)
        twin.layer.weight.data.zero_()
        assert free.layer.weight.any()


def test_conversion_twice_goes_on_from_the_class_as_it_was() -> None:
    x = randn(5, 4)
    net = Calls(lambda t: F.gelu(t) * t.sigmoid()).double().eval()
    first = convert(net, stand_ins="activations", inputs=x)
    assert [o.stand_in for o in obstacles(first, x)] == ["gates"]
    both = convert(first, stand_ins="gates", inputs=x)
    assert check(both, x).homogeneous
    assert type(both).__mro__[1] is Calls


def test_what_is_around_is_not_touched() -> None:
    x = randn(5, 4)
    free = convert(Calls(F.gelu).double().eval(), stand_ins="all", inputs=x)
    free(x)
    assert torch.equal(F.gelu(x), nn.GELU()(x))
    assert torch.overrides._get_current_function_mode_stack() == []
    free.function = lambda t: 1 / 0
    with pytest.raises(ZeroDivisionError):
        free(x)
    assert torch.overrides._get_current_function_mode_stack() == []


def test_explanations_go_through_exchanged_functions() -> None:
    x = randn(3, 4)
    free = convert(Calls(lambda t: F.gelu(t) * t.sigmoid()).double().eval(), stand_ins="all",
                   inputs=x)  # fmt: skip
    e = omenn.explain(free, x)
    assert e.exact
    torch.testing.assert_close(e.matrix.sum(1), free(x).max(1).values)


def test_an_encoder_of_pytorch_keeps_its_fast_path_out() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, activation="gelu", dtype=F64)
    net = nn.TransformerEncoder(layer, 2).eval()
    x = randn(2, 5, 8)
    padding = torch.zeros(2, 5, dtype=torch.bool)
    padding[1, 3:] = True
    free = convert(net, stand_ins="all", inputs=x)
    with torch.no_grad():
        once = free(x, src_key_padding_mask=padding)
        torch.testing.assert_close(free(2 * x, src_key_padding_mask=padding), 2 * once)
        changed = x.clone()
        changed[1, 3:] = 7
        torch.testing.assert_close(free(changed, src_key_padding_mask=padding)[1, :3], once[1, :3])
    assert check(free, x).homogeneous


# --- what needs a run ----------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["all", "activations", ("norms", "activations")])
def test_a_function_that_is_called_needs_inputs(how: object) -> None:
    net = nn.Sequential(Base(), nn.LayerNorm(4), nn.GELU())
    text = (
        "stand_ins='activations': module '0' calls gelu() as a function. Functions are found in a "
        "run of the model: give convert(inputs=...) an example."
    )
    with pytest.raises(ModelError) as error:
        convert(net, stand_ins=how)
    assert str(error.value) == text
    assert convert(net, stand_ins="norms")[1].dim == -1


def test_a_function_that_is_held_needs_inputs() -> None:
    with pytest.raises(ModelError, match=r"module '\(model\)' calls gelu\(\)"):
        convert(nn.TransformerEncoderLayer(8, 2, activation="gelu"), stand_ins="all")


def test_a_stand_in_by_name_that_finds_no_module_needs_inputs() -> None:
    text = "stand_ins='attention': there is no module of that kind. Functions are found in a run"
    with pytest.raises(ModelError, match=text):
        convert(nn.Linear(3, 3), stand_ins="attention")
    assert convert(nn.Linear(3, 3), stand_ins="all").bias is None


def test_a_module_under_the_name_of_a_function_is_no_function() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.sigmoid = nn.Sigmoid()

        def forward(self, x: Tensor) -> Tensor:
            return x * self.sigmoid(x)

    assert isinstance(convert(Gated(), stand_ins="all").sigmoid, UnitGate)
