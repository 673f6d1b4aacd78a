"""Pointwise functions: φ(0) + ⟦(φ(x) − φ(0)) / x⟧ x, with φ′(0) at x = 0."""

from __future__ import annotations

import cmath
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from omenn.engine.operators import degrees
from omenn.engine.operators.coefficients import frozen_value
from omenn.engine.operators.record import Operator, named, same
from omenn.engine.trace.autograd_nodes import scaled
from omenn.engine.trace.call import Call

# How readily an operator's output is frozen as a factor of a product.
LOGARITHM, GATE, BOUNDED = 3, 2, 1


def pointwise(call: Call) -> Tensor:
    """A smooth function of each element alone."""
    x = call.active[0]
    for other in call.active[1:]:
        if other is not x:
            call.constant(other)  # a parameter of the function (elu's alpha): refused
    at_zero, slope = origin(call, x)
    if not cmath.isfinite(at_zero):
        raise call.refuse("a function that is not finite at zero has no form through the origin")
    closed = None if x.is_complex() else _CLOSED.get(call.operator)
    if call.operator in _GATES and _small(call, x):
        return _gate(call, x, at_zero, slope)
    if at_zero == 0 and call.inplace and call.writable and not x.is_complex():
        return _overwritten(call, x, slope, closed)
    value, true = call.value(), call.true(x)
    if closed is not None:
        coefficient = closed(true)
    else:
        result = call.again(call.true) if call.context.create_graph else value
        coefficient = _secant(true, result, at_zero, slope)
    out = call.frozen(x, value, scaled, coefficient)
    if at_zero == 0:
        return out
    return call.attach(out, torch.as_tensor(at_zero, dtype=out.dtype, device=out.device))


# φ(x)/x where it has a form of its own, with no division and right at zero.
_CLOSED: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": torch.sigmoid,
    "hardswish": F.hardsigmoid,
}


def _overwritten(
    call: Call, x: Tensor, slope: complex, closed: Callable[[Tensor], Tensor] | None
) -> Tensor:
    """The in-place form of a function through the origin: one copy, which becomes φ(x)/x."""
    before = x.detach()
    if closed is not None:
        coefficient = closed(before)
        call.overwrite()
        return call.rewritten(x, scaled, coefficient)
    before = before.clone()
    call.overwrite()
    return call.rewritten(x, scaled, _ratio(x.detach(), before, slope, out=before))


_GATES: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "hardsigmoid": F.hardsigmoid,
}


def _small(call: Call, x: Tensor) -> bool:
    plain = not (call.inplace or call.context.create_graph or x.is_complex())
    return plain and x.numel() <= 65536


def _gate(call: Call, x: Tensor, at_zero: complex, slope: complex) -> Tensor:
    """A small gate, of which most are factors: its coefficient is made when it is asked for."""
    gate = _GATES[call.operator]

    def vjp(grad: Tensor, x: Tensor) -> Tensor:
        return grad * _secant(x, gate(x), at_zero, slope)

    value = call.value()
    return call.affine(x, value, vjp, value.new_full((), at_zero.real), x.detach().clone())


_ORIGINS: dict[Any, tuple[complex, complex]] = {}


def origin(call: Call, x: Tensor) -> tuple[complex, complex]:
    """φ(0) and φ′(0), remembered for the functions of this table and their options."""
    if RECORDS.get(call.operator) is not call.known:
        return _origin(call, x)
    options = (*call.args[1:], *call.kwargs.items())
    if any(isinstance(t, Tensor) for t in (*call.args[1:], *call.kwargs.values())):
        return _origin(call, x)
    key = (call.func, x.dtype, x.device.type, options)
    try:
        found = _ORIGINS.get(key)
    except TypeError:  # an option that cannot be a key
        return _origin(call, x)
    if found is None:
        if len(_ORIGINS) > 500:
            _ORIGINS.clear()
        found = _ORIGINS[key] = _origin(call, x)
    return found


def _origin(call: Call, x: Tensor) -> tuple[complex, complex]:
    """φ(0) and φ′(0), from the operator itself."""
    with torch.enable_grad():
        zero = torch.zeros(1, dtype=x.dtype, device=x.device, requires_grad=True)
        try:
            y = call.run(lambda t: zero * 1 if t is x else t.detach())
            (slope,) = torch.autograd.grad(y, zero, torch.ones_like(y))
        except NotImplementedError:  # an in-place twin without a derivative: it matters at 0 only
            return _numerical_origin(call, x)
    if y.numel() != 1:
        raise call.refuse("a function that differs between elements is not pointwise")
    return y.detach().item(), slope.conj().item()


