"""Results that no rule makes: opaque ones, and frozen ones, through which nothing flows.

An operator without a rule, or whose rule refuses this call, runs natively. Of frozen arguments the
result is frozen again.

NOTE [refused at the explained number] What such an operator makes of the input is not known to be
affine, so a floating-point result is marked opaque, with the error that says why, and so is
whatever is computed from it. Integers and booleans are decisions, which are constants. The error is
raised where the explained number is opaque. Every opaque tensor has a history that ends in an
``Opaque`` node: so what unseen code makes of it is noticed, and no gradient passes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from copy import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.overrides import resolve_name
from torch.utils.hooks import RemovableHandle

from omenn.engine import probabilities
from omenn.engine.location import Place
from omenn.engine.location.lookups import looked_up
from omenn.engine.location.provenance import mark_frozen, mark_written, taken
from omenn.engine.operators.unruled import LEAVES_TORCH
from omenn.engine.trace.autograd_nodes import Opaque
from omenn.engine.trace.call import (
    OPAQUE,
    Call,
    Mark,
    alike,
    inputs_of,
    running_hook,
    substitute,
    tensors_in,
)
from omenn.engine.trace.custom_functions import operator_of
from omenn.engine.trace.inplace import OWN, check_unshared, owned
from omenn.engine.trace.marks import continuous, memory_of, version
from omenn.engine.trace.spelling import spell, spellings
from omenn.errors import UnsupportedOperator

if TYPE_CHECKING:
    from omenn.engine.operators.table import Operator
    from omenn.engine.trace.tracer import Tracer


def name_of(func: Any) -> str:
    name = getattr(func, "__name__", str(func))
    if name == "__get__":
        name = getattr(getattr(func, "__self__", None), "__name__", name)
    return name


def unknown(mode: Tracer, func: Any, args: Any, kwargs: Any, marked: Any) -> Any:
    """An operator without a rule, or with an opaque argument."""
    from omenn.engine.operators import unruled  # its rules use this module

    name = name_of(func)
    if name == "__deepcopy__":  # PyTorch has none of a tensor with a history
        with mode:
            return args[0].clone()
    if name in unruled.GRADIENT_HOOKS and not mode.leaves:  # of derivatives of the frozen network
        return RemovableHandle(OrderedDict())
    leaves = name in unruled.LEAVES_TORCH or name in unruled.UNSEEN
    error = next((m.error for _, m in marked if m.error is not None), None)
    if error is None or leaves:
        error = _no_rule(mode, func, leaves)
    if leaves and (name not in unruled.NUMBERS or mode.leaves):  # omenn.frozen is not run twice
        raise error
    if leaves:
        return mode.departures.leave(mode, (func, args, kwargs), error)
    out = native(mode, func, args, kwargs, marked, error)
    mode.chains.compared(func, args, kwargs, marked, out)
    return out


def _no_rule(mode: Tracer, func: Any, leaves: bool) -> UnsupportedOperator:
    if leaves:
        why = "its value leaves PyTorch, where it cannot be followed"
        hook = running_hook()
        remedy = "Keep it a tensor, or explain a later module with at=."
        if hook:
            remedy = f"Keep it a tensor in the hook '{hook}', or remove that hook for a while."
    else:
        why = "there is no rule that makes it linear at fixed coefficients"
        rule = f"omenn.rule({_called(func)}, ...)"
        remedy = f"Give it one with {rule}, or explain a later module with at=."
    return UnsupportedOperator(name_of(func), mode.module_path(), why, remedy)


def _called(func: Any) -> str:
    """What to give to ``omenn.rule`` for a function: its name where that is enough."""
    name = name_of(func)
    if operator_of(func) or any(f is func for f, _ in spellings(name)):
        return repr(name)
    home = f"{getattr(func, '__module__', '')}.{getattr(func, '__qualname__', name)}"
    return resolve_name(func) or home


def native(
    mode: Tracer, func: Any, args: Any, kwargs: Any, marked: Any, error: UnsupportedOperator
) -> Any:
    """What the operator itself returns, in which everything continuous is opaque.

    Raises ``error`` at once where that could not be followed: a write into the model's own memory,
    or into a tensor to differentiate by; a tensor in a foreign object.
    """
    # NOTE [raised as a copy] It is kept: a traceback holds frames, and these hold the graph.
    error.with_traceback(None)
    error.__context__ = error.__cause__ = None
    for t in _named_targets(func, args, kwargs):
        if owned(mode, t):
            raise UnsupportedOperator(name_of(func), mode.module_path(), *OWN)
        if t.is_leaf and t.requires_grad:
            raise copy(error)
    given = list({id(t): t for t in tensors_in((*args, *kwargs.values()))}.values())
    before = [version(t) for t in given]
    result = Result(mode, func, given, marked, error)
    numbers = substitute(args[1:], result.number), substitute(kwargs, result.number)
    with torch.no_grad():
        out = func(*args[:1], *numbers[0], **numbers[1])
    for t, count in zip(given, before, strict=True):
        if version(t) != count:
            result.write(t)
    return result.of(out)


def raise_opaque(mode: Tracer, t: Tensor) -> None:
    """Raises the error of an opaque tensor."""
    mark = mode.mark_of(t)
    if mark is not None and mark.error is not None:
        raise copy(mark.error)


class Result:
    """Puts marks and a history on what an operator made natively of ``marked`` arguments."""

    def __init__(
        self,
        mode: Tracer,
        func: Any,
        given: list[Tensor],
        marked: Any,
        error: UnsupportedOperator,
    ) -> None:
        self.mode, self.func, self.marked = mode, func, marked
        self.given, self.error = given, error
        self.mark = Mark(mode, OPAQUE, None, 0, inputs_of(marked), error=error)
        self.parents = [t for t in given if t.requires_grad and mode.mark_of(t) is not None]

    def number(self, t: Tensor) -> Tensor:
        """PyTorch takes a single element for a number if it has no history."""
        return t.detach() if t.ndim == 0 and t.requires_grad else t

    def write(self, t: Tensor) -> None:
        """t was written into: it is opaque, and so is what it is a part of."""
        if not continuous(t):
            return
        if owned(self.mode, t):
            raise UnsupportedOperator(self.error.operator, self.error.module, *OWN)
        try:
            self._linked([], t)
        except RuntimeError:  # one of several views, which autograd cannot follow
            raise copy(self.error) from None
        for part in (t, t._base):
            if part is not None:
                self.mode.set_mark(part, self.mark)

    def of(self, out: Any) -> Any:
        if isinstance(out, Tensor):
            return self._tensor(out)
        if isinstance(out, (list, tuple)) and not isinstance(out, torch.Size):
            return alike(out, [self.of(o) for o in out])
        if isinstance(out, dict):
            for key, value in out.items():
                out[key] = self.of(value)
            return out
        foreign = getattr(out, "__dict__", None)
        hidden = isinstance(foreign, dict) and bool(tensors_in(foreign.values()))
        if hidden or isinstance(out, (float, complex)):
            raise copy(self.error)
        return out

    def _tensor(self, t: Tensor) -> Tensor:
        if any(t is x for x in self.given):
            return t
        if not continuous(t) and any(memory_of(p) == memory_of(t) for p in self.parents):
            raise copy(self.error)  # the bits of a number are no decision
        if not continuous(t):
            mark_frozen(self.mode, self.func, self.marked, t)
            return t
        y = self._alias(t)
        if y is None:
            y = self._linked([t.clone() if t._is_view() else t], None)
        self.mode.set_mark(y, self.mark)
        return y

    def _linked(self, value: list[Tensor], overwritten: Tensor | None) -> Tensor:
        others = [p for p in self.parents if p is not overwritten]
        with torch.enable_grad():
            return Opaque.apply(self.error, overwritten, value, *others)  # type: ignore[return-value]

    def _alias(self, t: Tensor) -> Tensor | None:
        """A view of an argument as one with a history: a write into it is seen in both."""
        memory = memory_of(t)
        for x in self.parents if memory else ():
            same = x.dtype == t.dtype and x.is_conj() == t.is_conj() and x.is_neg() == t.is_neg()
            if same and memory_of(x) == memory:
                with torch.enable_grad():
                    return x.as_strided(t.shape, t.stride(), t.storage_offset())
        return None


def _named_targets(func: Any, args: Any, kwargs: Any) -> Iterator[Tensor]:
    """What the operator will write into, as far as its name and its arguments tell."""
    name, spelling = name_of(func), spell(func)
    inplace = name.endswith("_") and not name.endswith("__")
    inplace |= name.startswith("__i") or bool(kwargs.get("inplace"))
    if inplace or (spelling is not None and spelling.inplace):
        yield from tensors_in(args[:1])
    yield from tensors_in([kwargs.get("out")])


# --- frozen results ------------------------------------------------------------------------------


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
    """NOTE [a courtesy] What is frozen carries no constant, so a placer may fail here."""
    if known is None or known[1].composite:
        return []
    try:
        at = taken(known[0], out)
        return mode.location.places(*known, out) if at is None else [at]
    except (RuntimeError, IndexError, TypeError, ValueError, AttributeError):
        return []
