"""``omenn.rule``: rules that users add, and what the certificate says of wrong ones."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function_unary

import omenn
from nets.small import ROWS
from omenn.engine.operators.table import OPERATORS
from omenn.engine.trace import spelling
from omenn.engine.trace.call import Call
from opcases.case import draw
from opcases.linear import seeded


@pytest.fixture(autouse=True)
def tables_as_before() -> Iterator[None]:
    """Rules are global: each test takes its own back."""
    tables = (OPERATORS, spelling.by_function())
    before = [dict(t) for t in tables]
    with omenn.rules():
        yield
    assert [dict(t) for t in tables] == before
    assert "apply" not in vars(torch.autograd.function._SingleLevelFunction)


def test_pointwise_by_name_covers_every_spelling() -> None:
    for model in (torch.i0, lambda x: x.i0(), lambda x: x.clone().i0_()):
        with pytest.raises(omenn.UnsupportedOperator, match=r"omenn.rule\('i0"):
            omenn.explain(model, ROWS, 1)
    omenn.rule("i0", "pointwise")
    for model in (torch.i0, lambda x: x.i0(), lambda x: x.clone().i0_()):
        e = omenn.explain(model, ROWS, 1)
        assert e.exact
        torch.testing.assert_close(e.weight[:, 1], ((ROWS.i0() - 1) / ROWS)[:, 1])
        assert omenn.certify(model, ROWS, 1).exact


def test_the_name_in_the_message_is_one_that_works() -> None:
    with pytest.raises(omenn.UnsupportedOperator) as caught:
        omenn.explain(lambda x: torch.special.i0(x), ROWS, 1)
    name = str(caught.value).split("omenn.rule('")[1].split("'")[0]
    omenn.rule(name, "pointwise")
    assert omenn.certify(lambda x: torch.special.i0(x), ROWS, 1).exact


def test_pointwise_by_function_covers_that_function() -> None:
    omenn.rule(torch.i0, "pointwise")
    e = omenn.explain(lambda x: torch.i0(x), ROWS, 1)
    assert e.exact
    torch.testing.assert_close(e.bias_share, torch.ones(3).double())  # i0(0) = 1
    with pytest.raises(omenn.UnsupportedOperator):
        omenn.explain(lambda x: x.i0(), ROWS, 1)


def test_pointwise_without_a_value_at_zero_is_refused() -> None:
    omenn.rule("lgamma", "pointwise")
    with pytest.raises(omenn.UnsupportedOperator, match="not finite at zero has no form through"):
        omenn.explain(torch.lgamma, ROWS.abs() + 1, 1)


MATRIX = draw(4, 4) + 3 * torch.eye(4)


def test_linear_with_a_node_that_is_not_known() -> None:
    def model(x: Tensor) -> Tensor:
        return torch.linalg.lu_solve(*torch.linalg.lu_factor(MATRIX), x.T).T

    with pytest.raises(omenn.UnsupportedOperator, match="operator 'linalg_lu_solve'"):
        omenn.explain(model, ROWS, 3)
    omenn.rule("linalg_lu_solve", "linear")
    e = omenn.explain(model, ROWS, 3)
    assert e.exact
    torch.testing.assert_close(e.weight, torch.linalg.inv(MATRIX)[3].expand(3, 4))
    assert omenn.certify(model, ROWS, 3).exact


def test_linear_up_to_a_constant_and_in_two_inputs() -> None:
    def func(a: Tensor, b: Tensor) -> Tensor:
        if has_torch_function_unary(a):
            return handle_torch_function(func, (a, b), a, b)
        return 2 * a - b.flip(1) + 3

    omenn.rule(func, "linear", name="mixing")
    e = omenn.explain(func, (ROWS, draw(3, 4, seed=2)), 0)
    assert e.exact
    assert (e.weight[0][:, 0] == 2).all()
    assert (e.weight[1][:, 3] == -1).all()
    torch.testing.assert_close(e.bias_share, torch.full((3,), 3.0).double())


class Doubled(nn.Module):
    """A layer with a function of its own: x² · weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return squared(x, self.weight)


def squared(x: Tensor, weight: Tensor) -> Tensor:
    if has_torch_function_unary(x):
        return handle_torch_function(squared, (x,), x, weight)
    return x.square() * weight


def frozen_square(call: Call) -> Tensor:
    x, weight = call.args
    return call.frozen(x, call.value(), lambda g, c: g * c, call.true(x) * call.constant(weight))


def test_a_rule_written_out() -> None:
    omenn.rule(squared, frozen_square)
    net = seeded(nn.Sequential(nn.Linear(4, 4), Doubled(), nn.Linear(4, 2)))
    assert omenn.certify(net, ROWS, 1).exact
    hidden = net[0](ROWS).detach()
    e = omenn.explain(net, ROWS, 1, at="0")
    wanted = net[2].weight[1] * hidden * net[1].weight
    torch.testing.assert_close(e.weight, wanted.detach())


def test_a_rule_written_out_can_be_trained_on() -> None:
    omenn.rule(squared, frozen_square)
    net = seeded(nn.Sequential(Doubled(), nn.Linear(4, 2)))
    e = omenn.explain(net, ROWS, 0, create_graph=True)
    (got,) = torch.autograd.grad(e.weight.sum(), net[0].weight)
    torch.testing.assert_close(got, (ROWS * net[1].weight[0]).sum(0).detach())


