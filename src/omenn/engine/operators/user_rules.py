"""Rules added by users, and taken back."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from omenn.check import wrong
from omenn.engine.operators.coefficients import frozen_value
from omenn.engine.operators.pointwise import pointwise
from omenn.engine.operators.record import same, unlocated
from omenn.engine.operators.table import OPERATORS, known
from omenn.engine.trace.autograd_nodes import Frozen
from omenn.engine.trace.call import Call
from omenn.engine.trace.custom_functions import function_of, named, native, operator_of, watch
from omenn.engine.trace.spelling import Spelling, by_function, spell, spellings
from omenn.errors import InputError

Kind = str | Callable[[Call], Any]
_MISSING = object()
_LOCK = threading.RLock()
_registered: list[Rule] = []
_before: dict[tuple[int, Any], Any] = {}  # (table, key) -> what it was without any rule of a user


class _Scopes(threading.local):
    def __init__(self) -> None:
        self.open: list[list[Rule]] = []


_SCOPES = _Scopes()


class Rule:
    """A registered rule. ``remove()`` takes it back; a second time it does nothing."""

    def __init__(self, functions: list[type], entries: dict[tuple[int, Any], Any]) -> None:
        self._functions, self._entries = functions, entries
        with _LOCK:
            _registered.append(self)
            for (table, key), _ in entries.items():
                _before.setdefault((table, key), _tables()[table].get(key, _MISSING))
            _update(entries)

    def remove(self) -> None:
        with _LOCK:
            if self in _registered:
                _registered.remove(self)
                _update(self._entries)


def _tables() -> tuple[dict[Any, Any], ...]:
    return OPERATORS, by_function()


def _update(entries: dict[tuple[int, Any], Any]) -> None:
    """These entries are what the last rule that has them says, or what they were before all."""
    for place in entries:
        table, key = place
        found = _before[place]
        for one in _registered:
            found = one._entries.get(place, found)
        if found is _MISSING:
            _tables()[table].pop(key, None)
        else:
            _tables()[table][key] = found
    watch(f for one in _registered for f in one._functions)


@contextmanager
def rules(table: Mapping[Callable[..., Any] | str, Kind] | None = None) -> Iterator[None]:
    """Inside, the rules of ``table`` hold; those that are registered inside end with it, too.

    ``table``: function or name → kind, as :func:`omenn.rule` takes them.

    Example:
        >>> import torch, omenn
        >>> with omenn.rules({"i0e": "pointwise"}):
        ...     e = omenn.explain(lambda x: torch.special.i0e(x), torch.ones(1, 2), 1)
        >>> assert e.exact
    """
    if not (table is None or isinstance(table, Mapping)):
        raise wrong("table", table, "a dict of functions (or names) and kinds")
    scope: list[Rule] = []
    _SCOPES.open.append(scope)
    try:
        for func, kind in (table or {}).items():
            rule(func, kind)
        yield
    finally:
        _SCOPES.open.remove(scope)
        for one in reversed(scope):
            one.remove()


def rule(
    func: Callable[..., Any] | str,
    kind: Kind,
    *,
    name: str | None = None,
) -> Rule:
    """Registers a rule for a function that has none, or another one for one that has.

    Args:
        func: a name as an error states it; that of a torch function stands for all its spellings
            (``torch.tan``, ``x.tan()``, ``x.tan_()``). Or one object: a function that dispatches
            through ``__torch_function__``, an ``autograd.Function`` (the class or its ``apply``),
            a custom operator (``torch.library``, ``torch.ops``).
        kind: ``"linear"`` (linear as it stands, up to a constant), ``"pointwise"`` (a smooth
            function of each element alone: φ(0) + ⟦(φ(x) − φ(0))/x⟧ x), ``"frozen"`` (a
            coefficient, frozen as a softmax is), or a function of a ``Call`` that returns the
            frozen output, as below.
        name: the operator's name in messages; the function's own by default.

    A function of a ``Call`` computes the output with these, and leaves the arguments as they are:

    =================================  ==========================================================
    ``call.args``, ``call.get(name)``  the arguments; ``call.active`` are those that depend on
                                       the explained input
    ``call.run()``                     the operator itself, with its own derivative
    ``call.value()``                   its result without history, to build on
    ``call.true(x)``                   an argument without history, to compute coefficients from
    ``call.frozen(x, value, vjp, *c)`` ``value`` as a linear function of x: ``vjp(grad, *c)`` is
                                       its derivative, c the coefficients
    ``call.attach(y, term)``           says that y holds the constant ``term``
    ``call.freeze()``                    its result as a coefficient
    =================================  ==========================================================

    A wrong rule does not stay hidden: the certificate of any model that uses it fails, and a result
    that nothing flows back from is refused, unless it is frozen.

    Returns:
        The rule, of which ``remove()`` takes it back; see also :func:`omenn.rules`.

    Raises:
        InputError: there is no such function, or several, or the kind is not known.

    Example:
        >>> import torch, omenn
        >>> class Square(torch.autograd.Function):
        ...     @staticmethod
        ...     def forward(ctx, x):
        ...         ctx.save_for_backward(x)
        ...         return x * x
        ...     @staticmethod
        ...     def backward(ctx, grad):
        ...         return 2 * ctx.saved_tensors[0] * grad
        >>> def frozen_square(call):  # x² = ⟦x⟧ x
        ...     (x,) = call.args
        ...     return call.frozen(x, call.value(), lambda grad, x: grad * x, call.true(x))
        >>> registered = omenn.rule(Square, frozen_square)
        >>> e = omenn.explain(lambda x: Square.apply(x), torch.tensor([[2.0, 3.0]]), 1)
        >>> assert e.exact and e.weight.tolist() == [[0.0, 3.0]]
        >>> registered.remove()
    """
    found, functions = _spelled(func)
    first = found[0][0]
    operator = name or (func if isinstance(func, str) else getattr(first, "__name__", str(func)))
    spelling = spell(first)
    if operator in OPERATORS and (spelling is None or spelling.operator != operator):
        operator += " (own rule)"  # another function of the same name
    if callable(kind):
        made, placer = kind, unlocated
    elif isinstance(kind, str) and kind in _KINDS:
        made, placer = _KINDS[kind]
    else:
        raise wrong("kind", kind, f"{', '.join(map(repr, _KINDS))} or a function")
    row = known(operator).with_rule(made, placer=placer, composite=False, own=True)
    entries: dict[tuple[int, Any], Any] = {(0, operator): row}
    for spelled, inplace in found:
        entries[1, spelled] = Spelling(operator, inplace)
    registered = Rule(functions, entries)
    if _SCOPES.open:
        _SCOPES.open[-1].append(registered)
    return registered


def _spelled(func: Any) -> tuple[list[tuple[Callable[..., Any], bool]], list[type]]:
    """What the tracer will see: (function, in place), and classes whose calls are watched."""
    if isinstance(func, str):
        found = spellings(func) or [(f, False) for f in named(func)]
        if not found:
            raise InputError(
                f"neither torch nor a custom operator nor an autograd.Function that is imported is "
                f"called {func!r}.",
                argument="func",
                got=func,
                remedy="Give the function object itself.",
            )
    elif (function := function_of(func)) is not None:
        found = [(native(function), False)]
    elif operators := operator_of(func):
        found = [(f, False) for f in operators]
    elif callable(func):
        found = [(func, False)]
    else:
        raise wrong("func", func, "a function or the name of one")
    return found, [c for f, _ in found if (c := getattr(f, "function", None)) is not None]


def declared_linear(call: Call) -> Tensor:
    """What the user says is linear: native forward, native backward at the given constants."""
    value = call.value()
    if not isinstance(value, Tensor):
        raise call.refuse("a rule of the kind 'linear' is for functions that return one tensor")
    out = torch.zeros_like(value)
    for x in call.active:

        def vjp(grad: Tensor, x: Tensor = x) -> Tensor:
            with torch.enable_grad():
                leaf = torch.zeros_like(x, requires_grad=True)
                y = call.run(lambda t: leaf * 1 if t is x else t.detach())
            return torch.autograd.grad(y, leaf, grad, create_graph=torch.is_grad_enabled())[0]

        out = out + Frozen.apply(x, [torch.zeros_like(value)], vjp)
    out = out + value
    return call.attach(call.written(call.first, out), call.at_zero())


_KINDS: dict[str, tuple[Callable[[Call], Any], Any]] = {
    "linear": (declared_linear, unlocated),
    "pointwise": (pointwise, same),
    "frozen": (frozen_value, same),
}
