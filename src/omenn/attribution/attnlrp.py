"""AttnLRP, where relevance also flows through the attention weights, and ResLRP on top of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from omenn.attribution.attend import arguments, attend
from omenn.attribution.lrp_layers import by_layer, epsilon_rule, joined, leaf_of
from omenn.attribution.rule_methods import lrp
from omenn.attribution.rule_table import RuleTable, ruled, stabilised
from omenn.check import real
from omenn.engine.operators.chain import FROZEN_CHAIN, frozen_chain
from omenn.engine.operators.pointwise import origin, pointwise
from omenn.engine.operators.table import OPERATORS, Operator
from omenn.engine.torch_private import batched
from omenn.engine.trace.autograd_nodes import Pulled
from omenn.engine.trace.call import Call

Sub = Callable[[Tensor], Tensor]


def inputs_of(call: Call) -> list[Tensor]:
    """The active tensors, each once."""
    return list({id(t): t for t in call.active}.values())


def differentiated(call: Call) -> Any:
    """The operator with its true derivative: R_i = x_i Σ_j ∂y_j/∂x_i g_j, a Taylor rule.

    For softmax it is R_i = x_i (R_i − s_i Σ_j R_j) with the R_j of its output.
    """

    def run(leaf: Sub, _: Sub) -> Tensor:
        first = call.first if call.inplace else None  # which is not written into again
        return call.again(lambda t: leaf(t).clone() if t is first else leaf(t))

    return taylor(call, run)


def attention(call: Call) -> Any:
    """Fused attention in its parts: half of R to the values, a quarter each to query and key.

    Only factors that depend on the input take part: between one of them and a constant there is
    nothing to share. Where both factors of a product share, each has half of the derivative.
    """
    given = arguments(call)
    halves = _halves(*(call.is_active(t) for t in given[:3]))

    def run(leaf: Sub, constant: Sub) -> Tensor:
        parts = [
            h * leaf(t) + (1 - h) * constant(t) if call.is_active(t) else t
            for t, h in zip(given, halves, strict=True)
        ]
        return attend(call, *parts)

    return taylor(call, run)


def _halves(query: bool, key: bool, value: bool) -> tuple[float, float, float, float]:
    """The shares of query, key, value and mask in two products, of which these are active."""
    weights = 0.5 if value else 1.0
    logits = 0.5 * weights if query and key else weights
    return logits, logits, 0.5 if query or key else 1.0, weights


def taylor(call: Call, run: Callable[[Sub, Sub], Tensor], xs: list[Tensor] | None = None) -> Tensor:
    """The Taylor rule of ``run``: the operator on its arguments as leaves, or as constants.

    ``xs``: what it is differentiated by, if not by all active arguments.
    """
    xs = inputs_of(call) if xs is None else xs
    again = call.context.create_graph

    def vjp(grad: Tensor, *inner: Tensor) -> tuple[Tensor | None, ...]:
        fixed = {id(x): t for x, t in zip(xs, inner, strict=True)}

        def constant(t: Tensor) -> Tensor:
            return fixed[id(t)] if id(t) in fixed else t if again else t.detach()

        with torch.enable_grad():
            leaves = [leaf_of(t) for t in inner]
            known = {id(x): leaf for x, leaf in zip(xs, leaves, strict=True)}
            y = run(lambda t: known[id(t)] if id(t) in known else constant(t), constant)
        more = grad.requires_grad
        return torch.autograd.grad(y, leaves, grad, allow_unused=True, create_graph=more)

    return joint(call, vjp, xs)


def joint(call: Call, vjp: Callable[..., Any], xs: list[Tensor]) -> Tensor:
    """The native value, and ``vjp(grad, *xs)`` on the way back, with the xs as they are now.

    A part of a tensor is copied: models write into it what they have computed from it.
    """
    again = call.context.create_graph
    trues = [call.true(x) for x in xs] if again else None
    xs = [x.clone() if call.inplace or x._is_view() else x for x in xs]
    value = call.value()
    whole = value
    if call.collects:  # a copy, as a model may write into what it gets
        whole = call.true_value() if again else value.clone()

    def pull(grad: Tensor, inner: Sequence[Tensor], complete: bool) -> Pulled:
        inner, more = inner if trues is None else trues, torch.is_grad_enabled()
        if not complete:
            return vjp(grad, *inner), None
        with torch.enable_grad():
            # V x is the same at every gradient, and one of several rows cannot be detached.
            dual = torch.zeros_like(whole) if batched(grad) else grad
            dual = dual if more and dual.requires_grad else dual.detach().requires_grad_()
            found = vjp(dual, *inner)
        kept = whole - passed(dual, found, inner, again)
        if batched(grad):
            return vjp(grad, *inner), kept
        return (found if more else [g if g is None else g.detach() for g in found]), kept

    return call.written(call.first, joined(call, value, pull, None, xs))


def passed(
    dual: Tensor, found: Sequence[Tensor | None], xs: Sequence[Tensor], again: bool
) -> Tensor:
    """Σ V x, from Vᵀ as a function of the gradient: V x = ∂⟨x, Vᵀ g⟩/∂g, whatever g is.

    A masked logit, −∞, has the coefficient 0 and passes nothing.
    """
    with torch.enable_grad():
        pairs = [(x, g) for x, g in zip(xs, found, strict=True) if g is not None]
        parts = [(torch.where(x.isfinite(), x, 0) * g).sum() for x, g in pairs]
        total = torch.stack([*parts, dual.sum() * 0]).sum()
    return torch.autograd.grad(total, dual, create_graph=again, retain_graph=True)[0]


def identity_rule(epsilon: float) -> Callable[[Call], Any]:
    """R passes an element-wise function unchanged: g ⟦f(x)/x⟧."""

    def identity(call: Call) -> Any:
        value, x = call.value(), call.active[0]
        true = call.true(x)
        y = call.true_value() if call.context.create_graph else value
        share = y / stabilised(true, epsilon)
        kept = y - share * true  # NOTE [outlive the write]
        out = call.frozen(x, value, lambda grad, share: grad * share, share)
        return call.attach(out, kept) if call.collects else out

    return identity


def elementwise(epsilon: float) -> Callable[[Call], Any]:
    """Where f(0) ≠ 0 all of R passes, and none goes to the constant; else R passes anyhow."""
    identity = identity_rule(epsilon)
    return lambda call: identity(call) if origin(call, call.active[0])[0] else pointwise(call)


def chained(epsilon: float) -> Callable[[Any], Any]:
    """A function spelled by several operators: the identity rule, as for any of one operator."""
    identity = identity_rule(epsilon)
    return lambda call: identity(call) if bool(call.at_origin.any()) else frozen_chain(call)


CURVES = tuple(name for name, known in OPERATORS.items() if known.rule is pointwise)
"""The smooth functions of each element alone."""


def passed_on(epsilon: float) -> dict[str, Operator]:
    """Rows of the identity rule for element-wise functions, in one operator or in several."""
    chain = FROZEN_CHAIN.with_rule(chained(epsilon))
    return ruled(CURVES, elementwise(epsilon)) | {"chain": chain}


def ratio(a: Tensor, b: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """What a and b have of R per unit of them and of g: w z / (w_a a + w_b b).

    w = 1 + γ where the sign is that of z = a + b, else 1. The denominator has the sign of z and is
    no smaller. Where a and b cancel R is zero and so are both parts, for any γ > 0; for γ = 0 the
    denominator is z, and g passes.
    """
    z = a + b
    more_a, more_b = (1 + gamma * (torch.sign(t) == torch.sign(z)).to(z.dtype) for t in (a, b))
    total = more_a * a + more_b * b
    share = torch.where(total == 0, float(gamma == 0), z / torch.where(total == 0, 1, total))
    return more_a * share, more_b * share


def residual_rule(gamma: float) -> Any:
    """The sum of two tensors that depend on the input, of any shapes that broadcast."""

    def added(call: Call) -> Any:
        a, b = call.get("input"), call.get("other")
        plain = call.get("alpha") in (None, 1) and call.operator == "add"
        if not plain or len(call.active) != 2 or a is b:
            return OPERATORS[call.operator].rule(call)

        def vjp(grad: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
            to_a, to_b = ratio(a, b, gamma)
            return (grad * to_a).sum_to_size(a.shape), (grad * to_b).sum_to_size(b.shape)

        return joint(call, vjp, [a, b])

    return added


@lrp(
    "attnlrp",
    promise="none",
    summary="products share in halves, softmax by its Taylor rule, identity for pointwise",
    source="arXiv 2402.05602",
)
def attnlrp(*, epsilon: float = 1e-6) -> RuleTable:
    """Attention-aware layer-wise relevance propagation.

    ε-rule for layers; for a product of two tensors that depend on the input half of R each
    (A V, q kᵀ, gate ⊙ up); softmax s(x): R_i = x_i (R_i − s_i Σ_j R_j); element-wise functions
    pass R on; in a normalisation 1/σ is a constant.

    Example:
        >>> import torch, omenn
        >>> layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
        >>> x, first = torch.randn(1, 5, 8), lambda out: out[:, 0, 0]
        >>> e = omenn.explain(layer, x, first, method="attnlrp")
        >>> assert e.matrix.shape == (1, 5)

    Source: Achtibat et al. 2024, arXiv 2402.05602, section 3.
    """
    rows = by_layer(epsilon_rule(epsilon), fold=False)
    rows |= ruled("softmax", differentiated)
    rows |= ruled("scaled_dot_product_attention", attention)
    return RuleTable(rows | passed_on(max(epsilon, 1e-9)), freeze_bounded=False)


@lrp(
    "reslrp",
    promise="none",
    summary="attnlrp with the ratio rule on residual additions",
    source="ResLRP, preprint of 2026",
)
def reslrp(*, gamma: float = 1.0, epsilon: float = 1e-6) -> RuleTable:
    """AttnLRP whose residual additions favour the branch that has the sign of the sum.

    z = a + b: R_a = w_a a / (w_a a + w_b b) R with w = 1 + γ·1[sign equals that of z]. Both
    together |R_a| + |R_b| ≤ (1 + 2/γ) |R|, where the plain ratio a/z has no bound. As γ → 0 it is
    ``attnlrp``.

    Raises:
        InputError: γ or ε is negative or not finite.

    Example:
        >>> import torch, omenn
        >>> layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
        >>> x, first = torch.randn(1, 5, 8), lambda out: out[:, 0, 0]
        >>> e = omenn.explain(layer, x, first, method="reslrp")
        >>> assert e.matrix.shape == (1, 5)

    Source: ResLRP, preprint of 2026, the ratio rule for residual connections.
    """
    rules = attnlrp(epsilon=epsilon)
    return rules.over(add=residual_rule(real("gamma", gamma, 0)))
