"""Writes into a tensor: what stays, and what is written, may each be a constant."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from omenn.engine import location as places
from omenn.engine.operators import degrees
from omenn.engine.operators.record import Operator, named, same, unlocated
from omenn.engine.trace.call import Call, substitute, tensors_in


def indexed_write(call: Call) -> Any:
    """Writing into a tensor: what stays, and what is written, may each be a constant."""
    write = _setitem if call.operator == "setitem" else Call.run
    if not _has_constant(call):
        return write(call)
    term = _written_at_zero(call)
    return call.attach(write(call), term)


def scattered(call: Call) -> Any:
    """Scattering with sum, mean, or the largest; products of what is scattered are refused."""
    how = next((a for a in (*call.args, *call.kwargs.values()) if isinstance(a, str)), None)
    if how is None:
        return indexed_write(call)
    if how == "add":
        raise call.refuse("PyTorch has no derivative for reduce='add'", "Use scatter_add.")
    if how not in ("sum", "mean", "amax", "amin"):
        raise call.refuse("a product of scattered values")
    term = _written_at_zero(call) if _has_constant(call) else torch.zeros(())
    adds = bool(term.any())
    if adds and how.startswith("am") and call.kwargs.get("include_self", True):
        raise call.refuse("the largest of scattered values and of constants")
    if not adds:
        return call.run()

    def constant(t: Tensor) -> Tensor:
        if call.is_active(t):
            return t
        return call.constant(t).clone() if t is call.first else call.constant(t)

    out = torch.scatter_reduce(*substitute(call.args, constant), **call.kwargs)
    # The native node keeps its result, which the constant must not overwrite.
    return call.attach(call.written(call.first, out) if call.inplace else out.clone(), term)


def _has_constant(call: Call) -> bool:
    """Whether a tensor or a number of the call could add a constant."""
    given = tensors_in((*call.args, *call.kwargs.values()))
    constant = any(
        (t.is_floating_point() or t.is_complex()) and not call.is_active(t) for t in given
    )
    numbers = [*call.args[1:], *(call.kwargs.get(name) for name in ("value", "other", "input"))]
    return constant or any(isinstance(n, (int, float)) and n for n in numbers)


def _setitem(call: Call) -> Tensor:
    call.run()
    return call.args[0]


def _written_at_zero(call: Call) -> Tensor:
    """The operator's result with active tensors zero, on copies."""
    active = {id(t) for t in call.active}
    owner = call.first
    target: list[Tensor] = []

    def sub(t: Tensor) -> Tensor:
        fresh = torch.zeros_like(t) if id(t) in active else call.constant(t)
        if t is owner:
            fresh = fresh.clone()
            target.append(fresh)
        return fresh

    out = call.run(sub)
    return out if isinstance(out, Tensor) else target[0]


# Writes that add to what is there, and the spelling that puts the last one in its place.
_ADDS = {"index_add": torch.index_copy, "scatter_add": torch.scatter, "scatter": torch.scatter}


def written(call: Call, out: Any) -> Any:
    """The target keeps its place but where something that has a place is written into it."""
    target = call.first
    if not isinstance(target, Tensor):
        return unlocated(call, out)
    place = call.place(target)
    sources = [
        (t, m.place)
        for t, m in call.marked
        if t is not target and m.place is not None and (t.is_floating_point() or t.is_complex())
    ]
    if not sources:
        return place or unlocated(call, out)
    home = None if place is not None else call.context.location.home(target, call.inputs)
    source, there = sources[0]
    adds = _adds(call)
    write = lambda into, cells: _moved(call, into, source, cells, adds)  # noqa: E731
    return places.overwritten((place, target.shape), (there, source.shape), write, home, adds)


def _adds(call: Call) -> bool:
    """Whether what is written is added to (or compared with) what is there."""
    if call.operator == "index_put":
        return bool(call.kwargs.get("accumulate") or (len(call.args) > 3 and call.args[3]))
    reduces = any(isinstance(a, str) for a in (*call.args, *call.kwargs.values()))
    return call.operator in ("index_add", "scatter_add") or reduces


def _moved(call: Call, into: Tensor, source: Tensor, cells: Tensor, adds: bool) -> Tensor:
    """The write done with ``into`` for the target and ``cells`` for what is written."""
    into = into.clone()
    swap = lambda t: into if t is call.first else cells if t is source else t  # noqa: E731
    args, kwargs = substitute(call.args, swap), substitute(call.kwargs, swap)
    if not adds:
        out = call.func(*args, **kwargs)
        return into if out is None else out
    if call.operator == "index_put":
        return torch.index_put(into, args[1] if len(args) > 1 else kwargs["indices"], cells)
    names = ("dim", "index", "source" if "source" in kwargs else "src")
    rest = [*args[1:4], *(kwargs[name] for name in names if name in kwargs)]
    return _ADDS[call.operator](into, *rest[:3])


def copied(call: Call, out: Any) -> Any:
    """What is copied has the place of its source, broadcast; a constant that of the target."""
    source = call.args[1] if len(call.args) > 1 else call.kwargs.get("src")
    place = call.place(source) if isinstance(source, Tensor) else None
    if place is None or not isinstance(source, Tensor):
        return written(call, out)
    return place.with_cells(places.full(place.cells, source.shape))


_WRITTEN = Operator(indexed_write, written, true=True, kind="write", joins=True)
_PUT = replace(_WRITTEN, terms=True)
_FILLED = replace(_WRITTEN, summand="value")

RECORDS: dict[str, Operator] = {
    "setitem": replace(
        _PUT,
        names="__setitem__",
        arguments="input index value",
        summand="value",
        degree=degrees.valued(2),
    ),
    "index_put": replace(
        _PUT, names="masked_scatter", degree=degrees.valued(2, "values", "source")
    ),
    **named(
        replace(_PUT, degree=degrees.same),
        "index_add index_copy scatter_add diagonal_scatter select_scatter slice_scatter",
    ),
    "scatter": replace(
        _PUT,
        names="scatter_reduce",
        rule=scattered,
        arguments="input dim index src",
        summand="src value",
        degree=degrees.scattered,
    ),
    "copy_": replace(
        _PUT, placer=copied, degree=degrees.overwritten(1, "src", "other"), overwrites=True
    ),
    "masked_fill": replace(
        _FILLED, arguments="input mask value", degree=degrees.valued(2, "value"), link="bent"
    ),
    "index_fill": replace(
        _FILLED, arguments="input dim index value", degree=degrees.valued(3, "value")
    ),
    "fill": replace(
        _FILLED, arguments="input value", degree=degrees.overwritten(1, "value"), overwrites=True
    ),
    "where": Operator(
        indexed_write,
        same,
        degrees.selected,
        true=True,
        joins=True,
        terms=True,
        arguments="condition input other",
        orders={"Tensor.where": "input condition other"},
        summand="input other",
        link="bent",
    ),
}
