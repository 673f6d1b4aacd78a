"""Aᵀ g for the softmax weights A of an attention, block by block: no (L, S) matrix is kept."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

BLOCK = 1 << 18  # elements of a block of weights: 1 MB, which a processor keeps at hand


class Softmax(NamedTuple):
    """How the weights are made from q, k and the mask; ``grouped``: query heads share a key."""

    causal: bool
    scale: float
    grouped: bool

    @classmethod
    def of(cls, call: Any) -> Softmax:
        """How a call of ``scaled_dot_product_attention`` makes them."""
        scale = call.get("scale")
        scale = 1 / math.sqrt(call.get("query").shape[-1]) if scale is None else scale
        return cls(bool(call.get("is_causal")), scale, bool(call.get("enable_gqa")))


def weights(
    query: Tensor, key: Tensor, mask: Tensor | None, how: Softmax, rows: Tensor | None = None
) -> Tensor:
    """softmax(scale · q kᵀ + mask), (…, L, S), in one piece; or ``rows`` of it, (…, rows, S)."""
    if how.grouped:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
    if rows is not None:
        if how.causal:
            mask, how = _seen(rows, key.shape[-2]), how._replace(causal=False)
        elif mask is not None and mask.ndim > 1 and mask.shape[-2] > 1:
            mask = mask[..., rows, :]
        query = query[..., rows, :]
    return _normalised(masked((query * how.scale) @ key.mT, mask, how.causal), mask)


def masked(logits: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """logits + mask, with −∞ where a query does not see a key."""
    if causal:
        allowed = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).tril()
        logits = logits.masked_fill(~allowed, -math.inf)
    if mask is not None and mask.dtype == torch.bool:  # not by adding: −∞ has no derivative
        logits = logits.masked_fill(~mask, -math.inf)
    elif mask is not None:
        logits = logits + mask
    return logits


def _normalised(logits: Tensor, mask: Tensor | None) -> Tensor:
    found = torch.softmax(logits, -1)
    # A row that is masked everywhere has no weights; torch's kernels give zeros for it.
    return found if mask is None else found.nan_to_num(nan=0.0)


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask of what may be seen (bool) as zeros and −∞; any other as it is."""
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, -math.inf)


class _Rows(NamedTuple):
    """Queries, the gradient at the output and the mask, all (batch, heads, rows, ·)."""

    query: Tensor
    grad: Tensor
    mask: Tensor | None

    def at(self, *where: slice) -> _Rows:
        """A block; what is the same along a dimension is so in the block."""
        sizes = [() if t is None else t.shape for t in self]
        cuts = [tuple(slice(None) if n == 1 else w for n, w in zip(s, where)) for s in sizes]  # noqa: B905
        return _Rows(*(t if t is None else t[cut] for t, cut in zip(self, cuts, strict=True)))  # type: ignore[arg-type]


def at_values(
    grad: Tensor, query: Tensor, key: Tensor, mask: Tensor | None, how: Softmax
) -> Tensor:
    """Aᵀ grad, (…, heads, S, D), for grad (…, heads, L, D); has no derivatives of its own."""
    if how.grouped:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
    lead = grad.shape[:-2]
    dtype = torch.float32 if grad.dtype in (torch.float16, torch.bfloat16) else grad.dtype
    rows = _Rows(
        _four(query.to(dtype), lead),
        _four(grad.to(dtype), lead),
        None if mask is None else _four(additive(mask, dtype), lead, spread=False),
    )
    key = _four(key.to(dtype), lead)
    out = key.new_zeros(*key.shape[:3], grad.shape[-1])
    size = (key.shape[0], key.shape[1], grad.shape[-2], key.shape[2])
    step = 128 if how.causal else grad.shape[-2]  # later keys are left out of a block
    for batch, heads, part in _blocks(size, step):
        number = torch.arange(part.start, min(part.stop, grad.shape[-2]), device=grad.device)
        seen = _seen(number, min(key.shape[2], part.stop)) if how.causal else None
        keys = slice(None if seen is None else seen.shape[1])
        block = rows.at(batch, heads, part)
        found = _block(block, key[batch, heads, keys], seen, how.scale).transpose(1, 2)
        out[batch, heads, keys].flatten(0, 1).baddbmm_(found, block.grad.flatten(0, 1))
    return out.reshape(*lead, *out.shape[2:]).to(grad.dtype)


def _block(rows: _Rows, key: Tensor, seen: Tensor | None, scale: float) -> Tensor:
    """Weights of some queries, (batch · heads, rows, keys)."""
    logits = torch.bmm(rows.query.flatten(0, 1), key.flatten(0, 1).mT).mul_(scale)
    if rows.mask is not None:
        upto = 1 if rows.mask.shape[-1] == 1 else key.shape[2]
        logits.unflatten(0, key.shape[:2]).add_(rows.mask[..., :upto])
    if seen is not None:
        logits.masked_fill_(~seen, -math.inf)
    return _normalised(logits, rows.mask)


def _seen(rows: Tensor, keys: int) -> Tensor:
    """Which of the first ``keys`` keys the query of each number sees, if later ones are hidden."""
    return torch.arange(keys, device=rows.device) <= rows.unsqueeze(1)


def _four(t: Tensor, lead: Sequence[int], spread: bool = True) -> Tensor:
    """(…, a, b) as (batch, heads, a, b) for an output with the leading dimensions ``lead``."""
    shape = (*[1] * (len(lead) + 2 - t.ndim), *t.shape)
    t = t.reshape(shape)
    if spread or len(lead) > 2:
        t = t.expand(*lead, *shape[-2:])
    if t.ndim < 4:
        return t.reshape(*[1] * (4 - t.ndim), *t.shape)
    return t.flatten(0, -4)


def _blocks(shape: tuple[int, int, int, int], step: int) -> Iterator[tuple[slice, slice, slice]]:
    """Blocks of at most ``BLOCK`` weights, or one row: at most ``step`` rows, heads, samples."""
    batch, heads, rows, keys = shape
    size = max(1, BLOCK // max(1, keys))  # rows of weights
    step = max(1, min(rows, size, step))
    each = max(1, min(heads, size // step))
    many = max(1, size // (step * heads)) if each == heads else 1
    for i in range(0, batch, many):
        for j in range(0, heads, each):
            for a in range(0, rows, step):
                yield slice(i, i + many), slice(j, j + each), slice(a, a + step)
