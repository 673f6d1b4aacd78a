"""The frozen book: canonical operator → ordinary forward, frozen backward.

Each module holds the rows of one kind of operator; ``OPERATORS`` is the whole table. A row has a
``rule`` (what the operator becomes at fixed coefficients) and a ``placer`` (where its output lies
on the input, for the constants). An operator without a row is not supported, and says so.
"""

from __future__ import annotations

from omenn.engine.operators import (
    attention,
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
)
from omenn.engine.operators.record import Row

OPERATORS: dict[str, Row] = {
    name: row
    for module in (
        layout,
        linear,
        convolution,
        pointwise,
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
    for name, row in module.ROWS.items()
}

__all__ = ["OPERATORS", "Row"]
