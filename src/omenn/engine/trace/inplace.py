"""Writes: what an in-place operator changes, and what else shares its memory."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from omenn.engine import location as places
from omenn.engine.location import Place
from omenn.engine.trace.call import ACTIVE, Call, Mark
from omenn.engine.trace.marks import memory_of

if TYPE_CHECKING:
    from omenn.engine.trace.tracer import Tracer

# Why a write into the model's own memory is refused, and what to do.
OWN = (
    "it writes an input-dependent value into a parameter or buffer of the model",
    "Let the module work on a copy (.clone()) of it.",
)


def owned(mode: Tracer, t: Tensor) -> bool:
    """Whether a tensor is a parameter or buffer of the model, or shares the memory of one."""
    own = id(t) in mode.own or id(t._base) in mode.own
    return own or bool(mode.memory and memory_of(t) in mode.memory)


def unshared(t: Tensor) -> bool:
    """Whether PyTorch alone writes into the memory of a tensor; NumPy and DLPack share it."""
    try:
        return t.untyped_storage().resizable()
    except (RuntimeError, NotImplementedError, ValueError):
        return True


def prepare_write(mode: Tracer, call: Call) -> None:
    """What is written into must not be the model's own, and may need an ordinary twin."""
    target: Tensor = call.first
    if owned(mode, target):
        raise call.refuse(*OWN)
    check_unshared(call)
    mark = call.mark(target)
    if target._base is not None:
        mode.followed.add(target._base)  # PyTorch gives it a history as well
    if target._base is not None:
        inputs = call.inputs
        if mark is None or mark.kind != ACTIVE:
            _carry_base(mode, call, target, target._base, inputs)
        base = mode.worn(target._base)
        if base is not None and base.kind == ACTIVE and not inputs <= base.inputs:
            mode.set_mark(target._base, replace(base, inputs=base.inputs | inputs))
    if mode.create_graph and (mark is None or mark.true is None):
        call.spare = target.clone()


def place_base(mode: Tracer, call: Call) -> None:
    """What was written through a view lies in the base where the view does."""
    view: Tensor = call.first
    base, mark, before = view._base, mode.worn(view), call.mark(view)
    if base is None or base.dtype != view.dtype:
        return
    if mark is None or mark.kind != ACTIVE or mark.place is None:
        return
    known = mode.worn(base)
    if known is not None and (before is None or before.place is mark.place):
        return
    own = None if known is None else known.place
    place = places.overwritten(
        (own, base.shape), (mark.place, view.shape), lambda into, cells: _written(view, into, cells)
    )
    known = known or Mark(mode, ACTIVE, inputs=mark.inputs)
    mode.set_mark(base, replace(known, place=place))


def _written(view: Tensor, into: Tensor, cells: Tensor) -> Tensor:
    """The cells of a base after those of a view were written."""
    assert view._base is not None
    there = _laid_out(view._base, into)
    _part(view, there).copy_(cells)
    return there


def seen_through(view: Tensor, place: Place) -> Place | None:
    """Where a view lies whose base lies at ``place``; None for the bits of another type."""
    if view._base is None or view._base.dtype != view.dtype:
        return None
    there = _laid_out(view._base, places.full(place.cells, view._base.shape))
    return place.with_cells(places.compacted(_part(view, there)))


def _laid_out(base: Tensor, cells: Tensor) -> Tensor:
    """Cells in memory as their tensor is, so that a view of it is one of them."""
    there = torch.empty_strided(base.shape, base.stride(), dtype=cells.dtype, device=cells.device)
    return there.copy_(cells.expand(base.shape))


def _part(view: Tensor, cells: Tensor) -> Tensor:
    assert view._base is not None
    offset = view.storage_offset() - view._base.storage_offset()
    return cells.as_strided(view.shape, view.stride(), offset)


def check_unshared(call: Call) -> None:
    """A value that depends on the input must not be written where others read it, unseen."""
    if not unshared(call.first):
        raise call.refuse(
            "it writes an input-dependent value into memory that another library (NumPy, DLPack) "
            "may read",
            "Let the model work on a copy (.clone()) of that tensor.",
        )


def _carry_base(
    mode: Tracer, call: Call, view: Tensor, base: Tensor, inputs: frozenset[Any]
) -> None:
    """A part of a constant is written into: what stays of the whole becomes a constant term."""
    if mode.mark_of(base) is not None:
        raise call.refuse("it writes into a part of a tensor that is a frozen coefficient")
    if mode.location.grid is None or not base.is_floating_point() or not bool(base.any()):
        return
    place = _kept(mode, call, view, base, inputs)
    kept = base.detach().clone()
    base.copy_(mode.location.carry(call, kept.clone(), kept, place))
    mode.set_mark(base, Mark(mode, ACTIVE, place, inputs=inputs))
    mark = Mark(mode, ACTIVE, seen_through(view, place), inputs=inputs)
    mode.set_mark(view, mark)
    call.marked.append((view, mark))
    call.active.append(view)
    view.grad_fn  # noqa: B018  # torch renews a view's history only when it is looked at


def _kept(mode: Tracer, call: Call, view: Tensor, base: Tensor, inputs: frozenset[Any]) -> Place:
    """Where what stays of a constant lies: what is written tells which samples are where."""
    home = mode.location.home(base, inputs)
    for t, mark in call.marked:
        if mark.place is not None and t is not view and _fits(t, view):
            return places.overwritten(
                (None, base.shape),
                (mark.place, view.shape),
                lambda into, cells: _written(view, into, cells),
                home,
                adds=True,
            )
    place = home or mode.location.nowhere(base, inputs)
    assert place is not None  # there is a grid
    return place


def _fits(t: Tensor, view: Tensor) -> bool:
    there = view.shape[view.ndim - t.ndim :]
    return t.ndim <= view.ndim and all(a in (1, b) for a, b in zip(t.shape, there, strict=True))
