"""Writes: what an in-place operator changes, and what else shares its memory."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from omenn.core.call import CARRIED, Call, Mark

if TYPE_CHECKING:
    from omenn.core.intercept import Interceptor

# Why a write into the model's own memory is refused, and what to do.
OWN = (
    "it writes an input-dependent value into a parameter or buffer of the model",
    "Let the module work on a copy (.clone()) of it.",
)


def memory_of(t: Tensor) -> int:
    """Address of the memory behind a tensor, 0 where there is none (meta, lazy, sparse)."""
    try:
        return t.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError, ValueError):  # the last: uninitialised
        return 0


def owned(mode: Interceptor, t: Tensor) -> bool:
    """Whether a tensor is a parameter or buffer of the model, or shares the memory of one."""
    own = id(t) in mode.own or id(t._base) in mode.own
    return own or bool(mode.memory and memory_of(t) in mode.memory)


def unshared(t: Tensor) -> bool:
    """Whether PyTorch alone writes into the memory of a tensor; NumPy and DLPack share it."""
    try:
        return t.untyped_storage().resizable()
    except (RuntimeError, NotImplementedError, ValueError):
        return True


def prepare_write(mode: Interceptor, call: Call) -> None:
    """What is written into must not be the model's own, and may need an ordinary twin."""
    target: Tensor = call.first
    if owned(mode, target):
        raise call.refuse(*OWN)
    check_unshared(call)
    mark = call.mark(target)
    if target._base is not None:
        mode.touched.add(target._base)  # PyTorch gives it a history as well
    if target._base is not None:
        inputs = call.inputs
        if mark is None or mark.kind != CARRIED:
            _carry_base(mode, call, target, target._base, inputs)
        base = mode.worn(target._base)
        if base is not None and base.kind == CARRIED and not inputs <= base.inputs:
            mode.set_mark(target._base, replace(base, inputs=base.inputs | inputs))
    if mode.create_graph and (mark is None or mark.true is None):
        call.spare = target.clone()


def check_unshared(call: Call) -> None:
    """A value that depends on the input must not be written where others read it, unseen."""
    if not unshared(call.first):
        raise call.refuse(
            "it writes an input-dependent value into memory that another library (NumPy, DLPack) "
            "may read",
            "Let the model work on a copy (.clone()) of that tensor.",
        )


def _carry_base(
    mode: Interceptor, call: Call, view: Tensor, base: Tensor, inputs: frozenset[Any]
) -> None:
    """A part of a constant is written into: what stays of the whole becomes a constant term."""
    if mode.mark_of(base) is not None:
        raise call.refuse("it writes into a part of a tensor that is a frozen coefficient")
    place = mode.home(base, inputs) or mode.nowhere(base, inputs)
    if place is None or not base.is_floating_point() or not bool(base.any()):
        return
    kept = base.detach().clone()
    base.copy_(mode.carry(call, kept.clone(), kept, place))
    mode.set_mark(base, Mark(mode, CARRIED, place, inputs=inputs))
    place = mode.home(view, inputs) or mode.nowhere(view, inputs)
    mark = Mark(mode, CARRIED, place, inputs=inputs)
    mode.set_mark(view, mark)
    call.marked.append((view, mark))
    call.carried.append(view)
    view.grad_fn  # noqa: B018  # torch renews a view's history only when it is looked at
