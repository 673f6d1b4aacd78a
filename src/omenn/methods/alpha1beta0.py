"""LRP-α1β0: the αβ-rule that passes the positive parts alone."""

from __future__ import annotations

from typing import Any

from omenn.engine.target import Target
from omenn.explanation import Explanation
from omenn.methods.lrp_layers import alpha_beta_rule, by_layer
from omenn.methods.propagation import Book, propagate
from omenn.methods.registry import method


@method(
    "alpha1beta0",
    promise="approximate",
    summary="LRP-αβ with α = 1, β = 0, batch norm folded",
    source="Bach et al. 2015, doi 10.1371/journal.pone.0130140",
)
def alpha1beta0(
    model: Any,
    inputs: Any,
    target: Target = None,
    *,
    epsilon: float = 1e-6,
    at: str | None = None,
    resample: str = "bilinear",
    output: Any = None,
    channel_dim: int | None = None,
) -> Explanation:
    """Layer-wise relevance propagation with the αβ-rule for α = 1 and β = 0.

    R_i = Σ_j z_ij⁺ / z_j⁺ R_j with z_ij = x_i w_ij and z_j⁺ = Σ_i z_ij⁺ + b_j⁺.

    A batch norm behind a layer is folded into it; all else is as in the frozen book: max pooling
    gives to the winner, sums and averages in proportion, element-wise functions pass R on.

    Example:
        >>> import torch, omenn
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 4, bias=False), torch.nn.ReLU(),
        ...                           torch.nn.Linear(4, 2, bias=False)).eval()
        >>> e = omenn.explain(net, torch.rand(1, 3), method="alpha1beta0")
        >>> assert e.matrix.shape == (1, 3)

    Source: Bach et al. 2015, doi 10.1371/journal.pone.0130140.
    """
    book = Book(by_layer(alpha_beta_rule(1.0, 0.0, epsilon)))
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
