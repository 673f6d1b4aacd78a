"""Layout operators: they move elements and are linear as they stand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from omenn.engine import location as places
from omenn.engine.location import Place
from omenn.engine.operators import degrees
from omenn.engine.operators.record import Operator, at_source, named, placed_by, same, unlocated
from omenn.engine.trace.call import Call


def linear(call: Call) -> Any:
    """Linear as it stands: the native operator and its own backward."""
    if call.inplace and call.known.moves in (
        "permutes",
        "reshapes",
    ):  # place it while it has its shape
        after = call.run(Tensor.detach)
        call.places = [call.context.rules[call.operator].placer(call, after)]
    return call.run()


def reshaped(call: Call) -> Any:
    """``view`` as a shape; as a type it reads the bits of a number anew, which is not linear."""
    if any(isinstance(a, torch.dtype) for a in (*call.args, *call.kwargs.values())):
        raise call.refuse("the bits of a number are read as another type")
    return call.run()


# So many parts of a tensor are views of their own. More cost more on the way back than one node.
_FEW = 4


def parted(call: Call) -> Any:
    """``chunk``, ``split`` and ``unbind``: several views at once, each taken by itself.

    Autograd refuses writes into views that one node gave, which inference allows.
    """
    x, name = call.active[0], call.func.__name__
    parts = call.value()
    if not 0 < len(parts) <= _FEW or name.startswith("unsafe") or not parts[0]._is_view():
        return call.run()
    if call.operator == "unbind":
        dim = call.args[1] if len(call.args) > 1 else call.kwargs.get("dim", 0)
        return tuple(x.select(dim, k) for k in range(len(parts)))
    fixed = {"hsplit": min(1, x.ndim - 1), "vsplit": 0, "dsplit": 2}.get(name)
    given = call.args[2] if len(call.args) > 2 else call.kwargs.get("dim", 0)
    dim = given if fixed is None else fixed
    found, start = [], 0
    for part in parts:
        found.append(x.narrow(dim, start, part.shape[dim]))
        start += part.shape[dim]
    return type(parts)(found)


def carried_on(call: Call) -> Any:
    """``detach`` and ``data``: the value flows on, so the explanation follows it."""
    return call.active[0].view_as(call.active[0])


@at_source
def rearranged(call: Call, out: Any, x: Tensor, place: Place) -> Any:
    """View-like operators act on the cells as they act on the tensor."""
    if call.args and isinstance(call.args[0], Tensor) and call.args[0] is not x:
        return None  # x is an index

    def view(cells: Tensor) -> object:
        swap = lambda t: cells if t is x else t  # noqa: E731
        return call.run(swap)

    def make() -> Any:
        there = places.viewed(place, x.shape, view)
        halves = place.origin is not None and call.operator in ("chunk", "split")
        if halves and isinstance(there, list):
            for part in there:  # those of a gated layer are both mixtures of the same positions
                part.origin = place.origin
        return there

    return placed_by(call, x, place, make)


@at_source
def regrouped(call: Call, out: Tensor, x: Tensor, place: Place) -> Any:
    """Order-preserving operators: only the shapes matter."""
    if x.shape == out.shape:
        return place
    key = ("regrouped", x.shape, out.shape)
    return call.context.location.once(
        (place,), key, lambda: places.reshaped(place, x.shape, out.shape)
    )


@at_source
def shifted(call: Call, out: Tensor, x: Tensor, place: Place) -> Any:
    """Roll and flip act on the cells as they stand: along a constant dimension nothing moves."""

    def make() -> Place:
        cells = places.full(place.cells, x.shape)
        if call.operator == "roll" and not call.get("dim"):  # rolls the flattened tensor
            cells = cells.expand(x.shape)
        return place.with_cells(call.run(lambda t: cells if t is x else t))

    return placed_by(call, x, place, make)


def concatenated(call: Call) -> Any:
    """Concatenation; the parts that do not depend on the input are a constant term."""
    out = call.run()
    tensors = call.get("tensors") or call.args[0]
    if all(call.is_active(t) for t in tensors):
        return out
    return call.attach(out, call.at_zero())


def joined(call: Call, out: Tensor) -> Any:
    """Parts side by side."""
    tensors = call.get("tensors") or call.args[0]
    parts = [(call.place(t), tuple(t.shape)) for t in tensors if t.numel()]
    if not any(p for p, _ in parts):
        return None
    dim = call.get("dim", 0)
    key = ("joined", call.operator == "stack", dim, *(size for _, size in parts))
    make = lambda: places.joined(parts, dim, call.operator == "stack")  # noqa: E731
    return call.context.location.once([p for p, _ in parts], key, make)


def assembled(call: Call) -> Any:
    """Real and imaginary part put together; a constant one is a constant term."""
    return call.attach(call.run(), call.at_zero())


def padded_rule(call: Call) -> Any:
    """Padding; a value other than zero is a constant term."""
    out = call.run()
    value = call.get("value")
    if call.get("mode", "constant") == "constant" and value:
        return call.attach(out, call.at_zero())
    return out


@at_source
def padded(call: Call, out: Tensor, x: Tensor, place: Place) -> Any:
    return placed_by(call, x, place, lambda: places.padded(place, x.shape, list(call.get("pad"))))


def gathered(call: Call, out: Any) -> Any:
    """Indexing with tensors; falls back to no place where the index follows the channels."""
    try:
        return rearranged(call, out)
    except (RuntimeError, IndexError):
        return unlocated(call, out)


_MOVED = Operator(linear, rearranged, degree=1, true=True)
_REGROUPED = Operator(linear, regrouped, degree=1, true=True, moves="reshapes")
_KEPT = Operator(linear, same, degree=1, true=True, moves="keeps", link="linear")
_GATHERED = Operator(linear, gathered, degree=1, true=True)
_JOINED = Operator(concatenated, joined, degrees.same, true=True, joins=True, terms=True)
_PERMUTED = replace(_MOVED, moves="permutes")
_SELECTED = replace(_MOVED, moves="selects")
_PARTED = replace(_MOVED, rule=parted, parts=True)
_ALIKE = Operator(linear, same, degree=1, true=True)
_SHIFTED = replace(_MOVED, placer=shifted)
LINEAR = Operator(linear, degree=1, true=True)

RECORDS: dict[str, Operator] = {
    "permute": replace(_PERMUTED, names="permute_copy"),
    "transpose": replace(_PERMUTED, names="swapaxes swapdims transpose_copy T mT H mH"),
    "movedim": replace(_PERMUTED, names="moveaxis"),
    "t": replace(_PERMUTED, names="t_copy"),
    "select": replace(_SELECTED, names="select_copy"),
    "narrow": replace(_SELECTED, names="slice_copy narrow_copy"),
    "getitem": replace(_SELECTED, names="__getitem__", takes=True, shaped_by="index"),
    **named(_MOVED, "adjoint rot90 broadcast_to"),
    "expand": replace(_MOVED, names="expand_as expand_copy", moves="repeats"),
    "diagonal": replace(_MOVED, names="diagonal_copy"),
    "chunk": replace(_PARTED, names="unsafe_chunk"),
    "split": replace(
        _PARTED,
        names="split_with_sizes tensor_split hsplit vsplit dsplit unsafe_split split_copy "
        "unsafe_split_with_sizes split_with_sizes_copy",
    ),
    "unbind": replace(_PARTED, names="unbind_copy"),
    "reshape": replace(_REGROUPED, names="reshape_as"),
    "flatten": replace(_REGROUPED, names="ravel"),
    "unflatten": _REGROUPED,
    "squeeze": replace(_REGROUPED, names="squeeze_copy"),
    "unsqueeze": replace(_REGROUPED, names="unsqueeze_copy"),
    "view": replace(
        _REGROUPED, names="view_as view_copy", rule=reshaped, degree=degrees.reinterpreted
    ),
    **named(replace(_REGROUPED, moves=""), "atleast_1d atleast_2d atleast_3d"),
    "contiguous": _KEPT,
    "clone": replace(_KEPT, names="alias_copy"),
    "to": replace(
        _KEPT, names="type_as type float double half bfloat16 cfloat cdouble chalf cpu cuda"
    ),
    "positive": replace(_KEPT, names="__pos__"),
    "detach": replace(_KEPT, names="detach_copy data", rule=carried_on),
    "neg": replace(_KEPT, names="__neg__ negative", moves=""),
    **named(_ALIKE, "requires_grad_ tril triu real imag"),
    "conj": replace(_ALIKE, names="conj_physical resolve_conj resolve_neg"),
    "cumsum": replace(_ALIKE, kind="sum"),
    "zero": replace(_ALIKE, degree=degrees.vanishing, overwrites=True),
    "complex": Operator(assembled, same, degrees.same, true=True, kind="complex"),
    "roll": replace(_SHIFTED, arguments="input shifts dim"),
    "flip": replace(_SHIFTED, names="__reversed__"),
    **named(_SHIFTED, "fliplr flipud"),
    "diff": replace(LINEAR, degree=degrees.same),
    "view_as_complex": replace(LINEAR, kind="complex"),
    "view_as_real": replace(LINEAR, names="view_as_real_copy"),
    **named(LINEAR, "diag_embed cumulative_trapezoid gradient"),
    "trace": replace(LINEAR, kind="sum"),
    "trapezoid": replace(LINEAR, names="trapz"),
    "index_select": replace(_GATHERED, moves="selects", takes=True),
    **named(replace(_GATHERED, takes=True), "gather take take_along_dim"),
    **named(replace(_GATHERED, shaped_by="index"), "masked_select repeat_interleave"),
    **named(_GATHERED, "repeat tile"),
    "cat": replace(_JOINED, names="concat concatenate", arguments="tensors dim", moves="selects"),
    "stack": replace(_JOINED, arguments="tensors dim", moves="selects"),
    "pad": Operator(
        padded_rule,
        padded,
        degrees.joining("input", "value"),
        true=True,
        names="constant_pad_nd",
        arguments="input pad mode value",
        orders={"constant_pad_nd": "input pad value"},
        summand="value",
    ),
}
