"""Floats made of explained integers that are explained themselves: rows of tables, 8-bit pictures.

An id stands for a row of a table, so the looked-up rows are what is explained, at the places of
the ids. An 8-bit picture is an input like any other, stored in another type: its explained values
are the floats that it is converted to. Several lookups of the same ids are several leaves of one
entry.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from omenn.engine.trace.call import IDS, Call, Mark, substitute
from omenn.engine.trace.spelling import spell

if TYPE_CHECKING:
    from omenn.engine.trace.tracer import Tracer


def looked_up(mode: Tracer, call: Call) -> Any:
    """The rows of a constant table (rows, columns) at explained ids; None for any other call."""
    index = _index(call)
    mark = None if index is None else call.mark(index)
    if mode.made is None or index is None or mark is None or mark.kind != IDS:
        return None
    with torch.set_grad_enabled(mode.create_graph):
        out = call.func(*call.args, **call.kwargs)
    return mode.made(out, index, mark)


def _index(call: Call) -> Tensor | None:
    """What a call takes rows of a table by, if it does."""
    if call.operator == "embedding":
        return call.get("input")
    table = call.first
    if not isinstance(table, Tensor) or table.ndim != 2 or not table.is_floating_point():
        return None
    if call.operator == "getitem":
        index: Any = call.args[1]
        if isinstance(index, tuple) and index and all(map(_whole, index[1:])):
            index = index[0]
        if not isinstance(index, Tensor) or index.dtype in (torch.bool, torch.uint8):
            return None
        return index
    if call.operator == "index_select":
        given: dict[str, Any] = dict(zip(("input", "dim", "index"), call.args, strict=False))
        given |= call.kwargs
        found: Any = given.get("index")
        return found if given.get("dim") in (0, -2) else None
    return None


def _whole(index: Any) -> bool:
    """Whether an index keeps all of a dimension, as in ``table[ids, :]``."""
    return index is Ellipsis or (isinstance(index, slice) and index == slice(None))


def converted(
    mode: Tracer, func: Any, args: Any, kwargs: Any, marked: Sequence[tuple[Tensor, Mark]]
) -> Any:
    """The call with 8-bit inputs as explained floats; None where it does not make floats of them.

    Raises UnsupportedOperator as the call itself.
    """
    from omenn.engine.operators.table import known  # its rules use this module

    bytes_ = [(t, m) for t, m in marked if m.kind == IDS and t.dtype == torch.uint8]
    spelling = spell(func) if bytes_ and mode.made is not None else None
    if spelling is None or known(spelling.operator).takes:
        return None
    first = args[0] if args else None
    if spelling.inplace:
        out = first
    else:
        with torch.no_grad():
            out = func(*args, **kwargs)
    if not isinstance(out, Tensor) or not out.is_floating_point():
        return None
    leaves: dict[int, Tensor] = {}
    for t, mark in bytes_:
        if id(t) not in leaves:
            assert mode.made is not None
            leaves[id(t)] = mode.made(t.to(out.dtype), t, mark)
    if spelling.operator == "to" and id(first) in leaves:
        return leaves[id(first)]

    def swap(t: Tensor) -> Tensor:
        return leaves.get(id(t), t)

    return mode.handle(func, substitute(args, swap), substitute(kwargs, swap))


_BAG = (
    "input weight offsets max_norm norm_type scale_grad_by_freq mode sparse per_sample_weights "
    "include_last_offset padding_idx"
).split()

_BAG_OF_TORCH = (
    "weight indices offsets scale_grad_by_freq mode sparse per_sample_weights "
    "include_last_offset padding_idx"
).split()


def bag(call: Call) -> Any:
    """``embedding_bag`` in its parts, each seen by the tracer: a lookup, and what joins it."""
    if call.func is torch.embedding_bag:
        return _bag_of_torch(call)
    a = dict(zip(_BAG, call.args, strict=False)) | call.kwargs
    if a.get("max_norm") is not None:
        raise call.refuse("it scales rows of its table in place", "Use max_norm=None.")
    ids, pad, how = a["input"], a.get("padding_idx"), a.get("mode", "mean")
    with call.context:
        rows = F.embedding(ids, a["weight"])
        if a.get("per_sample_weights") is not None:
            rows = rows * a["per_sample_weights"].unsqueeze(-1)
        kept = None if pad is None else ids != pad % len(a["weight"])
        if ids.ndim == 2:
            return _joined(rows, kept, how, 1)
        ends = [*a["offsets"].tolist(), len(ids)]
        if a.get("include_last_offset"):
            ends.pop()
        bags = [slice(s, e) for s, e in pairwise(ends)]
        parts = [(rows[b], None if kept is None else kept[b]) for b in bags]
        return torch.stack([_joined(part, own, how, 0) for part, own in parts])


def _bag_of_torch(call: Call) -> tuple[Any, ...]:
    """``torch.embedding_bag``: the table first, a number for the mode, and counts beside."""
    given = dict(zip(_BAG_OF_TORCH, call.args, strict=False)) | call.kwargs
    weight, ids = given.pop("weight"), given.pop("indices")
    given["mode"] = ("sum", "mean", "max")[given.get("mode", 0)]
    counts = call.value()[1:]
    with call.context:
        return F.embedding_bag(ids, weight, **given), *counts


def _joined(rows: Tensor, kept: Tensor | None, how: str, dim: int) -> Tensor:
    """Rows joined along a dimension; those that are not kept, the padding, are left out."""
    if how == "max":
        if not rows.shape[dim]:
            return rows.sum(dim)
        if kept is None:
            return rows.max(dim).values
        some = kept.any(dim, keepdim=True).unsqueeze(-1).squeeze(dim)
        top = rows.masked_fill(~kept.unsqueeze(-1), -torch.inf).max(dim).values
        return torch.where(some, top, torch.zeros_like(top))
    count: Any = max(rows.shape[dim], 1)
    if kept is not None:
        rows = rows * kept.unsqueeze(-1).to(rows.dtype)
        count = kept.sum(dim, keepdim=True).clamp(min=1).to(rows.dtype)
    total = rows.sum(dim)
    return total if how == "sum" else total / count
