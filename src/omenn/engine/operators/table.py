"""The table of all operators: ``OPERATORS``, each with its record, and what is known of others."""

from __future__ import annotations

from omenn.engine.operators import (
    attention,
    coefficients,
    composed,
    convolution,
    distances,
    frames,
    layout,
    linear,
    normalisation,
    pointwise,
    products,
    recurrent,
    selection,
    solving,
    writes,
)
from omenn.engine.operators.record import Operator
from omenn.engine.operators.unruled import UNRULED

OPERATORS: dict[str, Operator] = {
    name: operator
    for module in (
        layout,
        writes,
        linear,
        convolution,
        pointwise,
        coefficients,
        selection,
        normalisation,
        products,
        attention,
        recurrent,
        composed,
        distances,
        frames,
        solving,
    )
    for name, operator in module.RECORDS.items()
}
SHIPPED = dict(OPERATORS)  # what they are without any rule of a user

NOTHING = Operator()


def known(name: str) -> Operator:
    """What is known of an operator, or of a function without a rule; nothing, of any other."""
    return OPERATORS.get(name) or UNRULED.get(name) or NOTHING


def of_kind(*kinds: str) -> list[str]:
    """The operators that have a rule and are of these kinds.

    >>> assert {"linear", "conv", "matmul"} <= set(of_kind("layer"))
    """
    return [name for name, operator in OPERATORS.items() if operator.kind in kinds]


__all__ = ["NOTHING", "OPERATORS", "SHIPPED", "UNRULED", "Operator", "known", "of_kind"]
