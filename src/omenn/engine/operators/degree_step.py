"""One call of an operator, as the rules of degrees see it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from omenn.engine.torch_private import unwrapped
from omenn.engine.trace.call import tensors_in
from omenn.engine.trace.spelling import bind, spell

if TYPE_CHECKING:
    from omenn.engine.operators.table import Operator

ANY = math.inf  # zero vanishes to every order
INFINITE = 1e9  # what masks are made with: as good as infinite


class NotHomogeneous(Exception):
    """An operator that is not homogeneous: why, and the degree of its nearest homogeneous form."""

    def __init__(self, why: str, instead: float) -> None:
        super().__init__(why)
        self.why, self.instead = why, instead


class Of(NamedTuple):
    """A part of an operator that is of this degree."""

    degree: float


class Step:
    """One call of an operator, and the degrees of those arguments that depend on the input."""

    def __init__(self, func: Any, args: Any, kwargs: Any, found: list[tuple[Tensor, float]]):
        spelling = spell(func)
        self.func, self.args, self.kwargs, self.found = func, args, kwargs, found
        self.name = _name(func)  # as it was called
        self.operator = self.name if spelling is None else spelling.operator
        self.reverse = spelling is not None and spelling.reverse
        self.inplace = kwargs.get("inplace") is True or (spelling is not None and spelling.inplace)
        self.known = _known(self.operator)
        self.bound = bind(func, args, kwargs)
        self.degrees = [degree for _, degree in found]
        self.first: Any = self.get("input", next(iter(kwargs.values()), None))

    def get(self, name: str, default: Any = None) -> Any:
        return self.bound.get(name, default)

    def at(self, position: int, *names: str) -> Any:
        """An argument that the signatures do not name."""
        if position < len(self.args):
            return self.args[position]
        return next((self.kwargs[name] for name in names if name in self.kwargs), None)

    def degree(self, value: Any) -> float:
        """Of an argument: a constant is of degree 0, or of any if it is zero."""
        if isinstance(value, Of):
            return value.degree
        known = next((degree for t, degree in self.found if t is value), None)
        if known is not None:
            return known
        if isinstance(value, Tensor):
            return ANY if vanishes(value) else 0.0
        if isinstance(value, (int, float)):
            return ANY if value == 0 or abs(value) >= INFINITE else 0.0
        return ANY if value is None else 0.0

    def joined(self, *terms: Any, constant: str = "a constant") -> float:
        """The degree that all terms of a sum, a selection or a comparison have."""
        known = {id(t) for t, _ in self.found}
        moving = [t for t in terms if isinstance(t, Of) or id(t) in known]
        degrees = dict.fromkeys(d for t in moving if (d := self.degree(t)) != ANY)
        if len(degrees) > 1:
            raise NotHomogeneous(
                f"it joins degrees {' and '.join(map(shown, degrees))}", max(degrees)
            )
        rest = [t for t in terms if not (isinstance(t, Of) or id(t) in known)]
        if 0.0 not in degrees and any(self.degree(t) == 0 for t in rest):
            if not degrees:
                return 0.0
            (degree,) = degrees
            raise NotHomogeneous(f"{constant} beside degree {shown(degree)}", degree)
        return next(iter(degrees), ANY)

    def moved(self) -> Iterator[Tensor]:
        """The numbers among the tensors; no indices, unless there is nothing else."""
        kinds = [t.is_floating_point() or t.is_complex() for t, _ in self.found]
        for t in tensors_in((*self.args, *self.kwargs.values())):
            if t.is_floating_point() or t.is_complex() or not any(kinds):
                yield t

    def product(self, *factors: Any) -> Of:
        """The degrees of the factors, summed; that of a constant does not matter."""
        known = {id(t): degree for t, degree in self.found}
        degrees = [known.get(id(f), 0.0) for f in factors]
        return Of(ANY if ANY in degrees else sum(degrees))


def _known(operator: str) -> Operator:
    from omenn.engine.operators.table import known  # it has rules for steps

    return known(operator)


def _name(func: Any) -> str:
    name = getattr(func, "__name__", str(func))
    if name == "__get__":
        name = getattr(getattr(func, "__self__", None), "__name__", name)
    return name.strip("_")


def vanishes(t: Tensor) -> bool:
    """Whether a constant is zero or infinite everywhere, and so of every degree."""
    t = unwrapped(t.detach())
    bound = INFINITE
    if t.is_floating_point() or t.is_complex():
        bound = min(bound, torch.finfo(t.dtype).max / 2)
    return bool(((t == 0) | (t.abs() >= bound)).all()) if t.dtype != torch.bool else not t.any()


def shown(degree: float | None) -> str:
    """A degree in words.

    >>> [shown(k) for k in (1.0, 0.5, ANY, None)]
    ['1', '0.5', 'any', 'none']
    """
    return "none" if degree is None else "any" if degree == ANY else f"{degree:.6g}"
