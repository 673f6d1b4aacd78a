"""Generic attention explainability: attention weighted by its gradient, added up over layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from omenn.engine.target import Target
from omenn.engine.trace.guards import alone
from omenn.explanation import Explanation
from omenn.methods.attention_maps import AttentionRun, check_resample
from omenn.methods.registry import method


def relevance_of_tokens(
    layers: Sequence[Tensor], gradients: Sequence[Tensor], start: Tensor
) -> Tensor:
    """Rows (B, N) of R = (I + Ā_L) … (I + Ā_1), ``start`` times that product.

    Ā is the mean over heads of (∇A ⊙ A)⁺, A and ∇A being (B, heads, N, N). It is R ← R + Ā R from
    R = I on, layer by layer.
    """
    for weights, gradient in zip(reversed(layers), reversed(gradients), strict=True):
        over = (weights * gradient).clamp(min=0).mean(1)
        start = start + (start.unsqueeze(1) @ over).squeeze(1)
    return start


@method(
    "generic-attention",
    promise="none",
    summary="positive part of attention times its gradient, added up over layers",
    source="arXiv 2103.15679",
)
@alone()
def generic_attention(
    model: Any,
    inputs: Any,
    target: Target = None,
    *,
    query: int | str = "auto",
    resample: str = "nearest",
    output: Any = None,
    channel_dim: int | None = None,
) -> Explanation:
    """The rule for self-attention: R ← R + Ā R with Ā = mean over heads of (∇A ⊙ A)⁺, R = I first.

    ∇A = ∂f/∂A is the derivative of the ordinary network. The map is a row of R, brought to the
    places of the input where the tokens lie. What tokens without a place have (a class token,
    registers) is left out; R begins with the identity, so the row of a token that has a place
    holds a one for itself.

    Args:
        query: whose row: ``"auto"`` that of the tokens which the output reads (class token, last
            token, or the mean of all), ``"mean"`` of all that have a place, or the number of a
            token, 0 the first and -1 the last.
        resample: what a token has goes ``"nearest"``, evenly to its block of pixels, or
            ``"bilinear"``; both keep the sum.

    Raises:
        UnsupportedOperator: attention in windows, across sequences or channels, or over a number of
            tokens that changes.
        ModelError: the model has no attention.

    Example:
        >>> import torch, omenn
        >>> layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
        >>> x, first = torch.randn(1, 5, 8), lambda out: out[:, 0, 0]
        >>> e = omenn.explain(layer, x, first, method="generic-attention")
        >>> assert e.matrix.shape == (1, 5) and bool((e.matrix >= 0).all())

    Source: Chefer, Gur and Wolf 2021, arXiv 2103.15679, section 3.
    """
    check_resample(resample)
    run = AttentionRun(model, inputs, target, output, channel_dim)
    relevance = relevance_of_tokens(run.weights(), run.gradients(), run.start(query))
    return run.explanation(relevance, resample)
