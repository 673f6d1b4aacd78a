"""Operators with their true derivative, as rules: what it leaves of the value is kept.

y = J x + t with the Jacobian J at x: relevance passes by J, and t is what the rule keeps (NOTE
[kept shares]). ``pointwise_rows``, ``norm_rows`` and ``softmax_rows`` are parts of a table for
element-wise functions, for normalisations and for the weights of attention, as one operator or
spelled out in several.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from omenn.attribution.attnlrp import (
    CURVES,
    attention,
    differentiated,
    inputs_of,
    passed_on,
    taylor,
)
from omenn.attribution.lrp_layers import leaf_of
from omenn.attribution.rule_table import ruled
from omenn.engine.operators.chain import FROZEN_CHAIN
from omenn.engine.operators.stable import fits
from omenn.engine.operators.table import OPERATORS, Operator, of_kind
from omenn.engine.trace.autograd_nodes import scaled
from omenn.engine.trace.call import Call

Rows = dict[str, Operator]
RuleOf = Callable[[Call], Any]

# How readily 1/σ is frozen as a factor, which tells it from the others.
DIVISOR = 4
_NEAR = 1e-3  # a constant may be added to a sum of exponentials


def frozen(call: Call) -> Any:
    """The rule of the frozen table."""
    return OPERATORS[call.operator].rule(call)


def tangent(call: Call) -> Any:
    """An element-wise function by its tangent: ⟦φ′(x)⟧ x, and φ(x) − φ′(x) x is kept."""
    x, again = call.active[0], call.context.create_graph
    if len(inputs_of(call)) > 1 or x.is_complex():
        return OPERATORS.get(call.operator, FROZEN_CHAIN).rule(call)
    value, true = call.value(), call.true(x)
    with torch.enable_grad():
        leaf = leaf_of(true)
        y = call.again(lambda t: leaf * 1 if t is x else call.constant(t))
    (slope,) = torch.autograd.grad(y, leaf, torch.ones_like(y), create_graph=again)
    slope = torch.where(slope.isfinite(), slope, 0)  # √x at 0: the value is 0 whatever the slope
    kept = y - slope * true if again else (y - slope * leaf).detach()
    dtype = x.dtype  # a chain may compute in another type than it starts in
    out = call.frozen(x, value, lambda grad, slope: scaled(grad, slope).to(dtype), slope)
    return call.attach(out, kept) if call.collects else out


def pointwise_rows() -> Rows:
    """Smooth functions of each element; what is linear in parts, as ReLU and clipping, is so."""
    rows = ruled([*CURVES, "square"], tangent) | ruled("pow", _power(lambda p: p > 0))
    return rows | {"chain": FROZEN_CHAIN.with_rule(tangent)}


def identity_rows() -> Rows:
    """Relevance passes functions of each element unchanged, and clipping towards zero, too."""
    return passed_on(1e-9) | ruled("clamp", _unclipped)


def _unclipped(call: Call) -> Any:
    """⟦y/x⟧ x where x was clipped towards zero, as by ReLU6; elsewhere as in the frozen table."""
    x = call.active[0]
    value, true = call.value(), call.true(x)
    if len(inputs_of(call)) > 1 or value.shape != x.shape:
        return frozen(call)
    y = call.true_value() if call.context.create_graph else value
    less = (y.abs() <= true.abs()) & (y * true > 0)
    share = torch.where(less, y / torch.where(less, true, 1), (y == true).to(y.dtype))
    kept = y - share * true
    out = call.frozen(x, value, scaled, share)
    return call.attach(out, kept) if call.collects else out


def _power(applies: Callable[[float], bool]) -> RuleOf:
    """x^p by its tangent for some of the numbers p; a negative power is a divisor."""

    def rule(call: Call) -> Any:
        p = call.get("exponent")
        p = float(p) if isinstance(p, Tensor) and p.numel() == 1 and not call.marked[1:] else p
        plain = isinstance(p, (int, float)) and p not in (0, 1) and applies(p)
        if not plain:
            return frozen(call)
        return _divisor(call) if p < 0 else tangent(call)

    return rule


# --- normalisations ------------------------------------------------------------------------------


def norm_rows(rows: Rows) -> Rows:
    """Normalisations, over the ``rows`` that there are for element-wise functions.

    Spelled out they are made of squares, moments, roots, inverses and quotients, which are all
    differentiated, and of products with an inverse.
    """
    kinds = of_kind("normalisation", "rescaling")
    whole = [name for name in kinds if not (OPERATORS[name].composite or OPERATORS[name].true)]
    found = ruled(whole, _normalised) | ruled("var", differentiated)
    found |= ruled("square sqrt", tangent) | ruled("rsqrt reciprocal", _divisor)
    passes = "pow" in rows  # by its tangent already
    found |= ruled("pow", _power(lambda p: passes or p < 0 or p in (0.5, 2)))
    found |= ruled("mul", _multiplied) | ruled("div", _divided)
    if "chain" in rows:
        found["chain"] = FROZEN_CHAIN.with_rule(_root_or(rows["chain"].rule))
    return rows | found


def _normalised(call: Call) -> Any:
    """A normalisation; one whose scale or shift depends on the input is taken apart first."""
    alone = len(inputs_of(call)) == 1 and call.is_active(call.get("input"))
    return differentiated(call) if alone else frozen(call)


def _divisor(call: Call) -> Any:
    """1/σ and 1/√(σ² + ε), which are active here: a product with them is differentiated."""
    if call.active[0].is_complex():
        return frozen(call)
    call.boundedness = DIVISOR
    return tangent(call)


def _root_or(rule: RuleOf) -> RuleOf:
    """√(σ² + ε), which is a function in two operators, is differentiated as a root is."""

    def chain(call: Any) -> Any:
        return tangent(call) if call.last.operator in ("sqrt", "pow") else rule(call)

    return chain


def _multiplied(call: Call) -> Any:
    """a ⊙ b with an inverse among them, or a ⊙ a, by the derivative of both."""
    if any(t.is_complex() for t in call.active):
        return frozen(call)
    factors = inputs_of(call)
    if len(factors) == 1:
        twice = call.get("input") is call.get("other")
        return differentiated(call) if twice else frozen(call)
    marks = [call.mark(t) for t in factors]
    inverses = sum(m is not None and m.boundedness >= DIVISOR for m in marks)
    return differentiated(call) if inverses == 1 and not elementwise(call) else frozen(call)


def _divided(call: Call) -> Any:
    """a / b by the derivative of both."""
    a, b = call.get("input"), call.get("other")
    a, b = (b, a) if call.reverse else (a, b)
    plain = not call.get("rounding_mode") and a is not b and call.is_active(b)
    if not plain or elementwise(call) or any(t.is_complex() for t in call.active):
        return frozen(call)
    if not call.is_active(a):
        call.boundedness = DIVISOR
    return differentiated(call)


def elementwise(call: Call) -> bool:
    """Whether both arguments are made of one tensor element by element: it is no normalisation."""
    return call.link is not None and len(call.link.parents) > 1


# --- softmax -------------------------------------------------------------------------------------


def softmax_rows(rows: Rows) -> Rows:
    """The weights of attention by their Taylor rule, over the ``rows`` that there are.

    As in AttnLRP weights and values share in halves, and so do query and key; a softmax is
    recognised where it is one operator, and where it is exp(z) / Σ exp(z).
    """
    plain = OPERATORS["softmax"].with_rule(differentiated, bounded=0)
    found = {"softmax": plain, **ruled("scaled_dot_product_attention", attention)}
    exp, div = (rows.get(name, OPERATORS[name]) for name in ("exp", "div"))
    found["exp"] = exp.with_rule(_noted(exp.rule))
    found["div"] = div.with_rule(_quotient(div.rule))
    return rows | found


_EXPONENTIALS = "exponentials"  # the note: what is exp(z), id → (it, z, version of z)


def _noted(rule: RuleOf) -> RuleOf:
    """``rule``, with a note of what the exponential was taken of."""

    def exponential(call: Call) -> Any:
        z, out = call.active[0], rule(call)
        if not call.inplace:
            notes = call.context.notes.setdefault(_EXPONENTIALS, {})
            # Weak, as NOTE [no cycle] wants it: the chains keep the last tensors for a while.
            notes[id(out)] = (weakref.ref(out), weakref.ref(z), z._version)
        return out

    return exponential


def _quotient(rule: RuleOf) -> RuleOf:
    """exp(z) / Σ exp(z) is a softmax of z, any other quotient is by ``rule``."""

    def divided(call: Call) -> Any:
        found = _exponent(call)
        if found is None:
            return rule(call)
        z, mark, dims = found
        call.marked.append((z, mark))
        call.active.append(z)
        if call.flow is not None:
            call.flow.starts_at(z)
        call.boundedness = 0

        def run(leaf: Callable[[Tensor], Tensor], _: Any) -> Tensor:
            logits = leaf(z)
            e = torch.exp(logits - logits.detach().amax(dims, keepdim=True))
            return e / e.sum(dims, keepdim=True)

        return taylor(call, run, [z])

    return divided


def _exponent(call: Call) -> tuple[Tensor, Any, list[int]] | None:
    """z, its mark and the dimensions of the sum, if a call is exp(z) / Σ exp(z)."""
    a, b = call.get("input"), call.get("other")
    a, b = (b, a) if call.reverse else (a, b)
    known = call.context.notes.get(_EXPONENTIALS, {}).get(id(a))
    if known is None or known[0]() is not a or not call.is_active(b) or call.inplace:
        return None
    z = known[1]()
    mark = None if z is None or z._version != known[2] else call.context.mark_of(z)
    if mark is None or not fits(b, a.shape):
        return None
    dims = [d for d in range(-a.ndim, 0) if a.shape[d] > 1 and (-d > b.ndim or b.shape[d] == 1)]
    whole = a.detach().sum(dims, keepdim=True) if dims else None
    near = whole is not None and torch.allclose(b.detach().expand_as(whole), whole, _NEAR, 0)
    return (z, mark, dims) if near and z is not None else None
