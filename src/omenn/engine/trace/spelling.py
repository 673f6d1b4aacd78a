"""Every spelling of an operator: function, method, dunder, in-place twin, keyword form.

``spell(func)`` names the operator of a function object and how it was spelled, ``bind`` gives
arguments their names: both as the records of the operators (``omenn.engine.operators``) say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import GetSetDescriptorType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from omenn.engine.torch_private import nn_functions


class Spelling(NamedTuple):
    """How a function spells an operator, and the names of its arguments in order."""

    operator: str
    inplace: bool = False
    reverse: bool = False
    arguments: tuple[str, ...] = ("input",)


# Where a name is looked for, as it is and with a trailing underscore.
_HOMES: tuple[Any, ...] = (
    torch,
    Tensor,
    torch.nn.functional,
    nn_functions,
    torch.special,
    torch.linalg,
    torch.fft,
)
_PREFIXES: dict[Any, str] = {torch: "torch.", torch.nn.functional: "F.", Tensor: "Tensor."}

# Names used for the same argument by different spellings.
_SYNONYMS = {
    "self": "input", "tensor": "input", "axis": "dim", "ord": "p", "axes": "dim", "mat2": "other",
    "vec": "other", "dims": "dim", "keepdims": "keepdim", "input1": "input1", "batch1": "mat1",
    "batch2": "mat2", "vec2": "other", "exponent": "exponent",
}  # fmt: skip


def _build() -> dict[Any, Spelling]:
    from omenn.engine.operators.table import OPERATORS  # its rules use this module

    table: dict[Any, Spelling] = {}
    # A name of its own comes first: torch has some operators under another's name as well.
    names = [(name, name) for name in OPERATORS]
    names += [(other, name) for name, known in OPERATORS.items() for other in known.names.split()]
    for name, operator in names:
        known = OPERATORS[operator]
        reverse = name in known.exchanged.split()
        for home in _HOMES:
            order = known.orders.get(f"{_PREFIXES.get(home, '')}{name}") or known.orders.get(name)
            arguments = tuple((order or known.arguments).split())
            for func, inplace in _functions(home, name):
                table.setdefault(func, Spelling(operator, inplace, reverse, arguments))
    return table


def _functions(home: Any, name: str) -> Iterator[tuple[Any, bool]]:
    """What is called so there, also with an underscore: (function or property, in place)."""
    for spelled in (name, name + "_") if not name.endswith("_") else (name,):
        found = getattr(home, spelled, None)
        if isinstance(found, GetSetDescriptorType):
            yield getattr(found, "__get__"), False  # noqa: B009, not an attribute of every type
        elif callable(found) and not isinstance(found, type):
            inplace = spelled.endswith("_") and not spelled.endswith("__")
            inplace |= spelled.startswith("__i") or spelled in ("__setitem__", "copy_")
            yield found, inplace


_TABLE: dict[Any, Spelling] | None = None


def by_function() -> dict[Any, Spelling]:
    """Function → spelling; built once, at the first explanation."""
    global _TABLE
    if _TABLE is None:
        _TABLE = _build()
    return _TABLE


def spell(func: Callable[..., Any]) -> Spelling | None:
    """The canonical operator of a torch function, or None if it is not in the table."""
    return by_function().get(func)


def spellings(name: str) -> list[tuple[Callable[..., Any], bool]]:
    """Every torch function of a name, with its in-place twins: (function, in place)."""
    found = {}
    for prefix in ("special_", "linalg_", "fft_"):  # as torch names what lies in these modules
        name = name.removeprefix(prefix)
    for home in _HOMES if name.isidentifier() else ():
        for spelled in dict.fromkeys((name, name if name.endswith("_") else name + "_")):
            func = getattr(home, spelled, None)
            if callable(func) and not isinstance(func, type):
                found.setdefault(func, spelled.endswith("_") and not spelled.endswith("__"))
    return list(found.items())


def bind(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments by name, as far as the signature table names them.

    >>> import torch
    >>> bound = bind(torch.nn.functional.linear, (), {"input": 1, "weight": 2, "bias": None})
    >>> assert bound == {"input": 1, "weight": 2, "bias": None}
    """
    spelling = by_function().get(func, Spelling(""))
    return dict(zip(spelling.arguments, args, strict=False)) | renamed(kwargs)


def renamed(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments by the names that the rules use."""
    return {_SYNONYMS.get(key, key): value for key, value in kwargs.items()}
