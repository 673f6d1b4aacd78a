"""Rules added by users."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from omenn.core.autograd import Frozen
from omenn.core.call import Call
from omenn.core.rules import OPERATORS, Row
from omenn.core.rules.pointwise import pointwise
from omenn.core.rules.row import same, unlocated
from omenn.core.spelling import spell, spellings, teach
from omenn.errors import InputError

_KINDS = ("linear", "pointwise")


def rule(
    func: Callable[..., Any] | str,
    kind: str | Callable[[Call], Any],
    *,
    name: str | None = None,
) -> None:
    """Registers a rule for a torch function that has none.

    Args:
        func: the name of a torch function, which stands for all its spellings (``torch.tan``,
            ``x.tan()``, ``x.tan_()``); or one function object as models call it (any that
            dispatches through ``__torch_function__``).
        kind: ``"linear"`` (linear as it stands, up to a constant), ``"pointwise"`` (a smooth
            function of each element alone: φ(0) + ⟦(φ(x) − φ(0))/x⟧ x), or a function of a
            ``Call`` that returns the frozen output.
        name: the operator's name in messages; the function's own by default.

    A wrong rule does not stay hidden: the certificate of any model that uses it fails.

    Raises:
        InputError: torch has no such function, or the kind is not known.

    Example:
        >>> import torch, omenn
        >>> omenn.rule("i0e", "pointwise")
        >>> e = omenn.explain(lambda x: torch.special.i0e(x).sum(1, keepdim=True), torch.ones(1, 2))
        >>> assert e.exact
    """
    if isinstance(func, str):
        found = spellings(func)
        if not found:
            raise InputError(f"torch has no function {func!r}. Give the function object itself.")
    elif callable(func):
        found = [(func, False)]
    else:
        raise InputError(f"omenn.rule needs a function, but {type(func).__name__} was given.")
    operator: str = name or (
        func if isinstance(func, str) else getattr(func, "__name__", str(func))
    )
    known = spell(found[0][0])
    if operator in OPERATORS and (known is None or known.operator != operator):
        operator += " (own rule)"  # another function of the same name
    if callable(kind):
        row = Row(kind, unlocated)
    elif kind == "linear":
        row = Row(declared_linear, unlocated)
    elif kind == "pointwise":
        row = Row(pointwise, same)
    else:
        raise InputError(
            f"kind={kind!r} is not known. Give {' or '.join(map(repr, _KINDS))}, or a function."
        )
    OPERATORS[operator] = row
    for spelled, inplace in found:
        teach(spelled, operator, inplace)


def declared_linear(call: Call) -> Tensor:
    """What the user says is linear: native forward, native backward at the given constants."""
    value = call.value()
    if not isinstance(value, Tensor):
        raise call.refuse("a rule of the kind 'linear' is for functions that return one tensor")
    out = torch.zeros_like(value)
    for x in call.carried:

        def vjp(grad: Tensor, x: Tensor = x) -> Tensor:
            with torch.enable_grad():
                leaf = torch.zeros_like(x, requires_grad=True)
                y = call.run(lambda t: leaf * 1 if t is x else t.detach())
            return torch.autograd.grad(y, leaf, grad, create_graph=torch.is_grad_enabled())[0]

        out = out + Frozen.apply(x, [torch.zeros_like(value)], vjp)
    out = out + value
    return call.attach(call.written(call.first, out), call.at_zero())
