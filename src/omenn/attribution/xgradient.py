"""X-Gradient: input times gradient, the integrated gradients of a homogeneous model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from omenn.attribution.ordinary_gradient import OrdinaryRun
from omenn.attribution.question import Question
from omenn.attribution.registry import attribution
from omenn.check import flag
from omenn.errors import InputError, ModelError
from omenn.explanation import Explanation

FACTORS = (0.5, 2.0, 0.0)  # of the input, at which homogeneity is tested


@attribution(
    "xgradient",
    promise="approximate",
    summary="x ⊙ ∇f, integrated gradients in one pass where f(αx) = α f(x)",
    source="arXiv 2111.07668",
)
def xgradient(
    question: Question,
    *,
    check: bool = False,
) -> Explanation:
    """Input times the ordinary gradient, C = x ⊙ ∇f(x).

    If f(αx) = α f(x) for all α ≥ 0, the gradient is the same along the whole way from 0 to x. Then
    C is what integrated gradients give for the baseline 0, and Σ C = f(x). Networks of layers
    without bias, (leaky) ReLU, pooling and sums are like this; biases, batch norms, GELU, softmax
    and layer norms are not. ``e.exact`` tells whether Σ C = f(x) holds, which is what homogeneity
    means at x itself, and ``e.residual`` by how much it does not.

    Args:
        check: test f(αx) = α f(x) for α = 0.5, 2 and 0 (three more forward passes).
        resample: with ``at=``, see :func:`omenn.engine.explain.explain`.

    Raises:
        ModelError: ``check`` is on and the model is not homogeneous: by how much, and where.

    Example:
        >>> import torch, omenn
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 8, bias=False), torch.nn.ReLU(),
        ...                           torch.nn.Linear(8, 2, bias=False)).eval()
        >>> e = omenn.explain(net, torch.randn(2, 3), 0, method="xgradient", check=True)
        >>> assert e.exact

    Source: Hesse et al. 2021, arXiv 2111.07668.
    """
    flag("check", check)
    run = question.ordinary_run()
    f, index = question.number(run)
    e = run.wrap(f, index, run.pull_back(f))
    if check:
        bound = 10 * e.tolerance * (1 + e.magnitude)
        _require_homogeneous(question.with_fixed_target(run, index), run, f.detach(), bound)
    return e


def _require_homogeneous(question: Question, run: OrdinaryRun, f: Tensor, bound: Tensor) -> None:
    """Raises ModelError where f(αx) misses α f(x) by more than ``bound`` for any sample."""
    missed, where = [], ""
    for factor in FACTORS:
        bias = "none" if factor else "spatial"
        moved = question.ordinary_run(bias=bias, move=lambda _, x, factor=factor: x * factor)
        try:
            there = question.number(moved)[0].detach()
        except InputError:  # 0/0 in a normalisation
            there = torch.full_like(f, torch.inf)
        error = (there.double() - factor * f.double()).abs()
        if bool((error > bound * max(1.0, factor)).any()):
            text = f"f({factor:g} x) misses {factor:g} f(x) by" if factor else "f(0) is not 0 but"
            missed.append(f"{text} {float(error.max()):.3g}")
        if not factor:
            where = _culprits(run, moved)
    if missed:
        raise ModelError(
            f"the model is not homogeneous at this input: {', '.join(missed)}. So x ⊙ ∇f is not "
            f"what integrated gradients give.{where}",
            argument="check",
            got="True",
            remedy="Use a network without biases and normalisations, method='omenn', which is "
            "exact for any, or check=False.",
        )


def _culprits(run: OrdinaryRun, moved: OrdinaryRun) -> str:
    """What is not homogeneous, in words: modules that add constants, and operators."""
    tracer: Any = run.mode
    constants = dict.fromkeys(term.name or "(model)" for term in moved.mode.location.terms)
    found = []
    if constants:
        found.append(f"constants are added in {_few([repr(name) for name in constants])}")
    if tracer.not_homogeneous:
        places = [f"{op} in '{name or '(model)'}'" for op, name in tracer.not_homogeneous.items()]
        found.append(f"not homogeneous are {_few(places)}")
    text = "; ".join(found)
    return f" {text[0].upper()}{text[1:]}." if found else ""


def _few(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
