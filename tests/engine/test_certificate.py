"""The certificate refuses wrong rules: each one is broken in turn, in several ways."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import omenn
from omenn.engine.operators import recurrent
from omenn.engine.operators.table import OPERATORS, Operator
from omenn.engine.trace import autograd_nodes
from omenn.engine.trace.call import Call
from opcases.case import Case, draw
from opcases.linear import seeded
from opdb import CASES, dense

FIRST: dict[str, Case] = {}
for _case in CASES:
    if "through a view" not in _case.name:
        FIRST.setdefault(_case.operator, _case)
# Operators whose output is a frozen coefficient: nothing flows back that could be wrong.
FROZEN = frozenset(
    "softmax gumbel_softmax rsqrt reciprocal logsumexp sign sgn floor ceil round trunc frac "
    "floor_divide digamma heaviside atan2 logaddexp logaddexp2 logcumsumexp inv pinv".split()
)
CARRYING = sorted(set(FIRST) - FROZEN)


def total(y: Tensor) -> Tensor:
    y = y.real if y.is_complex() else y
    return (y.reshape(-1) * torch.linspace(-1, 1.3, y.numel(), dtype=y.dtype)).sum()


def certificate(case: Case) -> omenn.Certificate:
    return omenn.certify(case.call, case.fresh(), total)


def broken(row: Operator, change) -> Operator:
    """The rule with ``change`` made to its output: same value, other history."""

    def rule(call: Call):
        with torch.enable_grad():
            carried = call.active[0].clone()
        out = row.rule(call)
        if isinstance(out, Tensor):
            return replaced(call, out, lambda t: change(t, carried))
        items = [replaced(call, t, lambda t: change(t, carried)) for t in out]
        return type(out)(items)

    return row.with_rule(rule)


def replaced(call: Call, out, change):
    if not isinstance(out, Tensor) or not (out.is_floating_point() or out.is_complex()):
        return out
    mark = out.__dict__.get("_omenn_mark")
    with torch.enable_grad():
        fresh = change(out)
        if call.inplace:  # the model goes on with the tensor that it wrote into
            return out.copy_(fresh)
    if mark is not None:
        call.context.set_mark(fresh, mark)
    return fresh


def scaled(out: Tensor, carried: Tensor) -> Tensor:
    """The backward gives a tenth too much."""
    return out + 0.1 * (out - out.detach())


def leaking(out: Tensor, carried: Tensor) -> Tensor:
    """The backward gives something where nothing is."""
    leak = (carried - carried.detach()).sum()
    return out + 0.1 * (leak.real if leak.is_complex() and not out.is_complex() else leak)


def test_every_operator_is_broken_here() -> None:
    assert set(CARRYING) | FROZEN == set(OPERATORS)


@pytest.mark.parametrize("operator", sorted(FIRST))
def test_unbroken_rule_is_certified(operator: str) -> None:
    found = omenn.certify(FIRST[operator].call, FIRST[operator].fresh(), total)
    assert FIRST[operator].tolerance > 1e-6 or found.exact, str(found)


@pytest.mark.parametrize("operator", CARRYING)
def test_wrong_backward_is_refused(operator: str, monkeypatch) -> None:
    right = OPERATORS[operator]
    for change in (scaled, leaking):
        if (operator, change) == ("zero", scaled):
            continue  # a tenth more than nothing is nothing: it can only leak
        monkeypatch.setitem(OPERATORS, operator, broken(right, change))
        found = certificate(FIRST[operator])
        assert not found.exact, change.__name__
        assert not found
        assert str(found).startswith("NOT EXACT")


@pytest.mark.parametrize("operator", sorted(FROZEN))
def test_unfrozen_coefficient_is_refused(operator: str, monkeypatch) -> None:
    row = OPERATORS[operator].with_rule(lambda call: call.run())
    monkeypatch.setitem(OPERATORS, operator, row)
    assert not certificate(FIRST[operator]).exact


def with_a_constant() -> list[Case]:
    """One case for each operator that adds a constant of its own."""
    found: dict[str, Case] = {}
    for case in CASES:
        if (
            case.operator not in found
            and case.tolerance < 1e-6
            and dense(case).bias.abs().max() > 0.1
        ):
            found[case.operator] = case
    return list(found.values())


def test_wrong_constants_are_refused(monkeypatch) -> None:
    """Forgotten, or doubled."""
    cases, factor = with_a_constant(), 1.0
    assert len(cases) > 80
    right, layer = autograd_nodes.weighted_sum, recurrent.one_layer
    monkeypatch.setattr(autograd_nodes, "weighted_sum", lambda *given: factor * right(*given))

    def one_layer(*given):
        """Its ones, which are the last thing given, take ``factor`` of the constants."""
        ones = given[-1]
        with torch.enable_grad():
            ones = None if ones is None else ones.detach() + factor * (ones - ones.detach())
        return layer(*given[:-1], ones)

    monkeypatch.setattr(recurrent, "one_layer", one_layer)
    for case in cases:
        for factor in (1.0, 0.0, 2.0):  # read by the two functions above
            assert certificate(case).exact == (factor == 1), (case.id, factor)


def test_native_backward_of_a_nonlinear_operator_is_named(monkeypatch) -> None:
    monkeypatch.setitem(OPERATORS, "gelu", OPERATORS["gelu"].with_rule(lambda c: c.run()))
    net = seeded(nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 2)))
    found = omenn.certify(net, draw(2, 4))
    assert not found.exact
    assert "Gelu" in found.violations[0]


def test_unhalved_product_is_refused(monkeypatch) -> None:
    monkeypatch.setitem(OPERATORS, "mul", OPERATORS["mul"].with_rule(lambda c: c.run()))
    found = omenn.certify(lambda x: x * x.sin(), draw(2, 4), 1)
    assert not found.exact
    assert "two tensors that depend on the input" in found.violations[0]


def test_changed_forward_is_refused(monkeypatch) -> None:
    """A rule whose forward is another one is exact in itself, but not for this model."""
    relu = OPERATORS["relu"].with_rule(lambda c: F.leaky_relu(c.active[0], 0.1))
    monkeypatch.setitem(OPERATORS, "relu", relu)
    found = omenn.certify(seeded(nn.Sequential(nn.Linear(4, 4), nn.ReLU())), draw(2, 4), 1)
    assert not found.exact
    assert found.explanation is not None
    assert float(found.relative.max()) < 1e-12  # the sum alone would not have seen it
    assert not found.explanation.exact
    assert found.fidelity > found.fidelity_tolerance


def test_certificate_of_an_exact_model_says_what_it_checked() -> None:
    net = seeded(nn.Sequential(nn.Conv2d(2, 3, 3), nn.SiLU(), nn.Flatten(), nn.Linear(12, 3)))
    found = omenn.certify(net, draw(2, 2, 4, 4))
    assert found.exact
    assert found
    assert found.fidelity <= 1e-12
    assert float(found.relative.max()) <= 1e-12
    assert found.residual.shape == found.bias_share.shape == (2,)
    assert not found.violations
    text = str(found).splitlines()
    assert [line.split()[0] for line in text[:5]] == [
        "exact", "structure", "fidelity", "sum", "bias",
    ]  # fmt: skip
    assert text[5].strip().startswith("without a place: pooled")
    assert "largest constants by module" in text[6]
    assert repr(found).startswith("Certificate(exact, residual=")
    largest = [float(v.abs().mean()) for v in found.sources.values()]
    assert largest == sorted(largest, reverse=True)
    assert set(found.sources) == {"0", "3"}


def test_the_bias_share_has_the_sign_of_what_it_does_to_the_output() -> None:
    """−3 x + b at x = 1: of f = −2 the constant 1 is −50 %, of f = −4 the constant −1 is 25 %."""
    net = nn.Linear(1, 2).double().eval()
    with torch.no_grad():
        net.weight.fill_(-3.0)
        net.bias.copy_(torch.tensor([1.0, -1.0]))
    x = torch.ones(1, 1).double()
    shares = [float(omenn.certify(net, x, k).bias_share) for k in (0, 1)]
    assert shares == [-0.5, 0.25]


def test_bias_share_and_sources_add_up() -> None:
    net = seeded(nn.Sequential(nn.Linear(4, 6), nn.Softplus(), nn.Linear(6, 2)))
    found = omenn.certify(net, draw(3, 4), 1)
    assert found.explanation is not None
    torch.testing.assert_close(sum(found.sources.values()), found.explanation.bias_share)
    torch.testing.assert_close(
        found.bias_share, found.explanation.bias_share / found.explanation.output.double()
    )
    assert set(found.sources) == {"0", "1", "2"}
    assert found.located == 0.0 or 0 < found.located <= 1


def test_unsupported_operator_is_a_violation_not_an_error() -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.lgamma(x)

    found = omenn.certify(Net().eval(), draw(2, 4), 1)
    assert not found.exact
    assert "lgamma" in found.violations[0]
    assert "omenn.rule" in found.violations[0]
    assert "not linear at fixed coefficients" in str(found)


def test_frozen_constants_are_named() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = nn.Softmax(-1)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.part(x)

    found = omenn.certify(Net().eval(), draw(2, 4), 1)
    assert found.exact
    assert found.frozen_constants == ("",)
    assert "input-dependent constants" in str(found)


@pytest.fixture
def fused_path():
    before = torch.backends.mha.get_fastpath_enabled()
    yield torch.backends.mha.set_fastpath_enabled
    torch.backends.mha.set_fastpath_enabled(before)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_model_that_is_another_one_without_gradients_is_noted(fused_path) -> None:
    """The fused encoder gives zeros at padded tokens; the model with gradients does not."""
    layer = nn.TransformerEncoderLayer(4, 2, 6, batch_first=True)
    net = seeded(nn.TransformerEncoder(layer, 2))
    inputs = {
        "src": draw(2, 3, 4),
        "src_key_padding_mask": torch.tensor([[False, False, True], [False, False, False]]),
    }
    found = omenn.certify(net, inputs, lambda y: y[:, 0, 1])
    assert not found.exact
    assert "other numbers without gradients than with them" in found.violations[0]
    assert "set_fastpath_enabled(False)" in str(found)
    assert omenn.explain(net, inputs, lambda y: y[:, 0, 1]).exact  # of the model with them
    fused_path(False)
    assert omenn.certify(net, inputs, lambda y: y[:, 0, 1]).exact


def test_certificate_at_a_module() -> None:
    net = seeded(nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 2)))
    found = omenn.certify(net, draw(3, 4), 1, at="1")
    assert found.exact
    assert set(found.sources) == {"2"}
    assert found.explanation is not None
    assert found.explanation.at == "1"
