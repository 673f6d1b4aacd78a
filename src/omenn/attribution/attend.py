"""Fused attention written out, softmax(scale · q kᵀ + mask) v, for rules that see its parts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from omenn.engine.kernels.softmax import Softmax, masked
from omenn.engine.operators.record import DROPOUT
from omenn.engine.trace.call import Call


def arguments(call: Call) -> list[Any]:
    """Query, key, value and mask of ``scaled_dot_product_attention``; refuses dropout."""
    if call.get("dropout_p"):
        raise call.refuse(*DROPOUT)
    return [call.get(name) for name in ("query", "key", "value", "attn_mask")]


def in_parts(call: Call) -> Tensor:
    """A rule: the parts of fused attention, each seen by the tracer."""
    given = arguments(call)
    with call.context:
        return attend(call, *given)


def attend(
    call: Call,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
) -> Tensor:
    """A v with the weights A that the call makes.

    NOTE a query that sees nothing has no weights, and its output is zero, as PyTorch's kernels
    have it; softmax alone would make NaN of it.
    """
    how = Softmax.of(call)
    if how.grouped:
        times = query.shape[-3] // key.shape[-3]
        key, value = (t.repeat_interleave(times, -3) for t in (key, value))
    logits = masked(query @ key.transpose(-2, -1) * how.scale, mask, how.causal)
    blind = torch.isinf(logits.detach()).all(-1, keepdim=True)
    if not bool(blind.any()):
        weights = torch.softmax(logits, -1)
    else:
        weights = torch.softmax(logits.masked_fill(blind, 0), -1).masked_fill(blind, 0)
    return weights @ value
