"""Layout operators: they move elements and are linear as they stand."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from omenn.engine import location as places
from omenn.engine.location import Place
from omenn.engine.operators.record import Row, placed_by, rows, same, source, unlocated
from omenn.engine.trace.call import Call, substitute

_RESHAPED_IN_PLACE = frozenset("transpose squeeze unsqueeze t".split())


def linear(call: Call) -> Any:
    """Linear as it stands: the native operator and its own backward."""
    if call.inplace and call.operator in _RESHAPED_IN_PLACE:  # place it while it has its shape
        after = call.run(Tensor.detach)
        call.places = [call.owner.book[call.operator].placer(call, after)]
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
    x, name = call.carried[0], call.func.__name__
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
    return call.carried[0].view_as(call.carried[0])


def rearranged(call: Call, out: Any) -> Any:
    """View-like operators act on the cells as they act on the tensor."""
    found = source(call)
    if found is None:
        return None
    x, place = found
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


def regrouped(call: Call, out: Tensor) -> Any:
    """Order-preserving operators: only the shapes matter."""
    found = source(call)
    if found is None:
        return None
    x, place = found
    if x.shape == out.shape:
        return place
    key = ("regrouped", x.shape, out.shape)
    return call.owner.shared.get(place, key, lambda: places.reshaped(place, x.shape, out.shape))


def shifted(call: Call, out: Tensor) -> Any:
    """Roll and flip act on the cells as they stand: along a constant dimension nothing moves."""
    found = source(call)
    if found is None:
        return None
    x, place = found

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
    if all(call.is_carried(t) for t in tensors):
        return out
    return call.attach(out, call.at_zero())


def joined(call: Call, out: Tensor) -> Any:
    """Parts side by side; ``hstack``, ``vstack`` and ``dstack`` give them dimensions first."""
    tensors = call.get("tensors") or call.args[0]
    parts = [(call.place(t), tuple(t.shape)) for t in tensors if t.numel()]
    if not any(p for p, _ in parts):
        return None
    dim = call.get("dim", 0)
    if call.operator == "stacked":
        name = call.func.__name__
        least = {"hstack": torch.atleast_1d, "vstack": torch.atleast_2d}
        name = "vstack" if name == "row_stack" else name
        shapes = [
            least.get(name, torch.atleast_3d)(torch.empty(s, device="meta")).shape for _, s in parts
        ]
        parts = [
            (p if p is None else places.reshaped(p, before, after), tuple(after))
            for (p, before), after in zip(parts, shapes, strict=True)
        ]
        dim = {"hstack": min(1, out.ndim - 1), "vstack": 0}.get(name, 2)
    key = ("joined", call.operator == "stack", dim, *(size for _, size in parts))
    make = lambda: places.joined(parts, dim, call.operator == "stack")  # noqa: E731
    return call.owner.shared.found([p for p, _ in parts], key, make)


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


def padded(call: Call, out: Tensor) -> Any:
    found = source(call)
    if found is None:
        return None
    x, place = found
    return placed_by(call, x, place, lambda: places.padded(place, x.shape, list(call.get("pad"))))


def indexed_write(call: Call) -> Any:
    """Writing into a tensor: what stays, and what is written, may each be a constant."""
    write = _setitem if call.operator == "setitem" else Call.run
    if not _has_constant(call):
        return write(call)
    term = _written_at_zero(call)
    return call.attach(write(call), term)


def scattered(call: Call) -> Any:
    """Scattering with sum, mean, or the largest; products of what is scattered are refused."""
    how = next((a for a in (*call.args, *call.kwargs.values()) if isinstance(a, str)), None)
    if how is None:
        return indexed_write(call)
    if how == "add":
        raise call.refuse("PyTorch has no derivative for reduce='add'", "Use scatter_add.")
    if how not in ("sum", "mean", "amax", "amin"):
        raise call.refuse("a product of scattered values")
    term = _written_at_zero(call) if _has_constant(call) else torch.zeros(())
    adds = bool(term.any())
    if adds and how.startswith("am") and call.kwargs.get("include_self", True):
        raise call.refuse("the largest of scattered values and of constants")
    if not adds:
        return call.run()

    def constant(t: Tensor) -> Tensor:
        if call.is_carried(t):
            return t
        return call.constant(t).clone() if t is call.first else call.constant(t)

    out = torch.scatter_reduce(*substitute(call.args, constant), **call.kwargs)
    # The native node keeps its result, which the constant must not overwrite.
    return call.attach(call.written(call.first, out) if call.inplace else out.clone(), term)


def _has_constant(call: Call) -> bool:
    """Whether a tensor or a number of the call could add a constant."""
    constant = False

    def see(t: Tensor) -> Tensor:
        nonlocal constant
        constant |= (t.is_floating_point() or t.is_complex()) and not call.is_carried(t)
        return t

    substitute((call.args, call.kwargs), see)
    numbers = [*call.args[1:], *(call.kwargs.get(name) for name in ("value", "other", "input"))]
    return constant or any(isinstance(n, (int, float)) and n for n in numbers)


def _setitem(call: Call) -> Tensor:
    call.run()
    return call.args[0]


def _written_at_zero(call: Call) -> Tensor:
    """The operator's result with carried tensors zero, on copies."""
    carried = {id(t) for t in call.carried}
    owner = call.first
    target: list[Tensor] = []

    def sub(t: Tensor) -> Tensor:
        fresh = torch.zeros_like(t) if id(t) in carried else call.constant(t)
        if t is owner:
            fresh = fresh.clone()
            target.append(fresh)
        return fresh

    out = call.run(sub)
    return out if isinstance(out, Tensor) else target[0]


