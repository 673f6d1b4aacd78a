"""Placers of products: where the rows and columns of a matrix product lie.

NOTE [mixed tokens] Output k of a layer that mixes all positions has no place of its own: it is made
from all of them. Where such a layer has as many outputs as there are positions (the token mixing
of an MLP-Mixer, the spatial gate of a gMLP, an inverse Fourier transform), output k is added to or
multiplied with position k in every network of this kind, and so it is placed there. What lies
between (the hidden units of the mixing layer, the frequencies) has no place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from omenn.engine import location as places
from omenn.engine.kernels.softmax import Softmax, weights
from omenn.engine.location import Place
from omenn.engine.operators.record import at_source, unlocated
from omenn.engine.trace.call import Call


def varies(place: Place, x: Tensor, dim: int) -> bool:
    """Whether a place changes along a (negative) dimension of its tensor."""
    return place.cells.ndim >= -dim and place.cells.shape[dim] > 1


Weights = Callable[[Tensor], Tensor]  # index of rows -> attention weights (…, rows, keys)


def product_place(call: Call, left: Tensor, right: Tensor, weights: Weights | None = None) -> Any:
    """A v: the rows of A have a place (queries), else the columns of v (channel attention).

    With ``weights`` a row without a location may be placed along them (``bias="attention"``).
    """
    rows, columns = call.place(left), call.place(right)
    if call.context.location.along_attention:
        return _product_place(call, left, right, weights)
    key = ("product", left.shape, right.shape, call.mark(left) is None)
    make = lambda: _product_place(call, left, right, None)  # noqa: E731
    return call.context.location.once((rows, columns), key, make)


def _product_place(call: Call, left: Tensor, right: Tensor, weights: Weights | None) -> Any:
    rows, columns = call.place(left), call.place(right)
    across = columns is not None and varies(columns, right, -1)
    if rows is not None:
        if columns is not None and across and left.shape[-2] > 1 and not varies(rows, left, -2):
            return places.reduced(columns, right.shape, [right.ndim - 2], True)
        rows = places.reduced(rows, left.shape, [left.ndim - 1], True)
        if weights is None or columns is None or not call.context.location.along_attention:
            return rows
        values = places.reduced(columns, right.shape, [right.ndim - 1], True)
        return places.routed(rows, left.shape[-2], values, weights)
    if columns is None:
        return None
    if not across and call.mark(left) is None and left.shape[-2] == left.shape[-1]:
        # NOTE [mixed tokens] A constant square matrix, row k stands at position k.
        return places.reduced(columns, right.shape, [right.ndim - 1], True)
    return places.reduced(columns, right.shape, [right.ndim - 2], True)


def matmul_place(call: Call, out: Tensor) -> Any:
    """x W has the rows of x, A v the rows of A; a vector is contracted away."""
    left, right = call.get("input"), call.get("other")
    if call.reverse:
        left, right = right, left
    if not (isinstance(left, Tensor) and isinstance(right, Tensor)):
        return None
    if left.ndim > 1 and right.ndim > 1:
        frozen = call.is_active(right) and not call.is_active(left)
        weights = (lambda index: call.true(left)[..., index, :]) if frozen else None
        return product_place(call, left, right, weights)
    place = call.place(left)
    if place is not None and left.ndim > 1:
        return places.reduced(place, left.shape, [left.ndim - 1], False)
    return unlocated(call, out)


def added_place(call: Call, out: Tensor) -> Any:
    """β c + α a b: the place of the product, if it has all dimensions of the sum."""
    left, right = call.get("mat1"), call.get("mat2")
    if not isinstance(left, Tensor) or not isinstance(right, Tensor) or left.ndim != out.ndim:
        return unlocated(call, out)
    return product_place(call, left, right) or unlocated(call, out)


def attention_place(call: Call, out: Tensor) -> Any:
    """One output row a query: its place; or that of the columns, where rows are channels."""
    query, value = call.bound["query"], call.bound["value"]
    weights = lambda index: _weights_of_rows(call, index)  # noqa: E731
    if call.place(query) is not None:
        return product_place(call, query, value, weights)
    place = call.place(value)
    if place is None:
        return None
    if call.mark(query) is not None and value.shape[-2] == out.shape[-2]:
        return places.reduced(place, value.shape, [value.ndim - 1], True)
    if (
        call.context.location.along_attention
    ):  # learned queries: rows of no place, of the samples of the value
        values = places.reduced(place, value.shape, [value.ndim - 1], True)
        first = values.cells.narrow(-2, 0, 1)
        blank = Place(values.grid, values.grid.slot(values.grid.sample[first]))
        return places.routed(blank, out.shape[-2], values, weights)
    return unlocated(call, out)


def _weights_of_rows(call: Call, index: Tensor) -> Tensor:
    """The attention weights of some queries, (…, rows, keys)."""
    mask = call.get("attn_mask")
    mask = call.true(mask) if isinstance(mask, Tensor) else None
    query, key = call.true(call.get("query")), call.true(call.get("key"))
    return weights(query, key, mask, Softmax.of(call), index)


def einsum_place(call: Call, out: Tensor) -> Any:
    """Dimensions that keep their letter keep their place; contracted ones are averaged.

    Of several operands that have a place the one with the finest in the output, then the first.
    """
    operands = [t for a in call.args for t in (a if isinstance(a, (list, tuple)) else [a])]
    equation, operands = operands[0], operands[1:]
    found = None
    if isinstance(equation, str):
        terms, wanted = _letters(equation, operands)
        found = [
            _kept(place, x, letters, wanted)
            for x, letters in zip(operands, terms, strict=True)
            if (place := call.place(x)) is not None and len(set(letters)) == len(letters)
        ]
    if not found:
        return unlocated(call, out)
    return max(found, key=lambda place: place.cells.numel())


def _letters(equation: str, operands: Sequence[Tensor]) -> tuple[list[str], str]:
    """Letters of each operand and of the output; an ellipsis becomes upper-case letters."""
    left, _, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    spare = [c for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if c not in equation]
    most = 0
    for k, (term, x) in enumerate(zip(terms, operands, strict=True)):
        if "..." in term:
            n = x.ndim - len(term) + 3
            most = max(most, n)
            # Dimensions behind an ellipsis are aligned from the right.
            terms[k] = term.replace("...", "".join(reversed(spare[:n])))
    if "->" not in equation:
        every = "".join(terms)
        right = "..." + "".join(sorted(c for c in set(every) - set(spare) if every.count(c) == 1))
    return terms, right.replace("...", "".join(reversed(spare[:most])))


def _kept(place: Place, x: Tensor, letters: str, wanted: str) -> Place:
    gone = [d for d, c in enumerate(letters) if c not in wanted]
    kept = places.reduced(place, x.shape, gone, False)
    rest = [c for c in letters if c in wanted]
    cells = kept.cells.permute([rest.index(c) for c in wanted if c in rest])
    for d, c in enumerate(wanted):
        if c not in rest:
            cells = cells.unsqueeze(d)
    return kept.with_cells(cells)


@at_source
def fourier_place(call: Call, out: Tensor, x: Tensor, place: Place) -> Any:
    """Frequencies are made from all positions; the way back to as many has them again."""
    name = getattr(call.func, "__name__", "").removeprefix("fft_")
    if name.endswith("shift") or x.ndim != out.ndim:
        return unlocated(call, out)
    if name.startswith(("ifft", "irfft")) and (back := place.back_to(out.shape)) is not None:
        return back
    changed = _transformed(call, x, name)
    return places.merged(place, x.shape, changed)


def _transformed(call: Call, x: Tensor, name: str) -> list[int]:
    """The dimensions that a Fourier transform acts on."""
    dim = call.kwargs.get("dim", call.args[2] if len(call.args) > 2 else None)
    size = call.kwargs.get("s", call.args[1] if len(call.args) > 1 else None)
    if dim is None:
        many = len(size) if isinstance(size, (list, tuple)) else x.ndim
        dim = range(-many, 0) if name.endswith("n") else (-2, -1) if name.endswith("2") else (-1,)
    return [d % x.ndim for d in ([dim] if isinstance(dim, int) else dim)]


def sampled_place(call: Call, out: Tensor) -> Any:
    """Grid sampling: the cell nearest to where each output element was taken from."""
    x, grid = call.get("input"), call.get("grid")
    place = call.place(x)
    if place is None:
        return unlocated(call, out)
    cells = places.full(place.cells, x.shape)
    if cells.shape[1] > 1:
        place = places.reduced(place, x.shape, [1], True)
        cells = place.cells
    wide = cells.expand(x.shape[0], 1, *x.shape[2:]).double()  # float64 holds an index exactly
    corners = call.args[4] if len(call.args) > 4 else call.kwargs.get("align_corners")
    taken = F.grid_sample(wide, call.true(grid).detach().double(), "nearest", "border", corners)
    return place.with_cells(taken.long())


@at_source
def windows(call: Call, out: Tensor, x: Tensor, place: Place) -> Any:
    """Sliding windows: each element keeps its cell; the padding belongs to the rim."""
    from omenn.engine.operators.layout import rearranged

    if call.func is not F.unfold:  # Tensor.unfold is a view
        return rearranged(call, out)
    kernel, dilation, padding, stride = _window(call, 1)
    (h, w), batched = padding, x.ndim == 4
    cells = places.full(place.cells, x.shape)
    cells = cells if batched else cells.unsqueeze(0)
    one = cells.shape[1] == 1  # the same for all channels: laid out once, and then repeated
    wide = cells.expand(-1, -1, *x.shape[-2:])
    cells = places.padded(place.with_cells(wide), wide.shape, [w, w, h, h]).cells
    # In float64 indices are exact, and only floating-point tensors can be unfolded.
    cells = F.unfold(cells.double(), kernel, dilation, 0, stride).long()
    if one:
        cells = cells.repeat(1, x.shape[-3], 1)
    return place.with_cells(cells if batched else cells.squeeze(0))


@at_source
def folded(call: Call, out: Tensor, x: Tensor, place: Place) -> Any:
    """Windows laid over one another: a cell is the mean of the elements that fall on it."""
    size = call.kwargs.get("output_size", call.args[1] if len(call.args) > 1 else out.shape[-2:])
    kernel, dilation, padding, stride = _window(call, 2)
    cells = places.full(place.cells, x.shape)
    cells, rows = (cells, x.shape[-2:]) if x.ndim == 3 else (cells.unsqueeze(0), x.shape)
    each = kernel[0] * kernel[1]
    cells = cells.expand(-1, -1, rows[1])
    u = place.grid.u[cells]
    if cells.shape[1] > 1:  # (channels, offset in the window): the channels are averaged
        u = u.unflatten(1, (-1, each)).mean(1)
        cells = cells[:, :each]
    fold = lambda t: F.fold(  # noqa: E731
        t.expand(-1, each, -1), size, kernel, dilation, padding, stride
    )
    return places.folded(place, u, cells, fold)


def _window(call: Call, first: int) -> list[tuple[int, int]]:
    """(kernel, dilation, padding, stride) of ``unfold`` and ``fold``, in pairs."""
    names = ("kernel_size", "dilation", "padding", "stride")
    given = dict(zip(names, call.args[first:], strict=False)) | call.kwargs
    return [_pair(given.get(name, 0 if name == "padding" else 1)) for name in names]


def _pair(value: Any) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    return (int(value[0]), int(value[-1]))


__all__ = [
    "added_place",
    "attention_place",
    "einsum_place",
    "folded",
    "fourier_place",
    "matmul_place",
    "sampled_place",
    "windows",
]