def _numerical_origin(call: Call, x: Tensor) -> tuple[float, float]:
    """φ(0) and φ′(0) by central differences."""
    step = torch.finfo(x.dtype).eps ** (1 / 3)
    points = torch.tensor([0.0, step, -step], dtype=x.dtype, device=x.device)
    with torch.no_grad():
        y = call.run(lambda t: points if t is x else t.detach())
    return float(y[0]), float((y[1] - y[2]) / (2 * step))


def _secant(x: Tensor, y: Tensor, at_zero: complex, slope: complex) -> Tensor:
    """(φ(x) − φ(0)) / x, and φ′(0) where x is (nearly) zero."""
    slope = slope if cmath.isfinite(slope) else 0.0  # √x at 0: the value is 0 whatever the slope
    if at_zero == 0 and not (y.requires_grad or y.is_complex()):
        return _ratio(y, x, slope)
    # y − φ(0) cancels near zero; below √ε the slope is exact to ε.
    near = x.abs() <= (math.sqrt(torch.finfo(x.dtype).eps) if at_zero else 0.0)
    safe = torch.where(near, torch.ones_like(x), x)
    return torch.where(near, torch.full_like(x, slope), (y - at_zero) / safe)


def _ratio(y: Tensor, x: Tensor, slope: complex, out: Tensor | None = None) -> Tensor:
    """φ(x)/x, and φ′(0) at zero. It loses no digits near zero; 0/0 is the only way to a NaN."""
    ratio = torch.div(y, x, out=out)
    # On a CPU a sum, which only reads, tells cheaper than a second pass whether there is any.
    if ratio.device.type == "cpu" and math.isfinite(ratio.sum().item()):
        return ratio
    slope = slope if cmath.isfinite(slope) else 0.0
    return ratio.nan_to_num_(nan=slope.real, posinf=math.inf, neginf=-math.inf)


def secant_through_origin(y: Tensor, x: Tensor) -> Tensor:
    """φ(x)/x of y = φ(x) with φ(0) = 0 and φ′(0) = 1."""
    return _ratio(y, x, 1.0)


def power(call: Call) -> Any:
    """x^p for a constant p > 0 is pointwise; p < 0 is a frozen factor (as 1/x and 1/√x are)."""
    exponent = call.get("exponent")
    if call.is_active(exponent) and not call.is_active(call.get("input")):
        return pointwise(call)  # b^x
    if call.is_active(exponent):
        raise call.refuse("an exponent that depends on the input")
    if isinstance(exponent, Tensor) and exponent.numel() == 1:
        exponent = float(exponent)
    if isinstance(exponent, Tensor):
        raise call.refuse("an exponent that differs between elements")
    if exponent <= 0:
        return frozen_value(call)
    if exponent == 1:
        return call.frozen(call.active[0], call.value(), lambda grad: grad)
    if exponent == 2:
        return square(call)
    return pointwise(call)


def magnitude(call: Call) -> Tensor:
    """|x| = ⟦sign x⟧ x; of complex numbers Re(⟦conj(z)/|z|⟧ z)."""
    if not call.active[0].is_complex():
        return call.run()
    x = call.active[0]
    return call.frozen(x, call.value(), scaled, call.true(x).sgn().conj())


def square(call: Call) -> Tensor:
    """x² = ⟦x⟧ x."""
    x = call.active[0]
    true = call.true(x).clone() if call.inplace else call.true(x)  # NOTE [outlive the write]
    return call.frozen(x, call.value(), scaled, true)


# Functions that are infinite at zero: where they are zero, and their slope there.
_ROOTS: dict[str, tuple[float, float]] = {
    "log": (1, 1),
    "log2": (1, 1 / math.log(2)),
    "log10": (1, 1 / math.log(10)),
    "logit": (0.5, 4),
    "acosh": (1, 0),  # infinite in truth; the value is 0 whatever the slope
    "ndtri": (0.5, math.sqrt(2 * math.pi)),
}


