"""What a row of the table is, and the placers that several kinds of rows share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from omenn.engine import location as places
from omenn.engine.location import Place
from omenn.engine.trace.call import Call

Placer = Callable[[Call, Any], Any]

# What is said of a dropout that draws numbers: (why, remedy).
DROPOUT = (
    "dropout is active",
    "Call model.eval() before explaining. A function is not reached by that: write "
    "F.dropout(x, p, training=self.training), dropout_p=p if self.training else 0.0.",
)


class Row(NamedTuple):
    """``rule(call)`` returns the output; ``placer(call, output)`` its place (or places)."""

    rule: Callable[[Call], Any]
    placer: Placer
    # A composite calls other operators through the tracer: its outputs are marked already.
    composite: bool = False
    # Written by a user.
    own: bool = False


def rows(names: str, rule: Callable[[Call], Any], placer: Placer) -> dict[str, Row]:
    return {name: Row(rule, placer) for name in names.split()}


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
    return places.settled(there, best) if call.owner.routes else best


def source(call: Call) -> tuple[Tensor, Place] | None:
    """The first argument that has a place, carried ones first."""
    found = [(t, m.place, m.kind) for t, m in call.marked if m.place is not None]
    found.sort(key=lambda one: one[2] != "carried")
    return found[0][:2] if found else None


def placed_by(call: Call, x: Tensor, place: Place, make: Callable[[], Any]) -> Any:
    """``make()``, once for a place, a shape of x and the arguments of the call besides x.

    Every time, where one of these is a tensor or else more than its ``repr`` tells.
    """
    args, kwargs = call.args, call.kwargs
    if not args or args[0] is not x or not places.fixed(args[1:]):
        return make()
    if kwargs and not places.fixed(list(kwargs.values())):
        return make()
    key = (call.func, x.shape, repr(args[1:]), repr(kwargs) if kwargs else "")
    return call.owner.shared.found((place,), key, make)


def unlocated(call: Call, out: Any) -> Any:
    """No known place, sample by sample."""
    found = source(call)
    if found is None:
        return None
    x, place = found
    if isinstance(out, Tensor):
        return places.nowhere(place, x.shape, out.shape)
    return [places.nowhere(place, x.shape, o.shape) if isinstance(o, Tensor) else None for o in out]


def contracted(call: Call, out: Tensor) -> Place | None:
    """The last dimension is contracted (linear layer): the place without it."""
    found = source(call)
    if found is None:
        return None
    x, place = found
    if x.ndim == 0 or place.cells.ndim == 0:
        return place
    key = ("contracted", x.shape, out.shape)
    return call.owner.shared.get(place, key, lambda: _contracted(call, x, place, out))


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


def spatial(call: Call, out: Any) -> Any:
    """A feature map (N, C, *size) from a feature map: cells are averaged to the new size."""
    found = source(call)
    first = out[0] if isinstance(out, (tuple, list)) else out
    if found is None:
        return None
    x, place = found
    if x.ndim != first.ndim or x.ndim < 3:
        return unlocated(call, out)
    # The maps of one size over one place share theirs: most convolutions keep both.
    key = (call.func, x.ndim, first.shape[2 if x.ndim > 3 else 1 :])
    there = call.owner.shared.get(place, key, lambda: _on_map(call, x, place, first))
    return there if first is out else [there] * len(out)


def _on_map(call: Call, x: Tensor, place: Place, first: Tensor) -> Place:
    spatial = next((int(c) for c in getattr(call.func, "__name__", "") if c.isdigit()), None)
    if spatial is not None and x.ndim == spatial + 1:  # one sample, without a batch dimension
        cells = places.full(place.cells, x.shape).unsqueeze(0)
        there = places.resampled(place.with_cells(cells), (1, *x.shape), first.shape[1:])
        return there.with_cells(there.cells.squeeze(0))
    return places.resampled(place, x.shape, first.shape[2:])
