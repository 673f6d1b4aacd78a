"""The rule of a chain of pointwise operators: φ(0) + ⟦(φ(x) − φ(0))/x⟧ x, as of any of them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from omenn.engine.operators.record import Operator, same

if TYPE_CHECKING:
    from omenn.engine.trace.chains import Chain


def secant(call: Chain) -> Tensor:
    """(φ(x) − φ(0))/x, and φ′(0) where x is (nearly) zero."""
    x, at_zero = call.true(call.active[0]), call.at_origin
    y = call.run(call.true) if call.context.create_graph else call.value()
    # φ(x) − φ(0) cancels near zero; below √ε the slope is exact to ε.
    near = x.abs() <= (math.sqrt(torch.finfo(x.dtype).eps) if bool(at_zero.any()) else 0.0)
    ratio = (y - at_zero) / torch.where(near, torch.ones_like(x), x)
    return torch.where(near, call.slope.to(ratio.dtype), ratio)


def scaled(call: Chain, coefficient: Tensor) -> Tensor:
    """φ(x) with a constant coefficient for its way back."""
    x = call.active[0]
    dtype = x.dtype  # a chain may compute in another type than it starts in
    vjp = lambda grad, own: (grad * own).to(dtype)  # noqa: E731
    return call.frozen(x, call.value(), vjp, coefficient)


def frozen_chain(call: Any) -> Tensor:
    """The secant from the origin, and φ(0) as a constant."""
    out = scaled(call, secant(call))
    return call.attach(out, call.at_origin) if bool(call.at_origin.any()) else out


FROZEN_CHAIN = Operator(frozen_chain, same)
