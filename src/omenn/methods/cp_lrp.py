"""CP-LRP: attention weights and normalisations are constants, layers follow the ε-rule."""

from __future__ import annotations

from typing import Any

from omenn.core.explanation import Explanation
from omenn.core.target import Target
from omenn.methods.layers import by_layer, epsilon_rule
from omenn.methods.propagation import Book, propagate
from omenn.methods.registry import method


def cp_lrp_book(epsilon: float) -> Book:
    return Book(by_layer(epsilon_rule(epsilon), fold=False))


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
    at: str | None = None,
    resample: str = "bilinear",
    output: Any = None,
    channel_dim: int | None = None,
) -> Explanation:
    """Conservative propagation: R = x ⊙ g through the frozen network, ε-rule at layers.

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
    book = cp_lrp_book(epsilon)
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
