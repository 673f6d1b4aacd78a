"""Links: how a tensor was computed elementwise, from which tensors, and the function of it."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor


class Link:
    """How one tensor was computed, elementwise; a link without a function starts a chain.

    ``parents``: the links among its arguments. ``above``: those that everything passes on its way
    here, the nearest first.
    """

    __slots__ = ("above", "args", "func", "inplace", "kind", "kwargs", "parents", "tensor",
                 "version", "written")  # fmt: skip

    def __init__(self, kind: str = "start", parents: tuple[Link, ...] = ()) -> None:
        self.kind, self.parents = kind, parents
        self.func: Callable[..., Any] | None = None
        self.args: Any = ()
        self.kwargs: Any = {}
        self.inplace = False
        self.written: list[tuple[Tensor, int]] = []  # constants, and how often they were written
        self.tensor: weakref.ref[Tensor] | None = None
        self.version = 0
        self.above = common(parents)

    def now(self) -> Tensor | None:
        """The tensor, if it is there and what it was."""
        t = None if self.tensor is None else self.tensor()
        return t if t is not None and t._version == self.version else None

    def between(self, start: Link) -> list[Link]:
        """This link and those behind ``start`` that lead to it."""
        found: list[Link] = []
        todo: list[Link] = [self]
        while todo:
            link = todo.pop()
            if link is not start and link not in found:
                found.append(link)
                todo.extend(link.parents)
        return found


def fits(constant: Tensor, shape: torch.Size) -> bool:
    """Whether a constant leaves a result the shape that it is combined with."""
    given = tuple(constant.shape)
    there = shape[len(shape) - len(given) :]
    return len(given) <= len(shape) and all(a in (1, b) for a, b in zip(given, there, strict=True))


def common(links: tuple[Link, ...]) -> tuple[Link, ...]:
    """Links through which all of these come, the nearest first; themselves count."""
    if not links:
        return ()
    first, *rest = ([link, *link.above] for link in links)
    return tuple(link for link in first if all(link in other for other in rest))


def function(link: Link, start: Link) -> Callable[[Tensor], Tensor]:
    """φ: what leads from one link to another, of any tensor that takes its place."""

    def chain(x: Tensor) -> Tensor:
        known = {start: x}
        for here in _order(link, start):
            args, kwargs = _swapped(here.args, known), _swapped(here.kwargs, known)
            if here.inplace:
                args = (args[0].clone(), *args[1:]) if args else args
                kwargs = kwargs if args else {**kwargs, "input": kwargs["input"].clone()}
            assert here.func is not None
            known[here] = here.func(*args, **kwargs)
        return known[link]

    return chain


def _order(link: Link, start: Link) -> Iterator[Link]:
    """The links behind ``start`` up to ``link``, each after its parents."""
    seen = {start}
    todo = [link]
    while todo:
        here = todo[-1]
        waiting = [p for p in here.parents if p not in seen]
        if waiting:
            todo += waiting
            continue
        todo.pop()
        if here not in seen:
            seen.add(here)
            yield here


def _swapped(value: Any, known: dict[Link, Tensor]) -> Any:
    if isinstance(value, Link):
        return known[value]
    if isinstance(value, dict):
        return {k: _swapped(v, known) for k, v in value.items()}
    return tuple(_swapped(v, known) for v in value) if isinstance(value, tuple) else value
