"""Attention rollout: through which tokens attention passed on its way, whatever the class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from omenn.check import choose
from omenn.engine.target import Target
from omenn.engine.trace.guards import alone
from omenn.explanation import Explanation
from omenn.methods.attention_maps import AttentionRun, check_resample
from omenn.methods.registry import method

HEADS = ("mean", "max", "min")


def rolled_out(layers: Sequence[Tensor], start: Tensor, heads: str = "mean") -> Tensor:
    """Rows (B, N) of Ã_L … Ã_1 for A_1 … A_L (B, heads, N, N): ``start`` times that product.

    Ã is ½ (Ā + I) with its rows divided by their sum, Ā being A over its heads.
    """
    for weights in reversed(layers):
        over = weights.mean(1) if heads == "mean" else getattr(weights, f"a{heads}")(1)
        total = 0.5 * (over + torch.eye(over.shape[-1], dtype=over.dtype, device=over.device))
        total = total / total.sum(-1, keepdim=True)
        start = (start.unsqueeze(1) @ total).squeeze(1)
    return start


@method(
    "rollout",
    promise="none",
    summary="attention multiplied over all layers; the same map for every class",
    source="arXiv 2005.00928",
)
@alone()
def rollout(
    model: Any,
    inputs: Any,
    target: Target = None,
    *,
    heads: str = "mean",
    query: int | str = "auto",
    resample: str = "nearest",
    output: Any = None,
    channel_dim: int | None = None,
) -> Explanation:
    """Attention rollout: R = Ã_L … Ã_1 with Ã = ½ (Ā + I), its rows divided by their sum.

    The map is a row of R, the shares of the tokens, brought to the places of the input where they
    lie. It depends on the attention weights alone and so is the same for every target: that only
    says which number ``output`` is. Shares add up to one, less what tokens without a place have
    (a class token, registers), which is left out.

    Args:
        heads: Ā is the ``"mean"``, ``"max"`` or ``"min"`` of A over the heads.
        query: whose row: ``"auto"`` that of the tokens which the output reads (class token, last
            token, or the mean of all), ``"mean"`` of all that have a place, or the number of a
            token, 0 the first and -1 the last.
        resample: a token's share goes ``"nearest"``, evenly to its block of pixels, or
            ``"bilinear"``; both keep the sum.

    Raises:
        UnsupportedOperator: attention in windows, across sequences or channels, or over a number of
            tokens that changes.
        ModelError: the model has no attention.

    Example:
        >>> import torch, omenn
        >>> layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
        >>> x, first = torch.randn(1, 5, 8), lambda out: out[:, 0, 0]
        >>> e = omenn.explain(layer, x, first, method="rollout")
        >>> assert torch.allclose(e.matrix.sum(1), torch.ones(1))

    Source: Abnar and Zuidema 2020, arXiv 2005.00928, section 3.
    """
    choose("heads", heads, HEADS)
    check_resample(resample)
    run = AttentionRun(model, inputs, target, output, channel_dim)
    shares = rolled_out(run.weights(), run.start(query), heads)
    return run.explanation(shares, resample)
