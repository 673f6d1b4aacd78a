"""What is made of integers, and what becomes one: from which input it is, and where it lies.

An integer has no derivative, so nothing flows through it. What is decided by it still is of an
input: an attention mask, a count, a row of a one-hot code, an embedding of a rounded column. As a
factor it is a coefficient. Where it is added it is a constant of that input and lies there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from omenn.engine import location as places
from omenn.engine.location import Place
from omenn.engine.location.entries import entry_of
from omenn.engine.torch_private import is_wrapped
from omenn.engine.trace.call import ACTIVE, FROZEN, IDS, Call, Context, Mark
from omenn.engine.trace.marks import names_in


def mark_frozen(
    mode: Context,
    func: Any,
    marked: Sequence[tuple[Tensor, Mark]],
    out: Any,
    found: Sequence[Place | None] = (),
) -> None:
    """Marks what came of ``func``, through which nothing flows.

    ``found``: places of the outputs, where the row of the operator knows them.
    """
    outs = [out] if isinstance(out, Tensor) else out if isinstance(out, (list, tuple)) else []
    inputs = names_in(marked)
    given = {id(t) for t, _ in marked}
    for k, t in enumerate(outs):
        if not isinstance(t, Tensor) or is_wrapped(t) or id(t) in given:
            continue
        there = found[k] if k < len(found) else None
        if there is not None and _of_several(marked, t):
            there = places.nowhere(there, t.shape, t.shape)
        there = there or _place(func, marked, t)
        kind = FROZEN
        if t.is_floating_point() or t.is_complex():
            there = for_constants(mode, marked, there)
        elif _still_ids(marked, t):
            kind = IDS
        names = inputs if kind == FROZEN else names_in(marked, (IDS,))
        mode.set_mark(t, Mark(mode, kind, there, 0, names))


def _of_several(marked: Sequence[tuple[Tensor, Mark]], out: Tensor) -> bool:
    """Whether a value is made of ids at different places, so that it lies at none of them."""
    placed = [(t, m.place) for t, m in marked if m.place is not None and _broadcasts(t, out)]
    if len(placed) < 2 or not any(n < 0 for _, m in marked for n in m.inputs):
        return False
    cells = [places.full(p.cells, [1] * out.ndim) for _, p in placed]
    same = all(p.grid is placed[0][1].grid for _, p in placed)
    return same and any(c.shape == cells[0].shape and not torch.equal(c, cells[0]) for c in cells)


def mark_written(mode: Context, target: Any, marked: Sequence[tuple[Tensor, Mark]]) -> None:
    """A frozen value was written into a constant: that, and what it is a part of, is frozen."""
    for t in (target, getattr(target, "_base", None)):
        if isinstance(t, Tensor) and id(t) not in mode.own and mode.mark_of(t) is None:
            there = for_constants(mode, marked, _place(None, marked, t))
            mode.set_mark(t, Mark(mode, FROZEN, there, 0, names_in(marked)))


def _still_ids(marked: Sequence[tuple[Tensor, Mark]], out: Tensor) -> bool:
    """Whether what was made of ids stands for them: a truth value stands for truth values alone."""
    ids = [t for t, m in marked if m.kind == IDS]
    return any(out.dtype != torch.bool or t.dtype == torch.bool for t in ids)


def for_constants(
    mode: Context, marked: Sequence[tuple[Tensor, Mark]], place: Place | None
) -> Place | None:
    """The place of a float made of integer inputs as ``bias=`` wants it; else as it is."""
    ids = names_in(marked, (IDS,))
    if place is None or not ids or mode.location.grid_of(ids) is None:
        return place
    return placed_for(mode, ids, place)


def placed_for(mode: Context, names: Iterable[int], place: Place | None) -> Place | None:
    """A place of the homes of these inputs, for constants of all of them that lie there."""
    if place is None:
        return None
    found = [
        mode.location.entries[k].for_constants(place) for k in sorted({entry_of(n) for n in names})
    ]
    there = list({id(p): p for p in found if p is not None}.values())
    return there[0] if len(there) == 1 else places.mixed(there, [p.cells.shape for p in there])


def _place(func: Any, marked: Sequence[tuple[Tensor, Mark]], out: Tensor) -> Place | None:
    """Where an output lies whose operator has no row: elementwise, row by row, or somewhere."""
    from omenn.engine.operators.table import known  # its rules use this module

    placed = [(t, m) for t, m in marked if m.place is not None]
    if not placed:
        return None
    name = getattr(func, "__name__", "").strip("_")
    if name == "one_hot":
        return rows_of(*placed[0], out)
    fits = [(t, m) for t, m in placed if _broadcasts(t, out)]
    if known(name).kind == "elementwise" and fits:
        there = [m.place for _, m in fits if m.place is not None]
        if all(m.inputs == fits[0][1].inputs for _, m in fits):
            return places.finest(there)
        return places.mixed(there, [t.shape for t, _ in fits])
    t, mark = placed[0]
    assert mark.place is not None
    return places.nowhere(mark.place, t.shape, out.shape)


def _broadcasts(t: Tensor, out: Tensor) -> bool:
    if t.ndim > out.ndim:
        return False
    return all(n in (1, m) for n, m in zip(t.shape, out.shape[out.ndim - t.ndim :], strict=True))


def rows_of(index: Tensor, mark: Mark, out: Tensor) -> Place | None:
    """Where what was taken at an index lies: each row at its index."""
    if mark.place is None or out.shape[: index.ndim] != index.shape:
        return None
    cells = places.full(mark.place.cells, index.shape)
    return mark.place.with_cells(cells.reshape(*cells.shape, *[1] * (out.ndim - index.ndim)))


def taken(call: Call, out: Any) -> Place | None:
    """The place of what was taken from a constant at an index that has one."""
    if not call.known.takes or not isinstance(out, Tensor):
        return None
    table = call.get("weight") if call.operator == "embedding" else call.first
    indices = [(t, m) for t, m in call.marked if t is not table]
    if len(indices) != 1 or len(call.marked) != 1:
        return None
    return rows_of(*indices[0], out)


def only_term(call: Call) -> Mark | None:
    """The mark of the one tensor that a call adds as a constant, if it is made of an input."""
    from omenn.engine.operators.record import same  # its placers use this package

    if not (call.known.terms and call.known.placer is same):  # it adds a tensor as it is
        return None
    found = [m for t, m in call.marked if m.kind == FROZEN and t.is_floating_point()]
    return found[0] if len(found) == 1 else None


def own_place(call: Call, mark: Mark) -> Place | None:
    """Where a constant made of an input lies, if that is known or is of another input than y."""
    if mark.place is None or not mark.inputs:
        return None
    active = {entry_of(n) for _, m in call.marked if m.kind == ACTIVE for n in m.inputs}
    other = not active & {entry_of(n) for n in mark.inputs}
    return mark.place if other or bool(mark.place.located().all()) else None


def by_ids(marks: Iterable[Mark]) -> bool:
    """Whether any is of an integer input, not of floats that carry."""
    return any(m.kind == FROZEN and any(n < 0 for n in m.inputs) for m in marks)
