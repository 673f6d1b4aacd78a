"""What has no torch function of its own name: ``autograd.Function`` classes and custom operators.

NOTE [seen only with a rule] PyTorch dispatches no call of a Function to function modes. While a
rule is registered for one, the method that all ``apply`` end in hands the call over to the modes in
force, if there are any; so it does not matter under which name a model has kept ``apply``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch.overrides import handle_torch_function

from omenn.engine.torch_private import (
    FunctionBase,
    Overload,
    OverloadPacket,
    function_modes_enabled,
    operator_names,
)
from omenn.errors import InputError

_BUILT_IN = frozenset(("aten", "prim", "prims"))
_ENGINE = "omenn.engine."

_natives: dict[type, Callable[..., Any]] = {}  # class -> the function that modes are given
_watched: frozenset[type] = frozenset()


def function_of(func: Any) -> type | None:
    """The class of an ``autograd.Function``, given itself or as its ``apply``."""
    owner = func if isinstance(func, type) else getattr(func, "__self__", None)
    named = isinstance(func, type) or getattr(func, "__name__", "") == "apply"
    found = named and isinstance(owner, type) and issubclass(owner, torch.autograd.Function)
    return owner if found else None


def native(function: type) -> Callable[..., Any]:
    """The function that stands for a class in the tables: it runs its ``apply``."""
    if function not in _natives:

        def call(*args: Any) -> Any:
            return function.apply(*args)  # pyright: ignore[reportAttributeAccessIssue]

        call.__name__, call.function = function.__name__, function  # pyright: ignore
        _natives[function] = call
    return _natives[function]


def watch(functions: Iterable[type]) -> None:
    """From now on modes see the calls of these classes, and of no other."""
    global _watched
    _watched = frozenset(functions)
    if _watched and "apply" not in vars(FunctionBase):
        FunctionBase.apply = classmethod(_apply)
    elif not _watched and "apply" in vars(FunctionBase):
        del FunctionBase.apply


def _apply(cls: type, *args: Any) -> Any:
    if cls in _watched and function_modes_enabled():
        return handle_torch_function(native(cls), (), *args)
    return super(FunctionBase, cls).apply(*args)  # pyright: ignore[reportAttributeAccessIssue]


def operator_of(func: Any) -> list[Callable[..., Any]]:
    """The custom operator in every form in which modes may see it."""
    overload = getattr(func, "_opoverload", func)  # what torch.library.custom_op returns
    if isinstance(overload, Overload):
        packet = overload.overloadpacket
        only = len(packet.overloads()) == 1
        return [overload, packet] if only else [overload]
    if isinstance(overload, OverloadPacket):
        return [overload, *(getattr(overload, name) for name in overload.overloads())]
    return []


def named(name: str) -> list[Callable[..., Any]]:
    """Functions and custom operators of a name, in every form in which modes may see them.

    Raises InputError where several have it.
    """
    functions = [f for f in _subclasses(torch.autograd.Function) if f.__name__ == name]
    if len(functions) > 1:
        homes = ", ".join(f"{f.__module__}.{f.__qualname__}" for f in functions)
        raise InputError(
            f"several autograd.Functions are called {name!r}: {homes}. Give the class."
        )
    if functions:
        return [native(functions[0])]
    found = _operators(name)
    own = [op for op in found if op[0] not in _BUILT_IN] or found
    if len({op[:2] for op in own}) > 1:
        names = ", ".join(repr("::".join(op)) for op in sorted({op[:2] for op in own}))
        raise InputError(
            f"several operators are called {name!r}: {names}. Give one of these names."
        )
    return operator_of(getattr(getattr(torch.ops, own[0][0]), own[0][1])) if own else []


def _operators(name: str) -> list[tuple[str, str]]:
    """(namespace, operator) of every registered operator that is called so."""
    found = []
    for full in operator_names():
        space, _, rest = full.partition("::")
        operator, _, overload = rest.partition(".")
        short = {operator, f"{operator}.{overload or 'default'}"}
        if name in short | {f"{space}{dot}{s}" for s in short for dot in ("::", ".")}:
            found.append((space, operator))
    return found


def _subclasses(function: type) -> Iterator[type]:
    for below in function.__subclasses__():
        if not below.__module__.startswith(_ENGINE):
            yield below
        yield from _subclasses(below)
