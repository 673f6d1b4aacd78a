"""Pointwise functions: φ(0) + ⟦(φ(x) − φ(0)) / x⟧ x, with φ′(0) at x = 0; and frozen ones."""

from __future__ import annotations

import cmath
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from omenn.core.autograd import scaled, times
from omenn.core.call import Call
from omenn.core.rules.linear import reduced
from omenn.core.rules.row import Row, rows, same, unlocated

# How readily an operator's output is frozen as a factor of a product.
GATE, BOUNDED = 2, 1
_RANKS = {"sigmoid": GATE, "hardsigmoid": GATE, "exp": GATE, "tanh": BOUNDED, "erf": BOUNDED}


def pointwise(call: Call) -> Tensor:
    """A smooth function of each element alone."""
    x = call.carried[0]
    for other in call.carried[1:]:
        if other is not x:
            call.constant(other)  # a parameter of the function (elu's alpha): refused
    call.rank = _RANKS.get(call.operator)
    at_zero, slope = _known_origin(call, x)
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
        result = call.run(lambda t: call.true(t)) if call.owner.create_graph else value
        coefficient = _secant(true, result, at_zero, slope)
    out = call.frozen(x, value, scaled if coefficient.is_complex() else times, coefficient)
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
        return call.rewritten(x, times, coefficient)
    before = before.clone()
    call.overwrite()
    return call.rewritten(x, times, _ratio(x.detach(), before, slope, out=before))


_GATES: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "hardsigmoid": F.hardsigmoid,
}


def _small(call: Call, x: Tensor) -> bool:
    plain = not (call.inplace or call.owner.create_graph or x.is_complex())
    return plain and x.numel() <= 65536


def _gate(call: Call, x: Tensor, at_zero: complex, slope: complex) -> Tensor:
    """A small gate, of which most are factors: its coefficient is made when it is asked for."""
    gate = _GATES[call.operator]

    def vjp(grad: Tensor, x: Tensor) -> Tensor:
        return grad * _secant(x, gate(x), at_zero, slope)

    value = call.value()
    return call.affine(x, value, vjp, value.new_full((), at_zero.real), x.detach().clone())


_ORIGINS: dict[Any, tuple[complex, complex]] = {}


def _known_origin(call: Call, x: Tensor) -> tuple[complex, complex]:
    """``_origin``, remembered for the functions of this table and their options."""
    if ROWS.get(call.operator) != call.owner.book.get(call.operator):
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


def power(call: Call) -> Any:
    """x^p for a constant p > 0 is pointwise; p < 0 is a frozen factor (as 1/x and 1/√x are)."""
    exponent = call.get("exponent")
    if call.is_carried(exponent) and not call.is_carried(call.get("input")):
        return pointwise(call)  # b^x
    if call.is_carried(exponent):
        raise call.refuse("an exponent that depends on the input")
    if isinstance(exponent, Tensor) and exponent.numel() == 1:
        exponent = float(exponent)
    if isinstance(exponent, Tensor):
        raise call.refuse("an exponent that differs between elements")
    if exponent <= 0:
        return frozen_value(call)
    if exponent == 1:
        return call.frozen(call.carried[0], call.value(), lambda grad: grad)
    if exponent == 2:
        return square(call)
    return pointwise(call)


def magnitude(call: Call) -> Tensor:
    """|x| = ⟦sign x⟧ x; of complex numbers Re(⟦conj(z)/|z|⟧ z)."""
    if not call.carried[0].is_complex():
        return call.run()
    x = call.carried[0]
    return call.frozen(x, call.value(), scaled, call.true(x).sgn().conj())


def square(call: Call) -> Tensor:
    """x² = ⟦x⟧ x."""
    x = call.carried[0]
    true = call.true(x)
    return call.frozen(x, call.value(), scaled, true.clone() if call.inplace else true)


def frozen_value(call: Call) -> Any:
    """No linear form through the origin (softmax, 1/x, log): held constant as a factor."""
    return call.hold()


def log_normalised(call: Call) -> Tensor:
    """log softmax(x) = x − ⟦log Σ exp x⟧."""
    x = call.carried[0]
    value, dtype = call.value(), x.dtype
    result = call.true_value()
    out = call.frozen(x, value, lambda grad: grad.to(dtype))
    return call.attach(out, result - call.true(x).to(result.dtype), frozen=True)


def parametric(call: Call) -> Tensor:
    """PReLU: the slope is a weight; native."""
    if call.is_carried(call.get("weight")):
        raise call.refuse("a slope that depends on the input")
    return call.run()


