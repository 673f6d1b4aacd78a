"""LSTM, GRU and RNN: gates are frozen, tanh is pointwise.

Unrolled in time, each step is written with ordinary operators, which the tracer sees one by
one: the sigmoid gates are bounded factors and so frozen, tanh stays active. That is the
definition, and what other rule tables and second derivatives take. Elsewhere ``recurrence.py``
gives the same from the states of the native kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from omenn.engine import location as places
from omenn.engine.kernels.recurrence import Kernel, Weights, gru, lstm, one_layer, plain, steps_of
from omenn.engine.location import Place
from omenn.engine.operators import degrees, pointwise
from omenn.engine.operators.layout import linear
from omenn.engine.operators.record import DROPOUT, Operator, at_source, named
from omenn.engine.torch_private import DisableTorchFunction
from omenn.engine.trace.call import ACTIVE, FROZEN, Call, Context, Mark

State = tuple[Tensor, ...]
Gate = Callable[[Tensor], Tensor]
Step = Callable[[Tensor, State, Tensor, Tensor | None, Gate], State]


def lstm_step(
    gates: Tensor, state: State, weight: Tensor, bias: Tensor | None, gate: Gate
) -> State:
    """h′ = ⟦o⟧ tanh(c′), c′ = ⟦f⟧ c + ⟦i⟧ tanh(g)."""
    hidden, cell = state
    i, f, g, o = (gates + F.linear(hidden, weight, bias)).chunk(4, -1)
    cell = gate(f) * cell + gate(i) * torch.tanh(g)
    return gate(o) * torch.tanh(cell), cell


def gru_step(gates: Tensor, state: State, weight: Tensor, bias: Tensor | None, gate: Gate) -> State:
    """h′ = ⟦1 − z⟧ n + ⟦z⟧ h, n = tanh(x_n + ⟦r⟧ h_n)."""
    (hidden,) = state
    x_r, x_z, x_n = gates.chunk(3, -1)
    h_r, h_z, h_n = F.linear(hidden, weight, bias).chunk(3, -1)
    z = gate(x_z + h_z)
    new = torch.tanh(x_n + gate(x_r + h_r) * h_n)
    return ((1 - z) * new + z * hidden,)


def _tanh_ratio(u: Tensor) -> Tensor:
    return pointwise.secant_through_origin(u.tanh(), u)


def _plain(activation: Callable[[Tensor], Tensor]) -> Step:
    def step(gates: Tensor, state: State, weight: Tensor, bias: Tensor | None, gate: Gate) -> State:
        return (activation(gates + F.linear(state[0], weight, bias)),)

    return step


class Layer(NamedTuple):
    """One step of a layer, all of them at once, and how bounded the outputs are.

    These are a gate times a tanh, or a tanh, or neither.
    """

    step: Step
    kernel: Kernel
    bounded: int = 0


LAYERS: dict[str, Layer] = {
    "lstm": Layer(lstm_step, lstm, pointwise.BOUNDED),
    "gru": Layer(gru_step, gru),
    "rnn_tanh": Layer(_plain(torch.tanh), plain(_tanh_ratio), pointwise.BOUNDED),
    "rnn_relu": Layer(_plain(torch.relu), plain(lambda u: (u > 0).to(u.dtype))),
}


def _gate(call: Call) -> Gate:
    """A sigmoid that is frozen, also where it meets a constant (the first state, a bias)."""
    return lambda t: _held(call.context, torch.sigmoid(t))


def _held(mode: Context, t: Tensor) -> Tensor:
    """An active tensor as a frozen coefficient; called under the mode."""
    with DisableTorchFunction():
        mark = mode.mark_of(t)
        if mark is None or mark.kind != ACTIVE:
            return t
        frozen = t.detach() if mark.true is None else mark.true.view_as(mark.true)
        mode.set_mark(frozen, Mark(mode, FROZEN, mark.place, mark.boundedness, mark.inputs))
    return frozen


def _located(mode: Context, t: Tensor, like: Tensor) -> Tensor:
    """A constant whose rows belong to the samples of the first rows of ``like``."""
    with DisableTorchFunction():
        mark, own = mode.mark_of(like), mode.mark_of(t)
        if mark is None or mark.place is None:
            return t
        if own is not None and (own.kind != FROZEN or own.place is not None):
            return t
        cells = mark.place.cells
        rows = mark.place.with_cells(cells[: t.shape[0]] if cells.shape[0] > 1 else cells)
        inputs = frozenset() if own is None else own.inputs
        there = rows.with_cells(rows.unplaced())
        mode.set_mark(t, Mark(mode, FROZEN, there, inputs=inputs))
    return t


def _now(mode: Context, states: State, gates: Tensor) -> State:
    """The states as a step sees them: at its own place, that of ``gates``."""
    with DisableTorchFunction():
        mark = mode.mark_of(gates)
        place = None if mark is None else mark.place
        for t in states:
            own = mode.mark_of(t)
            if own is not None and own.kind == ACTIVE and place is not None:
                own.place = place
    return states


def sequence(call: Call) -> Any:
    """``torch.lstm`` and kin: (input, state, weights, …) or packed (data, sizes, state, …)."""
    layer = LAYERS[call.operator]
    packed = isinstance(call.args[1], Tensor) and not call.args[1].is_floating_point()
    names = "weights biases layers dropout training bidirectional batch_first".split()
    state, rest = call.args[2 if packed else 1], call.args[3 if packed else 2 :]
    a: dict[str, Any] = dict(zip(names, rest, strict=False))
    if a["training"] and a["dropout"]:
        raise call.refuse(*DROPOUT)
    state = tuple(state) if isinstance(state, (tuple, list)) else (state,)
    if _native(call, state, a["weights"]):
        return _over_states(call, state, a, packed)
    a |= {"gate": _gate(call), "mode": call.context}
    with call.context:
        if packed:
            out, last = _layers(call.args[0], state, a, layer.step, call.args[1].tolist())
        else:
            x = call.args[0].transpose(0, 1) if a.get("batch_first") else call.args[0]
            length, batch = x.shape[:2]
            flat, last = _layers(
                x.reshape(length * batch, -1), state, a, layer.step, [batch] * length
            )
            out = flat.reshape(length, batch, -1)
            out = out.transpose(0, 1) if a.get("batch_first") else out
    return (out, *last)


# What the steps are made of, with rules that the native form knows.
_PARTS = {name: pointwise.RECORDS[name] for name in ("tanh", "sigmoid", "relu")}


def _native(call: Call, state: State, weights: Sequence[Tensor]) -> bool:
    """Whether the layers go back over the states of the native kernel, and not step by step."""
    mode, x = call.context, call.args[0]
    mark = call.mark(x)
    own = mode.engine and all(mode.rules.get(name) is row for name, row in _PARTS.items())
    if not own or mode.create_graph or torch.is_autocast_enabled(x.device.type):
        return False
    if mark is None or mark.kind != ACTIVE or not x.numel():
        return False
    if any(call.mark(w) is not None for w in weights):
        return False
    if mode.location.grid is None:
        return True
    # Elsewhere each step's constants are split between the inputs that it depends on.
    apart = all(m.kind != ACTIVE or m.inputs == mark.inputs for t, m in call.marked)
    return mark.place is not None and (apart or bool(mark.place.located().all()))


def _over_states(call: Call, state: State, a: dict[str, Any], packed: bool) -> Any:
    """The same at once: ``recurrence.py``."""
    mode, first = call.context, bool(a.get("batch_first"))
    length, batch = 0, 0
    if packed:
        rows, sizes = call.args[0], call.args[1].tolist()
    else:
        with mode:
            x = call.args[0].transpose(0, 1) if first else call.args[0]
            length, batch = x.shape[:2]
            rows, sizes = x.reshape(length * batch, -1), [batch] * length
    mark = mode.mark_of(rows)
    assert mark is not None
    place = None if mode.location.grid is None else mark.place
    if place is not None:
        place = places.reduced(place, rows.shape, [1], True)
    out, last = _native_layers(call, rows, state, a, sizes, place)
    inputs = frozenset().union(*(m.inputs for t, m in call.marked if m.kind == ACTIVE))
    boundedness = LAYERS[call.operator].bounded if len(a["weights"]) % 2 == 0 else 0
    mode.computed_in(out.dtype)
    mode.set_mark(out, Mark(mode, ACTIVE, place, boundedness, inputs))
    for t in last:
        mode.set_mark(t, Mark(mode, ACTIVE, _last_place(place, sizes, a), boundedness, inputs))
    if not packed:
        with mode:
            out = out.reshape(length, batch, -1)
            out = out.transpose(0, 1) if first else out
    return (out, *last)


def _last_place(place: Place | None, sizes: list[int], a: dict[str, Any]) -> Place | None:
    """The last step of every sequence, for each layer and direction: (layers, B, 1)."""
    if place is None:
        return None
    ways = (False, True) if a["bidirectional"] else (False,)
    ends = [steps_of(sizes, d, place.cells.device).last for d in ways]
    cells = [place.cells if len(place.cells) == 1 else place.cells[end] for end in ends]
    return place.with_cells(torch.stack(cells * a["layers"]))


def _native_layers(
    call: Call, x: Tensor, state: State, a: dict[str, Any], sizes: list[int], place: Place | None
) -> tuple[Tensor, State]:
    """Layer after layer by the native kernel, each with its frozen backward."""
    directions = 2 if a["bidirectional"] else 1
    weights = [call.constant(w) for w in a["weights"]]
    each = len(weights) // (a["layers"] * directions)
    steps = [steps_of(sizes, bool(d), x.device) for d in range(directions)]
    kernel = LAYERS[call.operator].kernel
    last: list[State] = []
    for n in range(0, a["layers"] * directions, directions):
        own = weights[n * each : (n + directions) * each]
        here = tuple(s[n : n + directions] for s in state)
        with torch.no_grad():
            made, ends = _kernel(call, x.detach(), here, own, a, sizes)
        outs = []
        for d, out in enumerate(made.chunk(directions, -1)):
            ws = own[d * each : (d + 1) * each]
            b, h = ws[2:4] if a["biases"] else (None, None)
            w = Weights(ws[0], ws[1], b, h, ws[-1] if each % 2 else None)
            native, begin = (out.clone(), ends[d].clone()), tuple(s[d] for s in here)
            ones = None if place is None else _ones(call, place, w, begin)
            found = one_layer(kernel, x, begin, native, w, steps[d], ones)
            outs.append(found[0])
            last.append(found[1:])
        x = outs[0] if directions == 1 else torch.cat(outs, -1)
    return x, tuple(torch.stack(s) for s in zip(*last, strict=True))


def _ones(call: Call, place: Place, w: Weights, begin: State) -> Tensor | None:
    """The ones of the constants of one layer: its biases, and states in which it begins."""
    fixed = [s for s in begin if not s.requires_grad]
    biased = any(b is not None and bool(b.any()) for b in (w.b, w.d))
    if not biased and not any(bool(s.any()) for s in fixed):
        return None
    # What is multiplied with a gate before anything active is another for another input.
    gated = fixed and begin[-1] is fixed[-1] and call.operator in ("lstm", "gru")
    reset = call.operator == "gru" and w.d is not None and bool(w.d.any())
    if gated and (reset or bool(begin[-1].any())):
        call.context.location.frozen_constants.add(call.context.module_path())
    return call.context.location.share(call, place)


def _kernel(
    call: Call, x: Tensor, state: State, weights: list[Tensor], a: dict[str, Any], sizes: list[int]
) -> tuple[Tensor, Tensor]:
    """Outputs (rows, ·) and last hidden states (directions, B, ·) of one layer."""
    hidden: Any = tuple(s.detach() for s in state)
    hidden = hidden if call.operator == "lstm" else hidden[0]
    how = (weights, a["biases"], 1, 0.0, False, bool(a["bidirectional"]))
    if sizes[0] == sizes[-1]:
        out, last, *_ = call.func(x.unflatten(0, (len(sizes), -1)), hidden, *how, False)
        return out.flatten(0, 1), last
    out, last, *_ = call.func(x, torch.tensor(sizes), hidden, *how)
    return out, last


def _layers(
    x: Tensor, state: State, a: dict[str, Any], step: Step, sizes: list[int]
) -> tuple[Tensor, State]:
    """All layers and directions over rows packed by time step."""
    directions = 2 if a["bidirectional"] else 1
    weights = a["weights"]
    last: list[State] = []
    each = len(weights) // (a["layers"] * directions)
    for layer in range(a["layers"]):
        outs = []
        for direction in range(directions):
            k = layer * directions + direction
            own = weights[k * each : (k + 1) * each]
            w_x, w_h = own[0], own[1]
            b_x, b_h = (own[2], own[3]) if a["biases"] else (None, None)
            projection = own[-1] if len(own) % 2 else None

            def one(g: Tensor, s: State, w: Any = w_h, b: Any = b_h, p: Any = projection) -> State:
                new = step(g, s, w, b, a["gate"])
                return new if p is None else (F.linear(new[0], p), *new[1:])

            gates = F.linear(x, w_x, b_x)
            begin = tuple(_located(a["mode"], s[k], gates) for s in state)
            out, end = _scan(gates, begin, one, sizes, direction, a["mode"])
            outs.append(out)
            last.append(end)
        x = outs[0] if directions == 1 else torch.cat(outs, -1)
    return x, tuple(torch.stack(s) for s in zip(*last, strict=True))


def _scan(
    gates: Tensor,
    state: State,
    step: Callable[[Tensor, State], State],
    sizes: list[int],
    backward: int,
    mode: Context,
) -> tuple[Tensor, State]:
    """One direction; ``sizes`` says how many sequences still run at each step."""
    starts = [0]
    for n in sizes:
        starts.append(starts[-1] + n)
    order = range(len(sizes) - 1, -1, -1) if backward else range(len(sizes))
    outs: list[Tensor | None] = [None] * len(sizes)
    whole = state
    for t in order:
        n = sizes[t]
        now = gates[starts[t] : starts[t] + n]
        new = step(now, _now(mode, tuple(s[:n] for s in whole), now))
        outs[t] = new[0]
        if n == whole[0].shape[0]:
            whole = new
        else:  # sequences that have ended (or not begun) keep their state
            whole = tuple(torch.cat([m, s[n:]]) for m, s in zip(new, whole, strict=True))
    return torch.cat([o for o in outs if o is not None]), whole


def cell(call: Call) -> Any:
    """``LSTMCell``, ``GRUCell``, ``RNNCell``: one step."""
    x, state, w_x, w_h, *biases = call.args
    b_x, b_h = biases if biases else (None, None)
    state = tuple(state) if isinstance(state, (tuple, list)) else (state,)
    with call.context:
        step = LAYERS[call.operator.removesuffix("_cell")].step
        gates = F.linear(x, w_x, b_x)
        state = _now(call.context, tuple(s.view_as(s) for s in state), gates)
        new = step(gates, state, w_h, b_h, _gate(call))
    return new if call.operator == "lstm_cell" else new[0]


@at_source
def packed_place(call: Call, out: Any, x: Tensor, place: Place) -> Any:
    """Packing moves rows; the padding that unpacking adds has no place in its sequence."""
    cells = places.full(place.cells, x.shape).expand(x.shape)
    if call.operator == "_pack_padded_sequence":
        return [place.with_cells(call.run(lambda t: cells if t is x else t)[0]), None]
    args = (cells, *call.args[1:3], -1, *call.args[4:])
    moved = call.func(*args)[0]
    first = moved.narrow(1 if call.args[2] else 0, 0, 1)
    padding = place.grid.slot(place.grid.sample[first])
    return [place.with_cells(torch.where(moved < 0, padding, moved)), None]


def unpacked(call: Call) -> Any:
    """``pad_packed_sequence``; a padding value other than zero is a constant."""
    if call.args[3]:
        raise call.refuse("padding with a value other than zero has no rule")
    return call.run()


_SEQUENCE = Operator(sequence, composite=True)
_CELL = Operator(cell, composite=True)

RECORDS: dict[str, Operator] = {
    **named(replace(_SEQUENCE, degree=degrees.smooth), "lstm gru"),
    **named(replace(_CELL, degree=degrees.smooth), "lstm_cell gru_cell"),
    "rnn_tanh": replace(_SEQUENCE, degree=degrees.smooth, true=True),
    "rnn_tanh_cell": replace(_CELL, degree=degrees.smooth, true=True),
    "rnn_relu": replace(_SEQUENCE, true=True),
    "rnn_relu_cell": replace(_CELL, true=True),
    "_pack_padded_sequence": Operator(linear, packed_place, degrees.chosen, true=True),
    "_pad_packed_sequence": Operator(unpacked, packed_place, degrees.chosen, true=True),
}
