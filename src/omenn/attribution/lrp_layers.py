"""Layers with weights as LRP sees them: x, W, b, and rules that pull relevance back through W.

A rule is a function (layer, x) ↦ (V x, y). V x is what it passes on, linear in x, so that autograd
of V x is the way back; the coefficients V are made of constants (:class:`Input`). y = W x + b is
the value, so that y − V x is what the rule keeps (NOTE [kept shares]).

Wherever the model spells it (``linear``, convolutions, ``matmul``, ``einsum`` or ``addmm`` with a
constant), a layer is found, and a batch norm behind one is folded into it: W ← sW, b ← sb + t.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from omenn.attribution.rule_table import stabilised
from omenn.check import real
from omenn.engine.operators.convolution import note_slide
from omenn.engine.operators.table import OPERATORS, Operator, of_kind
from omenn.engine.torch_private import node_class
from omenn.engine.trace.autograd_nodes import Joint, Pull, Pulled
from omenn.engine.trace.call import Call, tensors_in


@dataclass(frozen=True, eq=False)
class Layer:
    """y = W x + b: ``linear(x, W)`` is the part without b, which is broadcastable to y."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    linear: Callable[[Tensor, Tensor], Tensor]
    per_row: bool  # whether the rows of W are the channels of y, (N, C, …): it can be scaled
    version: int  # of x: whether it was written into since
    true: Tensor | None  # x in the ordinary network, where derivatives are wanted
    rule: Rule | None = None  # its own, where not all layers have the same
    entry: bool = False  # whether x is the explained input itself

    def __call__(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        """W x, without b."""
        return self.linear(x, self.weight if weight is None else weight)

    def positive(self, x: Tensor) -> Tensor:
        """Σ_i max(x_i w_ij, 0), without b."""
        high = self(_where(x, x >= 0), self.weight.clamp(min=0))
        if bool((x >= 0).all()):
            return high
        return high + self(_where(x, x < 0), self.weight.clamp(max=0))

    def magnitude(self, constant: Tensor) -> Callable[[Tensor], Tensor]:
        """Σ_i |x_i w_ij| as a linear function of x, whose signs are those of ``constant``."""
        signs, size = constant.new_ones(()).copysign(constant.detach()), self.weight.abs()
        return lambda x: self.linear(x * signs, size)

    def part(self, kind: Callable[[Tensor], Tensor]) -> Tensor | float:
        """``kind`` of the bias, 0 where there is none."""
        return 0.0 if self.bias is None else kind(self.bias)

    def whole(self, linear: Tensor) -> Tensor:
        """y = W x + b, from W x."""
        return linear if self.bias is None else linear + self.bias

    def scaled(self, scale: Tensor, shift: Tensor) -> Layer:
        """The layer with an affine map of its channels behind it."""
        shape = (-1, *[1] * (self.weight.ndim - 1))
        column = (-1, *[1] * (self.weight.ndim - 2))
        bias = shift if self.bias is None else self.bias.reshape(-1) * scale + shift
        return replace(self, weight=self.weight * scale.reshape(shape), bias=bias.reshape(column))


def _where(x: Tensor, mask: Tensor) -> Tensor:
    """x at the mask, zero elsewhere."""
    return torch.where(mask, x, 0)


@dataclass(frozen=True, eq=False)
class Input:
    """The input of a layer twice: the one that relevance is passed on to, and a constant.

    NOTE [two histories] Where derivatives are wanted, the constant has its history in the ordinary
    network: the coefficients of a rule depend on the parameters by it, and on x only so.
    """

    passing: Tensor
    constant: Tensor
    alike: bool  # the constant is the other without history: it need not be computed again

    def through(self, function: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """A linear function of both."""
        passed = function(self.passing)
        return passed, passed.detach() if self.alike else function(self.constant)


Rule = Callable[[Layer, Input], tuple[Tensor, Tensor]]


def layer_of(call: Call) -> Layer | None:
    """The layer that is called; None where two factors depend on the input, or W does.

    Complex numbers have no sign for a rule to go by: such a layer is as in the frozen table.
    """
    note_slide(call)
    if len(call.active) != 1 or call.inplace:
        return None
    x, factors, base = call.active[0], _factors(call), call.get(call.known.summand)
    others = [f for f in factors if f is not x]
    if len(others) != 1 or len(factors) != 2 or not isinstance(others[0], Tensor):
        return None
    if call.mark(others[0]) is not None:  # frozen: the weights of an attention
        return None
    weight = call.constant(others[0])
    if x.is_complex() or weight.is_complex():
        return None

    def linear(x_new: Tensor, w_new: Tensor) -> Tensor:
        def sub(t: Tensor) -> Any:
            if base is not None and t is base:  # a bias may be left out
                return None if call.known.summand == "bias" else torch.zeros_like(base)
            return x_new if t is x else w_new if t is others[0] else t

        return call.run(sub)

    # A batch norm has its channels in the second dimension, a linear layer in the last one.
    rows = {"linear": x.ndim == weight.ndim == 2, "conv": x.ndim == weight.ndim}
    per_row = x is factors[0] and rows.get(call.operator, False)
    return _layer(call, weight, summand(call), linear, per_row)


def _layer(
    call: Call, weight: Tensor, bias: Tensor | None, linear: Any, per_row: bool = False
) -> Layer:
    """The layer of a call with one active tensor."""
    x = call.active[0]
    with torch.enable_grad():  # in a run that saves copies the model writes over what it used
        kept = x.clone() if call.context.how.finite else x
    true = call.true(x) if call.context.create_graph else None
    return Layer(kept, weight, bias, linear, per_row, kept._version, true)


def _factors(call: Call) -> list[Any]:
    """What is multiplied."""
    if call.operator == "einsum":
        return list(tensors_in(call.args))
    names = call.known.factors or call.known.arguments
    return [call.get(name) for name in names.split()]


def summand(call: Call) -> Tensor | None:
    """The constant that is added to a product, broadcastable to it; None if there is none."""
    base = call.get(call.known.summand)
    if not isinstance(base, Tensor) or call.is_active(base):
        return None
    base = call.constant(base)
    if call.operator in ("conv", "conv_transpose"):
        return base.reshape(-1, *[1] * (call.get("weight").ndim - 2))
    beta = call.get("beta")
    return base * (1 if beta is None else beta)


def apply(call: Call, layer: Layer, rule: Rule) -> Tensor:
    """The native value, with the rule for its way back."""

    def pull(grad: Tensor, xs: Sequence[Tensor], complete: bool) -> Pulled:
        again = torch.is_grad_enabled()
        with torch.enable_grad():
            true = xs[0] if layer.true is None else layer.true
            # Autocast takes an input of less precision than the weights; here it is off.
            true = true.to(torch.promote_types(true.dtype, layer.weight.dtype))
            x = leaf_of(true)
            passed, y = rule(layer, Input(x, true, layer.true is None))
        found = torch.autograd.grad(passed, x, grad.to(passed.dtype), create_graph=again)
        found = tuple(g.to(xs[0].dtype) for g in found)
        return found, y - passed if complete else None

    if call.flow is not None:
        call.flow.starts_at(layer.x)  # with a batch norm folded in, that of the layer before
    return joined(call, call.value(), pull, layer, [layer.x])


def leaf_of(t: Tensor) -> Tensor:
    """A tensor to differentiate by, whose history is that of ``t``."""
    return t.view_as(t) if t.requires_grad else t.detach().requires_grad_()


def joined(call: Call, value: Tensor, pull: Pull, note: Any, xs: Sequence[Tensor]) -> Tensor:
    """A value with a rule of its own for the way back, and with ones for what the rule keeps."""
    ones = call.context.location.ones_for(call, value) if call.collects else None
    value = value.clone() if value._is_view() else value
    return Joint.apply([value], pull, note, ones, *xs)  # type: ignore[return-value]


def by_layer(
    rule: Rule,
    fold: bool = True,
    choose: Callable[[Call, Layer], Layer] | None = None,
    alone: Rule | None = None,
) -> dict[str, Operator]:
    """Rows of a table with one rule for all layers with weights, or what ``choose`` gives each.

    ``fold``: a batch norm right behind a layer is a part of it. One that stands alone is a layer
    with the rule ``alone``, or as in the frozen table, and so is a layer whose weights depend on
    the input.
    """

    def layer(call: Call) -> Any:
        found = layer_of(call)
        if found is None:
            return OPERATORS[call.operator].rule(call)
        found = found if choose is None else choose(call, found)
        return apply(call, found, found.rule or rule)

    def batch_norm(call: Call) -> Any:
        found = _folded(call)
        if found is not None:
            return apply(call, found, found.rule or rule)
        if alone is not None and (affine := _affine(call)) is not None:
            scale, shift = (t.reshape(-1, *[1] * (call.active[0].ndim - 2)) for t in affine)
            return apply(call, _layer(call, scale, shift, torch.mul), alone)
        return OPERATORS["batch_norm"].rule(call)

    changed = dict.fromkeys(of_kind("layer"), layer)
    if fold:
        changed["batch_norm"] = batch_norm
    return {name: OPERATORS[name].with_rule(own) for name, own in changed.items()}


def _folded(call: Call) -> Layer | None:
    """The layer whose output is normalised, with the batch norm in it."""
    node: Any = call.get("input").grad_fn
    layer = node.note if isinstance(node, node_class(Joint)) else None  # type: ignore[attr-defined]
    if not isinstance(layer, Layer) or not layer.per_row or layer.version != layer.x._version:
        return None
    affine = _affine(call)
    return None if affine is None else layer.scaled(*affine)


def _affine(call: Call) -> tuple[Tensor, Tensor] | None:
    """The scale and the shift of a batch norm, one of each for a channel."""
    mean, var = call.get("running_mean"), call.get("running_var")
    if call.get("training") or mean is None or var is None:
        return None
    if len(call.active) != 1 or call.inplace or not call.is_active(call.get("input")):
        return None
    eps = 1e-5 if call.get("eps") is None else call.get("eps")
    with torch.set_grad_enabled(call.context.create_graph):
        scale = torch.rsqrt(var + eps) * (1 if call.get("weight") is None else call.get("weight"))
        shift = (0 if call.get("bias") is None else call.get("bias")) - mean * scale
        return scale, shift


# --- the rules -------------------------------------------------------------------------------
# Each is R_i = Σ_j (part of z_ij) / (sum of such parts + b's) · R_j with z_ij = x_i w_ij, and
# R_j = y_j g_j, so that V_ij = (part of z_ij) / x_i · y_j / (sum of such parts + b's).


def shares(y: Tensor, z: Tensor, epsilon: float) -> Tensor:
    """y / (z + ε sign z); nothing where z is zero: there no part has a share, or y is zero, too."""
    total = stabilised(z, epsilon)
    return torch.where(z == 0, 0, y / torch.where(z == 0, 1, total))


def epsilon_rule(epsilon: float) -> Rule:
    """R_i = Σ_j z_ij / (z_j + ε sign z_j) R_j."""
    real("epsilon", epsilon, 0)

    def rule(layer: Layer, x: Input) -> tuple[Tensor, Tensor]:
        passing, z = x.through(layer)
        y = layer.whole(z)
        return (passing if epsilon == 0 else passing * (y / stabilised(y, epsilon))), y

    return rule


def alpha_beta_rule(alpha: float, beta: float, epsilon: float) -> Rule:
    """R_i = Σ_j (α z_ij⁺ / z_j⁺ − β z_ij⁻ / z_j⁻) R_j, the bias in z_j⁺ and z_j⁻."""
    real("epsilon", epsilon, 0)

    def rule(layer: Layer, x: Input) -> tuple[Tensor, Tensor]:
        (up, z_up), (z, z_all) = x.through(layer.positive), x.through(layer)
        y = layer.whole(z_all)
        share = shares(y, z_up + layer.part(lambda b: b.clamp(min=0)), epsilon)
        passed = alpha * up * share
        if beta == 0:
            return passed, y
        share = shares(y, z_all - z_up + layer.part(lambda b: b.clamp(max=0)), epsilon)
        return passed - beta * (z - up) * share, y

    return rule


MOST = 2.0
"""How much more than by its own coefficients a layer passes where its constants take less."""


def _above_zero(z: Tensor) -> Tensor:
    return z.clamp_min(torch.finfo(z.dtype).tiny)


def _bounded(y: Tensor, z: Tensor) -> Tensor:
    """y / z for y ≥ 0, at most ``MOST``; 0 where z is below zero."""
    least = torch.maximum(z, y / MOST)
    return torch.where(z > 0, y / _above_zero(least), 0)


def gamma_rule(gamma: float, epsilon: float, beta: float = 1.0) -> Rule:
    """R_i = Σ_j (z_ij + γ z_ij^±) / (z_j + γ z_j^±) R_j, ± being the sign of z_j with the bias.

    With s = ±1 that sign, z^± = (z + s |z|) / 2. So R_i / R_j is, with ``beta`` = 1, a share of
    what has one sign::

        ((1 + γ/2) s z_ij + γ/2 |z_ij|) / ((1 + γ/2) s z_j + γ/2 Σ |z_ij| + ε)

    Of the bias and its γ-part β is in the denominator. With β < 1 the quotient of y_j and the
    denominator is at most ``MOST``, and 0 where the inputs speak against the unit, which then keeps
    what it has.
    """
    half = real("gamma", gamma, 0) / 2
    real("epsilon", epsilon, 0)
    real("beta", beta, 0, 1)

    def rule(layer: Layer, x: Input) -> tuple[Tensor, Tensor]:
        z, z_all = x.through(layer)
        y = layer.whole(z_all)
        size, size_all = x.through(layer.magnitude(x.constant)) if half else (z, 0.0)
        bias, length = layer.part(lambda b: b), layer.part(torch.abs)
        total = (1 + half) * y.sign() * (z_all + beta * bias) + half * (size_all + beta * length)
        share = _bounded(y.abs(), total) if beta < 1 else y.abs() / _above_zero(total + epsilon)
        passed = (1 + half) * share * z
        return passed + (half * share * y.sign()) * size if half else passed, y

    return rule


def flat_rule(epsilon: float) -> Rule:
    """R_i = Σ_j R_j / n_j, evenly over the n_j inputs of each output, whatever x and W are."""
    real("epsilon", epsilon, 0)

    def rule(layer: Layer, x: Input) -> tuple[Tensor, Tensor]:
        y, ones = layer.whole(layer(x.constant)), torch.ones_like(layer.weight)
        count = stabilised(layer(torch.ones_like(x.constant), ones), epsilon)
        return layer(_units(layer, x), ones) * (y / count), y

    return rule


def box_rule(low: float, high: float, epsilon: float) -> Rule:
    """R_i = Σ_j (z_ij − l w_ij⁺ − h w_ij⁻) / (sum of such terms) R_j, for inputs from l to h."""
    real("epsilon", epsilon, 0)

    def rule(layer: Layer, x: Input) -> tuple[Tensor, Tensor]:
        up, down = layer.weight.clamp(min=0), layer.weight.clamp(max=0)
        y, unit, fixed = layer.whole(layer(x.constant)), _units(layer, x), x.constant
        least, most = torch.full_like(fixed, low), torch.full_like(fixed, high)
        whole = layer(fixed) - layer(least, up) - layer(most, down)
        parts = layer(fixed * unit) - layer(least * unit, up) - layer(most * unit, down)
        return parts * (y / stabilised(whole, epsilon)), y

    return rule


def tiny(dtype: torch.dtype) -> float:
    """What stands for a zero of the explained input, so that R / x is a number."""
    return 1e-30 if torch.finfo(dtype).tiny < 1e-30 else 2.0**-10  # half has no smaller inverse


def _units(layer: Layer, x: Input) -> Tensor:
    """One for each element of x, with the derivative 1/x: so that R, not V, is what is given.

    Zeros of an inner tensor keep what they have.
    """
    zero, least = x.constant == 0, tiny(x.constant.dtype)
    units = x.passing / torch.where(zero, 1, x.constant)
    return torch.where(zero, (x.passing + least) / least if layer.entry else 0, units)
