"""LRP-z⁺: only what speaks for a unit has a share in its relevance."""

from __future__ import annotations

from typing import Any

from omenn.engine.target import Target
from omenn.explanation import Explanation
from omenn.methods.alpha1beta0 import alpha1beta0
from omenn.methods.registry import method


@method(
    "zplus",
    promise="approximate",
    summary="LRP-z⁺ for every layer, batch norm folded",
    source="Montavon et al. 2017, arXiv 1512.02479",
    same_as="alpha1beta0",
)
def zplus(
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
    """Layer-wise relevance propagation with the z⁺-rule everywhere.

    R_i = Σ_j (x_i⁺ w_ij⁺ + x_i⁻ w_ij⁻) / z_j⁺ R_j, z_j⁺ being the sum of such terms and b_j⁺. For
    inputs of any sign it is the αβ-rule with α = 1, β = 0, so this is ``method="alpha1beta0"`` by
    the name of another paper.

    Example:
        >>> import torch, omenn
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 4, bias=False), torch.nn.ReLU(),
        ...                           torch.nn.Linear(4, 2, bias=False)).eval()
        >>> e = omenn.explain(net, torch.rand(1, 3), method="zplus")
        >>> assert e.matrix.shape == (1, 3)

    Source: Montavon et al. 2017, arXiv 1512.02479.
    """
    return alpha1beta0(
        model,
        inputs,
        target,
        epsilon=epsilon,
        at=at,
        resample=resample,
        output=output,
        channel_dim=channel_dim,
    )
