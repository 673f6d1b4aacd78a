"""The frozen operator as a dense float64 matrix, built the slow obvious way.

Nothing here knows the engine. An operator that is affine as it stands is probed with basis
vectors; one that is not is written out once more from its formula, with an argument ``z`` that is
carried and an argument ``x`` at which the coefficients are taken, or as an explicit matrix.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

Call = Callable[..., Tensor]
Inputs = tuple[Tensor, ...]


class Affine(NamedTuple):
    """y = W x + b, everything flattened: W (outputs, inputs), b (outputs,)."""

    weight: Tensor
    bias: Tensor


Oracle = Callable[[Call, Inputs], Affine]


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """All numbers of the inputs in one vector."""
    return torch.cat([t.reshape(-1) for t in tensors])


def unflat(vector: Tensor, like: Inputs) -> Inputs:
    """The inverse of ``flat``, in fresh tensors."""
    parts = vector.split([t.numel() for t in like])
    return tuple(p.reshape(t.shape).clone() for p, t in zip(parts, like, strict=True))


def probed(f: Call, inputs: Inputs) -> Affine:
    """The matrix of an affine map: its value at zero, and one difference per basis vector."""
    n = flat(inputs).numel()
    bias = f(*unflat(torch.zeros(n, dtype=torch.float64), inputs)).reshape(-1)
    columns = []
    for basis in torch.eye(n, dtype=torch.float64):
        columns.append(f(*unflat(basis, inputs)).reshape(-1) - bias)
    return Affine(torch.stack(columns, 1), bias)


def itself(call: Call, inputs: Inputs) -> Affine:
    """An operator that is affine as it stands."""
    return probed(call, inputs)


def held(g: Callable[[Inputs, Inputs], Tensor]) -> Oracle:
    """``g(z, x)``: affine in z, with its coefficients taken at x."""
    return lambda call, x: probed(lambda *z: g(z, tuple(t.clone() for t in x)), x)


def halves(call: Call, inputs: Inputs) -> Affine:
    """A product of two inputs: half of each, the other held."""
    a, b = inputs
    left = probed(lambda z: call(z, b.clone()), (a,))
    right = probed(lambda z: call(a.clone(), z), (b,))
    return Affine(torch.cat([left.weight, right.weight], 1) / 2, (left.bias + right.bias) / 2)


def only(kept: int) -> Oracle:
    """A product of which input ``kept`` carries and the others are held."""

    def oracle(call: Call, x: Inputs) -> Affine:
        return probed(lambda *z: call(*(z[k] if k == kept else x[k].clone()
                                        for k in range(len(x)))), x)  # fmt: skip

    return oracle


def diagonal(call: Call, inputs: Inputs) -> Affine:
    """A function of each element alone: diag((φ(x) − φ(0))/x) and φ(0)."""
    (x,) = inputs
    origin = call(torch.zeros_like(x))
    step = 1e-6
    slope = (call(torch.full_like(x, step)) - call(torch.full_like(x, -step))) / (2 * step)
    safe = torch.where(x == 0, torch.ones_like(x), x)
    coefficient = torch.where(x == 0, slope, (call(x.clone()) - origin) / safe)
    return Affine(torch.diag(coefficient.reshape(-1)), origin.reshape(-1).clone())


def selected(call: Call, inputs: Inputs) -> Affine:
    """Every output is one of the inputs (found by its value, all differ), or else a constant."""
    x, y = flat(inputs), call(*(t.clone() for t in inputs)).reshape(-1)
    weight = (y[:, None] == x[None, :]).double()
    assert bool((weight.sum(1) <= 1).all()), "values are not distinct"
    return Affine(weight, torch.where(weight.sum(1) == 0, y, torch.zeros_like(y)))


def normalised(
    groups: Callable[[Tensor], Tensor],
    *,
    eps: float,
    centred: bool = True,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
) -> Oracle:
    """γ (I − 11ᵀ/n)/σ block by block; ``groups`` (shaped as x) numbers the block of each element.

    ``gamma`` and ``beta`` broadcast to x. Without centring σ is the root mean square.
    """

    def oracle(call: Call, inputs: Inputs) -> Affine:
        (x,) = inputs
        member, values = groups(x).reshape(-1), x.reshape(-1)
        n = values.numel()
        weight = torch.zeros(n, n, dtype=torch.float64)
        for block in member.unique():
            index = (member == block).nonzero().reshape(-1)
            size, inside = index.numel(), values[index]
            centre = torch.eye(size, dtype=torch.float64)
            if centred:
                centre = centre - torch.ones(size, size, dtype=torch.float64) / size
            sigma = ((centre @ inside).square().mean() + eps).sqrt()
            for i in range(size):
                for j in range(size):
                    weight[index[i], index[j]] = centre[i, j] / sigma
        if gamma is not None:
            weight = torch.diag(gamma.expand_as(x).reshape(-1)) @ weight
        bias = torch.zeros(n, dtype=torch.float64)
        return Affine(weight, bias if beta is None else beta.expand_as(x).reshape(-1).clone())

    return oracle


def softmax_rows(logits: Tensor) -> Tensor:
    """exp(z)/Σ exp(z) over the last dimension, written out; a row of −∞ gives zeros."""
    top = logits.amax(-1, keepdim=True)
    raised = torch.exp(logits - torch.where(top.isinf(), torch.zeros_like(top), top))
    total = raised.sum(-1, keepdim=True)
    return raised / torch.where(total == 0, torch.ones_like(total), total)


def attended(
    mask: Tensor | None = None, *, causal: bool = False, scale: float | None = None,
    gqa: bool = False,
) -> Oracle:  # fmt: skip
    """Softmax attention by the Kronecker identity vec(A V) = (A ⊗ I) vec(V), head by head.

    Inputs q (…, L, E), k (…, S, E), v (…, S, D); only v carries.
    """

    def oracle(call: Call, inputs: Inputs) -> Affine:
        q, k, v = inputs
        if gqa:
            times = q.shape[-3] // k.shape[-3]
            head = torch.arange(q.shape[-3]) // times
        else:
            head = torch.arange(q.shape[-3]) if q.ndim > 2 else torch.zeros(1, dtype=torch.long)
        length, keys, width = q.shape[-2], k.shape[-2], v.shape[-1]
        size = scale if scale is not None else q.shape[-1] ** -0.5
        queries = q.reshape(-1, *q.shape[-3:]) if q.ndim > 2 else q.reshape(1, 1, *q.shape)
        shape = (*queries.shape[:2], length, keys)
        added = torch.zeros(shape, dtype=torch.float64)
        if causal:
            later = torch.ones(length, keys, dtype=torch.bool).triu(1)
            added = added.masked_fill(later, -math.inf)
        if mask is not None:
            added = (
                added.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else added + mask
            )
        k4 = k.reshape(shape[0], -1, keys, k.shape[-1])
        heads_v = v.reshape(shape[0], -1, keys, width).shape[1]
        weight = torch.zeros(shape[0] * shape[1] * length * width, v.numel()).double()
        for b in range(shape[0]):
            for h in range(shape[1]):
                logits = size * queries[b, h] @ k4[b, head[h]].T + added[b, h]
                attention = softmax_rows(logits)
                block = torch.kron(attention, torch.eye(width, dtype=torch.float64))
                row = (b * shape[1] + h) * length * width
                column = (b * heads_v + int(head[h])) * keys * width
                weight[row : row + length * width, column : column + keys * width] = block
        silent = torch.zeros(len(weight), q.numel() + k.numel()).double()
        return Affine(torch.cat([silent, weight], 1), torch.zeros(len(weight)).double())

    return oracle
