"""Layers that a homogeneous network is built of, where PyTorch has none.

A function F is homogeneous of degree k if F(αx) = α^k F(x) for every α > 0. Degree 1 in every
layer, or degree 0 for what another layer's output is multiplied by, makes a network of degree 1.

``ScaleNorm``: BatchNorm without centring and shift; a fixed factor in evaluation mode: degree 1.
``relu_softmax``, ``relu_attention``, ``relu_multi_head``: attention weights of degree 0.
``unit_gate``: a gate of degree 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from omenn.engine.operators.attention import projected
from omenn.engine.operators.table import OPERATORS

# What is added to a score and is no larger than this closes its place.
CLOSED = -1e9


def _wide(dtype: torch.dtype) -> torch.dtype:
    """The type to compute statistics in: at least float32."""
    return torch.promote_types(dtype, torch.float32)


class ScaleNorm(nn.Module):
    """Divides by the root mean square about zero: y = γ x / √(m + ε), without centring or shift.

    m is the second moment of a feature. In training mode it is that of the batch, over all samples
    and positions; a running mean of it is kept in ``running_square``, with ``momentum`` as
    BatchNorm has it (None: the mean of all batches). In evaluation mode it is the running one, so
    that the layer multiplies by a fixed factor: linear, hence homogeneous of degree 1.

    ``dim=1``: x is (B, C) or (B, C, *size), one factor a channel. ``dim=-1``: features are the last
    dimensions, as many as ``shape`` has. Statistics are float32 or wider, whatever x is.

    ``acts``: modules that are applied to the result in turn, by name (as some norms have their
    activation inside).

    Example:
        >>> norm = ScaleNorm(2)
        >>> x = torch.tensor([[3.0, 0.1], [-4.0, 0.1]])
        >>> assert torch.allclose(norm(x)[:, 0], x[:, 0] / (12.5 + 1e-5) ** 0.5)
        >>> assert torch.equal(norm.eval()(4 * x), 4 * norm(x))

    Source: root mean square without centring, Zhang and Sennrich, arXiv 1910.07467; running
    statistics, Ioffe and Szegedy, arXiv 1502.03167.
    """

    running_square: Tensor
    num_batches_tracked: Tensor

    def __init__(
        self,
        shape: int | Sequence[int],
        *,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        dim: int = 1,
        acts: dict[str, nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.shape = (shape,) if isinstance(shape, int) else tuple(shape)
        self.eps, self.momentum, self.dim = eps, momentum, dim
        self.weight = nn.Parameter(torch.ones(self.shape)) if affine else None
        self.register_parameter("bias", None)
        self.register_buffer("running_square", torch.ones(self.shape))
        self.register_buffer("num_batches_tracked", torch.tensor(0, dtype=torch.long))
        for name, act in (acts or {}).items():
            self.add_module(name, act)

    def forward(self, x: Tensor) -> Tensor:
        moment = self._batch_moment(x) if self.training else self.running_square
        factor = torch.rsqrt(moment + self.eps)
        if self.weight is not None:
            factor = factor * self.weight
        if self.dim == 1:
            factor = factor.reshape(-1, *[1] * (x.ndim - 2))
        x = (x * factor).to(x.dtype)
        for act in self.children():
            x = act(x)
        return x

    def _batch_moment(self, x: Tensor) -> Tensor:
        k = len(self.shape)
        others = [0, *range(2, x.ndim)] if self.dim == 1 else list(range(x.ndim - k))
        # One pass that keeps no square of x. With nothing to average over, |x| itself.
        length = torch.linalg.vector_norm(x, dim=others, dtype=_wide(x.dtype)) if others else x
        count = math.prod(x.shape[d] for d in others)
        moment = length * length / count
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            share = self.momentum
            if share is None:
                share = 1 / self.num_batches_tracked.item()
            self.running_square.lerp_(moment.to(self.running_square.dtype), share)
        return moment

    def extra_repr(self) -> str:
        shape = self.shape[0] if len(self.shape) == 1 else self.shape
        dim = "" if self.dim == 1 else f", dim={self.dim}"
        return f"{shape}, eps={self.eps}, momentum={self.momentum}{dim}"


# --- attention -----------------------------------------------------------------------------------


def relu_softmax(scores: Tensor, dim: int = -1, allowed: Tensor | None = None) -> Tensor:
    """What stands in for a softmax: A_j = max(s_j, 0) / Σ_k max(s_k, 0), of degree 0 in s.

    Uniform where no score is positive. Places where ``allowed`` (bool) is False, or the score is
    −10⁹ or less (a mask that was added), get nothing; a row without any other place is zero. There
    is no ε, so a row whose scores are barely positive has large derivatives.

    Example:
        >>> s = torch.tensor([[3.0, 1.0, -2.0], [-1.0, -1.0, 0.0]])
        >>> relu_softmax(s).tolist()
        [[0.75, 0.25, 0.0], [0.3333333432674408, 0.3333333432674408, 0.3333333432674408]]

    Source: ReLU in place of softmax, Wortsman et al., arXiv 2309.08586; here normalised.
    """
    wide = scores.to(_wide(scores.dtype))
    places = ~_closed(wide, scores.dtype)
    if allowed is not None:
        places = places & allowed
    positive = F.relu(wide) * places
    total = positive.sum(dim, keepdim=True)
    none = total == 0
    # Infinity divides zeros to zeros, with a derivative of zero, and is of every degree.
    weights = positive / total.masked_fill(none, math.inf)
    even = places / places.sum(dim, keepdim=True).clamp(min=1)
    return torch.where(none, even.to(weights.dtype), weights).to(scores.dtype)


def _closed(scores: Tensor, dtype: torch.dtype) -> Tensor:
    """Where scores are as good as −∞: −10⁹ or less, or near the lowest number of ``dtype``.

    Told by an overflow: whether a number is infinite is the same for all its multiples, which
    could not be said of a comparison with −10⁹.
    """
    bound = min(-CLOSED, torch.finfo(dtype).max / 2)
    return torch.isneginf(scores * (torch.finfo(scores.dtype).max / bound * (1 + 1e-6)))


def relu_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """``F.scaled_dot_product_attention`` with :func:`relu_softmax`: degree 1 in x if V is.

    A mask of numbers closes the places where it is −10⁹ or less; all else in it is an additive term
    and left out. ``scale`` cancels, and only keeps scores in range.
    """
    return _mixed(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)[0]


def _mixed(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    dropout: float = 0.0,
    causal: bool = False,
    scale: float | None = None,
    grouped: bool = False,
) -> tuple[Tensor, Tensor]:
    """(A V, A) for query, key, value of the shape (…, L or S, D)."""
    if grouped:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
        value = value.repeat_interleave(query.shape[-3] // value.shape[-3], -3)
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    allowed = None
    if causal:
        allowed = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device)
        allowed = allowed.tril()
    if mask is not None:
        seen = mask if mask.dtype == torch.bool else ~_closed(mask, mask.dtype)
        allowed = seen if allowed is None else allowed & seen
    weights = relu_softmax((query * scale) @ key.transpose(-2, -1), -1, allowed)
    weights = weights.to(value.dtype)
    if dropout:
        weights = F.dropout(weights, dropout)
    return weights @ value, weights


_ARGUMENTS = OPERATORS["multi_head_attention_forward"].arguments.split()


def relu_multi_head(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
    """``F.multi_head_attention_forward`` with :func:`relu_softmax`; same arguments and results.

    Static keys and values are not supported (NotImplementedError).
    """
    a: dict[str, Any] = dict(zip(_ARGUMENTS, args, strict=False)) | kwargs
    if a.get("static_k") is not None or a.get("static_v") is not None:
        raise NotImplementedError("static keys and values have no homogeneous stand-in")
    batched = a["query"].ndim == 3
    given = [t if batched else t.unsqueeze(1) for t in (a["query"], a["key"], a["value"])]
    q, k, v = projected(a, given)
    if a.get("bias_k") is not None:
        k = torch.cat([k, a["bias_k"].expand(1, k.shape[1], -1)])
        v = torch.cat([v, a["bias_v"].expand(1, v.shape[1], -1)])
    if a.get("add_zero_attn"):
        k, v = F.pad(k, (0, 0, 0, 0, 0, 1)), F.pad(v, (0, 0, 0, 0, 0, 1))
    # (L, B, D) → (B, heads, L, D / heads)
    q, k, v = (t.unflatten(-1, (a["num_heads"], -1)).permute(1, 2, 0, 3) for t in (q, k, v))
    dropout = a.get("dropout_p", 0.0) if a.get("training", True) else 0.0
    out, weights = _mixed(q, k, v, _allowed(a, k.shape[-2], batched), dropout)
    out = F.linear(out.permute(2, 0, 1, 3).flatten(2), a["out_proj_weight"], a["out_proj_bias"])
    out = out if batched else out.squeeze(1)
    if not a.get("need_weights", True):
        return out, None
    weights = weights.mean(1) if a.get("average_attn_weights", True) else weights
    return out, weights if batched else weights.squeeze(0)


def _allowed(a: dict[str, Any], keys: int, batched: bool) -> Tensor | None:
    """Padding and attention masks (True or −∞: closed) as one of open places (B, heads, L, S)."""
    mask, padding = (_opened(a.get(name)) for name in ("attn_mask", "key_padding_mask"))
    if mask is None and padding is None and a.get("is_causal"):
        rows = a["query"].shape[0]
        mask = torch.ones(rows, rows, dtype=torch.bool, device=a["query"].device).tril()
    if mask is not None and mask.ndim == 3:
        mask = mask.unflatten(0, (-1, a["num_heads"]))
    if padding is not None:
        padding = (padding if batched else padding.unsqueeze(0))[:, None, None, :]
        mask = padding if mask is None else mask & padding
    if mask is None:
        return None
    return F.pad(mask, (0, keys - mask.shape[-1]), value=True)  # keys that were put after them


def _opened(mask: Tensor | None) -> Tensor | None:
    if mask is None:
        return None
    return ~(mask if mask.dtype == torch.bool else _closed(mask, mask.dtype))


# --- gates ---------------------------------------------------------------------------------------


def unit_gate(z: Tensor, function: Callable[[Tensor], Tensor] = torch.sigmoid) -> Tensor:
    """A gate of degree 0: σ(z / rms(z)), with the root mean square over all of one sample.

    As the sigmoid it is monotone in each entry, within (0, 1) and ½ at zero, but it looks at
    proportions only. z is (B, …); its first dimension holds samples, if it has others.

    Example:
        >>> z = torch.tensor([[3.0, -1.0]])
        >>> assert torch.allclose(unit_gate(5 * z), unit_gate(z))
        >>> assert torch.equal(unit_gate(0 * z), torch.tensor([[0.5, 0.5]]))
    """
    wide = z.to(_wide(z.dtype))
    flat = wide.flatten(1) if z.ndim > 1 else wide.reshape(1, -1)
    length = torch.linalg.vector_norm(flat, dim=1, keepdim=True)
    unit = flat / length.masked_fill(length == 0, math.inf) * math.sqrt(flat.shape[1])
    return function(unit.reshape(z.shape)).to(z.dtype)


class UnitGate(nn.Module):
    """:func:`unit_gate` as a module, in place of ``nn.Sigmoid`` or ``nn.Hardsigmoid``."""

    def __init__(self, function: Callable[[Tensor], Tensor] = torch.sigmoid) -> None:
        super().__init__()
        self.function = function

    def forward(self, z: Tensor) -> Tensor:
        return unit_gate(z, self.function)


class UnitGLU(nn.Module):
    """a ⊙ :func:`unit_gate` (b), in place of ``nn.GLU``: a and b are halves of x along ``dim``."""

    def __init__(self, dim: int = -1) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        return unit_glu(x, self.dim)


def unit_glu(x: Tensor, dim: int = -1) -> Tensor:
    """``F.glu`` with :func:`unit_gate`: of degree 1."""
    a, b = x.chunk(2, dim)
    return a * unit_gate(b)


class ReLUSoftmax(nn.Module):
    """:func:`relu_softmax` as a module, in place of ``nn.Softmax``."""

    def __init__(self, dim: int = -1) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, scores: Tensor) -> Tensor:
        return relu_softmax(scores, self.dim)
