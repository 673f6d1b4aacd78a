"""Linear systems: linear in the right-hand side, at a frozen matrix."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from omenn.engine.operators import degrees
from omenn.engine.operators.coefficients import frozen_value
from omenn.engine.operators.record import Operator
from omenn.engine.trace.call import Call


def solved(call: Call) -> Any:
    """⟦A⟧⁻¹ B, or B ⟦A⟧⁻¹."""
    a, b = call.get("A"), call.get("B")
    if not call.is_active(b):
        return call.freeze()
    left = call.get("left", True)
    vector = call.operator == "solve" and _vector(a, b)
    shape, options = b.shape, {"left": left}
    if call.operator == "solve_triangular":
        options |= {
            "upper": not call.get("upper"),
            "unitriangular": call.get("unitriangular", False),
        }

    def vjp(grad: Tensor, a: Tensor) -> Tensor:
        if call_solve is torch.linalg.solve and vector:
            return call_solve(a.mH, grad.unsqueeze(-1)).squeeze(-1).sum_to_size(shape)
        return call_solve(a.mH, grad, **options).sum_to_size(shape)

    call_solve = getattr(torch.linalg, call.operator)
    return call.frozen(b, call.value(), vjp, call.true(a))


def _vector(a: Tensor, b: Tensor) -> bool:
    """Whether ``solve`` takes B for a vector, or a batch of them: its own rule."""
    return b.ndim == 1 or (a.ndim - 1 == b.ndim and b.shape == a.shape[:-1])


def factored(call: Call) -> Any:
    """``cholesky_solve``: (L Lᵀ)⁻¹ B at a frozen factor L; symmetric."""
    b, factor = call.get("B"), call.get("L")
    if not call.is_active(b):
        return call.freeze()
    upper, shape = bool(call.get("upper")), b.shape

    def vjp(grad: Tensor, factor: Tensor) -> Tensor:
        return torch.cholesky_solve(grad, factor, upper).sum_to_size(shape)

    return call.frozen(b, call.value(), vjp, call.true(factor))


_SOLVED = Operator(solved, degree=degrees.solved, arguments="A B")
_INVERSE = Operator(frozen_value, degree=-1)

RECORDS: dict[str, Operator] = {
    "solve": _SOLVED,
    "solve_triangular": _SOLVED,
    "cholesky_solve": replace(_SOLVED, rule=factored, arguments="B L upper"),
    "inv": replace(_INVERSE, names="inverse"),
    "pinv": replace(_INVERSE, names="pinverse"),
}
