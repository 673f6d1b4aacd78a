"""Softmax attention: ⟦A⟧ V. Nothing flows back through the query and the key."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from omenn.engine.kernels.columns import connected
from omenn.engine.kernels.softmax import Softmax, additive, at_values, weights
from omenn.engine.location.placers import attention_place
from omenn.engine.operators import degrees
from omenn.engine.operators.record import DROPOUT, Operator
from omenn.engine.torch_private import batched
from omenn.engine.trace.call import Call


def fused(call: Call) -> Any:
    """``scaled_dot_product_attention``: native forward; the weights are recomputed backward."""
    q, k, v = call.get("query"), call.get("key"), call.get("value")
    if call.get("dropout_p"):
        raise call.refuse(*DROPOUT)
    if not call.is_active(v):
        return call.freeze()
    mask, how, shape = call.get("attn_mask"), Softmax.of(call), v.shape
    mask = call.true(mask) if isinstance(mask, Tensor) else None

    def summed(out: Tensor) -> Tensor:
        """Over the heads that share a value, and where it was broadcast."""
        if how.grouped:
            # Not unflatten, which rows that travel together (chunk=) have no rule for.
            groups = (shape[-3], out.shape[-3] // shape[-3])
            out = out.reshape(*out.shape[:-3], *groups, *out.shape[-2:]).sum(-3)
        return out.sum_to_size(shape)

    if call.context.how.finite:  # a mask of −∞ is no coefficient; the weights that it makes are
        back = lambda grad, seen: summed(seen.mT @ grad)  # noqa: E731
        return call.frozen(v, call.value(), back, weights(call.true(q), call.true(k), mask, how))

    def vjp(grad: Tensor, query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
        if torch.is_grad_enabled() or batched(grad):  # NOTE [differentiated again]
            return summed(weights(query, key, mask, how).mT @ grad)
        return summed(at_values(grad, query, key, mask, how))

    return call.frozen(connected(call, v), call.value(), vjp, call.true(q), call.true(k), mask)


_MULTI_HEAD = (
    "query key value embed_dim_to_check num_heads in_proj_weight in_proj_bias bias_k bias_v "
    "add_zero_attn dropout_p out_proj_weight out_proj_bias training key_padding_mask "
    "need_weights attn_mask use_separate_proj_weight q_proj_weight k_proj_weight "
    "v_proj_weight static_k static_v average_attn_weights is_causal"
).split()


def multi_head(call: Call) -> Any:
    """``F.multi_head_attention_forward`` in its parts, each seen by the tracer."""
    a: dict[str, Any] = dict(zip(_MULTI_HEAD, call.args, strict=False)) | call.kwargs
    if a.get("training") and a["dropout_p"]:
        raise call.refuse(*DROPOUT)
    if a.get("static_k") is not None or a.get("static_v") is not None:
        raise call.refuse("static keys and values have no rule")
    with call.context:  # back in force: what follows is seen operator by operator
        return _multi_head(a)


def _multi_head(a: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
    batched = a["query"].ndim == 3
    q, k, v = (t if batched else t.unsqueeze(1) for t in (a["query"], a["key"], a["value"]))
    q, k, v = projected(a, (q, k, v))
    heads = a["num_heads"]
    seen = a.get("need_weights", True) or a.get("key_padding_mask") is not None
    # As PyTorch does: elsewhere the mask is but a hint, and is_causal alone is what counts.
    causal = bool(a.get("is_causal")) and not seen
    mask = None if causal else _merged_mask(a, q, k, batched)
    if a.get("bias_k") is not None:
        k = torch.cat([k, a["bias_k"].repeat(1, k.shape[1], 1)])
        v = torch.cat([v, a["bias_v"].repeat(1, v.shape[1], 1)])
        mask = None if mask is None else F.pad(mask, (0, 1))
    q, k, v = (t.unflatten(-1, (heads, -1)).permute(1, 2, 0, 3) for t in (q, k, v))
    if a.get("add_zero_attn"):
        k, v = F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1))
        mask = None if mask is None else F.pad(mask, (0, 1))
    weights = None
    if a.get("need_weights", True):
        logits = (q / math.sqrt(q.shape[-1])) @ k.transpose(-2, -1)
        weights = torch.softmax(logits if mask is None else logits + mask, -1)
        out = weights @ v
        weights = weights.mean(1) if a.get("average_attn_weights", True) else weights
        weights = weights if batched else weights.squeeze(0)
    else:
        out = F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal)
    out = out.permute(2, 0, 1, 3).flatten(2)
    out = F.linear(out, a["out_proj_weight"], a["out_proj_bias"])
    return (out if batched else out.squeeze(1)), weights


def projected(a: dict[str, Any], given: Sequence[Tensor]) -> list[Tensor]:
    """Query, key and value as the arguments of ``F.multi_head_attention_forward`` project them."""
    bias = a.get("in_proj_bias")
    biases = (None, None, None) if bias is None else bias.chunk(3)
    if a.get("use_separate_proj_weight"):
        weights = (a["q_proj_weight"], a["k_proj_weight"], a["v_proj_weight"])
    else:
        weights = a["in_proj_weight"].chunk(3)
    return [F.linear(x, w, b) for x, w, b in zip(given, weights, biases, strict=True)]


def _merged_mask(a: dict[str, Any], q: Tensor, k: Tensor, batched: bool) -> Tensor | None:
    """Padding and attention masks as one additive mask that broadcasts to (B, heads, L, S)."""
    total: Tensor | None = None
    mask, padding = a.get("attn_mask"), a.get("key_padding_mask")
    if mask is not None:
        mask = _additive(mask, q.dtype)
        total = mask.unflatten(0, (-1, a["num_heads"])) if mask.ndim == 3 else mask
    if padding is not None:
        padding = _additive(padding if batched else padding.unsqueeze(0), q.dtype)
        padding = padding[:, None, None, :]
        total = padding if total is None else total + padding
    return total


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """The module's boolean masks tell what may not be seen."""
    return additive(~mask if mask.dtype == torch.bool else mask, dtype)


RECORDS: dict[str, Operator] = {
    "scaled_dot_product_attention": Operator(
        fused,
        attention_place,
        degrees.attention,
        replacement="attention",
        arguments="query key value attn_mask dropout_p is_causal scale enable_gqa",
    ),
    "multi_head_attention_forward": Operator(
        multi_head,
        replacement="attention",
        composite=True,
        true=True,
        arguments=" ".join(_MULTI_HEAD),
        summand="in_proj_bias bias_k bias_v out_proj_bias",
    ),
}
