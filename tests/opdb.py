"""One database of operators: sample inputs, spellings, and the dense map each must become."""

from __future__ import annotations

from opcases import (
    attention,
    frames,
    layout,
    linear,
    normalisation,
    pointwise,
    products,
    recurrent,
    selection,
    spellings,
    twins,
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
        twins,
        frames,
    )
    for case in module.CASES
]
