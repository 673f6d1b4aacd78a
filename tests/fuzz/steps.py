"""Blocks of random networks on tokens: selection, writing, control flow, recurrence.

What a block is: see ``tokens.py``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fuzz.dense import Dense, chosen, constant, half, joined
from fuzz.tokens import WIDTH, Map, Run, draw, pick

# --- selection, writing, control flow ------------------------------------------------------------


def selection() -> tuple[Run, Map]:
    def ordered(z: Dense) -> Dense:
        index = z.value.argsort(1)
        return z.linear(lambda v: v.gather(1, index))

    def largest(z: Dense) -> Dense:
        index = z.value.argmax(1, keepdim=True)
        return z.linear(lambda v: v.gather(1, index).expand_as(v)) + z

    return pick(
        (lambda x: x.sort(1).values, ordered),
        (lambda x: torch.gather(x, 1, x.argsort(1)), ordered),
        (lambda x: x.topk(x.shape[1], 1).values.flip(1), ordered),
        (lambda x: x.amax(1, keepdim=True) + x, largest),
        (lambda x: x + x.max(1, keepdim=True).values, largest),
    )


def writing() -> tuple[Run, Map]:
    w, fill = draw(WIDTH, WIDTH), draw(WIDTH)

    def into_constant(x: Tensor) -> Tensor:
        out = fill.expand_as(x).clone()
        out[:, 1:] = (x @ w)[:, :-1]
        return out

    def into_constant_dense(z: Dense) -> Dense:
        rest = z.linear(lambda v: (v @ w)[:, :-1])
        first = constant(fill.expand_as(z.value)[:, :1], len(z.columns) - 1)
        return joined([first, rest], -2)

    def into_clone(x: Tensor) -> Tensor:
        y = x.clone()
        y[:, 0] *= 2
        y[..., 1:3].add_(x[..., :2])
        return y

    def linear_part(v: Tensor) -> Tensor:
        y = v.clone()
        y[:, 0] *= 2
        y[..., 1:3] += v[..., :2]
        return y

    def indexed(x: Tensor) -> Tensor:
        y = torch.zeros_like(x)
        y[:, torch.arange(x.shape[1]).flip(0)] = x
        return y.index_fill(2, torch.tensor([0]), 0.5)

    def indexed_dense(z: Dense) -> Dense:
        keep = torch.ones(WIDTH, dtype=torch.float64)
        keep[0] = 0
        return z.linear(lambda v: v.flip(1) * keep).plus(0.5 * (1 - keep))

    return pick(
        (into_constant, into_constant_dense),
        (into_clone, lambda z: z.linear(linear_part)),
        (indexed, indexed_dense),
    )


def decision() -> tuple[Run, Map]:
    w, v = draw(WIDTH, WIDTH), draw(WIDTH, WIDTH)

    def run(x: Tensor) -> Tensor:
        return torch.where(x > 0.1, x @ w, x @ v)

    def masked(x: Tensor) -> Tensor:
        y = x @ v
        mask = x > 0.1
        y[mask] = (x @ w)[mask]
        return y

    def dense(z: Dense) -> Dense:
        return chosen(z.value > 0.1, z.linear(lambda t: t @ w), z.linear(lambda t: t @ v))

    return pick(run, masked), dense


def control_flow() -> tuple[Run, Map]:
    w = draw(WIDTH, WIDTH)

    def run(x: Tensor) -> Tensor:
        if bool(torch.isnan(x).any()):
            return x
        for _ in range(int((x.abs() < 1e9).all()) + 1):
            x = torch.relu(x @ w) + x
        return x

    def dense(z: Dense) -> Dense:
        for _ in range(2):
            z = z.linear(lambda v: v @ w).pointwise(F.relu) + z
        return z

    return run, dense


def inner_derivative() -> tuple[Run, Map]:
    """A derivative of constants inside of the forward pass: a constant coefficient."""
    w = draw(WIDTH).abs() + 0.5
    run = pick(
        lambda x: x * torch.func.grad(lambda v: v.pow(3).sum())(w),
        lambda x: x * torch.autograd.functional.jacobian(lambda v: v.pow(3).sum(), w),
    )
    return run, lambda z: z.times(3 * w.square())


def time_first() -> tuple[Run, Map]:
    """A block that has its batch in the second dimension, as recurrent layers do."""
    w, b = draw(WIDTH, WIDTH), draw(WIDTH)
    run = lambda x: torch.tanh(F.linear(x.transpose(0, 1), w, b)).cumsum(0).transpose(0, 1)  # noqa: E731
    step = lambda z: z.linear(lambda v: v @ w.T).plus(b).pointwise(torch.tanh)  # noqa: E731
    return run, lambda z: step(z).linear(lambda v: v.cumsum(1))


def recurrent() -> tuple[Run, Map]:
    """A vanilla recurrent layer, whose state starts at zero, beside its loop written out."""
    w, u, b = draw(WIDTH, WIDTH), draw(WIDTH, WIDTH), draw(WIDTH)
    layer = nn.RNN(WIDTH, WIDTH, batch_first=True).double().eval()
    for p, value in zip(layer.parameters(), (w, u, b, torch.zeros_like(b)), strict=True):
        p.requires_grad_(False).copy_(value)

    def loop(x: Tensor) -> Tensor:
        h, out = torch.zeros_like(x[:, 0]), []
        for step in x.unbind(1):
            h = torch.tanh(F.linear(step, w, b) + h @ u.T)
            out.append(h)
        return torch.stack(out, 1)

    def dense(z: Dense) -> Dense:
        h, out = constant(torch.zeros_like(z.value[:, 0]), len(z.columns) - 1), []
        for t in range(z.value.shape[1]):
            step = z.linear(lambda v, t=t: v[..., t, :] @ w.T).plus(b)
            h = (step + h.linear(lambda v: v @ u.T)).pointwise(torch.tanh)
            out.append(h.linear(lambda v: v.unsqueeze(-2)))
        return joined(out, -2)

    return pick(lambda x: layer(x)[0], loop), dense


def gated_recurrent() -> tuple[Run, Map]:
    """A GRU or an LSTM: gates are held, tanh carries; also packed, and batch second."""
    kind, gates = pick((nn.GRU, 3), (nn.LSTM, 4))
    layer = kind(WIDTH, WIDTH, batch_first=True).double().eval().requires_grad_(False)
    w, u, b, c = (p.detach() for p in layer.parameters())

    def packed(x: Tensor) -> Tensor:
        lengths = torch.full((len(x),), x.shape[1])
        out, _ = layer(nn.utils.rnn.pack_padded_sequence(x, lengths, True, False))
        return nn.utils.rnn.pad_packed_sequence(out, True)[0]

    def gru(step: Dense, h: Dense, _: Dense) -> tuple[Dense, Dense]:
        (x_r, x_z, x_n), (h_r, h_z, h_n) = _cut(step, gates), _cut(_affine(h, u, c), gates)
        r, z = torch.sigmoid((x_r + h_r).value), torch.sigmoid((x_z + h_z).value)
        new = (x_n + h_n.times(r)).pointwise(torch.tanh)
        return new.times(1 - z) + h.times(z), h

    def lstm(step: Dense, h: Dense, cell: Dense) -> tuple[Dense, Dense]:
        i, f, g, o = _cut(step + _affine(h, u, c), gates)
        cell = cell.times(torch.sigmoid(f.value))
        cell = cell + g.pointwise(torch.tanh).times(torch.sigmoid(i.value))
        return cell.pointwise(torch.tanh).times(torch.sigmoid(o.value)), cell

    def dense(z: Dense) -> Dense:
        h = cell = constant(torch.zeros_like(z.value[:, 0]), len(z.columns) - 1)
        out = []
        for t in range(z.value.shape[1]):
            step = _affine(z.linear(lambda v, t=t: v[..., t, :]), w, b)
            h, cell = (gru if kind is nn.GRU else lstm)(step, h, cell)
            out.append(h.linear(lambda v: v.unsqueeze(-2)))
        return joined(out, -2)

    return pick(lambda x: layer(x)[0], packed), dense


def _affine(z: Dense, weight: Tensor, bias: Tensor) -> Dense:
    return z.linear(lambda v: v @ weight.T).plus(bias)


def _cut(z: Dense, parts: int) -> list[Dense]:
    return [z.linear(lambda v, k=k: v.chunk(parts, -1)[k]) for k in range(parts)]


def reused() -> tuple[Run, Map]:
    """One layer that is called twice."""
    layer = nn.Linear(WIDTH, WIDTH).double().requires_grad_(False)

    def run(x: Tensor) -> Tensor:
        for _ in range(2):
            x = torch.relu(layer(x)) + x
        return x

    def dense(z: Dense) -> Dense:
        for _ in range(2):
            z = _affine(z, layer.weight, layer.bias).pointwise(F.relu) + z
        return z

    return run, dense


def complex_product() -> tuple[Run, Map]:
    """Two complex numbers that count alike, as in filters of state spaces."""
    a, b, c, d = (draw(WIDTH, WIDTH) for _ in range(4))

    def factors(x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.complex(x @ a, x @ b), torch.complex(x @ c, x @ d)

    def stacked(x: Tensor) -> Tensor:
        u, v = factors(x)
        return torch.view_as_real(u * v)[..., 0]

    def by_parts(x: Tensor) -> Tensor:
        return (x @ a) * (x @ c) - (x @ b) * (x @ d)

    def dense(z: Dense) -> Dense:
        u = z.linear(lambda t: torch.complex(t @ a, t @ b))
        v = z.linear(lambda t: torch.complex(t @ c, t @ d))
        return half(u, v).linear(lambda t: t.real)

    run = pick(lambda x: (factors(x)[0] * factors(x)[1]).real, stacked, by_parts)
    return run, dense


def guarded_mean() -> tuple[Run, Map]:
    """The mean of what is chosen, which may be nothing: 0/0 that ``where`` keeps out."""
    threshold = pick(0.5, 1.5, 9.0)

    def held(x: Tensor) -> tuple[Tensor, Tensor]:
        large = x > threshold
        return large, large.sum(1, keepdim=True).to(x.dtype)

    def run(x: Tensor) -> Tensor:
        large, n = held(x)
        total = (x * large).sum(1, keepdim=True)
        return x + torch.where(n > 0, total / n, 0)

    def dense(z: Dense) -> Dense:
        large, n = held(z.value)
        mean = z.times(large.double()).linear(lambda v: v.sum(-2, keepdim=True))
        return mean.times((n > 0) / n.clamp_min(1)) + z

    return run, dense


def masked_attention() -> tuple[Run, Map]:
    """Attention among chosen positions; where none is chosen the row is −∞ everywhere."""
    q, k, v = draw(WIDTH, WIDTH), draw(WIDTH, WIDTH), draw(WIDTH, WIDTH)
    threshold = pick(-1.0, 0.5, 9.0)

    def weights(x: Tensor, clean: int) -> Tensor:
        kept = (x.sum(-1) > threshold)[:, None]
        scores = ((x @ q) @ (x @ k).mT).masked_fill(~kept, -torch.inf)
        w = scores.softmax(-1)
        if clean == 0:
            return torch.nan_to_num(w)
        none = ~kept.any(-1, keepdim=True)
        return w.masked_fill(none, 0.0) if clean == 1 else torch.where(none, 0.0, w)

    def dense(z: Dense) -> Dense:
        w = weights(z.value, 0)
        return z.linear(lambda t: w @ (t @ v)) + z

    clean = pick(0, 1, 2)
    return lambda x: weights(x, clean) @ (x @ v) + x, dense


def written_gate() -> tuple[Run, Map]:
    """A gate that is multiplied into a part of a tensor, in place."""
    v, w = draw(WIDTH, WIDTH), draw(WIDTH, WIDTH)

    def by_slice(x: Tensor) -> Tensor:
        y = x @ v
        y[..., :2] *= torch.sigmoid(x @ w)[..., :2]
        return y

    def by_view(x: Tensor) -> Tensor:
        y = x @ v
        y[..., :2].mul_(torch.sigmoid(x @ w)[..., :2])
        return y

    def into_zeros(x: Tensor) -> Tensor:
        y = torch.zeros_like(x)
        y[..., :2] = (x @ v * torch.sigmoid(x @ w))[..., :2]
        y[..., 2:] += (x @ v)[..., 2:]
        return y

    def dense(z: Dense) -> Dense:
        gate = torch.sigmoid(z.value @ w)
        gate[..., 2:] = 1
        return z.linear(lambda t: t @ v).times(gate)

    return pick(by_slice, by_view, into_zeros), dense


def even_gate() -> tuple[Run, Map]:
    """A product of two factors that are bounded alike: half of each."""
    v, w = draw(WIDTH, WIDTH), draw(WIDTH, WIDTH)

    def dense(z: Dense) -> Dense:
        a = z.linear(lambda t: t @ v).pointwise(torch.tanh)
        return half(a, z.linear(lambda t: t @ w).pointwise(torch.tanh))

    return lambda x: torch.tanh(x @ v) * torch.tanh(x @ w), dense
