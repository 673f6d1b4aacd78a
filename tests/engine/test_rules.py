"""Every operator of the frozen table against its dense Jacobian: opdb × oracle."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import omenn
from omenn.engine.operators.table import OPERATORS
from omenn.engine.trace import spelling, tracer
from omenn.engine.trace.tracer import Tracer
from opcases.case import Case
from opdb import CASES, dense, each_case
from oracle import Affine, flat


class Recorded(dict):
    """The table, noting which rows are asked for."""

    def __init__(self, table) -> None:
        super().__init__(table)
        self.seen: set[str] = set()

    def get(self, key, default=None):
        self.seen.add(key)
        return super().get(key, default)


def engine(case: Case, book=None, create_graph: bool = False) -> tuple[Tensor, Affine]:
    """The output, and W and b as autograd gives them inside of the frozen network."""
    leaves = [t.clone().requires_grad_() for t in case.inputs]
    mode = Tracer(rules=book, create_graph=create_graph)
    for leaf in leaves:
        mode.follow_own(leaf)
    with torch.enable_grad(), mode:
        y = case.call(*(leaf.clone() for leaf in leaves))
    rows = []
    for k in range(y.numel()):
        with torch.enable_grad():
            one = y.reshape(-1)[k]
        rows.append(flat(torch.autograd.grad(one, leaves, retain_graph=True,
                                             materialize_grads=True)))  # fmt: skip
    weight, value = torch.stack(rows).detach(), y.detach().reshape(-1)
    return y.detach(), Affine(weight, value - weight @ flat(case.inputs))


def close(got: Tensor, wanted: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance)


def direction(*shape: int) -> Tensor:
    return torch.linspace(-1, 1.3, int(torch.tensor(shape).prod()), dtype=torch.float64).view(shape)


def leading(case: Case, y: Tensor) -> bool:
    return case.samples and all(t.shape[0] == y.shape[0] for t in case.inputs)


def test_every_operator_has_a_case() -> None:
    missing = set(OPERATORS) - {case.operator for case in CASES}
    assert not missing, f"operators without a case in tests/opdb.py: {sorted(missing)}"
    assert not {case.operator for case in CASES} - set(OPERATORS)


# They change the precision or the device, are refused whatever they are given, or arrive under
# another name: Python's operators as methods, some functions as what they call.
NOT_CALLED = frozenset(
    "cuda half bfloat16 chalf as_strided_ __mod__ __imod__ __ifloordiv__ __add__ __iadd__ __radd__ "
    "__sub__ __isub__ __mul__ "
    "__imul__ __rmul__ __truediv__ __idiv__ __div__ __matmul__ upsample".split()
)
ELSEWHERE = {torch.nn.functional.sigmoid, torch.nn.functional.tanh, torch.solve, Tensor.solve}


@pytest.mark.slow  # every case once more
def test_every_spelling_is_called(monkeypatch) -> None:
    """The spelling table holds nothing that no case uses."""
    called: set[object] = set()

    class Asked(dict):
        def get(self, func, default=None):
            called.add(func)
            return super().get(func, default)

    asked = Asked(spelling.by_function())
    monkeypatch.setattr(tracer, "by_function", lambda: asked)
    for case in CASES:
        engine(case)
    missing = [
        f"{known.operator}: {getattr(func, '__qualname__', func)}"
        for func, known in spelling.by_function().items()
        if func not in called | ELSEWHERE and getattr(func, "__name__", "") not in NOT_CALLED
    ]
    assert not missing, f"spellings without a case: {missing}"


def test_no_two_cases_share_a_name() -> None:
    names = [case.id for case in CASES]
    assert len(names) == len(set(names)), sorted(n for n in set(names) if names.count(n) > 1)


@each_case()
def test_oracle_agrees_with_the_operator(case: Case) -> None:
    weight, bias = dense(case)
    close(
        weight @ flat(case.inputs) + bias,
        case.call(*case.fresh()).detach().reshape(-1),
        case.tolerance,
    )


@each_case()
def test_jacobian(case: Case) -> None:
    book = Recorded(OPERATORS)
    y, got = engine(case, book)
    assert case.operator in book.seen, "the case does not reach its operator"
    ordinary = case.call(*case.fresh()).detach()
    if any(OPERATORS[name].composite for name in book.seen if name in OPERATORS):
        close(y, ordinary, 1e-12)  # taken apart, so the last bit may differ
    else:
        assert torch.equal(y, ordinary), "the forward pass changed"
    wanted = dense(case)
    close(got.weight, wanted.weight, case.tolerance)
    close(got.bias, wanted.bias, case.tolerance)


@each_case()
def test_jacobian_when_differentiable(case: Case) -> None:
    y, got = engine(case, create_graph=True)
    wanted = dense(case)
    close(y, case.call(*case.fresh()).detach(), case.tolerance)
    close(got.weight, wanted.weight, case.tolerance)


@each_case()
def test_sum(case: Case) -> None:
    adds_up(case, "spatial")


@each_case(few=True)
def test_sum_of_other_biases(case: Case) -> None:
    adds_up(case, "uniform")
    adds_up(case, "separate")


def adds_up(case: Case, bias: Any) -> None:
    wanted = dense(case)
    v = direction(wanted.bias.numel())
    kept = case.fresh()
    e = omenn.explain(case.call, kept, lambda y: (y.reshape(-1) * v).sum(), bias=bias)
    weights = e.weight if isinstance(e.weight, tuple) else (e.weight,)
    close(flat(weights), v @ wanted.weight, 10 * case.tolerance)
    close(e.bias_share.sum(), v @ wanted.bias, 10 * case.tolerance)
    assert e.residual.abs() <= max(1e-9, case.tolerance) * (1 + e.magnitude)
    assert all(torch.equal(a, b) for a, b in zip(kept, case.inputs, strict=True))


@each_case([c for c in CASES if c.samples])
def test_samples_stay_apart(case: Case) -> None:
    """A constant added after the operator finds the way back to its own sample."""
    y = case.call(*case.fresh()).detach()
    shift, v = direction(*y.shape[1:]) + 0.1, direction(*y.shape)

    def model(*inputs: Tensor) -> Tensor:
        return case.call(*inputs) + shift

    e = omenn.explain(model, case.fresh(), lambda out: (out * v).reshape(len(out), -1).sum(1))
    assert (e.residual.abs() <= max(1e-9, case.tolerance) * (1 + e.magnitude)).all()
