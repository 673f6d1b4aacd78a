"""What an operator makes of tensors that depend on the input, but through which nothing flows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from omenn.engine import probabilities
from omenn.engine.location import Place
from omenn.engine.location.lookups import looked_up
from omenn.engine.location.provenance import mark_frozen, mark_written, taken
from omenn.engine.operators.unruled import LEAVES_TORCH
from omenn.engine.trace.call import Call, inputs_of
from omenn.engine.trace.inplace import check_unshared

if TYPE_CHECKING:
    from omenn.engine.operators import Operator
    from omenn.engine.trace.tracer import Tracer


def frozen_result(
    mode: Tracer,
    known: tuple[Call, Operator] | None,
    func: Any,
    args: Any,
    kwargs: Any,
    marked: Any,
) -> Any:
    """Again frozen, ids if it is integer; of a table at ids its rows, which are explained.

    ``known``: the call and its row, where the table of rules has one.
    """
    if known is not None and known[0].operator == "embedding_bag":
        return known[1].rule(known[0])
    if known is not None and (rows := looked_up(mode, known[0])) is not None:
        return rows
    with torch.set_grad_enabled(mode.create_graph or mode.aside.history):
        out = func(*args, **kwargs)
    mark_frozen(mode, func, marked, out, _places(mode, known, out))
    if inputs_of(marked) and getattr(func, "__name__", "") in LEAVES_TORCH:
        mode.location.frozen_constants.add(mode.module_path())
    if known is not None:
        call = known[0]
        mode.chains.note(call, out)
        probabilities.note(mode, call, out, None)
        if call.inplace:
            check_unshared(call)
            mark_written(mode, call.first, marked)
    return out


def _places(mode: Tracer, known: tuple[Call, Operator] | None, out: Any) -> list[Place | None]:
    """NOTE a courtesy: what is frozen carries no constant, so a placer may fail here."""
    if known is None or known[1].composite:
        return []
    try:
        at = taken(known[0], out)
        return mode.location.places(*known, out) if at is None else [at]
    except (RuntimeError, IndexError, TypeError, ValueError, AttributeError):
        return []
