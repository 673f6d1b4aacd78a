"""LRP with a rule for each kind of layer: a composite."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from omenn.attribution.lrp_layers import (
    Layer,
    Rule,
    alpha_beta_rule,
    box_rule,
    by_layer,
    epsilon_rule,
    flat_rule,
    gamma_rule,
    tiny,
)
from omenn.attribution.question import Question
from omenn.attribution.registry import attribution
from omenn.attribution.rule_methods import only_completed
from omenn.attribution.rule_table import RuleTable
from omenn.check import choose, flag, quoted, real, wrong
from omenn.engine.backward import Gradients
from omenn.engine.explain import BIASES
from omenn.engine.run import FrozenRun
from omenn.engine.trace.call import Call, tensors_in
from omenn.errors import InputError, unknown
from omenn.explanation import Explanation, owned

Rules = Sequence[tuple[str, str]]

COMPOSITES: Mapping[str, Rules] = MappingProxyType(
    {
        "epsilon-plus": (("conv", "zplus"), ("linear", "epsilon")),
        "epsilon-plus-flat": (("first", "flat"), ("conv", "zplus"), ("linear", "epsilon")),
        "epsilon-alpha2-beta1": (("conv", "alpha2beta1"), ("linear", "epsilon")),
        "epsilon-gamma-box": (("first conv", "box"), ("conv", "gamma"), ("linear", "epsilon")),
    }
)
"""The well-known ones: (pattern, rule) in order, of which the first that fits counts."""

_KINDS = ("first", "first conv", "conv", "linear")
_RULES = ("epsilon", "zplus", "alpha1beta0", "alpha2beta1", "gamma", "flat", "box", "pass")


@attribution(
    "composite",
    promise="none",
    summary="LRP with a rule for each kind of layer: one of the well-known, or a list",
    source="Montavon et al. 2019, doi 10.1007/978-3-030-28954-6_10",
)
def composite(
    question: Question,
    *,
    rules: str | Rules = "epsilon-plus",
    low: float | None = None,
    high: float | None = None,
    gamma: float = 0.25,
    epsilon: float = 1e-6,
    complete: bool = False,
    bias: str = "spatial",
) -> Explanation:
    """Layer-wise relevance propagation whose rules depend on the layer.

    ``rules`` is ``"epsilon-plus"``, ``"epsilon-plus-flat"``, ``"epsilon-alpha2-beta1"``,
    ``"epsilon-gamma-box"``, or pairs (pattern, rule) of which the first that fits counts. A pattern
    is a kind of layer (``"conv"``, ``"linear"``: also matrix products with a constant), the first
    of all layers that is called (``"first"``, ``"first conv"``), or else a name of modules, where
    ``*`` stands for anything (``"features.*"``). A rule is ``"epsilon"``, ``"zplus"``,
    ``"alpha1beta0"``, ``"alpha2beta1"``, ``"gamma"``, ``"flat"`` (R evenly to all inputs),
    ``"box"`` (inputs from ``low`` to ``high``) or ``"pass"`` (ε = 0). Layers that nothing fits
    follow ε = 0, the frozen table.

    A batch norm behind a layer is folded into it; all else is as in the frozen table. With
    ``complete=True`` what the rules keep goes to its place, as ``bias`` says, and the sum is exact.

    Raises:
        InputError: a pattern or a rule that is not known; bounds that are missing, do not hold the
            input, or are given without the rule ``"box"``.

    Example:
        >>> import torch, omenn
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(),
        ...                           torch.nn.Flatten(), torch.nn.Linear(16, 2)).eval()
        >>> x = torch.rand(1, 3, 4, 4)
        >>> e = omenn.explain(net, x, method="composite", rules="epsilon-gamma-box", low=0, high=1)
        >>> own = [("first", "flat"), ("3", "epsilon"), ("conv", "gamma")]
        >>> assert omenn.explain(net, x, method="composite", rules=own).matrix.shape == (1, 4, 4)

    Source: Montavon et al. 2019, doi 10.1007/978-3-030-28954-6_10; the names are zennit's.
    """
    pairs = _checked(rules)
    by_name = _by_name({rule for _, rule in pairs}, low, high, gamma, epsilon)
    layers = by_layer(epsilon_rule(0.0), choose=_chooser(pairs, by_name))
    flag("complete", complete)
    choose("bias", bias, BIASES)
    if not complete:
        only_completed(question, {"bias": bias})
    run = question.run_under(RuleTable(layers), bias=bias if complete else "none")
    if "box" in by_name:
        _check_box(run.inputs.values, low, high)
    f, index = question.number(run)
    if complete:
        run.compare(question.output)
    return _with_zeros(run, f, index, run.pull_back(f))


def _with_zeros(run: FrozenRun, f: Tensor, index: Tensor, gradients: Gradients) -> Explanation:
    """The explanation, with the relevance that "flat" and "box" give to inputs that are zero.

    NOTE [zeros of the input] R = x ⊙ g cannot say that x = 0 has relevance. So ``_units``
    divides by ``tiny`` there, and here the same number stands for x while R is added up.
    """
    values = run.inputs.values
    run.inputs.values = [torch.where(x == 0, tiny(x.dtype), x) for x in values]
    try:
        e = run.wrap(f, index, gradients)
    finally:
        run.inputs.values = values
    weights = [torch.where(x == 0, 0, w) for w, x in zip(gradients.inputs, values, strict=True)]
    found = replace(
        e,
        inputs=run.inputs.by_leaf(values, lambda entry: entry.value),
        weight=run.inputs.by_leaf(weights),
    )
    return owned(found, False, tensors_in([run.inputs.items]))


def _checked(rules: Any) -> Rules:
    if isinstance(rules, str):
        if rules not in COMPOSITES:
            raise unknown("rules", rules, COMPOSITES)
        return COMPOSITES[rules]
    pairs = list(rules) if isinstance(rules, (list, tuple)) else [rules]
    for pair in pairs:
        two = isinstance(pair, (list, tuple)) and len(pair) == 2
        if not two or not all(isinstance(part, str) for part in pair):
            remedy = f"Patterns are {', '.join(map(repr, _KINDS))} or names of modules."
            raise wrong("rules", pair, "pairs of strings (pattern, rule)", remedy)
        if pair[1] not in _RULES:
            raise unknown("rules", pair[1], _RULES)
    return [(pattern, rule) for pattern, rule in pairs]


def _by_name(names: set[str], low: Any, high: Any, gamma: float, epsilon: float) -> dict[str, Rule]:
    """The rules by name, with their numbers."""
    made = {
        "epsilon": epsilon_rule(epsilon),
        "zplus": alpha_beta_rule(1.0, 0.0, epsilon),
        "alpha1beta0": alpha_beta_rule(1.0, 0.0, epsilon),
        "alpha2beta1": alpha_beta_rule(2.0, 1.0, epsilon),
        "gamma": gamma_rule(gamma, epsilon),
        "flat": flat_rule(epsilon),
        "pass": epsilon_rule(0.0),
    }
    bounds = {"low": low, "high": high}
    if "box" in names:
        least, most = (real(name, value) for name, value in bounds.items())
        if least >= most:
            raise wrong("high", high, f"above low={low:g}")
        made["box"] = box_rule(least, most, epsilon)
    for name, value in bounds.items():
        if value is not None and "box" not in names:
            raise InputError(
                f"{name}={quoted(value)} is a bound for the rule 'box', which is not used.",
                argument=name,
                got=quoted(value),
                remedy=f"Omit {name}=, or give a layer the rule 'box'.",
            )
    return {name: made[name] for name in names}


def _check_box(values: Sequence[Tensor], low: Any, high: Any) -> None:
    slack = 1e-6 * max(1.0, abs(low), abs(high))
    for x in values:
        for name, bound, end, over in (("low", low, x.min(), -1), ("high", high, x.max(), 1)):
            if over * (float(end) - bound) > slack:
                raise InputError(
                    f"{name}={bound:g} is a bound for the rule 'box', but the input has the value "
                    f"{float(end):g}.",
                    argument=name,
                    got=f"{bound:g}",
                    remedy="Give the bounds of the values as the model takes them.",
                )


def _chooser(pairs: Rules, by_name: Mapping[str, Rule]) -> Callable[[Call, Layer], Layer]:
    """Each layer with the rule of the first pattern that fits it."""

    def choose(call: Call, layer: Layer) -> Layer:
        conv = call.operator.startswith("conv")
        seen = call.context.notes.setdefault("layers", set())
        kinds = {"conv" if conv else "linear"}
        kinds |= {"first"} if not seen else set()
        kinds |= {"first conv"} if conv and "conv" not in seen else set()
        seen |= {"conv" if conv else "linear"}
        name = call.context.module_path()
        rule = next((by_name[r] for p, r in pairs if p in kinds or fnmatchcase(name, p)), None)
        roots = [r.detach() for r in call.context.roots if r.shape == layer.x.shape]
        entry = any(torch.equal(layer.x.detach(), r) for r in roots)
        return replace(layer, rule=rule, entry=entry)

    return choose
