"""LSTM, GRU and RNN: unrolled, gates frozen, tanh as a pointwise function."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from opcases.case import Case, draw, table
from opcases.linear import seeded
from oracle import Inputs, Oracle, held

X = draw(2, 4, 3)
LENGTHS = [4, 2]
State = tuple[Tensor, ...]


def secant(z: Tensor, x: Tensor, phi=torch.tanh) -> Tensor:
    """⟦φ(x)/x⟧ z for φ(0) = 0."""
    safe = torch.where(x == 0, torch.ones_like(x), x)
    return z * torch.where(x == 0, torch.ones_like(x), phi(x) / safe)


def lstm(zi: Tensor, xi: Tensor, zh: Tensor, xh: Tensor, z: State, x: State) -> tuple[State, State]:
    """One step on pre-activations (carried and true) of input and hidden state."""
    zi, xi = zi + zh, xi + xh
    i, f, _, o = (torch.sigmoid(t) for t in xi.chunk(4, -1))
    zg, xg = zi.chunk(4, -1)[2], xi.chunk(4, -1)[2]
    zc, xc = f * z[1] + i * secant(zg, xg), f * x[1] + i * torch.tanh(xg)
    return (o * secant(zc, xc), zc), (o * torch.tanh(xc), xc)


def gru(zi: Tensor, xi: Tensor, zh: Tensor, xh: Tensor, z: State, x: State) -> tuple[State, State]:
    zi, xi, zh, xh = (t.chunk(3, -1) for t in (zi, xi, zh, xh))
    r, u = torch.sigmoid(xi[0] + xh[0]), torch.sigmoid(xi[1] + xh[1])
    zn, xn = zi[2] + r * zh[2], xi[2] + r * xh[2]
    zn, xn = secant(zn, xn), torch.tanh(xn)
    return ((1 - u) * zn + u * z[0],), ((1 - u) * xn + u * x[0],)


def rnn(phi):
    def step(zi: Tensor, xi: Tensor, zh: Tensor, xh: Tensor, z: State, x: State):
        return (secant(zi + zh, xi + xh, phi),), (phi(xi + xh),)

    return step


STEPS = {"lstm": lstm, "gru": gru, "rnn_tanh": rnn(torch.tanh), "rnn_relu": rnn(torch.relu)}


def unrolled(
    kind: str, m: nn.RNNBase, lengths: list[int] | None = None, start: bool = False
) -> Oracle:
    """Sample by sample, step by step; input (B, T, F), output (B, T, directions · hidden).

    ``start``: a hidden state (layers · directions, B, hidden) is a second input.
    """
    cells = 2 if kind == "lstm" else 1
    directions = 2 if m.bidirectional else 1

    def weights(layer: int, d: int) -> list[Tensor | None]:
        end = f"l{layer}{'_reverse' if d else ''}"
        names = [f"weight_ih_{end}", f"weight_hh_{end}", f"bias_ih_{end}", f"bias_hh_{end}",
                 f"weight_hr_{end}"]  # fmt: skip
        return [getattr(m, n, None) for n in names]

    def scan(z: Tensor, x: Tensor, layer: int, d: int, begin: tuple[State, State]):
        w, u, b, c, r = weights(layer, d)
        (zs, xs), outs = begin, [None] * len(x)
        for t in reversed(range(len(x))) if d else range(len(x)):
            zi, xi = z[t] @ w.T, x[t] @ w.T
            zh, xh = zs[0] @ u.T, xs[0] @ u.T
            if b is not None:
                zi, xi, zh, xh = zi + b, xi + b, zh + c, xh + c
            zs, xs = STEPS[kind](zi, xi, zh, xh, zs, xs)
            if r is not None:
                zs, xs = (zs[0] @ r.T, *zs[1:]), (xs[0] @ r.T, *xs[1:])
            outs[t] = (zs[0], xs[0])
        return torch.stack([o[0] for o in outs]), torch.stack([o[1] for o in outs])

    def begin(z: Inputs, x: Inputs, k: int, b: int) -> tuple[State, State]:
        hidden = getattr(m, "proj_size", 0) or m.hidden_size
        blank = (torch.zeros(hidden).double(), torch.zeros(m.hidden_size).double())[:cells]
        if not start:
            return blank, blank
        return (z[1][k, b], *blank[1:]), (x[1][k, b], *blank[1:])

    def g(z: Inputs, x: Inputs) -> Tensor:
        outs = []
        for b in range(x[0].shape[0]):
            length = lengths[b] if lengths else x[0].shape[1]
            zb, xb = z[0][b, :length], x[0][b, :length]
            for layer in range(m.num_layers):
                pairs = [scan(zb, xb, layer, d, begin(z, x, layer * directions + d, b))
                         for d in range(directions)]  # fmt: skip
                zb, xb = (torch.cat([p[k] for p in pairs], -1) for k in (0, 1))
            rest = x[0].shape[1] - length
            outs.append(torch.cat([zb, torch.zeros(rest, zb.shape[1]).double()]))
        return torch.stack(outs).detach()

    return held(g)


def network(kind: str, *size: int, **options) -> nn.RNNBase:
    maker = {"lstm": nn.LSTM, "gru": nn.GRU}.get(kind, nn.RNN)
    if kind == "rnn_relu":
        options["nonlinearity"] = "relu"
    return seeded(maker(*size, batch_first=True, **options))


def packed(m: nn.RNNBase):
    def call(x: Tensor) -> Tensor:
        out, _ = m(pack_padded_sequence(x, LENGTHS, batch_first=True))
        return pad_packed_sequence(out, batch_first=True)[0]

    return call


def cases(kind: str) -> list[Case]:
    """Layers, directions, packing, states: each network with its own oracle."""
    found: list[Case] = []
    variants = {
        "plain": {}, "no bias": {"bias": False}, "two layers": {"num_layers": 2},
        "both ways": {"bidirectional": True},
        "deep both ways": {"num_layers": 2, "bidirectional": True},
        "dropout": {"num_layers": 2, "dropout": 0.5},
    }  # fmt: skip
    if kind == "lstm":
        variants |= {"projection": {"proj_size": 2},
                     "projection without bias": {"proj_size": 1, "bias": False,
                                                 "num_layers": 2}}  # fmt: skip
    for name, options in variants.items():
        m = network(kind, 3, 3, **options)
        found += table(kind, {name: lambda x, m=m: m(x)[0]}, X, oracle=unrolled(kind, m))
    for name, options in {
        "packed": {},
        "packed both ways": {"bidirectional": True, "num_layers": 2},
    }.items():
        m = network(kind, 3, 2, **options)
        found += table(kind, {name: packed(m)}, X, oracle=unrolled(kind, m, LENGTHS))
    m = network(kind, 3, 2)
    late = seeded(type(m)(3, 2, **({"nonlinearity": "relu"} if kind == "rnn_relu" else {})))
    late.load_state_dict(m.state_dict())
    found += table(kind, {"time first": lambda x, m=late: m(x.transpose(0, 1))[0].transpose(0, 1)},
                   X,
                   oracle=unrolled(kind, m))  # fmt: skip
    found += table(
        kind, {"unbatched": lambda x, m=m: m(x[0])[0][None]}, X[:1], oracle=unrolled(kind, m)
    )
    if kind != "lstm":
        found += table(kind, {"first state": lambda x, h, m=m: m(x, h)[0]}, X,
                       draw(1, 2, 2, seed=5),
                       oracle=unrolled(kind, m, start=True), samples=False)  # fmt: skip
    return found


def cell_cases(kind: str) -> list[Case]:
    maker = {"lstm": nn.LSTMCell, "gru": nn.GRUCell}.get(kind, nn.RNNCell)
    options = {"nonlinearity": "relu"} if kind == "rnn_relu" else {}
    found: list[Case] = []
    for name, bias in (("cell", True), ("cell without bias", False)):
        m = seeded(maker(3, 2, bias=bias, **options))

        def call(x: Tensor, m=m) -> Tensor:
            state = None
            outs = []
            for t in range(x.shape[1]):
                state = m(x[:, t], state)
                outs.append(state[0] if kind == "lstm" else state)
            return torch.stack(outs, 1)

        whole = network(kind, 3, 2, bias=bias)
        for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            if getattr(m, part, None) is not None:
                getattr(whole, part + "_l0").data.copy_(getattr(m, part).data)
        found += table(f"{kind}_cell", {name: call}, X, oracle=unrolled(kind, whole))
    return found


def lengths_only(kind: str):
    """Packing and unpacking alone."""
    first = kind != "time first"

    def call(x: Tensor) -> Tensor:
        packed = pack_padded_sequence(3 * x, LENGTHS if kind != "unsorted" else LENGTHS[::-1],
                                      first,
                                      enforce_sorted=kind != "unsorted")  # fmt: skip
        return pad_packed_sequence(packed, first)[0]

    return call


PACKED: list[Case] = [
    *table("_pack_padded_sequence", {"there and back": lengths_only("batch first")}, X),
    *table("_pad_packed_sequence", {"unsorted": lengths_only("unsorted")}, X),
    *table("_pad_packed_sequence", {"time first": lengths_only("time first")}, draw(4, 2, 3),
           samples=False),
]  # fmt: skip

CASES: list[Case] = PACKED + [
    case for kind in STEPS for case in (*cases(kind), *cell_cases(kind))
]  # fmt: skip
