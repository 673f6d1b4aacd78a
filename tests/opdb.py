"""One database of operators: sample inputs, spellings, and the dense map each must become."""

from __future__ import annotations

from opcases import (
    attention,
    layout,
    linear,
    normalisation,
    pointwise,
    products,
    recurrent,
    selection,
    spellings,
)
from opcases.case import Case

CASES: list[Case] = [
    case
    for module in (
        layout,
        linear,
        pointwise,
        selection,
        normalisation,
        products,
        attention,
        recurrent,
        spellings,
    )
    for case in module.CASES
]

# Rows of the table that refuse with an explanation: operator -> how a model would call it.
REFUSED = pointwise.REFUSED
