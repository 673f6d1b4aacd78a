"""CP-LRP: attention weights and normalisations are constants, layers follow the ε-rule."""

from __future__ import annotations

from typing import Any

from omenn.check import flag
from omenn.engine.operators import OPERATORS
from omenn.engine.operators.products import freeze_factors
from omenn.engine.target import Target
from omenn.engine.trace.call import Call
from omenn.explanation import Explanation
from omenn.methods.lrp_layers import by_layer, epsilon_rule
from omenn.methods.propagation import Book, propagate, ruled
from omenn.methods.registry import method


def cp_lrp_book(epsilon: float, published: bool = False) -> Book:
    rows = by_layer(epsilon_rule(epsilon), fold=False)
    return Book({**rows, **ruled("mul", gated)} if published else rows)


def gated(call: Call) -> Any:
    """The product of a gated MLP: the gate, the factor that is an activation, is a constant."""
    factors = [call.get("input"), call.get("other")]
    if len({id(t) for t in call.carried}) < 2:
        return OPERATORS["mul"].rule(call)
    gates = [call.owner.chains.curved(t) for t in factors]
    if gates[0] == gates[1]:
        ranks = [m.rank for t in factors if (m := call.mark(t)) is not None]
        if ranks[0] != ranks[1]:
            return OPERATORS["mul"].rule(call)
        which = "both are activations" if gates[0] else "neither is an activation"
        raise call.refuse(
            f"published=True stops the gradient at the gate of a gated MLP, and of these two "
            f"factors {which}",
            "Leave published out: each factor has half.",
        )
    return call.run(freeze_factors(call, factors, keep=1 if gates[0] else 0))


@method(
    "cp-lrp",
    promise="approximate",
    summary="frozen attention and norms, ε-rule for layers; biases keep their share",
    source="arXiv 2202.07304",
)
def cp_lrp(
    model: Any,
    inputs: Any,
    target: Target = None,
    *,
    epsilon: float = 1e-6,
    published: bool = False,
    at: str | None = None,
    resample: str = "bilinear",
    output: Any = None,
    channel_dim: int | None = None,
) -> Explanation:
    """Conservative propagation: R = x ⊙ g through the frozen network, ε-rule at layers.

    Of two equally bounded factors that depend on the input, as in a gated MLP act(gate) ⊙ up, each
    has half; with ``published=True`` up has all, as in the code that is used for language models
    (lxt), which stops the gradient at the gate.

    With ``epsilon=0`` it is C_w ⊙ X of the frozen book; on a network without additive constants
    that is the whole of the logit.

    Example:
        >>> import torch, omenn
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.GELU()).eval()
        >>> x = torch.randn(2, 3)
        >>> e = omenn.explain(net, x, 0, method="cp-lrp", epsilon=0.0)
        >>> f = omenn.explain(net, x, 0)
        >>> assert torch.allclose(e.contribution, f.contribution, atol=1e-6)

    Source: Ali et al. 2022, arXiv 2202.07304, section 4.
    """
    flag("published", published)
    book = cp_lrp_book(epsilon, published)
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
