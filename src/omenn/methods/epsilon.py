"""LRP-ε: R_i = Σ_j z_ij / (z_j + ε sign z_j) R_j for every layer with weights."""

from __future__ import annotations

from typing import Any

from omenn.engine.target import Target
from omenn.explanation import Explanation
from omenn.methods.lrp_layers import by_layer, epsilon_rule
from omenn.methods.propagation import Book, propagate
from omenn.methods.registry import method


@method(
    "epsilon",
    promise="approximate",
    summary="LRP-ε for every layer, batch norm folded",
    source="Bach et al. 2015, doi 10.1371/journal.pone.0130140",
)
def epsilon(
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
    """Layer-wise relevance propagation with the ε-rule everywhere.

    R_i = Σ_j x_i w_ij / (z_j + ε sign z_j) R_j, z_j with the bias, which keeps its share.

    A batch norm behind a layer is folded into it; all else is as in the frozen book: max pooling
    gives to the winner, sums and averages in proportion, element-wise functions pass R on.

    Example:
        >>> import torch, omenn
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 4, bias=False), torch.nn.ReLU(),
        ...                           torch.nn.Linear(4, 2, bias=False)).eval()
        >>> e = omenn.explain(net, torch.rand(1, 3), method="epsilon")
        >>> assert e.matrix.shape == (1, 3)

    Source: Bach et al. 2015, doi 10.1371/journal.pone.0130140.
    """
    book = Book(by_layer(epsilon_rule(epsilon)))
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
