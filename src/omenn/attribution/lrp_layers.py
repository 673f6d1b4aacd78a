"""Layers with weights as LRP sees them: x, W, b, and rules that pull relevance back through W.

A rule is a function (layer, x, grad) ↦ g at x, for the g of the output. Wherever the model spells
it (``linear``, convolutions, ``matmul``, ``einsum`` or ``addmm`` with a constant), a layer is
found, and a batch norm behind one is folded into it: W ← sW, b ← sb + t.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import grad as of_grad

from omenn.attribution.rule_table import stabilised
from omenn.check import real
from omenn.engine.operators import OPERATORS, Operator, of_kind
from omenn.engine.torch_private import node_class
from omenn.engine.trace.autograd_nodes import Joint
from omenn.engine.trace.call import Call


@dataclass(frozen=True, eq=False)
class Layer:
    """y = W x + b: ``linear(x, W)`` is the part without b, which is broadcastable to y."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    linear: Callable[[Tensor, Tensor], Tensor]
    transposed: Callable[[Tensor, Tensor], Tensor] | None  # (grad, W) ↦ Wᵀ grad, if it has a form
    per_row: bool  # whether the rows of W are the channels of y, (N, C, …): it can be scaled
    version: int  # of x: whether it was written into since
    rule: Rule | None = None  # its own, where not all layers have the same
    entry: bool = False  # whether x is the explained input itself

    def __call__(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        """W x, without b."""
        return self.linear(x, self.weight if weight is None else weight)

    def back(self, grad: Tensor, weight: Tensor | None = None) -> Tensor:
        """Wᵀ grad."""
        weight = self.weight if weight is None else weight
        if self.transposed is not None:
            return self.transposed(grad, weight)
        with torch.enable_grad():
            x = torch.zeros_like(self.x, requires_grad=True)
            y = self.linear(x, weight)
        return torch.autograd.grad(y, x, grad)[0]

    def part(self, kind: Callable[[Tensor], Tensor]) -> Tensor | float:
        """``kind`` of the bias, 0 where there is none."""
        return 0.0 if self.bias is None else kind(self.bias)

    def scaled(self, scale: Tensor, shift: Tensor) -> Layer:
        """The layer with an affine map of its channels behind it."""
        shape = (-1, *[1] * (self.weight.ndim - 1))
        column = (-1, *[1] * (self.weight.ndim - 2))
        bias = shift if self.bias is None else self.bias.reshape(-1) * scale + shift
        return replace(self, weight=self.weight * scale.reshape(shape), bias=bias.reshape(column))


Rule = Callable[[Layer, Tensor, Tensor], Tensor]


def layer_of(call: Call) -> Layer | None:
    """The layer that is called; None where two factors depend on the input, or W does."""
    if len(call.active) != 1 or call.inplace:
        return None
    x, (factors, base) = call.active[0], _factors_and_bias(call)
    others = [f for f in factors if f is not x]
    if len(others) != 1 or len(factors) != 2 or not isinstance(others[0], Tensor):
        return None
    if call.mark(others[0]) is not None:  # frozen: the weights of an attention
        return None
    weight = call.constant(others[0])

    def linear(x_new: Tensor, w_new: Tensor) -> Tensor:
        def sub(t: Tensor) -> Any:
            if base is not None and t is base:
                return None if _adds_bias(call) else torch.zeros_like(base)
            return x_new if t is x else w_new if t is others[0] else t

        return call.run(sub)

    # A batch norm has its channels in the second dimension, a linear layer in the last one.
    rows = {"linear": x.ndim == weight.ndim == 2, "conv": x.ndim == weight.ndim}
    per_row = x is factors[0] and rows.get(call.operator, False)
    with torch.enable_grad():  # in a run that saves copies the model writes over what it used
        kept = x.clone() if call.owner.how.finite else x
    bias, back = _bias(call, base, weight), _transposed(call, x, weight)
    return Layer(kept, weight, bias, linear, back, per_row, kept._version)


def _adds_bias(call: Call) -> bool:
    """Whether the layer has a bias by that name, which may be left out."""
    return call.known.summand == "bias"


def _factors_and_bias(call: Call) -> tuple[list[Any], Any]:
    """The two factors of a product, and what is added to it."""
    if _adds_bias(call):
        return [call.get("input"), call.get("weight")], call.get("bias")
    if call.operator == "einsum":
        return _tensors(call.args), None
    if call.operator.startswith("add"):
        return [call.get("mat1"), call.get("mat2")], call.get("input")
    return [call.get("input"), call.get("other")], None


def _transposed(call: Call, x: Tensor, weight: Tensor) -> Callable[[Tensor, Tensor], Tensor] | None:
    """Wᵀ grad by a kernel of its own, which needs no pass forward."""
    if x is not call.get("input"):
        return None
    if call.operator == "linear":
        return (lambda grad, w: grad @ w) if weight.ndim == 2 else None
    names = ("stride", "padding", "dilation", "groups")
    options = dict(zip(names, call.args[3:], strict=False))
    options |= {name: call.kwargs[name] for name in names if name in call.kwargs}
    if call.operator != "conv" or x.ndim != weight.ndim or options.get("padding") in _WORDS:
        return None
    kernel: Any = getattr(of_grad, f"conv{x.ndim - 2}d_input")
    shape = x.shape
    return lambda grad, w: kernel(shape, w, grad, **options)


_WORDS = ("same", "valid")


def _tensors(args: Any) -> list[Tensor]:
    found: list[Tensor] = []
    for a in args:
        found += (
            [a] if isinstance(a, Tensor) else _tensors(a) if isinstance(a, (list, tuple)) else []
        )
    return found


def _bias(call: Call, base: Any, weight: Tensor) -> Tensor | None:
    if not isinstance(base, Tensor):
        return None
    base = call.constant(base)
    if call.operator in ("conv", "conv_transpose"):
        return base.reshape(-1, *[1] * (weight.ndim - 2))
    beta = call.get("beta", 1) if call.operator.startswith("add") else 1
    return base * (1 if beta is None else beta)


def apply(call: Call, layer: Layer, rule: Rule) -> Tensor:
    """The native value, with the rule for its way back."""
    value = call.value()
    value = value.clone() if value._is_view() else value
    vjp = lambda grad, x: (rule(layer, x, grad),)  # noqa: E731
    return Joint.apply([value], vjp, layer, layer.x)  # type: ignore[return-value]


def by_layer(
    rule: Rule, fold: bool = True, choose: Callable[[Call, Layer], Layer] | None = None
) -> dict[str, Operator]:
    """Rows of a table with one rule for all layers with weights, or what ``choose`` gives each.

    ``fold``: a batch norm right behind a layer is a part of it. One that stands alone, and a
    layer whose weights depend on the input, are as in the frozen table.
    """

    def layer(call: Call) -> Any:
        found = layer_of(call)
        if found is None:
            return OPERATORS[call.operator].rule(call)
        found = found if choose is None else choose(call, found)
        return apply(call, found, found.rule or rule)

    def batch_norm(call: Call) -> Any:
        found = _folded(call)
        if found is None:
            return OPERATORS["batch_norm"].rule(call)
        return apply(call, found, found.rule or rule)

    changed = dict.fromkeys(of_kind("layer"), layer)
    if fold:
        changed["batch_norm"] = batch_norm
    return {name: OPERATORS[name].with_rule(own) for name, own in changed.items()}


def _folded(call: Call) -> Layer | None:
    """The layer whose output is normalised, with the batch norm in it."""
    node: Any = call.get("input").grad_fn
    layer = node.note if isinstance(node, node_class(Joint)) else None  # type: ignore[attr-defined]
    mean, var = call.get("running_mean"), call.get("running_var")
    if not isinstance(layer, Layer) or not layer.per_row or layer.version != layer.x._version:
        return None
    if call.get("training") or mean is None or var is None:
        return None
    if len(call.active) != 1 or call.inplace:
        return None
    eps = 1e-5 if call.get("eps") is None else call.get("eps")
    with torch.no_grad():
        scale = torch.rsqrt(var + eps) * (1 if call.get("weight") is None else call.get("weight"))
        shift = (0 if call.get("bias") is None else call.get("bias")) - mean * scale
        return layer.scaled(scale, shift)


# --- the rules -------------------------------------------------------------------------------
# Each is R_i = Σ_j (part of z_ij) / (sum of such parts + b's) · R_j with z_ij = x_i w_ij, divided
# by x_i, and R_j = z_j g_j.


def shares(relevance: Tensor, z: Tensor, epsilon: float) -> Tensor:
    """R / (z + ε sign z); nothing where z is zero: there no part has a share, or R is zero, too."""
    total = stabilised(z, epsilon)
    return torch.where(z == 0, 0, relevance / torch.where(z == 0, 1, total))


def epsilon_rule(epsilon: float) -> Rule:
    """R_i = Σ_j z_ij / (z_j + ε sign z_j) R_j."""
    real("epsilon", epsilon, 0)

    def rule(layer: Layer, x: Tensor, grad: Tensor) -> Tensor:
        if epsilon == 0:
            return layer.back(grad)
        z = layer(x) + layer.part(lambda b: b)
        return layer.back(grad * z / stabilised(z, epsilon))

    return rule


def alpha_beta_rule(alpha: float, beta: float, epsilon: float) -> Rule:
    """R_i = Σ_j (α z_ij⁺ / z_j⁺ − β z_ij⁻ / z_j⁻) R_j, the bias in z_j⁺ and z_j⁻."""
    real("epsilon", epsilon, 0)

    def rule(layer: Layer, x: Tensor, grad: Tensor) -> Tensor:
        up, down = layer.weight.clamp(min=0), layer.weight.clamp(max=0)
        high, low = x.clamp(min=0), x.clamp(max=0)
        relevance = grad * (layer(x) + layer.part(lambda b: b))
        z = layer(high, up) + layer(low, down) + layer.part(lambda b: b.clamp(min=0))
        s = alpha * shares(relevance, z, epsilon)
        back = torch.where(x < 0, layer.back(s, down), layer.back(s, up))
        if beta == 0:
            return back
        z = layer(high, down) + layer(low, up) + layer.part(lambda b: b.clamp(max=0))
        s = beta * shares(relevance, z, epsilon)
        return back - torch.where(x < 0, layer.back(s, up), layer.back(s, down))

    return rule


def gamma_rule(gamma: float, epsilon: float) -> Rule:
    """R_i = Σ_j (z_ij + γ z_ij^±) / (z_j + γ z_j^±) R_j, ± being the sign of z_j with the bias."""
    real("gamma", gamma, 0)
    real("epsilon", epsilon, 0)

    def rule(layer: Layer, x: Tensor, grad: Tensor) -> Tensor:
        weight = layer.weight
        more_up = weight + gamma * weight.clamp(min=0)
        more_down = weight + gamma * weight.clamp(max=0)
        high, low = x.clamp(min=0), x.clamp(max=0)
        true = layer(x) + layer.part(lambda b: b)
        back = torch.zeros_like(x)
        for positive, first, second in ((True, more_up, more_down), (False, more_down, more_up)):
            edge = {"min": 0} if positive else {"max": 0}
            z = layer(high, first) + layer(low, second)
            z = z + layer.part(lambda b, edge=edge: b + gamma * b.clamp(**edge))
            here = true > 0 if positive else true < 0
            s = torch.where(here, shares(grad * true, z, epsilon), 0)
            back = back + torch.where(x < 0, layer.back(s, second), layer.back(s, first))
        return back

    return rule


def flat_rule(epsilon: float) -> Rule:
    """R_i = Σ_j R_j / n_j, evenly over the n_j inputs of each output, whatever x and W are."""
    real("epsilon", epsilon, 0)

    def rule(layer: Layer, x: Tensor, grad: Tensor) -> Tensor:
        relevance = grad * (layer(x) + layer.part(lambda b: b))
        ones = torch.ones_like(layer.weight)
        s = relevance / stabilised(layer(torch.ones_like(x), ones), epsilon)
        return _per_unit(layer, x, layer.back(s, ones))

    return rule


def box_rule(low: float, high: float, epsilon: float) -> Rule:
    """R_i = Σ_j (z_ij − l w_ij⁺ − h w_ij⁻) / (sum of such terms) R_j, for inputs from l to h."""
    real("epsilon", epsilon, 0)

    def rule(layer: Layer, x: Tensor, grad: Tensor) -> Tensor:
        up, down = layer.weight.clamp(min=0), layer.weight.clamp(max=0)
        least, most = torch.full_like(x, low), torch.full_like(x, high)
        relevance = grad * (layer(x) + layer.part(lambda b: b))
        s = relevance / stabilised(layer(x) - layer(least, up) - layer(most, down), epsilon)
        found = x * layer.back(s) - least * layer.back(s, up) - most * layer.back(s, down)
        return _per_unit(layer, x, found)

    return rule


ZERO = 1e-30  # what stands for a zero of the explained input, so that R / x is a number


def _per_unit(layer: Layer, x: Tensor, relevance: Tensor) -> Tensor:
    """R / x. Zeros of an inner tensor keep what they have."""
    zero = ZERO if layer.entry else torch.inf
    return relevance / torch.where(x == 0, zero, x)
