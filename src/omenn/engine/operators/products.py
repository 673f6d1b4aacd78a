"""Products and quotients of tensors that depend on the input.

Of two factors the more bounded one is frozen (softmax and sigmoid before tanh before unbounded);
between equals half of each stays active: ½⟦a⟧b + ½a⟦b⟧. A quotient freezes its denominator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from omenn.engine.kernels.columns import connected
from omenn.engine.location.placers import added_place, einsum_place, matmul_place
from omenn.engine.operators import degrees
from omenn.engine.operators.record import Operator, contracted, named, same
from omenn.engine.trace.autograd_nodes import Halve, scaled
from omenn.engine.trace.call import Call, tensors_in

Sub = Callable[[Tensor], Tensor]


def freeze_factors(
    call: Call, factors: Sequence[Any], keep: int | None = None, base: Tensor | None = None
) -> Sub | None:
    """How to substitute the arguments so that the product of ``factors`` is linear.

    None if at most one factor depends on the input. ``keep``: the index of the factor that
    stays active, whatever the others are. ``base``: an argument that is added and stays as it is.
    """
    active = [f for f in factors if call.is_active(f)]
    if len(active) < 2 and keep is None:
        return None
    if keep is not None:
        kept = [factors[keep]]
    else:
        kept = _kept_active(call, active)
    half = len(kept) == 2

    def sub(t: Tensor) -> Tensor:
        if t is base:
            return t
        if any(t is f for f in kept):
            own = t.clone() if call.inplace else t
            return Halve.apply(own) if half else t  # type: ignore[return-value]
        if any(t is f for f in active):
            return call.true(t)
        return t if call.is_active(t) else call.constant(t)

    return sub


def _kept_active(call: Call, active: list[Tensor]) -> list[Tensor]:
    """The factors that stay: the least bounded; ties as the option ``products`` says."""
    if len(active) > 2:
        raise call.refuse("a product of more than two tensors that depend on the input")
    bounds = [m.boundedness for f in active for m in [call.mark(f)] if m is not None]
    if bounds[0] != bounds[1] and call.context.freeze_bounded:
        return [active[bounds.index(min(bounds))]]
    if active[0] is active[1]:
        return active
    products = call.context.products
    return {"half": active, "left": active[:1], "right": active[1:]}[products]


def bilinear(call: Call, factors: Sequence[Any], base: Tensor | None = None) -> Tensor:
    """The native product with its factors frozen as ``freeze_factors`` says."""
    sub = freeze_factors(call, factors, base=base)
    if sub is None:
        return call.run()
    if not (call.inplace and any(call.first is f for f in factors)):
        return _product(call, factors, sub, base)
    # NOTE [outlive the write]: a factor is a coefficient as well.
    func, call.func = call.func, getattr(torch, call.operator)
    out = _product(call, factors, lambda t: _copied(sub(t)) if t is call.first else sub(t), base)
    call.func = func
    return call.written(call.first, out)


def _copied(factor: Tensor) -> Tensor:
    return factor if factor.requires_grad else factor.clone()


def _product(call: Call, factors: Sequence[Any], sub: Sub, base: Tensor | None) -> Tensor:
    """½⟦a⟧b + ½a⟦b⟧ at once, or in two terms: NOTE [differentiated again]."""
    if not (call.context.create_graph and sum(call.is_active(f) for f in factors) == 2):
        return call.run(sub)
    first, second = [f for f in factors if call.is_active(f)]
    kept = _kept_active(call, [first, second])
    total: Any = None
    for k, keep in enumerate((first, second)):
        if not any(keep is c for c in kept):
            continue
        seen = 0

        def one(t: Tensor, keep: Tensor = keep, k: int = k) -> Tensor:
            nonlocal seen
            if t is base:
                return t
            if t is first and t is second:
                seen += 1
                if seen - 1 != k:
                    return call.true(t)
            if t is keep:
                return t.clone() if call.inplace else t
            return call.true(t) if call.is_active(t) else call.constant(t)

        part = call.run(one) / len(kept)
        total = part if total is None else total + part
    return total


def multiplied(call: Call) -> Tensor:
    """a ⊙ b, a b (matrix product): one factor linear, two by the product rule."""
    left, right = call.get("input"), call.get("other")
    v = call.active[0]
    near = v if len(call.active) > 1 or call.operator == "mul" else connected(call, v)
    if near is v:
        out = bilinear(call, [left, right])
    else:  # the weights of an attention and its values
        out = call.run(lambda t: near if t is v else call.constant(t))
    _keep_rank(call, [left, right])
    return out


def _keep_rank(call: Call, factors: Sequence[Any]) -> None:
    """A bounded tensor times a constant stays bounded; a product with an unbounded one is not."""
    marks = [call.mark(f) for f in factors if isinstance(f, Tensor)]
    call.boundedness = min((m.boundedness for m in marks if m is not None), default=0)


def divided(call: Call) -> Any:
    """a / ⟦b⟧."""
    a, b = call.get("input"), call.get("other")
    if call.reverse:
        a, b = b, a
    if call.get("rounding_mode"):
        raise call.refuse("a division that rounds is not linear")
    if not call.is_active(a) or a is b:
        return call.freeze()  # nothing active is left: a frozen constant
    if call.context.how.finite:
        below = call.true(b) if isinstance(b, Tensor) else torch.as_tensor(b, dtype=a.dtype)
        # 1 over integers would have the default type.
        inverse = 1 / (below if below.is_floating_point() or below.is_complex() else below.to(a))
        shape, dtype = a.shape, a.dtype
        vjp = lambda grad, c: scaled(grad, c).sum_to_size(shape).to(dtype)  # noqa: E731
        return call.frozen(a, call.value(), vjp, inverse)
    frozen_b = call.true(b) if call.is_active(b) else None

    def sub(t: Tensor) -> Tensor:
        if t is b and frozen_b is not None:
            return frozen_b
        return t if call.is_active(t) else call.constant(t)

    return call.run(sub)


def summed_product(call: Call) -> Tensor:
    """Einstein sums: linear in one operand, the product rule for two."""
    return bilinear(call, tensors_in(call.args))


def added_product(call: Call) -> Tensor:
    """β c + α a b (``addmm`` and kin): the product rule for a b; what is constant is a term."""
    names = ("tensor1", "tensor2") if call.operator == "addcmul" else ("mat1", "mat2")
    base, a, b = call.get("input"), call.get(names[0]), call.get(names[1])
    active = call.is_active(base)
    term = None
    if not active:
        beta = call.get("beta", 1)
        term = call.constant(base) * (1 if beta is None else beta)
    elif not (call.is_active(a) or call.is_active(b)):
        zero = torch.zeros_like(base, requires_grad=False)
        term = call.run(lambda t: zero if t is base else call.constant(t))
    elif base is a or base is b:
        raise call.refuse("the same tensor as summand and as factor", "Write it as c + a * b.")
    out = bilinear(call, [a, b], base if active else None)
    return out if term is None else call.attach(out, term)


def mixed_linearly(call: Call) -> Tensor:
    """lerp(a, b, w) = (1 − ⟦w⟧) a + ⟦w⟧ b; one tensor may be an end and the weight."""
    a, b, w = call.get("input"), call.get("end"), call.get("weight")
    if not (call.is_active(a) or call.is_active(b)):
        return call.freeze()
    if isinstance(w, Tensor):
        w = call.true(w).clone() if call.inplace else call.true(w)
    ends = [t if call.is_active(t) else call.constant(t) for t in (a, b)]
    if call.is_active(a) and call.is_active(b):
        return call.func(*ends, w)
    # NOTE [outlive the write]: what stands still is the one that is written into.
    still = [torch.zeros_like(t) if call.is_active(t) else t.clone() for t in (a, b)]
    term = torch.lerp(still[0], still[1], w)
    term = term if call.context.create_graph else term.detach()
    frozen = isinstance(call.get("weight"), Tensor) and call.is_active(call.get("weight"))
    return call.attach(call.func(*ends, w), term, frozen=frozen)


def grouped(call: Call) -> Tensor:
    """A different matrix for each group of rows (experts): linear in the rows."""
    return biased(call, list(call.args[:2]), call.kwargs.get("bias"))


def biased(
    call: Call, factors: Sequence[Any], bias: Tensor | None, shape: Sequence[int] | None = None
) -> Tensor:
    """A product of factors plus a bias (of ``shape``); either may depend on the input, or both."""
    if bias is None:
        return bilinear(call, factors)
    if call.is_active(bias):
        out = bilinear(call, factors, bias)
        alone = not any(call.is_active(f) for f in factors)
        return call.attach(out, call.at_zero()) if alone else out
    term = call.constant(bias)
    return call.attach(bilinear(call, factors), term if shape is None else term.reshape(shape))


def bilinear_form(call: Call) -> Tensor:
    """x₁ᵀ W x₂ + b: the product rule for two of x₁, x₂ and W."""
    factors = [call.get("input1"), call.get("input2"), call.get("weight")]
    return biased(call, factors, call.get("bias"))


def gated(call: Call) -> Tensor:
    """``glu``: a ⟦σ(b)⟧ for the halves a and b of x."""
    x, dim = call.get("input"), call.get("dim", -1)
    with call.context:
        a, b = x.chunk(2, dim)
        return a * torch.sigmoid(b)


def cosine(call: Call) -> Tensor:
    """``cosine_similarity``: the product of two normalised vectors."""
    a, b = call.get("x1"), call.get("x2")
    dim, eps = call.get("dim", 1), call.get("eps", 1e-8)
    with call.context:
        a, b = (F.normalize(t, dim=dim, eps=eps) for t in (a, b))
        return (a * b).sum(dim)


_TWO = "input other"
_ADDED = "input mat1 mat2 beta alpha"

_PRODUCT = Operator(multiplied, degree=degrees.product, arguments=_TWO, kind="product")
_MATRIX_PRODUCT = Operator(
    multiplied,
    matmul_place,
    degree=degrees.product,
    arguments=_TWO,
    weight="other",
    kind="layer",
    bounded=0,
)
_ADDED_PRODUCT = Operator(
    added_product,
    added_place,
    degree=degrees.added_product("mat1", "mat2"),
    arguments=_ADDED,
    factors="mat1 mat2",
    weight="mat2",
    summand="input",
    kind="layer",
    bounded=0,
)

RECORDS: dict[str, Operator] = {
    "mul": Operator(
        multiplied,
        same,
        degrees.product,
        arguments=_TWO,
        factors=_TWO,
        names="__mul__ __imul__ __rmul__ multiply",
        link="linear",
        together="product",
    ),
    "glu": Operator(gated, composite=True, arguments="input dim", replacement="gates"),
    "cosine_similarity": Operator(
        cosine,
        composite=True,
        degree=degrees.normalised,
        arguments="x1 x2 dim eps",
        kind="rescaling",
    ),
    "outer": replace(_PRODUCT, names="ger"),
    "kron": _PRODUCT,
    "inner": replace(_PRODUCT, bounded=0),
    "tensordot": replace(_PRODUCT, arguments="input other dims", bounded=0),
    "matmul": replace(
        _MATRIX_PRODUCT, names="__matmul__ __rmatmul__ mm mv dot", exchanged="__rmatmul__"
    ),
    "bmm": _MATRIX_PRODUCT,
    "div": Operator(
        divided,
        same,
        degrees.ratio,
        arguments="input other rounding_mode",
        names="__truediv__ __itruediv__ __rtruediv__ __rdiv__ __div__ __idiv__ divide true_divide",
        exchanged="__rtruediv__ __rdiv__",
        factors="other",
        link="frozen",
        together="quotient",
    ),
    "einsum": Operator(
        summed_product, einsum_place, degrees.product, kind="layer", bounded=0, arguments="equation"
    ),
    "bilinear": Operator(
        bilinear_form,
        contracted,
        degrees.affine("input1", "input2", "weight"),
        kind="layer",
        bounded=0,
        arguments="input1 input2 weight bias",
        factors="input1 input2 weight",
        weight="weight",
        summand="bias",
    ),
    **named(_ADDED_PRODUCT, "addmm baddbmm addbmm"),
    "_grouped_mm": Operator(grouped, contracted, degrees.grouped, kind="product", bounded=0),
    "addcmul": Operator(
        added_product,
        same,
        degrees.added_product("tensor1", "tensor2"),
        kind="product",
        arguments="input tensor1 tensor2 value",
        factors="tensor1 tensor2",
        summand="input",
        link="product",
    ),
    "lerp": Operator(
        mixed_linearly,
        same,
        degrees.at_fixed("weight", "weight", degrees.joining("input", "end")),
        kind="product",
        arguments="input end weight",
        factors="weight",
        joins=True,
        link="product",
    ),
}
