"""One operator call seen by the tracer, and what a rule may do with it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from copy import copy
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from omenn.engine.location import Place
from omenn.engine.trace.autograd_nodes import Affine, Frozen, Overwrite, Rewritten
from omenn.engine.trace.graph import Flow
from omenn.engine.trace.marks import (
    ACTIVE,
    FROZEN,
    IDS,
    OPAQUE,
    Layer,
    Mark,
    coarser,
    inputs_of,
    tensors_in,
)
from omenn.engine.trace.spelling import Spelling, renamed
from omenn.errors import UnsupportedOperator

if TYPE_CHECKING:
    from omenn.engine.location.constants import Location
    from omenn.engine.operators.stable import Shift
    from omenn.engine.operators.table import Operator
    from omenn.engine.trace.attempt import Pass

__all__ = ["ACTIVE", "FROZEN", "IDS", "OPAQUE", "Call", "Layer", "Mark", "alike", "coarser",
           "inputs_of", "substitute", "tensors_in"]  # fmt: skip


def substitute(value: Any, sub: Callable[[Tensor], Tensor]) -> Any:
    """``value`` with ``sub`` applied to each tensor in it (nested tuples, lists and dicts)."""
    if isinstance(value, Tensor):
        return sub(value)
    if isinstance(value, (list, tuple)):
        return alike(value, [substitute(v, sub) for v in value])
    if type(value) is dict:
        return {k: substitute(v, sub) for k, v in value.items()}
    if isinstance(value, dict):  # what a module returns may be of a class of its own
        fresh = copy(value)
        for key in list(value):
            fresh[key] = substitute(value[key], sub)
        return fresh
    return value


def alike(value: list[Any] | tuple[Any, ...], items: list[Any]) -> Any:
    """The items as a sequence of the kind of ``value``: a list, a named tuple, a tuple."""
    if isinstance(value, list):
        return items if type(value) is list else type(value)(items)
    if hasattr(value, "n_sequence_fields"):  # torch.return_types
        return type(value)(items)
    return type(value)(*items) if hasattr(value, "_fields") else tuple(items)


def _whole(value: Tensor) -> Tensor:
    """A value that is no view: a custom function may not hand out views of what it made."""
    return value.clone() if value._is_view() else value


class Context(Protocol):
    """What a rule may use of the run that its call belongs to; a tracer is one."""

    products: str  # which of two equally bounded factors stays active
    freeze_bounded: bool  # whether the bounded factor of a product is frozen
    create_graph: bool  # whether coefficients stay differentiable
    engine: bool  # whether the engine's own rules and tracer are at work
    how: Pass
    rules: dict[str, Operator]
    location: Location
    notes: dict[str, Any]  # what the rules of a table keep between two calls
    own: set[int]  # ids of the model's own parameters and buffers
    roots: list[Tensor]  # leaves whose dependence is followed
    # Is told of convolutions: what it slides over, its mark, over how many dimensions.
    convolved: Callable[[Tensor, Mark, int], None] | None

    def mark_of(self, t: Tensor) -> Mark | None: ...
    def worn(self, t: Tensor) -> Mark | None: ...
    def set_mark(self, t: Tensor, mark: Mark) -> None: ...
    def computed_in(self, dtype: torch.dtype) -> None: ...
    def curved(self, t: Tensor) -> bool: ...
    def __enter__(self) -> Any: ...
    def __exit__(self, exc_type: Any, exc_val: Any, exc_tb: Any) -> None: ...
    def module_path(self) -> str: ...


class Call:
    """A call of ``func``, spelled as the model spelled it."""

    def __init__(
        self,
        context: Context,
        func: Callable[..., Any],
        spelling: Spelling,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        marked: list[tuple[Tensor, Mark]],
    ) -> None:
        from omenn.engine.operators.table import (  # its rules use this module
            NOTHING,
            OPERATORS,
            UNRULED,
        )

        self.context = context
        self.func = func
        self.operator = spelling.operator
        self.reverse = spelling.reverse
        name = spelling.operator
        self.known = OPERATORS.get(name) or UNRULED.get(name) or NOTHING
        self.args = args
        self.kwargs = kwargs
        self.marked = marked
        self.active = [t for t, m in marked if m.kind == ACTIVE]
        self.bound = dict(zip(spelling.arguments, args, strict=False))  # the arguments by name
        if kwargs:
            self.bound |= renamed(kwargs)
        self.get: Callable[..., Any] = self.bound.get
        self.inplace = spelling.inplace or bool(self.bound.get("inplace"))
        self.first: Any = args[0] if args else next(iter(kwargs.values()), None)
        self.spare: Tensor | None = None  # the ordinary twin of a constant that is written into
        self.result_frozen = False  # the result is a frozen coefficient
        self.boundedness: int | None = None
        self.places: list[Place | None] | None = None
        self.layer: Layer | None = None
        self.shift: Shift | None = None
        self.flow: Flow | None = None  # what the result was made from, for second derivatives
        self.link: Any = None  # how the result is made, where that is elementwise

    # --- arguments -------------------------------------------------------------------------

    @property
    def inputs(self) -> frozenset[Any]:
        """Keys of the explained inputs that flow into it."""
        found = [m.inputs for _, m in self.marked if m.kind == ACTIVE]
        return found[0] if len(found) == 1 else frozenset().union(*found)

    def is_active(self, value: Any) -> bool:
        return any(value is t for t in self.active)

    def mark(self, value: Tensor) -> Mark | None:
        return next((m for t, m in self.marked if t is value), None)

    def place(self, value: Tensor) -> Place | None:
        mark = self.mark(value)
        return mark.place if mark else None

    def constant(self, value: Tensor) -> Tensor:
        """A tensor that is not active: without history, unless second derivatives are wanted.

        Raises UnsupportedOperator for one that is: what flows through it would be lost.
        """
        if self.is_active(value):
            raise self.refuse("an argument that its rule takes for a constant depends on the input")
        return self._plain(value)

    def _plain(self, value: Tensor) -> Tensor:
        written = self.inplace and value is self.first and not self.is_active(value)
        if self.context.create_graph or written:  # what is written into must stay itself
            return value
        return value.clone() if value.is_inference() else value.detach()

    def true(self, value: Tensor) -> Tensor:
        """The ordinary value of a tensor, to compute coefficients from."""
        mark = self.mark(value)
        if self.context.create_graph and mark is not None and mark.true is not None:
            # NOTE [outlive the write]: in place the ordinary tensor changes below.
            return mark.true.clone() if self.inplace else mark.true
        if self.context.create_graph and mark is not None and mark.kind == ACTIVE:
            raise self.refuse("a write through a view, which cannot be differentiated twice")
        return self._plain(value)

    # --- evaluation ------------------------------------------------------------------------

    def run(self, sub: Callable[[Tensor], Tensor] | None = None) -> Any:
        """Calls the operator as spelled: active tensors as they are, all others constant."""
        if sub is None:
            active = {id(t) for t in self.active}
            sub = lambda t: t if id(t) in active else self.constant(t)  # noqa: E731
        args, kwargs = substitute(self.args, sub), substitute(self.kwargs, sub)
        return self.func(*args, **kwargs)

    def value(self) -> Any:
        """The native result, without history and without touching the arguments."""
        with torch.no_grad():
            if self.inplace:
                first = self.first
                return self.run(lambda t: t.detach().clone() if t is first else t.detach())
            out = self.func(*self.args, **self.kwargs)
            # Nothing to do for some arguments, which then come back as they are.
            return out.detach() if isinstance(out, Tensor) and out.requires_grad else out

    def true_value(self) -> Any:
        """The result in the ordinary graph (second derivatives), else without history."""
        if not self.context.create_graph or self.known.steps:
            return self.value()
        return self.again(self.true)

    def again(self, sub: Callable[[Tensor], Tensor]) -> Any:
        """The operator on other tensors, in a form that PyTorch can differentiate."""
        name = getattr(self.func, "__name__", "")
        if not (name.endswith("_") and self.known.only_out_of_place):
            return self.run(sub)
        return getattr(torch, name[:-1])(*substitute(self.args, sub))

    def twin(self, out: Any) -> list[Any] | None:
        """The same call in the ordinary graph (only kept for second derivatives)."""
        if not self.context.create_graph or self.result_frozen:
            return None

        def ordinary(t: Tensor) -> Tensor:
            mark = self.mark(t)
            if t is self.first and self.spare is not None:
                return self.spare
            if mark is not None and mark.kind == ACTIVE and mark.true is None:
                raise self.refuse("a write through a view, which cannot be differentiated twice")
            return t if mark is None or mark.true is None else mark.true

        # A detached tensor is followed like any other.
        true = ordinary(self.active[0]) if self.operator == "detach" else self.again(ordinary)
        if self.operator == "setitem":
            true = ordinary(self.first)
        return [true] if isinstance(out, Tensor) else list(true)

    def freeze(self) -> Any:
        """The result as a frozen coefficient: nothing flows back through it."""
        self.result_frozen = True
        out = self.true_value()
        if not self.inplace:
            return out
        first = self.first
        if self.is_active(first):
            if first._is_view():
                raise self.refuse("writes a frozen value into a part of a tensor")
            first.detach_()  # its history must go
        return first.copy_(out)

    def at_zero(self) -> Any:
        """The result with every active tensor set to zero: the constant term of an affine map."""
        active = {id(t) for t in self.active}
        return self.run(
            lambda t: (
                torch.zeros_like(t, requires_grad=False) if id(t) in active else self.constant(t)
            )
        )

    def frozen(
        self, x: Tensor, value: Tensor, vjp: Callable[..., Tensor], *coefficients: Tensor | None
    ) -> Tensor:
        """``value`` as a frozen function of x: its backward is ``vjp(grad, *coefficients)``."""
        y = Frozen.apply(x, [_whole(value)], vjp, *coefficients)
        return self.written(x, y)

    def overwrite(self) -> None:
        """Runs an in-place operator on the memory of its argument, without history."""
        with torch.no_grad():
            self.run(Tensor.detach)

    def rewritten(self, x: Tensor, vjp: Callable[..., Tensor], *coefficients: Tensor) -> Tensor:
        """x, which was overwritten, with a frozen backward by what it was before."""
        return Rewritten.apply(x, vjp, *coefficients)  # type: ignore[return-value]

    @property
    def writable(self) -> bool:
        """Whether x may be overwritten where it lies: it is no part of another, and no leaf."""
        x = self.active[0]
        return x.grad_fn is not None and not x._is_view() and not self.context.create_graph

    def affine(
        self,
        x: Tensor,
        value: Tensor,
        vjp: Callable[..., Tensor],
        term: Tensor,
        *coefficients: Tensor,
    ) -> Tensor:
        """``value`` = W x + term in one node: its backward is ``vjp(grad, *coefficients)``."""
        if not self.collects:
            return self.frozen(x, value, vjp, *coefficients)
        ones = self.context.location.ones_for(self, value)
        y = Affine.apply(x, [_whole(value)], vjp, term, ones, *coefficients)
        return self.written(x, y)

    def written(self, x: Tensor, y: Tensor) -> Tensor:
        """y, or x overwritten with y where the model asked for the in-place form."""
        return Overwrite.apply(x, y) if self.inplace else y  # type: ignore[return-value]

    @property
    def collects(self) -> bool:
        """Whether constants are carried to the input."""
        return self.context.location.grid is not None

    def attach(self, y: Tensor, term: Tensor, frozen: bool = False) -> Tensor:
        """Carries the constant ``term`` (broadcastable to y) to the input's ones image.

        ``frozen``: its value was made from active tensors, so it is another for another input.
        """
        return self.context.location.attach(self, y, term, frozen=frozen)

    def refuse(self, why: str, remedy: str | None = None) -> UnsupportedOperator:
        """The error to raise where this call is not provably linear."""
        name = getattr(self.func, "__name__", self.operator)
        if name == "__get__":
            name = self.operator
        return UnsupportedOperator(
            name,
            self.context.module_path(),
            why,
            remedy or "Give it a rule with omenn.rule(...), or explain at a later module with at=.",
        )


# --- where a call comes from ---------------------------------------------------------------------

_ENGINE = "omenn.engine."
# Where PyTorch calls hooks and ``forward``.
_MODULES = "torch.nn.modules.module"
_CALLS = ("_call_impl", "inner")


def running_module(names: Mapping[int, str]) -> str:
    """Dotted name of the innermost module whose method is running; ``""`` outside of all.

    ``names``: the names of the model's modules by ``id``; any other has that of its class.
    """
    frame = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if code.co_argcount and code.co_varnames[0] == "self":
            # The engine's own frames are passed by: to read the locals of each takes time.
            home = frame.f_globals.get("__name__")
            if not (isinstance(home, str) and home.startswith(_ENGINE)):
                owner = frame.f_locals.get("self")
                if isinstance(owner, nn.Module):
                    return names.get(id(owner), type(owner).__name__)
        frame = frame.f_back
    return ""


def running_hook() -> str:
    """The name of the innermost hook of a module that is running; ``""`` where there is none."""
    frame = sys._getframe(1)
    while frame is not None and (caller := frame.f_back) is not None:
        calls = caller.f_globals.get("__name__") == _MODULES and caller.f_code.co_name in _CALLS
        inside = frame.f_globals.get("__name__") == _MODULES
        if calls and not inside:
            hook = caller.f_locals.get("hook")
            code = getattr(getattr(hook, "__func__", hook), "__code__", None)
            return frame.f_code.co_name if code is frame.f_code else ""
        frame = caller
    return ""
