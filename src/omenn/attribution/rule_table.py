"""A table of rules, operator → rule, laid over the frozen one.

NOTE one currency. What travels back is g, the relevance of a tensor per unit of it: R = x ⊙ g.
In it every operator that only moves, adds or selects is its own transpose (a residual addition
z = a + b gives a/z and b/z of R), a non-linearity f with the identity rule is ⟦f(x)/x⟧, and a
tensor that is used twice has the sum of what comes back. So the frozen table is LRP without a
stabiliser, and another table says only what it does otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from omenn.engine.operators.table import OPERATORS, Operator


@dataclass(frozen=True)
class RuleTable:
    """A table of rules over the frozen one: operator → its record.

    ``freeze_bounded``: whether the bounded factor of a product is frozen, as in the frozen table;
    if not, each of two factors that depend on the input has half of the relevance.
    """

    rows: Mapping[str, Operator] = field(default_factory=dict)
    freeze_bounded: bool = True

    def over(self, **rules: Callable[[Any], Any]) -> RuleTable:
        """This table with other rules for the named operators, whose places stay as they are."""
        changed = {name: OPERATORS[name].with_rule(rule) for name, rule in rules.items()}
        return RuleTable({**self.rows, **changed}, self.freeze_bounded)

    def table(self) -> dict[str, Operator]:
        """The whole table, with the rules that users have added to the frozen one."""
        return {**OPERATORS, **self.rows}


def ruled(
    operators: str | Iterable[str], rule: Callable[[Any], Any], composite: bool = False
) -> dict[str, Operator]:
    """Rows that replace the rule of some operators of the frozen table (names, blank between)."""
    names = operators.split() if isinstance(operators, str) else operators
    return {name: OPERATORS[name].with_rule(rule, composite=composite) for name in names}


def stabilised(z: Tensor, epsilon: float) -> Tensor:
    """z + ε sign z, zero counting as positive."""
    return z + float(epsilon) * torch.where(z < 0, -1.0, 1.0).to(z.dtype)
