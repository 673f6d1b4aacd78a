"""What attention maps say of the input: rollout, and generic attention explainability."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from omenn.attribution.attention_maps import AttentionRun
from omenn.attribution.question import Question
from omenn.attribution.registry import attribution
from omenn.check import choose
from omenn.explanation import Explanation

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


@attribution(
    "rollout",
    promise="none",
    summary="attention multiplied over all layers; the same map for every class",
    source="arXiv 2005.00928",
    at=False,
)
def rollout(
    question: Question,
    *,
    heads: str = "mean",
    query: int | str = "auto",
    resample: str = "nearest",
) -> Explanation:
    """Attention rollout: R = Ã_L … Ã_1 with Ã = ½ (Ā + I), its rows divided by their sum.

    The map is a row of R, the shares of the tokens, at their locations on the input. It depends on
    the attention weights alone, so it is the same for every target; the target only chooses the
    number in ``output``. Shares sum to one, minus those of tokens without a location (a class
    token, registers), which are left out.

    Args:
        heads: Ā is the ``"mean"``, ``"max"`` or ``"min"`` of A over the heads.
        query: whose row: ``"auto"`` that of the tokens which the output reads (class token, last
            token, or the mean of all), ``"mean"`` of all that have a location, or the number of a
            token, 0 the first and -1 the last.
        resample: a token's share is spread over its block of pixels evenly (``"nearest"``) or
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
    run = AttentionRun(question, resample)
    return run.explanation(rolled_out(run.weights(), run.start(query), heads))


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


@attribution(
    "generic-attention",
    promise="none",
    summary="positive part of attention times its gradient, added up over layers",
    source="arXiv 2103.15679",
    at=False,
)
def generic_attention(
    question: Question,
    *,
    query: int | str = "auto",
    resample: str = "nearest",
) -> Explanation:
    """The rule for self-attention: R ← R + Ā R with Ā = mean over heads of (∇A ⊙ A)⁺, R = I first.

    ∇A = ∂f/∂A is the derivative of the ordinary network. The map is a row of R, at the locations of
    the tokens. Tokens without a location (a class token, registers) are left out. R begins with the
    identity, so the row of a token that has a location holds a one for itself.

    Args:
        query, resample: see :func:`rollout`, which also has the errors.

    Example:
        >>> import torch, omenn
        >>> layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
        >>> x, first = torch.randn(1, 5, 8), lambda out: out[:, 0, 0]
        >>> e = omenn.explain(layer, x, first, method="generic-attention")
        >>> assert e.matrix.shape == (1, 5) and bool((e.matrix >= 0).all())

    Source: Chefer, Gur and Wolf 2021, arXiv 2103.15679, section 3.
    """
    run = AttentionRun(question, resample)
    relevance = relevance_of_tokens(run.weights(), run.gradients(), run.start(query))
    return run.explanation(relevance)