def test_a_wrong_rule_does_not_stay_hidden() -> None:
    for wrong in (
        lambda call: call.frozen(call.args[0], call.value(), lambda g: 2 * g),
        lambda call: call.value() + 0.5 * call.args[0],
        lambda call: call.args[0] * 1,
        lambda call: call.run(),
        "linear",
        "pointwise",
    ):
        omenn.rule(squared, wrong)
        model = lambda x: squared(x, draw(4, low=1)) + x  # noqa: E731
        assert not omenn.certify(model, ROWS, 1).exact
    with pytest.raises(omenn.UnsupportedOperator, match="differs between elements is not pointw"):
        omenn.explain(model, ROWS, 1)


def test_a_function_that_shares_its_name_with_an_operator_does_not_replace_it() -> None:
    def add(x: Tensor) -> Tensor:
        if has_torch_function_unary(x):
            return handle_torch_function(add, (x,), x)
        return x.tan()

    before = OPERATORS["add"]
    omenn.rule(add, "pointwise")
    assert OPERATORS["add"] is before
    assert omenn.certify(lambda x: add(x) + 1, ROWS, 1).exact


def test_what_rule_refuses() -> None:
    for func, kind, argument, got in (
        (3, "linear", "func", "3"),
        ("tann", "pointwise", "func", "tann"),
        ("tan", "cubic", "kind", "'cubic'"),
        ("a b", "linear", "func", "a b"),
    ):
        with pytest.raises(omenn.InputError) as caught:
            omenn.rule(func, kind)  # type: ignore[arg-type]
        assert (caught.value.argument, caught.value.got) == (argument, got)
    with pytest.raises(omenn.InputError) as caught, omenn.rules(["tan"]):  # type: ignore[arg-type]
        pass
    assert caught.value.expected == "a dict of functions (or names) and kinds"
    omenn.rule("aminmax", "linear")
    with pytest.raises(omenn.UnsupportedOperator, match="for functions that return one tensor"):
        omenn.explain(lambda x: torch.aminmax(x, dim=1)[0], ROWS, lambda y: y)


# --- undone ------------------------------------------------------------------------------------


def refused(model: Any) -> bool:
    return not omenn.certify(model, ROWS.abs() + 1, 1).exact


def test_rules_are_taken_back() -> None:
    first = omenn.rule("i0", "pointwise")
    second = omenn.rule("i0", "linear")
    assert refused(torch.i0)  # linear it is not
    second.remove()
    assert not refused(torch.i0)
    third = omenn.rule("i0", "linear")
    first.remove()
    assert refused(torch.i0)
    third.remove()
    third.remove()
    with pytest.raises(omenn.UnsupportedOperator):
        omenn.explain(torch.i0, ROWS, 1)


def test_a_scope_ends_with_its_rules() -> None:
    with omenn.rules({"i0": "pointwise", "i0e": "pointwise"}):
        with omenn.rules({"i0": "linear"}):
            assert refused(lambda x: x.i0())
        omenn.rule("i1", "pointwise")
        assert not refused(lambda x: x.i0() + torch.special.i1(x) + torch.special.i0e(x))
    for model in (torch.i0, torch.special.i1, torch.special.i0e):
        assert refused(model)


def test_a_rule_replaces_one_of_the_engine_for_a_while() -> None:
    right = omenn.explain(torch.relu, ROWS, 1)
    with omenn.rules({"relu": "frozen"}):
        assert not omenn.explain(lambda x: x * torch.relu(x), ROWS, 1).weight[:, 0].any()
    assert torch.equal(omenn.explain(torch.relu, ROWS, 1).weight, right.weight)


FIRST = """
import torch, omenn
x, calls = torch.tensor([[0.5, -1.2]]), []
def twice(call):
    calls.append(call.operator)
    return call.run()
model = lambda x: torch.log(1 + torch.exp(x))
registered = omenn.rule("exp", twice)
try:
    omenn.explain(model, x, 1)
except omenn.UnsupportedOperator:
    pass
registered.remove()
assert calls == ["exp"]
e = omenn.explain(model, x, 1)
assert len(calls) == 1 and e.exact
assert torch.allclose(e.bias.sum(), torch.tensor(2.0).log())
"""


def test_a_rule_before_the_first_explanation_is_like_any_other() -> None:
    """Once it stood for the rule of the engine, in chains for as long as the process lived."""
    subprocess.run([sys.executable, "-c", FIRST], check=True, timeout=120)


# --- wrong rules -------------------------------------------------------------------------------


DROPPED: dict[str, Any] = {
    "value": lambda call: call.value(),
    "constant": lambda call: torch.ones_like(call.value()),
    "detached": lambda call: call.run().detach(),
    "at zero": lambda call: call.at_zero(),
}


@pytest.mark.parametrize("name", DROPPED)
def test_a_rule_that_drops_the_input_is_refused(name: str) -> None:
    def model(x: Tensor) -> Tensor:
        return torch.xlogy(x.abs(), x.abs()) + x

    with omenn.rules({"xlogy": DROPPED[name]}):
        with pytest.raises(omenn.UnsupportedOperator) as caught:
            omenn.explain(model, ROWS, 0)
        assert caught.value.operator == "xlogy"
        certificate = omenn.certify(model, ROWS, 0)
        assert not certificate.exact
        assert certificate.violations
    with omenn.rules({"xlogy": "frozen"}):  # said on purpose, and told in the result
        e = omenn.explain(model, ROWS, 0)
        assert e.exact
        assert e.frozen_constants
        torch.testing.assert_close(e.weight[:, 0], torch.ones(3).double())


def test_methods_say_what_they_promise() -> None:
    assert omenn.methods()["omenn"].promise == "exact"
    assert "exact sum; arXiv 2412.02399" in str(omenn.methods()["omenn"])
