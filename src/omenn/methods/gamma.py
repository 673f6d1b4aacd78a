"""LRP-γ: what speaks for a unit counts 1 + γ times."""

from __future__ import annotations

from typing import Any

from omenn.engine.target import Target
from omenn.explanation import Explanation
from omenn.methods.lrp_layers import by_layer, gamma_rule
from omenn.methods.propagation import Book, propagate
from omenn.methods.registry import method


@method(
    "gamma",
    promise="approximate",
    summary="LRP-γ for every layer, batch norm folded",
    source="Montavon et al. 2019, doi 10.1007/978-3-030-28954-6_10",
)
def gamma(
    model: Any,
    inputs: Any,
    target: Target = None,
    *,
    gamma: float = 0.25,
    epsilon: float = 1e-6,
    at: str | None = None,
    resample: str = "bilinear",
    output: Any = None,
    channel_dim: int | None = None,
) -> Explanation:
    """Layer-wise relevance propagation with the γ-rule everywhere, for inputs of any sign.

    R_i = Σ_j (z_ij + γ z_ij^±) / (z_j + γ z_j^±) R_j with z_ij = x_i w_ij, where ± is the sign of
    the output z_j, bias included.

    A batch norm behind a layer is folded into it; all else is as in the frozen book: max pooling
    gives to the winner, sums and averages in proportion, element-wise functions pass R on.

    Raises:
        InputError: γ or ε is negative or not finite.

    Example:
        >>> import torch, omenn
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 4, bias=False), torch.nn.ReLU(),
        ...                           torch.nn.Linear(4, 2, bias=False)).eval()
        >>> e = omenn.explain(net, torch.rand(1, 3), method="gamma")
        >>> assert e.matrix.shape == (1, 3)

    Source: Montavon et al. 2019, doi 10.1007/978-3-030-28954-6_10.
    """
    book = Book(by_layer(gamma_rule(gamma, epsilon)))
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
