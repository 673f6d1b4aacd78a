"""ResLRP: AttnLRP with a ratio rule on residual additions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from omenn.engine.operators import OPERATORS
from omenn.engine.target import Target
from omenn.engine.trace.call import Call
from omenn.explanation import Explanation
from omenn.methods.attnlrp import attnlrp_book, joint
from omenn.methods.lrp_layers import strength
from omenn.methods.propagation import Book, propagate, ruled
from omenn.methods.registry import method


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
        if not plain or len(call.carried) != 2 or a is b:
            return OPERATORS[call.operator].rule(call)

        def vjp(grad: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
            to_a, to_b = ratio(a, b, gamma)
            return (grad * to_a).sum_to_size(a.shape), (grad * to_b).sum_to_size(b.shape)

        return joint(call, vjp, [a, b])

    return added


def reslrp_book(gamma: float, epsilon: float) -> Book:
    rows = attnlrp_book(epsilon)
    strength("gamma", gamma)
    return Book({**rows.rows, **ruled("add", residual_rule(gamma))}, ranked=False)


@method(
    "reslrp",
    promise="none",
    summary="attnlrp with the ratio rule on residual additions",
    source="ResLRP, preprint of 2026",
)
def reslrp(
    model: Any,
    inputs: Any,
    target: Target = None,
    *,
    gamma: float = 1.0,
    epsilon: float = 1e-6,
    at: str | None = None,
    resample: str = "bilinear",
    output: Any = None,
    channel_dim: int | None = None,
) -> Explanation:
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
    book = reslrp_book(gamma, epsilon)
    return propagate(
        model,
        inputs,
        target,
        book,
        at=at,
        resample=resample,
        output=output,
        channel_dim=channel_dim,
    )
