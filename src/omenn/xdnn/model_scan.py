"""One run of the ordinary model that notes what a conversion has to know.

Which functions are called by which method of which module; which constants are added to what
depends on the input, and of which parameters they are made; which additions close a residual
branch, and which weights lie in it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from omenn.attribution.ordinary_gradient import OrdinaryRun, OrdinaryTracer
from omenn.engine.operators.table import known
from omenn.engine.trace.call import ACTIVE, tensors_in
from omenn.engine.trace.spelling import Spelling, bind, spell
from omenn.xdnn import homogeneous_layers

_NODE, _ORIGIN = "_omenn_node", "_omenn_origin"


class Called(NamedTuple):
    """A function that a method of a module called on what depends on the input."""

    module: str
    method: str
    operator: str
    name: str  # as it is spelled, but for underscores


class Added(NamedTuple):
    """A constant that is added, and the parameters and buffers that it is made of.

    ``adds``: whether it is more than zeros and what a mask has for −∞.
    """

    module: str
    operator: str
    origins: frozenset[str]
    adds: bool


class Branch(NamedTuple):
    """A residual branch: the weights in it, the last of them, and how many follow one another."""

    module: str
    weights: tuple[str, ...]
    last: frozenset[str]
    depth: int


@dataclass
class Found:
    """``calls`` and ``constants`` in order, ``weights``: parameters that multiply, or are looked
    up; ``branches`` in order, ``head``: the weight of the last layer, if there is a single one."""

    calls: list[Called] = field(default_factory=list)
    constants: list[Added] = field(default_factory=list)
    weights: set[str] = field(default_factory=set)
    branches: list[Branch] = field(default_factory=list)
    head: frozenset[str] = frozenset()


def scan(model: nn.Module, inputs: Any) -> Found:
    """Runs ``model`` (in evaluation mode, and at the caller's disposal) on ``inputs``.

    Raises the errors of ``omenn.explain``: InputError, ModelError, UnsupportedOperator.
    """
    devices = sorted({p.device.index for p in model.parameters() if p.is_cuda})
    with torch.random.fork_rng(devices=devices):
        run = OrdinaryRun(model, inputs, tracer=Scan)
    mode = run.mode
    assert isinstance(mode, Scan)
    heads = {mode.last_weights(mode.node(t)) for t in tensors_in([run.out]) if mode.node(t)}
    head = heads.pop() if len(heads) == 1 else frozenset()
    # What a residual sum reaches the output by is no head: it has several last layers.
    mode.found.head = head if mode.single(head) else frozenset()
    return mode.found


class _Node(NamedTuple):
    """A tensor that depends on the input: what it is made of, and by which weights."""

    parents: tuple[int, ...]
    ancestors: int  # set of bits, its own included
    weights: frozenset[str]


class Scan(OrdinaryTracer):
    """The ordinary model, followed operator by operator."""

    def __init__(self, model: nn.Module | None = None, **options: Any) -> None:
        super().__init__(model, **options)
        self.found = Found()
        self.nodes = [_Node((), 1, frozenset())]  # the first stands for all inputs
        self.layers: dict[frozenset[str], int] = {}  # weights of a layer → calls
        self.own_names: dict[int, str] = {}
        if model is not None:
            named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers()]
            for name, t in named:
                self.own_names.setdefault(id(t), name)

    def handle(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        before = len(self.nodes)
        marked = self.marked(func, args, kwargs)
        active = [t for t, m in marked if m.kind == ACTIVE]
        spelling = spell(func)
        look = _Look(self, func, spelling, args, kwargs, active) if active else None
        if look is not None:
            look.note()
        elif marked:  # ids that are looked up in a table
            self.found.weights |= self.origins_of((args, kwargs))
        given = [self.node(t) for t in active]
        out = super().handle(func, args, kwargs)
        made = tensors_in([out])
        if spelling is not None and spelling.inplace and args and isinstance(args[0], Tensor):
            made.append(args[0])
        if look is None:
            origins = self.origins_of((args, kwargs)) if not marked else frozenset()
            for t in made if origins else ():
                if id(t) not in self.own_names and self.mark_of(t) is None:
                    setattr(t, _ORIGIN, origins)
            return out
        self._follow(look, given, made, before)
        return out

    def _follow(self, look: _Look, given: Sequence[int], made: list[Tensor], before: int) -> None:
        """A node for what was made, unless the parts of the call have made theirs."""
        fresh = [t for t in made if self.node(t) < before and self.is_active(t)]
        if not fresh:
            return
        parents = tuple(look.parents(given, fresh[0]))
        if look.sums and len(parents) == 2:
            self._branch(parents[0], parents[1])
        ancestors = 1 << len(self.nodes)
        for parent in parents:
            ancestors |= self.nodes[parent].ancestors
        weights = look.weights()
        if weights:
            self.layers[weights] = self.layers.get(weights, 0) + 1
        self.nodes.append(_Node(parents, ancestors, weights))
        for t in fresh:
            setattr(t, _NODE, len(self.nodes) - 1)

    def _branch(self, a: int, b: int) -> None:
        """The sum of a and b: the deeper of the two, from where they part, is the branch."""
        common = self.nodes[a].ancestors & self.nodes[b].ancestors
        depths = [self._depth(n, common) for n in (a, b)]
        if depths[0] == depths[1]:
            return
        deep = a if depths[0] > depths[1] else b
        inside = [n for n in _bits(self.nodes[deep].ancestors & ~common) if self.nodes[n].weights]
        names = dict.fromkeys(w for n in inside for w in sorted(self.nodes[n].weights))
        last = self.last_weights(deep, common)
        self.found.branches.append(Branch(self.module_path(), tuple(names), last, max(depths)))

    def _depth(self, end: int, common: int) -> int:
        """How many layers with weights follow one another before ``end``, not in ``common``."""
        longest: dict[int, int] = {}
        for n in _bits(self.nodes[end].ancestors & ~common):
            node = self.nodes[n]
            above = max((longest.get(p, 0) for p in node.parents), default=0)
            longest[n] = above + bool(node.weights)
        return longest.get(end, 0)

    def last_weights(self, end: int, common: int = 0) -> frozenset[str]:
        """The weights from which no other leads on to ``end``."""
        found: set[str] = set()
        todo, seen = [end], common
        while todo:
            n = todo.pop()
            if seen >> n & 1:
                continue
            seen |= 1 << n
            if self.nodes[n].weights:
                found |= self.nodes[n].weights
            else:
                todo += self.nodes[n].parents
        return frozenset(found)

    def single(self, weights: frozenset[str]) -> bool:
        """Whether these are the weights of one layer that was called once."""
        return self.layers.get(weights) == 1

    # --- what is known of a tensor ---------------------------------------------------------

    def node(self, t: Tensor) -> int:
        return t.__dict__.get(_NODE, 0)

    def is_active(self, t: Tensor) -> bool:
        mark = self.mark_of(t)
        return mark is not None and mark.kind == ACTIVE

    def origins_of(self, values: Any) -> frozenset[str]:
        """Names of the parameters and buffers that the tensors in ``values`` are made of."""
        found: set[str] = set()
        for t in tensors_in(values):
            own = self.own_names.get(id(t))
            found |= {own} if own is not None else t.__dict__.get(_ORIGIN, frozenset())
        return frozenset(found)

    def constant(self, value: Any) -> bool:
        """Whether a value is a number or tensor that does not depend on the input."""
        if isinstance(value, Tensor):
            return value.is_floating_point() and self.mark_of(value) is None
        return isinstance(value, (int, float)) and not isinstance(value, bool)


def _bits(number: int) -> Iterator[int]:
    """Positions of the bits that are set, rising."""
    while number:
        low = number & -number
        yield low.bit_length() - 1
        number ^= low


# --- one call --------------------------------------------------------------------------------


@dataclass(eq=False)
class _Look:
    """One call of a function with an argument that depends on the input."""

    mode: Scan
    func: Callable[..., Any]
    spelling: Spelling | None
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    active: Sequence[Tensor]

    def __post_init__(self) -> None:
        self.operator = "" if self.spelling is None else self.spelling.operator
        self.name = getattr(self.func, "__name__", "").strip("_")
        self.known = known(self.operator)
        self.bound = bind(self.func, self.args, self.kwargs)
        self.sums = self.operator == "add" and len(self.active) == 2

    def note(self) -> None:
        """What is called, and the constants that are added; in ours all is homogeneous."""
        summands = self._summands()
        added = self.mode.origins_of(summands)
        given = tensors_in((*self.args, *self.kwargs.values()))
        factors = [t for t in given if not any(t is value for value in summands)]
        self.mode.found.weights |= self.mode.origins_of(factors)
        module, method = _caller(self.mode.names)
        if method is None or not self.operator:
            return
        self.mode.found.calls.append(Called(module, method, self.operator, self.name))
        adds = any(_adds(value) for value in summands)
        if adds or added:
            self.mode.found.constants.append(Added(module, self.operator, added, adds))

    def _summands(self) -> list[Any]:
        found = [self.bound.get(name) for name in self.known.summand.split()]
        if self.known.joins:
            found += tensors_in((*self.args, *self.kwargs.values()))
        elif self.operator == "clamp" and self.name.startswith(("clamp", "clip")):
            found = [*self.args[1:], *self.kwargs.values()]
        return [value for value in found if self.mode.constant(value)]

    def weights(self) -> frozenset[str]:
        """Parameters that a linear layer multiplies by."""
        value = self.bound.get(self.known.weight)
        if not isinstance(value, Tensor) or any(value is t for t in self.active):
            return frozenset()
        return self.mode.origins_of([value])

    def parents(self, given: Sequence[int], out: Tensor) -> list[int]:
        """Of a product the factor that the other is a gate of, of attention the values."""
        pairs = list(zip(self.active, given, strict=True))
        if self.operator == "scaled_dot_product_attention":
            pairs = [(t, n) for t, n in pairs if t is self.bound.get("value")] or pairs
        elif self.operator in ("matmul", "bmm") and len(pairs) == 2:
            pairs = pairs[1:]
        elif self.operator in ("mul", "div") and len(pairs) == 2:
            (a, first), (b, second) = pairs
            if a.shape != b.shape:
                pairs = [(t, n) for t, n in pairs if t.shape == out.shape] or pairs
            elif self.mode.nodes[second].ancestors >> first & 1:
                pairs = pairs[:1]
            elif self.mode.nodes[first].ancestors >> second & 1:
                pairs = pairs[1:]
        return [n for _, n in pairs]


def _adds(value: Any) -> bool:
    """Whether a summand is anything but zeros and −∞ (or what a mask has for it)."""
    if not isinstance(value, Tensor):
        return value != 0 and not value <= homogeneous_layers.CLOSED and value != float("inf")
    values = value.detach()
    return bool(((values != 0) & (values > homogeneous_layers.CLOSED) & values.isfinite()).any())


_OURS = {homogeneous_layers.__name__}


def _caller(names: Mapping[int, str]) -> tuple[str, str | None]:
    """(module, its method) that runs, from the call stack; no method inside of our own layers."""
    frame = sys._getframe(1)
    while frame is not None:
        code, home = frame.f_code, frame.f_globals.get("__name__")
        if home in _OURS:
            return "", None
        engine = isinstance(home, str) and home.startswith(("omenn.engine.", "omenn.attribution."))
        if not engine and code.co_argcount and code.co_varnames[0] == "self":
            owner = frame.f_locals.get("self")
            if isinstance(owner, nn.Module):
                return names.get(id(owner), type(owner).__name__), code.co_name
        frame = frame.f_back
    return "", "forward"
