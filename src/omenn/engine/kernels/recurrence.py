"""The frozen backward pass of LSTM, GRU and RNN over the states of the native kernel.

At frozen gates a layer is a linear recurrence. With the states h_t from the native kernel the gates
of all steps are two matrix products, ⟦·⟧ is a coefficient of every step, and what remains is a
loop over time in the backward pass alone:

    LSTM   h = ⟦o tanh(c)/c⟧ c,  c = ⟦f⟧ c′ + ⟦i tanh(g)/g⟧ g,  g = W x + b + U h′ + d
    GRU    h = ⟦(1 − z) tanh(n)/n⟧ n + ⟦z⟧ h′,  n = W x + b + ⟦r⟧ (U h′ + d)
    RNN    h = ⟦φ(u)/u⟧ u,  u = W x + b + U h′ + d

It is made of differentiable operators, which also take a batch of gradients. ``recurrent.py`` has
the same written out step by step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from omenn.engine.operators.pointwise import secant_through_origin
from omenn.engine.trace.autograd_nodes import Several

State = tuple[Tensor, ...]


class Steps(NamedTuple):
    """Rows packed by time step, in the order in which one direction takes them.

    ``sizes``: sequences that still run at each step. ``previous``: for each row the row of the
    state before it in (initial states, outputs). ``first``, ``last``: the rows in which each
    sequence begins and ends.
    """

    sizes: list[int]
    backward: bool
    previous: Tensor
    first: Tensor
    last: Tensor


def steps_of(sizes: list[int], backward: bool, device: torch.device) -> Steps:
    many = torch.tensor(sizes)
    starts = many.cumsum(0) - many
    time = torch.arange(len(sizes)).repeat_interleave(many)
    sequence = torch.arange(len(time)) - starts[time]
    lengths = (many[:, None] > torch.arange(sizes[0])).sum(0)
    begin, end = torch.arange(sizes[0]), starts[lengths - 1] + torch.arange(sizes[0])
    before = time + 1 if backward else time - 1
    inside = (before >= 0) & (before < lengths[sequence])
    row = starts[before.clamp(0, len(sizes) - 1)] + sequence + sizes[0]
    previous = torch.where(inside, row, sequence)
    first, last = (end, begin) if backward else (begin, end)
    return Steps(sizes, backward, *(t.to(device) for t in (previous, first, last)))


class Weights(NamedTuple):
    """Of one layer and direction: of inputs, of states, their biases, and a projection."""

    x: Tensor
    h: Tensor
    b: Tensor | None
    d: Tensor | None
    p: Tensor | None


class Frozen(NamedTuple):
    """A layer at frozen gates: coefficients of every row, and the weights of what is active.

    ``pull(grad of h, gradients of later steps, coefficients of a step)`` is the gradient at what is
    under tanh, and the gradients at the states before.
    """

    pull: Callable[..., tuple[Tensor, State]]
    coefficients: tuple[Tensor, ...]
    inputs: Tensor  # rows of W of what is active
    reset: int | None  # which coefficient ⟦r⟧ multiplies U h′ + d
    b: Tensor | None
    d: Tensor | None


Kernel = Callable[..., tuple[Frozen, State]]


def lstm(x: Tensor, out: Tensor, state: State, w: Weights, steps: Steps) -> tuple[Frozen, State]:
    """Coefficients of an LSTM, and the last cell."""
    gates = _gates(x, out, state[0], w, steps)
    i, f, g, o = gates.chunk(4, -1)
    i, f, o = i.sigmoid(), f.sigmoid(), o.sigmoid()
    tanh = g.tanh()
    cells, last = _cells(f, i * tanh, state[1], steps)
    carry = i * secant_through_origin(tanh, g)
    show = o * secant_through_origin(cells.tanh(), cells)
    n = f.shape[1]
    inputs, states = w.x[2 * n : 3 * n], w.h[2 * n : 3 * n]

    def pull(grad: Tensor, later: State, show: Tensor, carry: Tensor, f: Tensor) -> Any:
        grad = grad + later[0]
        cell = later[1] + (grad if w.p is None else grad @ w.p) * show
        inner = cell * carry
        return inner, (inner @ states, cell * f)

    biases = (None if t is None else t[2 * n : 3 * n] for t in (w.b, w.d))
    return Frozen(pull, (show, carry, f), inputs, None, *biases), (last,)


def _cells(f: Tensor, new: Tensor, start: Tensor, steps: Steps) -> tuple[Tensor, Tensor]:
    """c_t = f_t c_{t−1} + new_t of every row, and the last of every sequence."""
    forget, add = f.split(steps.sizes), new.split(steps.sizes)
    order = range(len(steps.sizes))
    cells: list[Tensor] = [start] * len(order)
    now = start[: steps.sizes[0]]
    for t in reversed(order) if steps.backward else order:
        n = steps.sizes[t]
        if steps.backward and t + 1 < len(order) and steps.sizes[t + 1] < n:
            now = torch.cat([now, start[steps.sizes[t + 1] : n]])
        now = torch.addcmul(add[t], forget[t], now[:n])
        cells[t] = now
    every = torch.cat(cells)
    return every, every[steps.last]


def gru(x: Tensor, out: Tensor, state: State, w: Weights, steps: Steps) -> tuple[Frozen, State]:
    before = torch.cat([state[0], out])[steps.previous]
    x_r, x_z, x_n = F.linear(x, w.x, w.b).chunk(3, -1)
    h_r, h_z, h_n = F.linear(before, w.h, w.d).chunk(3, -1)
    r, z = (x_r + h_r).sigmoid(), (x_z + h_z).sigmoid()
    inner = x_n + r * h_n
    carry = (1 - z) * secant_through_origin(inner.tanh(), inner)
    n = r.shape[1]
    inputs, states = w.x[2 * n :], w.h[2 * n :]

    def pull(grad: Tensor, later: State, carry: Tensor, z: Tensor, r: Tensor) -> Any:
        grad = grad + later[0]
        inner = grad * carry
        return inner, ((inner * r) @ states + grad * z,)

    biases = (None if t is None else t[2 * n :] for t in (w.b, w.d))
    return Frozen(pull, (carry, z, r), inputs, 2, *biases), ()


def plain(activation: Callable[[Tensor], Tensor]) -> Kernel:
    """An RNN whose ``activation`` is given as φ(u)/u."""

    def kernel(x: Tensor, out: Tensor, state: State, w: Weights, steps: Steps) -> Any:
        inner = _gates(x, out, state[0], w, steps)
        carry = activation(inner)

        def pull(grad: Tensor, later: State, carry: Tensor) -> Any:
            inner = (grad + later[0]) * carry
            return inner, (inner @ w.h,)

        return Frozen(pull, (carry,), w.x, None, w.b, w.d), ()

    return kernel


def _gates(x: Tensor, out: Tensor, start: Tensor, w: Weights, steps: Steps) -> Tensor:
    before = torch.cat([start, out])[steps.previous]
    return F.linear(x, w.x, w.b) + F.linear(before, w.h, w.d)


def pulled(
    grads: Sequence[Tensor], layer: Frozen, coefficients: Sequence[Tensor], steps: Steps
) -> tuple[Tensor, list[Tensor]]:
    """Gradients at what is under tanh, of every row, and at the initial states.

    ``grads``: at the outputs of every row, and at the last states of every sequence.
    """
    rows, ends = grads[0].split(steps.sizes), grads[1:]
    parts = [c.split(steps.sizes) for c in coefficients]
    order = range(len(steps.sizes))
    later: State = tuple(e[: 0 if not steps.backward else None] for e in ends)
    inner: list[Tensor] = [grads[0]] * len(order)
    begun: list[tuple[Tensor, ...]] = []  # initial states of sequences that begin later
    for t in order if steps.backward else reversed(order):
        n, m = steps.sizes[t], later[0].shape[0]
        if n > m:  # sequences that end here
            later = tuple(
                torch.cat([c, e[m:n]]) if m else e[:n] for c, e in zip(later, ends, strict=True)
            )
        elif n < m:  # sequences that began before
            begun.insert(0, tuple(c[n:] for c in later))
            later = tuple(c[:n] for c in later)
        inner[t], later = layer.pull(rows[t], later, *(c[t] for c in parts))
    begun.insert(0, later)
    starts = [torch.cat(s) for s in zip(*begun, strict=True)]
    return torch.cat(inner), starts


def one_layer(
    kernel: Kernel,
    x: Tensor,
    state: State,
    native: tuple[Tensor, Tensor],
    w: Weights,
    steps: Steps,
    ones: Tensor | None,
) -> tuple[Tensor, ...]:
    """One layer and direction: outputs of every row, last states of every sequence.

    ``x`` and those of the initial states that require gradients are active; the other states are
    constants where their sequence begins. ``native``: output and last state of the kernel.
    ``ones`` (rows or 1, 1) take the constants.
    """
    starts = tuple(s.detach() for s in state)
    with torch.no_grad():
        frozen, cells = kernel(x.detach(), native[0], starts, w, steps)
    active = [s.requires_grad for s in state]
    fixed = [None if c or not bool(s.any()) else s for c, s in zip(active, starts, strict=True)]
    dtype = x.dtype

    def vjp(grads: Sequence[Tensor], *coefficients: Tensor) -> list[Tensor | None]:
        inner, begun = pulled(grads, frozen, coefficients, steps)
        found: list[Tensor | None] = [(inner @ frozen.inputs).to(dtype)]
        found += [b for b, c in zip(begun, active, strict=True) if c]
        if ones is None:
            return found
        reset = inner if frozen.reset is None else inner * coefficients[frozen.reset]
        terms = [g @ b for g, b in ((inner, frozen.b), (reset, frozen.d)) if b is not None]
        for start, value in zip(begun, fixed, strict=True):
            if value is not None:
                terms.append(_at_beginnings((start * value).sum(-1), steps))
        total = sum(terms) if terms else inner.sum(-1) * 0
        assert isinstance(total, Tensor)
        return [*found, total.unsqueeze(-1).sum_to_size(ones.shape).to(ones.dtype)]

    inputs = [x, *(s for s, c in zip(state, active, strict=True) if c)]
    given = inputs if ones is None else [*inputs, ones]
    values = [native[0], native[1], *cells]
    return Several.apply(values, vjp, len(given), *given, *frozen.coefficients)  # type: ignore[return-value]


def _at_beginnings(amounts: Tensor, steps: Steps) -> Tensor:
    """What each sequence has, at the row in which it begins."""
    n = steps.sizes[0]
    first = (steps.previous < n).to(amounts.dtype)
    return amounts[steps.previous.clamp_max(n - 1)] * first
