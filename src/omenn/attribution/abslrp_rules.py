"""The rules of absLRP, operator by operator: R_in = x ⊙ ∂/∂x Σ s (h + h_a), s = R_out / |h|.

h = f(x; W, b) is the output, h_a = f(|x|; |W|, |b|). Of x_i w_ij in a sum that makes what is
positive pass, twice. Each input of an operator is normalised alone, Σ|R| = 1 in each sample. As
everywhere in a rule table, what travels is g = R / x.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from omenn.attribution.attend import in_parts
from omenn.attribution.attnlrp import inputs_of, joint
from omenn.attribution.lrp_layers import Layer, layer_of
from omenn.attribution.rule_table import RuleTable, ruled
from omenn.engine.location import Place, compacted, full
from omenn.engine.operators.chain import FROZEN_CHAIN
from omenn.engine.operators.table import OPERATORS, of_kind
from omenn.engine.trace.call import Call, substitute

TINY = 1e-9
# A logit so far below the largest of its row has been masked: its weight is below 1e-27.
FAR = 64.0
# The note that a model adds two tensors that depend on the input, as a ResNet does.
BRANCHES = "branches"

Values = Sequence[Tensor]
Function = Callable[[Values], Tensor]


def magnitudes(grad: Tensor, h: Tensor) -> Tensor:
    """s = R_out / (|h| + 1e-9), R_out being g h."""
    # In half precision 1e-9 is nothing.
    return grad * h / (h.abs() + max(TINY, torch.finfo(h.dtype).tiny))


def relevance(
    xs: Values, k: int, grad: Tensor, function: Function, absolute: Function, divide: bool = True
) -> Tensor:
    """g at the k-th input: R_in / x = ∂/∂x Σ s (h + h_a), with h_a = ``absolute`` of the |x|.

    The other inputs are constants. ``divide=False``: s = R_out.
    """
    with torch.enable_grad():
        leaf = xs[k].detach().requires_grad_()
        here = [leaf if i == k else t.detach() for i, t in enumerate(xs)]
        h, h_a = function(here), absolute([t.abs() for t in here])
        s = magnitudes(grad, h.detach()) if divide else grad * h.detach()
        return torch.autograd.grad((s * (h + h_a)).sum(), leaf)[0]


def normalised(x: Tensor, grad: Tensor, place: Place | None) -> Tensor:
    """g scaled so that Σ|x ⊙ g| is one in each sample."""
    size = (x * grad).abs()
    size = size.to(torch.promote_types(size.dtype, torch.float32))  # a sum of many small numbers
    if place is None:
        total = size.flatten(1).sum(1) if size.ndim > 1 else size
        total = total.reshape(-1, *[1] * (grad.ndim - 1))
    else:
        sample = place.grid.sample[place.cells]
        total = torch.zeros(place.grid.samples + 1, dtype=size.dtype, device=size.device)
        total = total.index_add(0, sample.expand(size.shape).reshape(-1), size.reshape(-1))
        total = total[sample]
    return (grad / (total + TINY)).to(grad.dtype)


def relative(
    call: Call, function: Function, absolute: Function, divide: Callable[[], bool] | None = None
) -> Any:
    """The rule of absLRP for a call: each active input alone."""
    xs = inputs_of(call)
    where = [call.place(t) for t in xs]

    def vjp(grad: Tensor, *inner: Tensor) -> tuple[Tensor, ...]:
        divided = divide is None or divide()
        found = [relevance(inner, k, grad, function, absolute, divided) for k in range(len(inner))]
        return tuple(map(normalised, inner, found, where))

    return joint(call, vjp, xs)


def as_it_is(call: Call, constant: Tensor) -> Tensor:
    """A constant that stays what it is when the model writes into it (not into its weights)."""
    return constant.detach() if id(constant) in call.context.own else constant.detach().clone()


def as_function(call: Call, absolute: bool = False) -> Function:
    """The call as a function of its inputs; ``absolute``: its constants by their magnitudes."""
    xs = inputs_of(call)
    active, copies = {id(t) for t in xs}, {}

    def keep(t: Tensor) -> Tensor:
        if id(t) not in active:
            kept = as_it_is(call, t)
            copies[id(t)] = kept.abs() if absolute and t.is_floating_point() else kept
        return t

    args, kwargs = substitute(call.args, keep), substitute(call.kwargs, keep)
    if absolute:
        kwargs = {k: abs(v) if k in _FACTORS else v for k, v in kwargs.items()}

    def function(values: Values) -> Tensor:
        known = copies | {id(x): v for x, v in zip(xs, values, strict=True)}

        def sub(t: Tensor) -> Tensor:
            return known[id(t)].clone() if call.inplace else known[id(t)]

        return call.func(*substitute(args, sub), **substitute(kwargs, sub))

    return function


_FACTORS = ("alpha", "beta")


def general(call: Call) -> Any:
    """h_a = f(|x|; |W|, |b|)."""
    return relative(call, as_function(call), as_function(call, True))


def of_magnitudes(call: Call) -> Any:
    """h_a = f(|x|), for operators whose weights are positive, or positions: they stay."""
    return relative(call, as_function(call), as_function(call))


def layer(call: Call) -> Any:
    """R_i = 2 Σ_j max(z_ij, 0) R_j / |h_j| with z_ij = x_i w_ij, normalised."""
    found = layer_of(call)
    if found is None:
        return general(call)
    place = call.place(found.x)

    def vjp(grad: Tensor, x: Tensor) -> tuple[Tensor]:
        return (normalised(x, positive(found, x, grad), place),)

    return joint(call, vjp, [found.x])


def positive(layer: Layer, x: Tensor, grad: Tensor) -> Tensor:
    """2 Σ_j max(z_ij, 0) R_j / |h_j|, divided by x_i."""
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        up = layer.positive(leaf)
    return torch.autograd.grad(up, leaf, 2 * magnitudes(grad, layer.whole(layer(x))))[0]


def elementwise(call: Call) -> Any:
    """h_a = f(|x|). At x = 0, where R is zero, a slope may be infinite; for an odd f and x < 0 both
    parts cancel, and what rounding leaves of them must not be normalised.
    """
    if len(inputs_of(call)) > 1:
        raise call.refuse("a parameter of the function depends on the input")
    function = as_function(call)
    x = call.active[0]
    place = call.place(x)

    def vjp(grad: Tensor, x: Tensor) -> tuple[Tensor]:
        found = relevance([x], 0, grad, function, function)
        alone = relevance([x], 0, grad, function, lambda xs: torch.zeros_like(xs[0]))
        nothing = (x == 0) | (found.abs() <= 1e3 * torch.finfo(x.dtype).eps * alone.abs())
        return (normalised(x, torch.where(nothing, 0, found), place),)

    return joint(call, vjp, [x])


def power(call: Call) -> Any:
    """x^p for a constant p > 0; others are frozen factors, or refused, as in the frozen table."""
    p = call.get("exponent")
    plain = isinstance(p, (int, float)) and p > 0
    return elementwise(call) if plain else OPERATORS["pow"].rule(call)


def pooled(pooling: str) -> Callable[[Call], Any]:
    """Max pooling, divided by |h| or not; ``auto``: not, if the model adds no two branches."""

    def rule(call: Call) -> Any:
        if "with_indices" in getattr(call.func, "__name__", "") or call.get("return_indices"):
            return OPERATORS["max_pool"].rule(call)
        notes, function = call.context.notes, as_function(call)

        def divide() -> bool:
            return pooling == "divided" or (pooling == "auto" and bool(notes.get(BRANCHES)))

        return relative(call, function, function, divide)

    return rule


def added(call: Call) -> Any:
    """a ± α b: h_a = |a| + |α b|, also for a difference; see :func:`shifted` for a constant."""
    a, b = call.get("input"), call.get("other")
    a, b = (b, a) if call.reverse else (a, b)
    alpha = call.get("alpha") if call.get("alpha") is not None else 1
    alpha = -alpha if call.operator == "sub" else alpha
    if a is b:
        return OPERATORS[call.operator].rule(call)
    if len(call.active) < 2:
        x, constant = (a, b) if call.is_active(a) else (b, a)
        return shifted(call, x, constant, alpha if x is b else 1, alpha if constant is b else 1)
    call.context.notes[BRANCHES] = True
    first = call.active[0] is a

    def total(values: Values, factor: float) -> Tensor:
        one, other = values if first else reversed(values)
        return one + factor * other

    return relative(call, lambda v: total(v, alpha), lambda v: total(v, abs(alpha)))


def shifted(call: Call, x: Tensor, constant: Any, factor: float, times: float = 1) -> Any:
    """h = w x + c. A position embedding, of two dimensions or more, is an input of the sum:
    R_x = 2 max(w x, 0) R / |h|.

    A number or a vector is the bias of what comes before, and R_x = |w x| R / |h|: with the R of
    W x that this gives, the rule of W x is that of W x + b. So it is for masks, too: elements
    that are zero, or hide.
    """
    place = call.place(x)
    spread = isinstance(constant, Tensor) and _is_embedding(constant, x, place)
    if isinstance(constant, Tensor):
        constant = as_it_is(call, constant)

    def vjp(grad: Tensor, x: Tensor) -> tuple[Tensor]:
        c = constant * times
        h = factor * x + c
        found = abs(factor) * torch.sign(x) * torch.sign(h) * grad
        if spread:
            alone = magnitudes(grad, h) * (factor + abs(factor) * torch.sign(x))
            found = torch.where((c == 0) | (c <= -FAR), found, alone)
        found = found.sum_to_size(x.shape)
        return (normalised(x, found, place),)

    return joint(call, vjp, [x])


def _is_embedding(constant: Tensor, x: Tensor, place: Place | None) -> bool:
    """Whether a constant changes along two dimensions or more, besides that of the samples."""
    there = compacted(constant)
    wide = {d for d in range(-there.ndim, 0) if there.shape[d] > 1}
    if place is not None:
        sample = compacted(place.grid.sample[full(place.cells, x.shape)])
        wide -= {d for d in range(-sample.ndim, 0) if sample.shape[d] > 1}
    return len(wide) > 1


def multiplied(call: Call) -> Any:
    """Two active factors are two inputs; a constant factor only rescales, R passes it."""
    if len(call.active) < 2 or call.get("input") is call.get("other"):
        return OPERATORS[call.operator].rule(call)
    return general(call)


def softmax(call: Call) -> Any:
    """h = exp(x − max) / Σ with the sum held constant: ∂h_i/∂x_i = h_i; h_a is that of |x|."""
    x, dim = call.active[0], call.get("dim", -1)
    sign = -1 if getattr(call.func, "__name__", "") == "softmin" else 1
    function, place = as_function(call), call.place(x)

    def vjp(grad: Tensor, x: Tensor) -> tuple[Tensor]:
        h, z = function([x]).nan_to_num(), sign * x
        hidden = ~(z - z.amax(dim, keepdim=True) > -FAR)
        h_a = torch.softmax(x.abs().masked_fill(hidden, -torch.inf).to(h.dtype), dim).nan_to_num()
        found = magnitudes(grad, h) * (sign * h + torch.sign(x) * h_a)
        found = found.masked_fill(hidden, 0).to(x.dtype)
        return (normalised(x.masked_fill(hidden, 0), found, place),)

    return joint(call, vjp, [x])


def log_softmax(call: Call) -> Any:
    """x minus a number for each row, which is held constant."""
    x = call.active[0]
    function, place = as_function(call), call.place(x)

    def vjp(grad: Tensor, x: Tensor) -> tuple[Tensor]:
        found = torch.sign(x) * torch.sign(function([x])) * grad
        return (normalised(x, found.to(x.dtype), place),)

    return joint(call, vjp, [x])


def normalisation(call: Call) -> Any:
    """γ (x − μ)/σ + β with μ and σ held constant: h_a = |γ/σ| |x| + |β − γ μ/σ|."""
    if len(call.active) > 1 or call.get("training"):
        return OPERATORS[call.operator].rule(call)
    x = call.active[0]
    function, place = as_function(call), call.place(x)

    def vjp(grad: Tensor, x: Tensor) -> tuple[Tensor]:
        scale = _scale(call, x)
        s = magnitudes(grad, function([x]))
        return (normalised(x, s * (scale + scale.abs() * torch.sign(x)), place),)

    return joint(call, vjp, [x])


def _scale(call: Call, x: Tensor) -> Tensor:
    """γ/σ for each element of x."""
    weight = call.get("weight")
    eps: float | None = call.get("eps")
    if eps is None:
        eps = torch.finfo(x.dtype).eps if call.operator == "rms_norm" else 1e-5
    column = (-1, *[1] * (x.ndim - 2))
    if call.operator == "batch_norm" or call.get("use_input_stats") is False:
        rstd = torch.rsqrt(call.constant(call.get("running_var")) + eps).reshape(column)
    elif call.operator in ("layer_norm", "rms_norm"):
        dims, column = list(range(-len(call.get("normalized_shape")), 0)), None
        if call.operator == "layer_norm":
            rstd = torch.rsqrt(x.var(dims, unbiased=False, keepdim=True) + eps)
        else:
            rstd = torch.rsqrt((x * x).mean(dims, keepdim=True) + eps)
    else:
        groups = x.shape[1] if call.operator == "instance_norm" else call.get("num_groups")
        flat = x.reshape(x.shape[0], groups, -1)
        rstd = torch.rsqrt(flat.var(-1, unbiased=False, keepdim=True) + eps)
        rstd = rstd.expand(flat.shape).reshape(x.shape)
    if weight is None:
        return rstd
    weight = call.constant(weight)
    return rstd * (weight if column is None else weight.reshape(column))


def sampled(call: Call) -> Any:
    """Grid sampling at constant positions, by positive weights."""
    if not call.is_active(call.get("input")) or call.is_active(call.get("grid")):
        return OPERATORS["grid_sample"].rule(call)
    return of_magnitudes(call)


def written(call: Call) -> Any:
    """Adding into a tensor is a sum; overwriting selects, and is as in the frozen table."""
    how = next((a for a in (*call.args, *call.kwargs.values()) if isinstance(a, str)), None)
    adds = call.operator in ("index_add", "scatter_add") or how in ("sum", "mean")
    adds = adds or (call.operator == "index_put" and (call.get("accumulate") or True in call.args))
    return general(call) if adds else OPERATORS[call.operator].rule(call)


def refused(call: Call) -> Any:
    raise call.refuse(
        "absLRP compares magnitudes of real numbers, for which it has no rule",
        "Explain at a later module with at=, or with another method.",
    )


def abslrp_rules(pooling: str) -> RuleTable:
    rows = ruled(of_kind("layer"), layer) | ruled(of_kind("pointwise"), elementwise)
    rows |= ruled(of_kind("product"), general) | ruled(of_kind("sum"), of_magnitudes)
    rows |= ruled(of_kind("write"), written) | ruled(of_kind("normalisation"), normalisation)
    rows |= ruled("pow", power) | ruled("add sub", added) | ruled("mul", multiplied)
    rows |= ruled("softmax", softmax) | ruled("log_softmax", log_softmax)
    rows |= ruled("max_pool", pooled(pooling)) | ruled("grid_sample", sampled)
    rows |= ruled("scaled_dot_product_attention", in_parts, composite=True)
    rows |= ruled([*of_kind("complex"), "diff"], refused)
    rows["chain"] = FROZEN_CHAIN.with_rule(elementwise)
    return RuleTable(rows, freeze_bounded=False)
