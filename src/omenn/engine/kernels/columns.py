"""Columns of a linear layer's output that no gradient reaches, and that cost nothing.

A fused projection y = x [W_q; W_k; W_v]ᵀ is cut into query, key and value, of which the frozen
network carries the value alone: two thirds of the gradient at y are zeros. Where a rule takes a
view of y that shows some of its columns, it is connected with x by those columns of the layer.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from omenn.engine.trace.autograd_nodes import Affine, Frozen
from omenn.engine.trace.call import ACTIVE, Call, Layer
from omenn.engine.trace.graph import short

_VIEWS = frozenset(
    "View ReshapeAlias Permute Transpose T Unbind Select Slice Narrow Split SplitWithSizes Chunk "
    "Squeeze Unsqueeze Movedim".split()
)


class Columns(NamedTuple):
    """Columns ``start`` … ``start + width`` of a matrix, laid out as a tensor with ``strides``.

    The strides are those that the tensor would have in a matrix of these columns alone.
    """

    start: int
    width: int
    strides: tuple[int, ...]


def plain(t: Tensor) -> bool:
    """Whether a weight is an ordinary matrix: autograd knows best what to do with any other."""
    kind = type(t)
    return (kind is Tensor or kind is torch.nn.Parameter) and t.layout == torch.strided


def layer_of(call: Call, x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None) -> Layer | None:
    """What :func:`connected` needs to know of the layer y = x Wᵀ + b."""
    context = call.context
    # Where autograd is the caller's own, a gradient at y may be asked for; and no shorter history
    # has a place in the ordinary network, NOTE [differentiated again].
    if context.location.grid is None or context.create_graph or not y.is_contiguous():
        return None
    return Layer(weakref.ref(x), weight, bias, context.module_path(), _versions(x, y, weight, bias))


def _versions(*tensors: Tensor | None) -> tuple[int, ...]:
    return tuple(0 if t is None else t._version for t in tensors)


def connected(call: Call, v: Tensor) -> Tensor:
    """v itself, or its equal with a shorter history: x times its columns of the layer."""
    y = v._base
    mark = None if y is None else call.context.worn(y)  # what torch made of its own wears none
    if y is None or mark is None or mark.place is None or mark.layer is None:
        return v
    layer, x = mark.layer, mark.layer.input()
    written = x is None or layer.versions != _versions(x, y, layer.weight, layer.bias)
    one = all(m.inputs == mark.inputs for _, m in call.marked if m.kind == ACTIVE)
    found = None if written or not one or not _only_views(v, y) else columns(v, y)
    if x is None or found is None or mark.place.cells.shape[y.ndim - 1 :] not in ((), (1,)):
        return v
    block = slice(found.start, found.start + found.width)
    # Values that nobody reads: they have y's memory, but neither its history nor its version.
    value, vjp, weight = y.data[..., block].data, product_of(x), layer.weight[block]
    if layer.bias is None:
        z = Frozen.apply(x, [value], vjp, weight)
    else:
        ones = call.context.location.share(call, mark.place, layer.name)
        z = Affine.apply(x, [value], vjp, layer.bias[block], ones, weight)
    shape = value.shape

    def laid(grad: Tensor) -> Tensor:
        rows = grad.new_empty(shape)
        rows.as_strided(grad.shape, found.strides).copy_(grad)
        return rows

    return Frozen.apply(z, [v.data], laid)  # type: ignore[return-value]


def product_of(x: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """(gradient at x Wᵀ, W) → gradient at x."""
    dtype = x.dtype
    return lambda grad, weight: (grad @ weight.to(grad.dtype)).to(dtype)


def _only_views(v: Tensor, y: Tensor) -> bool:
    """Whether nothing but views leads from y to v."""
    node, end = v.grad_fn, y.grad_fn
    while node is not None and node is not end:
        if short(node) not in _VIEWS or len(node.next_functions) != 1:
            return False
        node = node.next_functions[0][0]
    return node is not None


def columns(v: Tensor, y: Tensor) -> Columns | None:
    """The block of columns of y, seen as a matrix, that v shows, each element once."""
    size = int(y.shape[-1])
    first, start = divmod(int(v.storage_offset()) - int(y.storage_offset()), size)
    dims = [(step, n) for step, n in zip(v.stride(), v.shape, strict=True) if n > 1]
    width = _dense([d for d in dims if d[0] < size])
    outer = [(step // size, n) for step, n in dims if step >= size]
    aligned = all(step % size == 0 for step, _ in dims if step >= size)
    if first or not aligned or not width or start + width > size:
        return None
    if _dense(outer) * size != y.numel() or width == size:
        return None
    strides = [s if s < size else s // size * width for s in v.stride()]
    return Columns(start, width, tuple(strides))


def _dense(dims: list[tuple[int, int]]) -> int:
    """How many neighbouring elements dimensions (stride, size) run through, each once; else 0."""
    extent = 1
    for step, n in sorted(dims):
        if step != extent:
            return 0
        extent *= n
    return extent