def normed(call: Call) -> Tensor:
    """‖x‖₂ = Σ ⟦x/‖x‖⟧ x; other norms are frozen constants."""
    p, x = call.get("p", "fro"), call.carried[0]
    if p not in (2, 2.0, "fro", None) or (p == 2 and _spectral(call, x)):
        return frozen_value(call)
    value = call.value()
    norm, true = call.true_value(), call.true(x)
    keep = _keep(call, x, norm)
    safe = torch.where(keep == 0, torch.ones_like(keep), keep)
    return call.frozen(x, value, _spread(call, x), true / safe)


def _spectral(call: Call, x: Tensor) -> bool:
    """Whether a 2 means the largest singular value: it does for matrices in ``torch.linalg``."""
    dim = call.get("dim")
    pair = len(dim) == 2 if isinstance(dim, (tuple, list)) else dim is None and x.ndim == 2
    return call.func is torch.linalg.matrix_norm or (call.func is torch.linalg.norm and pair)


def spread_out(call: Call) -> Any:
    """var = Σ ⟦(x − μ)/n⟧ x; std divides by ⟦std⟧ again."""
    x = call.carried[0]
    value, true = call.value(), call.true(x)
    spread = call.true_value()
    keep = _keep(call, x, spread)
    dims = _dims(call, x)
    centred = true - true.mean(dims, keepdim=True)
    total = (centred * centred).sum(dims, keepdim=True)
    # The divisor (n or n − 1) is read off the value itself, whatever the spelling of it.
    target = keep if call.operator == "var" else keep * keep
    inverse = torch.where(total == 0, torch.zeros_like(total), target / total)
    if call.operator == "std":
        inverse = inverse / torch.where(keep == 0, torch.ones_like(keep), keep)
    return call.frozen(x, value, _spread(call, x), centred * inverse)


def mean_of_numbers(call: Call) -> Any:
    """``nanmean``: Σ ⟦1/n⟧ x over the n elements that are numbers."""
    if not call.owner.finite:
        return call.run()
    x, dims = call.carried[0], _dims(call, call.carried[0])
    counted = call.true(x).isnan().logical_not()
    count = counted.sum(dims, keepdim=True)
    return call.frozen(x, call.value(), _spread(call, x), counted.to(x.dtype) / count)


def variance_and_mean(call: Call) -> Any:
    raise call.refuse(
        "variance and mean in one call have no rule", "Use x.var(...) and x.mean(...)."
    )


def _dims(call: Call, x: Tensor) -> list[int]:
    dim = call.get("dim")
    if dim is None and call.func is torch.linalg.matrix_norm:
        dim = (-2, -1)
    if dim is None or isinstance(dim, bool) or (isinstance(dim, (list, tuple)) and not dim):
        return list(range(x.ndim))
    return [d % x.ndim for d in (dim if isinstance(dim, (list, tuple)) else [dim])]


def _keep(call: Call, x: Tensor, reduced_value: Tensor) -> Tensor:
    """The reduced value with the reduced dimensions kept as 1."""
    dims = _dims(call, x)
    return reduced_value.reshape([1 if d in dims else n for d, n in enumerate(x.shape)])


def _spread(call: Call, x: Tensor) -> Any:
    dims = _dims(call, x)
    shape = [1 if d in dims else n for d, n in enumerate(x.shape)]
    return lambda grad, coefficient: grad.reshape(shape) * coefficient


ROWS: dict[str, Row] = (
    rows(
        "gelu silu elu softplus mish tanh sigmoid logsigmoid hardsigmoid hardswish softsign erf "
        "tanhshrink softshrink sin cos atan sinh asinh expm1 log1p exp sqrt erfc cosh exp2",
        pointwise,
        same,
    )
    | rows("pow", power, same)
    | rows("rpow", pointwise, same)
    | rows("square", square, same)
    | rows("relu leaky_relu rrelu deg2rad rad2deg", lambda call: call.run(), same)
    | rows("abs", magnitude, same)
    | rows("prelu", parametric, same)
    | rows("softmax rsqrt reciprocal log log2 log10 sign sgn", frozen_value, same)
    | rows("floor ceil round trunc frac", frozen_value, same)
    | rows("logsumexp", frozen_value, reduced)
    | rows("log_softmax", log_normalised, same)
    | rows("norm", normed, reduced)
    | rows("nanmean", mean_of_numbers, reduced)
    | rows("var std", spread_out, reduced)
    | rows("var_mean std_mean", variance_and_mean, unlocated)
)
