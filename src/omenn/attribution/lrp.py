"""Layer-wise relevance propagation by one rule for every layer with weights.

A batch norm behind a layer is folded into it; all else is as in the frozen table: max pooling gives
to the winner, sums and averages in proportion, element-wise functions pass R on.
"""

from __future__ import annotations

from typing import Any

from omenn.attribution.lrp_layers import alpha_beta_rule, by_layer, epsilon_rule, gamma_rule
from omenn.attribution.registry import alias
from omenn.attribution.rule_methods import lrp
from omenn.attribution.rule_table import RuleTable
from omenn.check import flag
from omenn.engine.operators.products import freeze_factors
from omenn.engine.operators.table import OPERATORS
from omenn.engine.trace.call import Call

_BACH = "Bach et al. 2015, doi 10.1371/journal.pone.0130140"


@lrp("epsilon", summary="LRP-ε for every layer, batch norm folded", source=_BACH)
def epsilon(*, epsilon: float = 1e-6) -> RuleTable:
    """Layer-wise relevance propagation with the ε-rule everywhere.

    R_i = Σ_j x_i w_ij / (z_j + ε sign z_j) R_j, z_j with the bias, which keeps its share.

    Raises:
        InputError: ε is negative or not finite.

    Example:
        >>> import torch, omenn
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 4, bias=False), torch.nn.ReLU(),
        ...                           torch.nn.Linear(4, 2, bias=False)).eval()
        >>> e = omenn.explain(net, torch.rand(1, 3), method="epsilon")
        >>> assert e.matrix.shape == (1, 3)

    Source: Bach et al. 2015, doi 10.1371/journal.pone.0130140.
    """
    return RuleTable(by_layer(epsilon_rule(epsilon)))


@lrp(
    "gamma",
    summary="LRP-γ for every layer, batch norm folded",
    source="Montavon et al. 2019, doi 10.1007/978-3-030-28954-6_10",
)
def gamma(*, gamma: float = 0.25, epsilon: float = 1e-6) -> RuleTable:
    """Layer-wise relevance propagation with the γ-rule everywhere, for inputs of any sign.

    R_i = Σ_j (z_ij + γ z_ij^±) / (z_j + γ z_j^±) R_j with z_ij = x_i w_ij, where ± is the sign of
    the output z_j, bias included.

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
    return RuleTable(by_layer(gamma_rule(gamma, epsilon)))


@lrp("alpha1beta0", summary="LRP-αβ with α = 1, β = 0, batch norm folded", source=_BACH)
def alpha1beta0(*, epsilon: float = 1e-6) -> RuleTable:
    """Layer-wise relevance propagation with the αβ-rule for α = 1, β = 0: what speaks for a unit.

    R_i = Σ_j z_ij⁺ / z_j⁺ R_j with z_ij = x_i w_ij and z_j⁺ = Σ_i z_ij⁺ + b_j⁺. For inputs of any
    sign this is the z⁺-rule, R_i = Σ_j (x_i⁺ w_ij⁺ + x_i⁻ w_ij⁻) / z_j⁺ R_j, and so is also
    registered as ``zplus``.

    Raises:
        InputError: ε is negative or not finite.

    Example:
        >>> import torch, omenn
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 4, bias=False), torch.nn.ReLU(),
        ...                           torch.nn.Linear(4, 2, bias=False)).eval()
        >>> x = torch.rand(1, 3)
        >>> one, other = (omenn.explain(net, x, method=m) for m in ("alpha1beta0", "zplus"))
        >>> assert torch.equal(one.matrix, other.matrix)

    Source: Bach et al. 2015, doi 10.1371/journal.pone.0130140; z⁺: Montavon et al. 2017, arXiv
    1512.02479.
    """
    return RuleTable(by_layer(alpha_beta_rule(1.0, 0.0, epsilon)))


alias(
    "zplus",
    of="alpha1beta0",
    summary="LRP-z⁺ for every layer, batch norm folded",
    source="Montavon et al. 2017, arXiv 1512.02479",
)


@lrp(
    "cp-lrp",
    summary="frozen attention and norms, ε-rule for layers; biases keep their share",
    source="arXiv 2202.07304",
)
def cp_lrp(*, epsilon: float = 1e-6, published: bool = False) -> RuleTable:
    """Conservative propagation: R = x ⊙ g through the frozen network, ε-rule at layers.

    Attention weights and normalisations are constants. Of two equally bounded factors that depend
    on the input, as in a gated MLP act(gate) ⊙ up, each has half; with ``published=True`` up has
    all, as in the code that is used for language models (lxt), which stops the gradient at the
    gate.

    With ``epsilon=0`` it is C_w ⊙ X of the frozen table; on a network without additive constants
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
    flag("published", published)
    rules = RuleTable(by_layer(epsilon_rule(epsilon), fold=False))
    return rules.over(mul=_gated) if published else rules


def _gated(call: Call) -> Any:
    """The product of a gated MLP: the gate, the factor that is an activation, is a constant."""
    factors = [call.get("input"), call.get("other")]
    if len({id(t) for t in call.active}) < 2:
        return OPERATORS["mul"].rule(call)
    gates = [call.context.curved(t) for t in factors]
    if gates[0] == gates[1]:
        bounds = [m.boundedness for t in factors if (m := call.mark(t)) is not None]
        if bounds[0] != bounds[1]:
            return OPERATORS["mul"].rule(call)
        which = "both are activations" if gates[0] else "neither is an activation"
        raise call.refuse(
            f"published=True stops the gradient at the gate of a gated MLP, and of these two "
            f"factors {which}",
            "Omit published: each factor has half.",
        )
    return call.run(freeze_factors(call, factors, keep=1 if gates[0] else 0))
