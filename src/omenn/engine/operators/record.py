"""What the record of an operator is, and the placers that several kinds of operators share.

NOTE [what a rule uses] The native kernel forward. ``call.constant`` for what is not active, which
refuses what is: it would be lost. ``call.true`` for what coefficients are made from. What is added
goes through ``call.attach`` (or ``call.affine``) once.

NOTE [outlive the write] An in-place operator overwrites its first argument after the rule has read
it, and a model may write into a constant later. So a coefficient or a term that is such a tensor,
or a view of it, is a copy.

NOTE [differentiated again] With ``create_graph`` coefficients have a history in the ordinary
network. They are made from ``call.true`` by differentiable operators, and so is the gradient from
them. A kernel without a derivative, and a coefficient that is overwritten, are for the plain pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from omenn.engine import location as places
from omenn.engine.location import Place
from omenn.engine.location.constants import fixed
from omenn.engine.trace.call import Call

Placer = Callable[[Call, Any], Any]

# What is said of a dropout that draws numbers: (why, remedy).
DROPOUT = (
    "dropout is active",
    "Call model.eval() before explaining. A function is not reached by that: write "
    "F.dropout(x, p, training=self.training), dropout_p=p if self.training else 0.0.",
)


def source(call: Call) -> tuple[Tensor, Place] | None:
    """The first argument that has a place, active ones first."""
    found = [(t, m.place, m.kind) for t, m in call.marked if m.place is not None]
    found.sort(key=lambda one: one[2] != "active")
    return found[0][:2] if found else None


def at_source(place_of: Callable[[Call, Any, Tensor, Place], Any]) -> Placer:
    """A placer that is given the ``source`` x and its place; no place where there is none."""

    def placer(call: Call, out: Any) -> Any:
        found = source(call)
        return None if found is None else place_of(call, out, *found)

    return placer


@at_source
def unlocated(call: Call, out: Any, x: Tensor, place: Place) -> Any:
    """No known place, sample by sample."""
    if isinstance(out, Tensor):
        return places.nowhere(place, x.shape, out.shape)
    return [places.nowhere(place, x.shape, o.shape) if isinstance(o, Tensor) else None for o in out]


def no_rule(call: Call) -> Any:
    """An operator that is not linear at any coefficients."""
    raise call.refuse("there is no rule that makes it linear at constant coefficients")


@dataclass(frozen=True, eq=False)
class Operator:
    """All that is known of an operator of torch.

    ``rule``, ``placer``: what it becomes at constant coefficients, ``rule(call)`` → its output, and
    where that lies, ``placer(call, output)`` → its place (or places).
    ``degree``: what becomes of homogeneity, a power of the first argument or a rule for a ``Step``
    (``degrees.py``); None: it is no function that is known.
    """

    rule: Callable[[Call], Any] = no_rule
    placer: Placer = unlocated
    degree: float | Callable[[Any], Any] | None = None

    # --- how it is spelled ---
    names: str = ""  # other names than its own, blank between: functions, methods, properties
    exchanged: str = ""  # those of them that take the second argument first, as __rsub__
    arguments: str = "input"  # names of its arguments, in their order
    orders: Mapping[str, str] = field(default_factory=dict)  # spelling → another order
    summand: str = ""  # arguments that are only added, or put beside what else there is
    joins: bool = False  # so is every tensor that does not depend on the input
    factors: str = ""  # arguments that it multiplies, or is not linear in
    weight: str = ""  # of a layer: the argument that is its weight

    # --- what it does ---
    kind: str = ""  # for tables of rules: layer, product, normalisation, rescaling, pointwise, sum,
    # write, complex, elementwise
    true: bool = False  # the derivative at constant coefficients is the ordinary one
    moves: str = ""  # it only moves elements: keeps, reshapes, permutes, selects or repeats them
    takes: bool = False  # it takes rows or elements of a table at an index
    terms: bool = False  # what is added may be a number that integer inputs decide
    bounded: int | None = None  # how readily it is frozen as a factor; None: as what it is made of
    link: str = ""  # what it adds to a chain of pointwise operators, by constants
    together: str = ""  # the same, of two tensors of one chain
    overwrites: bool = False  # nothing is left of its first argument
    parts: bool = False  # its results are views of one tensor
    shaped_by: str = ""  # the shape of its result depends on an "index", or on all "values"
    steps: bool = False  # constant between jumps, and without a derivative in torch
    only_out_of_place: bool = False  # torch has no derivative of its in-place form
    replacement: str = ""  # of homogeneous replacements the one for it (omenn.xdnn)
    replaced: str = ""  # names that it is for, if not only its own

    # --- how it is called ---
    composite: bool = False  # it calls other operators, which are seen and marked one by one
    own: bool = False  # written by a user

    def with_rule(self, rule: Callable[[Any], Any], **changes: Any) -> Operator:
        """The same operator under another rule."""
        return replace(self, rule=rule, **changes)


def named(base: Operator, names: str) -> dict[str, Operator]:
    """Operators that have all in common but their names.

    >>> assert named(Operator(degree=1.0), "flip roll")["roll"].degree == 1.0
    """
    return dict.fromkeys(names.split(), base)


def same(call: Call, out: Tensor) -> Place | None:
    """Elementwise: the finest place among the arguments; an even mixture over several inputs."""
    found = [(t, m) for t, m in call.marked if m.place is not None and m.kind != "frozen"]
    found = found or [(t, m) for t, m in call.marked if m.place is not None]
    if not found:
        return None
    # A constant without a place of its own stands where the rest does.
    found = [(t, m) for t, m in found if m.inputs] or found
    first = found[0][1]
    if all(m.place is first.place for _, m in found):
        return first.place
    if any(m.inputs != first.inputs for _, m in found):
        spread = [m.place for _, m in found if m.place is not None]
        return places.mixed(spread, [t.shape for t, _ in found])
    there = [m.place for _, m in found if m.place is not None]
    best = places.finest(there)
    return places.settled(there, best) if call.context.location.along_attention else best


def placed_by(call: Call, x: Tensor, place: Place, make: Callable[[], Any]) -> Any:
    """``make()``, once for a place, a shape of x and the arguments of the call besides x.

    Every time, where one of these is a tensor or else more than its ``repr`` tells.
    """
    args, kwargs = call.args, call.kwargs
    if not args or args[0] is not x or not fixed(args[1:]):
        return make()
    if kwargs and not fixed(list(kwargs.values())):
        return make()
    key = (call.func, x.shape, repr(args[1:]), repr(kwargs) if kwargs else "")
    return call.context.location.once((place,), key, make)


@at_source
def contracted(call: Call, out: Tensor, x: Tensor, place: Place) -> Any:
    """The last dimension is contracted (linear layer): the place without it."""
    if x.ndim == 0 or place.cells.ndim == 0:
        return place
    key = ("contracted", x.shape, out.shape)
    return call.context.location.once((place,), key, lambda: _contracted(call, x, place, out))


def _contracted(call: Call, x: Tensor, place: Place, out: Tensor) -> Any:
    if out.ndim != x.ndim:
        return unlocated(call, out)
    if (back := place.back_to(out.shape)) is not None:
        return back
    if not _mixes_positions(place, x):
        return places.reduced(place, x.shape, [x.ndim - 1], True)
    return place if out.shape[-1] == x.shape[-1] else places.merged(place, x.shape, [x.ndim - 1])


def _mixes_positions(place: Place, x: Tensor) -> bool:
    """Whether the last dimension holds positions, and another one channels: (B, C, N)."""
    cells = place.cells
    if cells.ndim != x.ndim or cells.shape[-1] == 1:
        return False
    return any(cells.shape[d] == 1 < x.shape[d] for d in range(1, x.ndim - 1))


@at_source
def spatial(call: Call, out: Any, x: Tensor, place: Place) -> Any:
    """A feature map (N, C, *size) from a feature map: cells are averaged to the new size."""
    first = out[0] if isinstance(out, (tuple, list)) else out
    if x.ndim != first.ndim or x.ndim < 3:
        return unlocated(call, out)
    # The maps of one size over one place share theirs: most convolutions keep both.
    key = (call.func, x.ndim, first.shape[2 if x.ndim > 3 else 1 :])
    there = call.context.location.once((place,), key, lambda: _on_map(call, x, place, first))
    return there if first is out else [there] * len(out)


def _on_map(call: Call, x: Tensor, place: Place, first: Tensor) -> Place:
    smooth = call.context.location.smooth
    spatial = next((int(c) for c in getattr(call.func, "__name__", "") if c.isdigit()), None)
    if spatial is not None and x.ndim == spatial + 1:  # one sample, without a batch dimension
        cells = places.full(place.cells, x.shape).unsqueeze(0)
        there = places.resampled(place.with_cells(cells), (1, *x.shape), first.shape[1:], smooth)
        return there.with_cells(there.cells.squeeze(0))
    return places.resampled(place, x.shape, first.shape[2:], smooth)
