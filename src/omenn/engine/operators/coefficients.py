"""Operators with no linear form through the origin: constants, or what is left beside one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from omenn.engine.operators import degrees
from omenn.engine.operators.linear import reduced
from omenn.engine.operators.record import Operator, named, same
from omenn.engine.trace.call import Call


def frozen_value(call: Call) -> Any:
    """No linear form through the origin (softmax, 1/x): held constant as a factor."""
    return call.freeze()


def remaining(call: Call) -> Tensor:
    """x mod y = x − ⟦y · (x div y)⟧: the slope is one."""
    x = call.active[0]
    numbers = [a for a in (*call.args, *call.kwargs.values()) if isinstance(a, (int, float))]
    if numbers and call.context.create_graph and (call.reverse or call.first is numbers[0]):
        # PyTorch has a derivative by the divisor of tensors alone.
        call.result_frozen, value = True, call.value()
        return torch.remainder(torch.full_like(value, numbers[0]), call.true(x))
    if len(call.active) > 1 or call.first is not x or call.reverse:
        return call.freeze()
    value, rest = call.value(), call.true_value() - call.true(x)
    return call.attach(call.frozen(x, value, lambda grad: grad), rest, frozen=True)


def signed(call: Call) -> Tensor:
    """``copysign``: ⟦±1⟧ x."""
    x = call.active[0]
    if call.first is not x:
        return call.freeze()
    value, shape = call.value(), x.shape
    turned = torch.where(value.signbit() == x.detach().signbit(), 1.0, -1.0).to(value.dtype)
    return call.frozen(x, value, lambda grad, turned: (grad * turned).sum_to_size(shape), turned)


def log_normalised(call: Call) -> Tensor:
    """log softmax(x) = x − ⟦log Σ exp x⟧."""
    x = call.active[0]
    value, dtype = call.value(), x.dtype
    result = call.true_value()
    out = call.frozen(x, value, lambda grad: grad.to(dtype))
    return call.attach(out, result - call.true(x).to(result.dtype), frozen=True)


_FROZEN = Operator(frozen_value, same, degree=degrees.bounded)
_REST = Operator(remaining, same, degree=degrees.valued(1, "other"))
_CURVED = replace(_FROZEN, degree=degrees.smooth)

RECORDS: dict[str, Operator] = {
    "remainder": replace(_REST, names="__mod__ __rmod__ __imod__", exchanged="__rmod__"),
    "fmod": _REST,
    "copysign": Operator(signed, same, 1),
    "log_softmax": Operator(
        log_normalised,
        same,
        degrees.smooth,
        arguments="input dim",
        orders={"F.log_softmax": "input dim _stacklevel dtype"},
    ),
    "softmax": replace(
        _FROZEN,
        names="softmin",
        arguments="input dim",
        orders={"F.softmax": "input dim _stacklevel dtype"},
        replacement="attention",
    ),
    "gumbel_softmax": replace(_FROZEN, degree=degrees.random),
    "rsqrt": replace(_FROZEN, degree=-0.5, link="frozen"),
    "reciprocal": replace(_FROZEN, degree=-1, link="frozen"),
    **named(replace(_FROZEN, degree=0, link="step"), "sign sgn"),
    **named(_FROZEN, "floor ceil round frac"),
    "trunc": replace(_FROZEN, names="fix"),
    "floor_divide": replace(
        _FROZEN,
        names="__floordiv__ __rfloordiv__ __ifloordiv__",
        exchanged="__rfloordiv__",
        arguments="input other",
        degree=degrees.ratio,
        steps=True,
    ),
    "digamma": replace(_FROZEN, names="psi"),
    "heaviside": replace(_FROZEN, degree=degrees.stepped, steps=True),
    "atan2": replace(_FROZEN, names="arctan2", degree=degrees.told(degrees.same)),
    **named(_CURVED, "logaddexp logaddexp2 logcumsumexp"),
    "logsumexp": replace(_CURVED, placer=reduced, arguments="input dim keepdim"),
}
