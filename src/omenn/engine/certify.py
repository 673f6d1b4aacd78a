"""The certificate: is this explanation exact for this model? With the evidence."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from omenn.check import choose_each
from omenn.engine.explain import BIASES, PRODUCTS, Rules, tracer_options
from omenn.engine.run import FrozenRun
from omenn.engine.target import Target
from omenn.engine.trace.guards import alone
from omenn.errors import UnsupportedOperator
from omenn.explanation import Explanation


@dataclass(frozen=True, eq=False, repr=False)
class Certificate:
    """Evidence that an explanation is exact, or where it is not.

    ``fidelity``: largest |frozen − ordinary forward| relative to the largest |output|.
    ``violations``: operators that are not linear at fixed coefficients, with their module.
    ``residual`` (B,): f − ΣC. ``relative`` (B,): |residual| / (1 + Σ|C|), where the 1 is
    ``explanation.scale``. ``bias_share`` (B,): Σ C_b / f, negative where the constants work
    against the output. ``located``: share of Σ|constants| with a place on the input.
    ``unlocated``: module → reason → share of Σ|constants| without one, the largest first.
    ``sources``: constants by module (B,), the largest first.
    """

    exact: bool
    fidelity: float
    violations: tuple[str, ...] = ()
    residual: Tensor = field(default_factory=lambda: torch.full((1,), float("nan")))
    relative: Tensor = field(default_factory=lambda: torch.full((1,), float("nan")))
    bias_share: Tensor = field(default_factory=lambda: torch.full((1,), float("nan")))
    located: float = float("nan")
    unlocated: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    sources: Mapping[str, Tensor] = field(default_factory=dict)
    frozen_constants: tuple[str, ...] = ()
    tolerance: float = float("nan")
    fidelity_tolerance: float = float("nan")
    explanation: Explanation | None = None

    def __bool__(self) -> bool:
        return self.exact

    def __repr__(self) -> str:
        state = "exact" if self.exact else "NOT EXACT"
        worst = float(self.relative.max())
        return f"Certificate({state}, residual={worst:.1e}, fidelity={self.fidelity:.1e})"

    def __str__(self) -> str:
        lines = ["exact" if self.exact else "NOT EXACT"]
        if self.explanation is None:
            lines += [f"structure  not linear at fixed coefficients: {v}" for v in self.violations]
            return "\n".join(lines)
        lines.append("structure  every operator is linear at fixed coefficients")
        lines += [f"warning    {v}" for v in self.violations]
        if why := self.explanation.cause:
            lines.append(f"cause      {why}")
        share = float(self.bias_share.abs().median())
        lines += [
            f"fidelity   the frozen forward pass equals the ordinary one to {self.fidelity:.1e} "
            f"(allowed {self.fidelity_tolerance:.0e})",
            f"sum        |f − ΣC| ≤ {float(self.relative.max()):.1e} · "
            f"({self.explanation.scale:.1g} + Σ|C|) (allowed {self.tolerance:.0e})",
            f"bias       constants make {share:.0%} of |f| (median); {self.located:.0%} of them "
            "have a place on the input",
        ]
        if reasons := self.explanation.reasons:
            named = ", ".join(f"{why} {share:.0%}" for why, share in reasons.items())
            lines.append(f"           without a place: {named}")
        top = [(n, v) for n, v in self.sources.items() if bool(v.any())][:3]
        if top:
            named = ", ".join(f"{n or '(model)'} {float(v.mean()):+.3g}" for n, v in top)
            lines.append(f"           largest constants by module: {named}")
        if self.frozen_constants:
            lines.append(
                "           input-dependent constants (frozen, then added) in: "
                + ", ".join(n or "(model)" for n in self.frozen_constants)
            )
        return "\n".join(lines)


@alone()
def certify(
    model: nn.Module | Callable[..., Any],
    inputs: Any,
    target: Target = None,
    *,
    at: str | None = None,
    bias: str = "spatial",
    output: Any = None,
    products: str = "half",
    channel_dim: int | None = None,
    rules: Rules | None = None,
) -> Certificate:
    """Checks an explanation: fidelity, structure, sum and bias.

    Arguments as in :func:`omenn.explain`. An unsupported operator does not raise here; it makes
    the certificate inexact and is named in ``violations``.

    1. *Fidelity*: the frozen forward pass equals the ordinary one.
    2. *Structure*: every node of the autograd graph between input and output is a linear map at
       fixed coefficients, none has two input-dependent factors.
    3. *Sum*: |f − ΣC| ≤ tolerance · (1 + Σ|C|), per sample; small outputs are held more strictly.
    4. *Bias*: share of the output in C_b, share of it located, the largest constants by module.

    Raises:
        InputError, TargetError, ModelError: what was given cannot be explained, as in
            :func:`omenn.explain`.

    Example:
        >>> import torch, omenn
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
        >>> certificate = omenn.certify(net.eval(), torch.randn(3, 4))
        >>> assert certificate.exact and not certificate.violations

    Source: completeness of arXiv 2412.02399, checked.
    """
    choose_each(bias=(bias, BIASES), products=(products, PRODUCTS))
    options = tracer_options(products, False, rules)
    try:
        run = FrozenRun(model, inputs, at, bias, channel_dim, options)
        f, index = run.target(target, output)
        fidelity = run.compare(output, thorough=True)
    except UnsupportedOperator as error:
        return Certificate(False, float("nan"), (str(error),))
    explanation = run.wrap(f, index, run.pull_back(f))
    relative = explanation.residual.abs() / (explanation.scale + explanation.magnitude)
    output = explanation.output.double()
    output = torch.where(output == 0, 1e-300, output)
    sources = sorted(explanation.sources.items(), key=lambda kv: -float(kv[1].abs().mean()))
    return Certificate(
        exact=explanation.exact and not fidelity.fused,
        fidelity=fidelity.without,
        violations=(_FUSED,) if fidelity.fused else (),
        residual=explanation.residual,
        relative=relative,
        bias_share=explanation.bias_share / output,
        located=explanation.located,
        unlocated=explanation.unlocated,
        sources=dict(sources),
        frozen_constants=explanation.frozen_constants,
        tolerance=explanation.tolerance,
        fidelity_tolerance=fidelity.allowed,
        explanation=explanation,
    )


_FUSED = (
    "the model itself gives other numbers without gradients than with them (PyTorch's fused "
    "inference path, as of nn.TransformerEncoder with padding); the explanation holds for the "
    "latter. Turn the former off with torch.backends.mha.set_fastpath_enabled(False)."
)
