"""Operators that select: which element is taken is frozen, taking it is linear."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from omenn.engine import location as places
from omenn.engine.operators import degrees
from omenn.engine.operators.layout import linear
from omenn.engine.operators.linear import reduced
from omenn.engine.operators.record import Operator, named, same, spatial, unlocated
from omenn.engine.trace.autograd_nodes import scaled
from omenn.engine.trace.call import Call


def clamped(call: Call) -> Tensor:
    """Where the value passes unchanged the slope is one; where it is clipped it is a constant."""
    x = call.active[0]
    if len(call.active) > 1 or (call.args and call.args[0] is not x):
        raise call.refuse("a bound that depends on the input")
    value = call.value()
    inside = value == x
    outside = torch.where(inside, torch.zeros_like(value), value)
    out = call.frozen(x, value, scaled, inside)
    return call.attach(out, outside)


def larger(call: Call) -> Any:
    """max(a, b): the selected one, and half of each where they are equal."""
    a, b = call.get("input"), call.get("other")
    if call.is_active(a) and call.is_active(b):
        return call.run()
    x, c = (a, b) if call.is_active(a) else (b, a)
    value = call.value()
    taken, shape = value == x, x.shape
    out = call.frozen(x, value, lambda g, t: (g * t).sum_to_size(shape), taken)
    return call.attach(out, torch.where(taken, torch.zeros_like(value), call.constant(c)))


def largest(call: Call) -> Any:
    """``max`` is three operators: over everything, over a dimension, and of two tensors."""
    other = call.args[1] if len(call.args) > 1 else call.kwargs.get("other")
    if isinstance(other, Tensor):
        call.bound["other"] = other
        return larger(call)
    return call.run()


def largest_place(call: Call, out: Any) -> Any:
    if isinstance(call.bound.get("other"), Tensor):
        return same(call, out)
    return reduced(call, out)


def ordered_place(call: Call, out: Any) -> Any:
    """Top-k and sort: the selected elements keep their own place."""
    x, place = call.active[0], call.place(call.active[0])
    if place is None or not isinstance(out, (tuple, list)):
        return unlocated(call, out)
    dim = call.get("dim")
    dim = (dim if isinstance(dim, int) else -1) % x.ndim
    cells = places.full(place.cells, x.shape)
    if cells.shape[dim] == 1:
        return [place.with_cells(cells)] * len(out)
    there = place.with_cells(cells.expand(x.shape).gather(dim, out[1]))
    return [there] * len(out)


_POOLS = (
    "max_pool1d max_pool2d max_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d"
)
_REDUCED = "input dim keepdim"
_CHOSEN = Operator(linear, reduced, degree=degrees.chosen, arguments=_REDUCED, true=True)
_ORDERED = Operator(linear, ordered_place, degree=degrees.chosen, true=True)

RECORDS: dict[str, Operator] = {
    "max_pool": Operator(
        linear,
        spatial,
        degrees.chosen,
        true=True,
        names=" ".join([_POOLS, *(f"{name}_with_indices" for name in _POOLS.split())]),
    ),
    "clamp": Operator(
        clamped,
        same,
        degrees.clipped,
        kind="pointwise",
        link="clipped",
        names="clip clamp_min clamp_max hardtanh relu6 threshold hardshrink nan_to_num",
        replacement="activations",
        replaced="relu6 hardtanh hardshrink threshold",
    ),
    "maximum": Operator(
        larger,
        same,
        degrees.chosen,
        names="fmax fmin minimum",
        arguments="input other",
        joins=True,
        link="bent",
    ),
    "max": Operator(largest, largest_place, degrees.chosen, names="min", arguments=_REDUCED),
    "amax": replace(_CHOSEN, names="amin aminmax"),
    **named(_CHOSEN, "median nanmedian mode"),
    "kthvalue": replace(_CHOSEN, arguments="input k dim keepdim"),
    "quantile": replace(
        _CHOSEN,
        names="nanquantile",
        arguments="input q dim keepdim",
        degree=degrees.at_fixed("q", "level", degrees.joining("input")),
    ),
    "topk": replace(_ORDERED, arguments="input k dim"),
    "sort": replace(_ORDERED, arguments="input dim descending"),
    **named(Operator(linear, same, degrees.chosen, true=True), "cummax cummin"),
}
