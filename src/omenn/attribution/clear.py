"""A readable exact map: completed LRP-γ, its kept shares moved along the relevance of pixels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from omenn.attribution.focused import PLACED, even, moved_within
from omenn.attribution.lrp_layers import Layer, by_layer, gamma_rule
from omenn.attribution.question import Question
from omenn.attribution.registry import attribution
from omenn.attribution.rule_table import RuleTable
from omenn.check import choose, positive, real
from omenn.engine.trace.call import Call
from omenn.errors import InputError
from omenn.explanation import Explanation, leaves, rebuilt
from omenn.filters import gaussian_filter


@attribution(
    "omenn-clear",
    promise="exact",
    summary="completed LRP-γ, kept shares moved within their cells along its relevance",
    source="ours, on Montavon et al. 2019, doi 10.1007/978-3-030-28954-6_10",
    at=False,
)
def clear(
    question: Question,
    *,
    gamma: float = 0.1,
    gamma_linear: float = 0.03,
    reach: float = 0.5,
    smooth: float = 0.013,
    epsilon: float = 1e-6,
    bias: str = "spatial",
) -> Explanation:
    """An exact map of an image that can be read: what is kept in depth lies where it was seen.

    Completed LRP-γ has two parts, C = R + Σ_l D_l. R is the relevance of the pixels, fine and where
    the object is, but nearly none of the logit; D_l is what layers keep whose units lie in cells of
    one size, n_l of them, and holds nearly all of it. Each D_l is moved along R within ``reach``
    cells. With a Gaussian G_l of σ = ``reach`` √(H W / n_l), G₀ of σ = ``smooth`` min(H, W), and
    g_l = sign(G_l D_l)::

        a_l = max(0, g_l ⊙ G₀ R) / mean + floor,    Z = R + Σ_l a_l ⊙ G_l(D_l ⊘ G_l a_l)

    ΣZ = ΣC = f(x), whatever a_l is: see NOTE [moving mass]. A region that is wide against the cells
    keeps what it has. The cell of what has no location is the whole picture. ``weight``,
    ``contribution`` and ``bias`` are those of C. One forward and one backward pass.

    Args:
        gamma, gamma_linear: of convolutions, and of all other layers.
        epsilon: of the γ-rule.
        reach: σ of G_l, in sides of a cell. 0: D stays where it is.
        smooth: σ of G₀, as a share of the shorter side.
        bias: ``"spatial"``, ``"bilinear"``, ``"attention"`` or ``"uniform"``, see ``omenn``.
        output, channel_dim: see ``omenn``.

    Raises:
        InputError: the input is not one batch of images (B, C, H, W) with a number for each; an
            option out of its range.

    Example:
        >>> import torch, omenn
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(),
        ...                           torch.nn.Flatten(), torch.nn.Linear(784, 2)).eval()
        >>> e = omenn.explain(net, torch.randn(2, 3, 16, 16), 1, method="omenn-clear")
        >>> assert e.exact and torch.allclose(e.matrix.sum((1, 2)), e.output, atol=1e-4)

    Source: ours; the γ-rule is of Montavon et al. 2019, doi 10.1007/978-3-030-28954-6_10.
    """
    real("gamma_linear", gamma_linear, 0)
    real("reach", reach, 0, 8)
    positive("smooth", smooth)
    choose("bias", bias, PLACED)
    run = question.run_under(_rules(gamma, gamma_linear, epsilon), bias=bias)
    f, index = question.number(run)
    run.compare(question.output)
    gradients, cells = run.pull_back_by_cells(f)
    e = run.wrap(f, index, gradients)
    relevance, kept = _image(e)
    if not reach:
        return e
    levels = {n: run.inputs.batch_first(ones, 0).double() for n, (ones,) in cells.items()}
    return _moved(e, relevance, kept, levels, reach, smooth)


def _rules(gamma: float, linear: float, epsilon: float) -> RuleTable:
    """The γ-rule, with one γ for convolutions and one for all other layers."""
    conv, other = gamma_rule(gamma, epsilon), gamma_rule(linear, epsilon)

    def choose(call: Call, layer: Layer) -> Layer:
        return replace(layer, rule=conv if call.operator.startswith("conv") else other)

    return RuleTable(by_layer(other, choose=choose))


def _moved(
    e: Explanation,
    relevance: Tensor,
    kept: Tensor,
    levels: Mapping[int, Tensor],
    reach: float,
    smooth: float,
) -> Explanation:
    """Z: the kept shares D of each level moved along R."""
    height, width = kept.shape[1:]
    leader = gaussian_filter(relevance, smooth * min(height, width))
    # What has no location was spread over the picture: its cell is the whole.
    parts = [*levels.items(), (1, kept - sum(levels.values(), torch.zeros_like(kept)))]
    matrix = relevance
    for n, part in parts:
        sigma = reach * math.sqrt(height * width / n)
        matrix = matrix + moved_within(part, sigma, lambda sign: even(sign * leader))
    said = f"kept shares moved within {reach:g} sides of their cells"
    matrix = matrix.to(leaves(e.matrix)[0].dtype)
    return e.with_matrix(rebuilt(e.matrix, iter([matrix])), processing=(said,))


def _image(e: Explanation) -> tuple[Tensor, Tensor]:
    """R and D of images, (B, H, W) in double precision."""
    maps, given = leaves(e.matrix), leaves(e.contribution)
    wide = [c for c in given if c.ndim == 4]
    dim = _number(e.channel_dim)
    shape = wide[0].sum(dim).shape if len(maps) == 1 and wide and dim else ()
    if len(shape) != 3 or maps[0].shape != shape:
        shapes = ", ".join(str(tuple(c.shape)) for c in given)
        raise InputError(
            f"method 'omenn-clear' is for one batch of images, but {shapes} is explained.",
            argument="inputs",
            got=shapes,
            expected="one batch of images (B, C, H, W), with a number for each",
            remedy="Use method 'omenn', or a table of rules with complete=True.",
        )
    return wide[0].double().sum(dim), leaves(e.bias)[0].double()


def _number(value: Any) -> int | None:
    """The first number of a structure."""
    parts = list(value.values()) if isinstance(value, Mapping) else value
    if not isinstance(parts, (list, tuple)):
        return parts
    return next((n for part in parts if (n := _number(part)) is not None), None)
