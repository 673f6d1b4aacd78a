"""One family of completed rules, by dials: what layers, attention, norms and functions keep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from omenn.attribution.attnlrp import residual_rule
from omenn.attribution.derivatives import (
    Rows,
    identity_rows,
    norm_rows,
    pointwise_rows,
    softmax_rows,
)
from omenn.attribution.lrp_layers import (
    Input,
    Layer,
    Rule,
    by_layer,
    epsilon_rule,
    gamma_rule,
)
from omenn.attribution.rule_methods import lrp
from omenn.attribution.rule_table import RuleTable
from omenn.check import choose_each, real, wrong
from omenn.engine.trace.call import Call

SOFTMAX = ("frozen", "taylor")
NORM = ("frozen", "derivative")
POINTWISE = ("ratio", "tangent", "identity")


@lrp(
    "rules",
    promise="exact",
    complete=True,
    summary="completed rules by dials: layers, attention, norms, functions, residual additions",
    source="ours, on Bach et al. 2015, doi 10.1371/journal.pone.0130140",
)
def rules(
    *,
    gamma: float | Sequence[float] = 0.0,
    beta: float = 1.0,
    softmax: str = "frozen",
    norm: str = "frozen",
    pointwise: str = "ratio",
    residual: float | None = None,
) -> RuleTable:
    """A completed table of rules, put together from what it says about each kind of operator.

    A rule passes on y = V x + t by its coefficients V and keeps t, which goes to its place: the sum
    is exact for any V. With nothing given it is ``omenn``. Formulas, and what each dial does to
    maps: docs/ablation.md.

    Args:
        gamma: of a layer with weights (batch norm folded), V_ij = (z_ij + γ z_ij^±)/x_i · y_j/z_j'
            with z_ij = x_i w_ij, ± the sign of y_j and z_j' = Σ_i (z_ij + γ z_ij^±) + β (b_j +
            γ b_j^±). Two numbers: of the first layer and of the last one, linear in between by
            the order in which the layers are called.
        beta: from 0 to 1, how much of the denominator the constants of a layer take. For β < 1
            y_j/z_j' is held between 0 and 2, and is 0 where the inputs speak against the unit. A
            batch norm that stands alone is a layer then.
        softmax: ``"frozen"``, or ``"taylor"``: R_i = x_i (R_i − s_i Σ_j R_j), weights and values of
            an attention in halves, and so query and key.
        norm: ``"frozen"``, 1/σ being a constant, or ``"derivative"``: V is the Jacobian.
        pointwise: of a function φ of each element: ``"ratio"``, V = (φ(x) − φ(0))/x; ``"tangent"``,
            V = φ′(x); ``"identity"``, V = φ(x)/x where φ(0) ≠ 0, as in ``attnlrp``, and where a
            value is clipped towards zero, which by the others is a constant.
        residual: γ of the ratio rule for a + b, as in ``reslrp``; None: V = 1.

    Raises:
        InputError: an option out of its range.

    Example:
        >>> import torch, omenn
        >>> layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
        >>> x, first = torch.randn(1, 5, 8), lambda out: out[:, 0, 0]
        >>> e = omenn.explain(layer, x, first, method="rules", gamma=0.1, softmax="taylor")
        >>> assert e.exact and e.promise == "exact"

    Source: ours (docs/completed-rules.md), on Bach et al. 2015, doi 10.1371/journal.pone.0130140;
        γ: Montavon et al. 2019, doi 10.1007/978-3-030-28954-6_10; softmax and identity: Achtibat
        et al. 2024, arXiv 2402.05602.
    """
    choose_each(softmax=(softmax, SOFTMAX), norm=(norm, NORM), pointwise=(pointwise, POINTWISE))
    rows: Rows = {} if pointwise == "ratio" else _CURVES[pointwise]()
    rows = norm_rows(rows) if norm == "derivative" else rows
    rows = softmax_rows(rows) if softmax == "taylor" else rows
    table = RuleTable(rows | _layer_rows(gamma, real("beta", beta, 0, 1)))
    if residual is None:
        return table
    return table.over(add=residual_rule(real("residual", residual, 0)))


_CURVES = {"tangent": pointwise_rows, "identity": identity_rows}


def _layer_rows(gamma: Any, beta: float) -> Rows:
    """Rows of the layers; none where all are as in the frozen table."""
    first, last = _ends(gamma)
    if first == last == 0 and beta == 1:
        return {}
    alone = gamma_rule(0.0, 0.0, beta) if beta < 1 else None
    if first == last:
        return by_layer(gamma_rule(first, 0.0, beta), alone=alone)
    return by_layer(epsilon_rule(0.0), choose=_by_depth(first, last, beta), alone=alone)


def _ends(gamma: Any) -> tuple[float, float]:
    """γ of the first layer and of the last one."""
    if not isinstance(gamma, (list, tuple)):
        return real("gamma", gamma, 0), real("gamma", gamma, 0)
    if len(gamma) != 2:
        raise wrong("gamma", gamma, "a number, or two: of the first layer and of the last one")
    return real("gamma", gamma[0], 0), real("gamma", gamma[1], 0)


def _by_depth(first: float, last: float, beta: float) -> Any:
    """Each layer with the γ of its depth, which is known when relevance comes back to it."""

    def choose(call: Call, layer: Layer) -> Layer:
        numbers = call.context.notes.setdefault("depth of layers", [])
        numbers.append(len(numbers))
        place = numbers[-1]

        def rule(layer: Layer, x: Input) -> tuple[Tensor, Tensor]:
            gamma = first + (last - first) * place / max(1, len(numbers) - 1)
            same = gamma == 0 and beta == 1
            own: Rule = epsilon_rule(0.0) if same else gamma_rule(gamma, 0.0, beta)
            return own(layer, x)

        return replace(layer, rule=rule)

    return choose