# Writes that add to what is there, and the spelling that puts the last one in its place.
_ADDS = {"index_add": torch.index_copy, "scatter_add": torch.scatter, "scatter": torch.scatter}


def written(call: Call, out: Any) -> Any:
    """The target keeps its place but where something that has a place is written into it."""
    target = call.first
    if not isinstance(target, Tensor):
        return unlocated(call, out)
    place = call.place(target)
    sources = [
        (t, m.place)
        for t, m in call.marked
        if t is not target and m.place is not None and (t.is_floating_point() or t.is_complex())
    ]
    if not sources:
        return place or unlocated(call, out)
    home = None if place is not None else call.owner.home(target, call.inputs)
    source, there = sources[0]
    adds = _adds(call)
    write = lambda into, cells: _moved(call, into, source, cells, adds)  # noqa: E731
    return places.overwritten((place, target.shape), (there, source.shape), write, home, adds)


def _adds(call: Call) -> bool:
    """Whether what is written is added to (or compared with) what is there."""
    if call.operator == "index_put":
        return bool(call.kwargs.get("accumulate") or (len(call.args) > 3 and call.args[3]))
    reduces = any(isinstance(a, str) for a in (*call.args, *call.kwargs.values()))
    return call.operator in ("index_add", "scatter_add") or reduces


def _moved(call: Call, into: Tensor, source: Tensor, cells: Tensor, adds: bool) -> Tensor:
    """The write done with ``into`` for the target and ``cells`` for what is written."""
    into = into.clone()
    swap = lambda t: into if t is call.first else cells if t is source else t  # noqa: E731
    args, kwargs = substitute(call.args, swap), substitute(call.kwargs, swap)
    if not adds:
        out = call.func(*args, **kwargs)
        return into if out is None else out
    if call.operator == "index_put":
        return torch.index_put(into, args[1] if len(args) > 1 else kwargs["indices"], cells)
    names = ("dim", "index", "source" if "source" in kwargs else "src")
    rest = [*args[1:4], *(kwargs[name] for name in names if name in kwargs)]
    return _ADDS[call.operator](into, *rest[:3])


def copied(call: Call, out: Any) -> Any:
    """What is copied has the place of its source, broadcast; a constant that of the target."""
    source = call.args[1] if len(call.args) > 1 else call.kwargs.get("src")
    place = call.place(source) if isinstance(source, Tensor) else None
    if place is None or not isinstance(source, Tensor):
        return written(call, out)
    return place.with_cells(places.full(place.cells, source.shape))


def gathered(call: Call, out: Any) -> Any:
    """Indexing with tensors; falls back to no place where the index follows the channels."""
    found = source(call)
    if found is None:
        return None
    try:
        return rearranged(call, out)
    except (RuntimeError, IndexError):
        return unlocated(call, out)


ROWS: dict[str, Row] = (
    rows(
        "permute transpose adjoint movedim expand narrow select getitem diagonal rot90 "
        "broadcast_to t",
        linear,
        rearranged,
    )
    | rows("chunk split unbind", parted, rearranged)
    | rows(
        "reshape flatten unflatten squeeze unsqueeze atleast_1d atleast_2d atleast_3d",
        linear,
        regrouped,
    )
    | rows("view", reshaped, regrouped)
    | rows("contiguous clone to positive neg requires_grad_ conj", linear, same)
    | rows("detach", carried_on, same)
    | rows("complex", assembled, same)
    | rows("roll flip fliplr flipud", linear, shifted)
    | rows("tril triu cumsum real imag zero", linear, same)
    | rows("diff view_as_complex view_as_real diag_embed trace", linear, unlocated)
    | rows("trapezoid cumulative_trapezoid gradient", linear, unlocated)
    | rows(
        "index_select gather take_along_dim take masked_select repeat tile repeat_interleave",
        linear,
        gathered,
    )
    | rows("cat stack stacked", concatenated, joined)
    | rows("pad", padded_rule, padded)
    | rows(
        "setitem index_put index_add index_copy scatter_add masked_fill index_fill fill",
        indexed_write,
        written,
    )
    | rows("where", indexed_write, same)
    | rows("copy_", indexed_write, copied)
    | rows("scatter", scattered, written)
)
