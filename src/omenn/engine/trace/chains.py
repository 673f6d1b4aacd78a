"""Chains: what a model spells as several pointwise operations is one function φ of one tensor.

``x * torch.sigmoid(x)`` is SiLU, ``0.5 * x * (1 + torch.erf(x / 2**0.5))`` is GELU, whatever a
table has for products, sums and their constants. Every result of a pointwise operator therefore
remembers how it was made, as a :class:`Link`: the operator, its constants and the links of its
arguments. Where links meet again, or where one operator alone would say something else than the
whole does, the call becomes a :class:`Chain`: φ of the tensor that all of them come from, with the
value that the model computes and the rule ``"chain"`` of the table.

A table with a rule ``"chain"`` of its own gets every chain. The frozen one, and those over it, need
but few: most spellings come out right by freezing the bounded factor.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from omenn.engine.operators.chain import FROZEN_CHAIN
from omenn.engine.operators.pointwise import GATE
from omenn.engine.operators.record import Operator
from omenn.engine.operators.stable import fits
from omenn.engine.operators.table import OPERATORS, SHIPPED, known
from omenn.engine.trace.autograd_nodes import Overwrite
from omenn.engine.trace.call import ACTIVE, Call, Mark, substitute
from omenn.engine.trace.spelling import Spelling

if TYPE_CHECKING:
    from omenn.engine.trace.tracer import Tracer

OPERATOR = "chain"
_MANY = 48  # links in a chain, beyond which a tensor counts as the start of a new one

# What shapes a function: the others are homogeneous, so that one after another is as good as both.
_SHAPING = frozenset("shift clipped smooth power frozen product quotient sum".split())
_IDLE = frozenset(("linear", "scale", "bent"))
_CURVED = _SHAPING - {"shift", "sum"}


# --- links ---------------------------------------------------------------------------------------


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


# --- chains --------------------------------------------------------------------------------------


class Chains:
    """The links of one run, by tensor."""

    def __init__(self, owner: Tracer) -> None:
        self.owner = weakref.proxy(owner)
        self.links: dict[int, Link] = {}
        self.off = False
        # The last tensors that a chain may start at: models drop them before the chain ends.
        self.recent: deque[Tensor] = deque(maxlen=8)

    def of(self, t: Tensor) -> Link | None:
        link = self.links.get(id(t))
        if link is None or link.tensor is None or link.tensor() is not t:
            return None
        return link if t._version == link.version else None

    def set(self, t: Tensor, link: Link) -> None:
        key, chains = id(t), weakref.ref(self)

        def gone(ref: Any) -> None:
            links = getattr(chains(), "links", {})
            if (known := links.get(key)) is not None and known.tensor is ref:
                del links[key]

        link.tensor, link.version = weakref.ref(t, gone), t._version
        self.links[key] = link

    # --- recording -------------------------------------------------------------------------

    def link(self, call: Call) -> Link | None:
        """The link of what a call will return, None if it is none of a chain."""
        kind = call.known.link
        shipped = SHIPPED.get(call.operator) is OPERATORS.get(call.operator)
        if self.off or not kind or not shipped:  # a rule that a user gave to an operator stands
            return None
        if any(isinstance(a, (list, dict)) for a in call.args):
            return None
        given = [t for t in (*call.args, *call.kwargs.values()) if isinstance(t, Tensor)]
        if any(t.is_inference() or t.is_complex() for t in given):
            return None
        links: dict[int, Link] = {}
        for t in given:
            link = self.of(t)
            if link is None and call.mark(t) is not None:
                self.set(t, link := Link())
            if link is not None:
                links[id(t)] = link
        shapes = {t.shape for t in given if id(t) in links}
        parents = tuple(links.values())
        if len(shapes) != 1 or not common(parents):
            return None
        (shape,) = shapes
        rest = [t for t in given if id(t) not in links]
        if call.operator != "prelu" and not all(fits(t, shape) for t in rest):
            return None
        new = Link(self._kind(call, kind, links, parents), parents)
        if sum(1 for _ in new.between(new.above[-1])) > _MANY:
            return None
        self._fill(new, call.func, call.args, call.kwargs, links)
        new.inplace = call.inplace
        self.recent += [t for t in given if id(t) in links and t.is_floating_point()]
        return new

    def _kind(self, call: Call, kind: str, links: dict[int, Link], parents: Any) -> str:
        """The kind of operator, by which of its arguments belong to the chain."""
        args = [a for a in call.args[:2] if a is not None]
        if len(args) < 2:
            args += [call.get(name) for name in ("other", "exponent") if call.get(name) is not None]
        if len(parents) > 1 or (len(args) == 2 and args[0] is args[1]):
            return call.known.together or kind
        if kind == "product":  # an affine map by constants
            return "bias"
        other = next((a for a in args if id(a) not in links), None)
        if call.operator == "div":
            top = args[1] if call.reverse else args[0]
            if id(top) not in links:
                return "frozen"
            return "scale" if isinstance(other, Tensor) and other.numel() > 1 else "linear"
        if call.operator == "mul" and isinstance(other, Tensor) and other.numel() > 1:
            return "scale"
        if call.operator in ("add", "sub") and isinstance(other, Tensor):
            spelled = other.numel() == 1 and id(other) not in self.owner.own
            return "shift" if spelled else "bias"
        if call.operator == "pow":
            negative = isinstance(other, (int, float)) and other < 0
            return "frozen" if negative else "power" if id(args[0]) in links else "smooth"
        return kind

    def _fill(self, new: Link, func: Any, args: Any, kwargs: Any, links: dict[int, Link]) -> None:
        def keep(t: Tensor) -> Any:
            if id(t) in links:
                return links[id(t)]
            new.written.append((t, t._version))
            return t if self.owner.create_graph else t.detach()

        new.func = func
        new.args, new.kwargs = substitute(args, keep), substitute(kwargs, keep)

    def add(self, call: Call, out: Any) -> None:
        """Notes how the output of a call was made."""
        link = call.link
        if link is None or not isinstance(out, Tensor):
            return
        shape = next(t.shape for t, _ in call.marked)
        if (out.shape == shape and out.is_floating_point() and out is not call.first) or (
            out.shape == shape and call.inplace
        ):
            self.set(out, link)

    def note(self, call: Call, out: Any) -> None:
        """The same of a call that is not recognised itself: its arguments are frozen."""
        call.link = self.link(call)
        self.add(call, out)

    def compared(self, func: Any, args: Any, kwargs: Any, marked: Any, out: Any) -> None:
        """The same of a comparison."""
        name = getattr(func, "__name__", "").strip("_")
        if known(name).link == "step" and isinstance(out, Tensor) and out.dtype == torch.bool:
            call = Call(self.owner, func, Spelling(name), args, kwargs, marked)
            link = self.link(call)
            if link is not None and out.shape == marked[0][0].shape:
                self.set(out, link)

    def curved(self, t: Tensor) -> bool:
        """Whether a tensor is a non-linear function of another one, such as an activation."""
        link = self.of(t)
        if link is None or link.func is None:
            return False
        bent = _CURVED | {"bent"}
        return any(p.kind in bent for p in link.between(link.above[-1]))

    # --- recognising -----------------------------------------------------------------------

    def found(self, call: Call) -> Chain | None:
        """The call as a function of the one tensor that its arguments come from."""
        call.link = link = self.link(call)
        if link is None or all(p.func is None for p in link.parents):
            return None
        own = OPERATOR in self.owner.rules
        if not (self._wanted(link) if own else self._needed(call, link)):
            return None
        start = _start(link, _IDLE if own else _IDLE | {"shift"})
        if own and not _shaped(link, start):
            return None
        x = start.now()
        mark = None if x is None else self.owner.mark_of(x)
        if x is None or mark is None or mark.kind != ACTIVE:
            return None
        return Chain.of(call, link, start, x, mark)

    def _wanted(self, link: Link) -> bool:
        """For a table with a rule for chains: wherever an operator shapes the function."""
        if link.kind == "frozen":
            return _sigmoidal(link)
        return len(link.parents) > 1 or link.kind in _SHAPING

    def _needed(self, call: Call, link: Link) -> bool:
        """For the frozen table: where freezing a factor is not what the whole would be."""
        if link.kind == "product" and call.operator == "mul":
            active = {id(t): t for t in call.active}.values()
            bounds = [m.boundedness for t in active if (m := call.mark(t)) is not None]
            return len(bounds) == 2 and bounds[0] == bounds[1]
        if link.kind == "frozen" or call.operator == "log1p":
            return _sigmoidal(link)
        if link.kind != "quotient":
            return False
        top = self.of(call.get("other" if call.reverse else "input"))
        return top is not None and any(p.kind == "smooth" for p in top.between(link.above[-1]))


def _sigmoidal(link: Link) -> bool:
    """Whether a logarithm or a reciprocal is part of a bounded function's spelling.

    1/(1 + exp(−x)) is; 1/√(v + ε) is the divisor of a normalisation, which is held constant.
    """
    kinds = {p.kind for p in link.between(link.above[-1]) if p is not link}
    return "smooth" in kinds and "power" not in kinds


def _start(link: Link, idle: frozenset[str]) -> Link:
    """The link at which the function starts: before the first operator that shapes it.

    A learned shift ends the way up: it is the bias of a layer. ``idle``: what shapes nothing as
    long as nothing came before.
    """
    above = link.above
    k = 0
    steps = [{p.kind for p in a.between(b)} for a, b in pairwise(above)]
    while k < len(steps) and "bias" not in steps[k]:
        k += 1
    while k > 0 and steps[k - 1] <= idle:
        k -= 1
    while k > 0 and k < len(steps) and steps[k] == {"linear"}:  # exp(−x)
        k += 1
    return above[k]


def _shaped(link: Link, start: Link) -> bool:
    """Whether it is a curve, and more than one operator makes it."""
    kinds = [p.kind for p in link.between(start) if p.kind in _SHAPING]
    several = len(kinds) > 1 or len(link.parents) > 1
    return several and any(kind in _CURVED for kind in kinds)


# --- the call ----------------------------------------------------------------------------------


class Chain(Call):
    """A call of φ, whose value is that of the last operator of its chain.

    ``at_origin`` is φ(0) and ``slope`` φ′(0), tensors of one number where constants do not differ.
    """

    at_origin: Tensor
    slope: Tensor
    last: Call

    @classmethod
    def of(cls, call: Call, link: Link, start: Link, x: Tensor, mark: Mark) -> Chain | None:
        """None where a constant was written into since, or φ is not finite at zero."""
        links = link.between(start)
        if any(t._version != version for p in links for t, version in p.written):
            return None
        wide = any(t.numel() > 1 for p in links for t, _ in p.written)
        phi = function(link, start)
        zero = x.detach().new_zeros(x.shape if wide else (1,)).requires_grad_()
        with torch.enable_grad():
            at_origin = phi(zero)
        if not bool(torch.isfinite(at_origin).all()):
            return None
        twice = mark.owner.create_graph
        one = torch.ones_like(at_origin)
        (slope,) = torch.autograd.grad(at_origin, zero, one, create_graph=twice)
        if call.inplace:
            x = x.clone()  # what it was, since it may be what is written into
        own = cls(mark.owner, phi, Spelling(OPERATOR), (x,), {}, [(x, mark)])
        own.at_origin = at_origin if twice else at_origin.detach()
        own.slope = slope.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        own.last, own.link, own.places = call, link, [mark.place]
        bounds = [m.boundedness for _, m in call.marked]
        own.boundedness = GATE if link.kind == "frozen" else min(bounds)
        return own

    def value(self) -> Any:
        return self.last.value()

    def applied(self) -> Tensor:
        """The result by the table's rule, written where the model asked for it in place."""
        row: Operator = self.context.rules.get(OPERATOR, FROZEN_CHAIN)
        out = row.rule(self)
        if not self.last.inplace:
            return out
        first: Tensor = self.last.first
        if first.grad_fn is not None and not first._is_view():
            first.detach_()  # what it was has no part in what it becomes but through φ
        return Overwrite.apply(first, out)  # type: ignore[return-value]