def rooted(call: Call) -> Tensor:
    """φ(x) = ⟦φ(x)/(x − r)⟧ (x − r) for a function with the root r and without a value at zero.

    As a factor of a product it is frozen before anything else. Of a sum of exponentials it is
    frozen, as ``logsumexp`` is: a log-softmax that is written out is the logit less a constant.
    """
    x, (root, slope) = call.active[0], _ROOTS[call.operator]
    mark = call.mark(x)
    if mark is not None and mark.boundedness == GATE and not call.context.curved(x):
        return call.freeze()
    call.boundedness = LOGARITHM
    value, true = call.value(), call.true(x)
    away = true - root
    ratio = call.true_value() / torch.where(away == 0, torch.ones_like(away), away)
    coefficient = torch.where(away == 0, torch.full_like(ratio, slope), ratio)
    # log 0 reaches no finite output; neither may its coefficient.
    known = coefficient.isfinite()
    coefficient = torch.where(known, coefficient, torch.zeros_like(coefficient))
    out = call.frozen(x, value, scaled, coefficient)
    return call.attach(out, -root * coefficient, frozen=True)


def parametric(call: Call) -> Tensor:
    """PReLU: ⟦1 or the slope⟧ x. The native node has one slope at zero forth, another one back."""
    x, weight = call.active[0], call.get("weight")
    if call.is_active(weight):
        raise call.refuse("a slope that depends on the input")
    slope = call.constant(weight)
    if slope.numel() > 1:
        slope = slope.reshape(-1, *[1] * (x.ndim - 2))
    true = call.true(x)
    coefficient = torch.where(true > 0, torch.ones_like(true), slope.to(true.dtype))
    return call.frozen(x, call.value(), scaled, coefficient)


_POINTWISE = Operator(pointwise, same, kind="pointwise", link="smooth")
_SMOOTH, _BOUNDED = (replace(_POINTWISE, degree=d) for d in (degrees.smooth, degrees.bounded))
_ACTIVATION = replace(_SMOOTH, replacement="activations")
_GATED = replace(_BOUNDED, bounded=GATE)
_ROOTED = Operator(rooted, same, degree=degrees.bounded)

RECORDS: dict[str, Operator] = {
    **named(_ACTIVATION, "gelu silu softplus mish hardswish logsigmoid softsign tanhshrink"),
    "elu": replace(_ACTIVATION, names="selu celu", replaced="elu selu celu"),
    "tanh": replace(_ACTIVATION, degree=degrees.bounded, bounded=BOUNDED),
    "softshrink": replace(_ACTIVATION, degree=degrees.clipped, link="power"),
    "sigmoid": replace(_GATED, names="expit", replacement="gates"),
    "hardsigmoid": replace(_GATED, replacement="gates"),
    **named(_GATED, "exp ndtr"),
    "erf": replace(_GATED, bounded=BOUNDED),
    **named(_SMOOTH, "sinh expm1 tan erfinv entr log_ndtr"),
    "asin": replace(_SMOOTH, names="arcsin"),
    "asinh": replace(_SMOOTH, names="arcsinh", only_out_of_place=True),
    "atanh": replace(_SMOOTH, names="arctanh", only_out_of_place=True),
    "log1p": replace(_SMOOTH, link="power"),
    "sqrt": replace(_SMOOTH, degree=0.5, link="power"),
    **named(_BOUNDED, "sin cos cosh erfc erfcx exp2 sinc"),
    "acos": replace(_BOUNDED, names="arccos"),
    "atan": replace(_BOUNDED, names="arctan"),
    "rpow": replace(_BOUNDED, names="__rpow__", exchanged="__rpow__"),
    **named(replace(_ROOTED, link="frozen"), "log log2 log10"),
    **named(_ROOTED, "logit ndtri"),
    "acosh": replace(_ROOTED, names="arccosh", only_out_of_place=True),
    **named(
        Operator(Call.run, same, 1, kind="pointwise", true=True, link="bent"), "relu leaky_relu"
    ),
    "rrelu": Operator(Call.run, same, degrees.random, kind="pointwise", true=True),
    "prelu": Operator(
        parametric,
        same,
        degrees.sloped,
        kind="pointwise",
        arguments="input weight",
        factors="weight",
        link="bent",
    ),
    "abs": Operator(magnitude, same, 1, kind="pointwise", names="__abs__ absolute", link="bent"),
    "square": Operator(square, same, 2, kind="pointwise", link="power"),
    **named(Operator(Call.run, same, 1, true=True, link="linear"), "deg2rad rad2deg"),
    "pow": Operator(
        power,
        same,
        degrees.power,
        names="__pow__ __ipow__ float_power",
        arguments="input exponent",
        link="power",
    ),
}
