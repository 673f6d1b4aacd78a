"""Convolutions over patches that lie side by side: the backward pass is one matrix product."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from omenn.engine.kernels.columns import plain
from omenn.engine.location.constants import finite
from omenn.engine.trace.call import Call

LEAST = 16  # positions of a kernel from which the native backward pass is the slower


def side_by_side(x: Tensor, weight: Tensor, options: Sequence[Any]) -> bool:
    """Whether stride and kernel are the same (patch embedding), on a processor."""
    if len(options) != 4 or x.device.type != "cpu" or x.ndim != weight.ndim or not plain(weight):
        return False
    stride, padding, dilation, groups = options
    kernel = tuple(weight.shape[2:])
    none = all(p == 0 for p in padding) if isinstance(padding, tuple) else padding == 0
    one = all(d == 1 for d in dilation) if isinstance(dilation, tuple) else dilation == 1
    if not (none and one and groups == 1) or x.is_complex() or kernel.count(1) == len(kernel):
        return False
    step = stride if isinstance(stride, tuple) else (stride,) * len(kernel)
    return step == kernel and weight[0, 0].numel() >= LEAST


def patches(call: Call, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """W ∗ x + b, each output from a patch of its own."""
    shape, dtype = x.shape, x.dtype
    kernel = weight.shape[2:]

    def vjp(grad: Tensor, weight: Tensor) -> Tensor:
        rows = grad.movedim(1, -1).reshape(-1, grad.shape[1])
        found = rows @ weight.reshape(weight.shape[0], -1).to(grad.dtype)
        found = found.reshape(shape[0], *grad.shape[2:], shape[1], *kernel)
        d = len(kernel)
        # (B, h, w, C, k, l) -> (B, C, h, k, w, l) -> (B, C, h k, w l)
        order = [0, d + 1, *(n for k in range(d) for n in (1 + k, d + 2 + k))]
        inner = [n * k for n, k in zip(grad.shape[2:], kernel, strict=True)]
        found = found.permute(order).reshape(*shape[:2], *inner)
        rest = [n - m for n, m in zip(shape[2:], inner, strict=True)]
        if any(rest):  # the rim that no patch covers
            found = F.pad(found, [p for r in reversed(rest) for p in (0, r)])
        return found.to(dtype)

    value, kept, term = call.value(), call.constant(weight), None
    if bias is not None and call.context.location.grid is not None:
        term = finite(call.constant(bias))
    if term is None:
        return call.frozen(x, value, vjp, kept)
    return call.affine(x, value, vjp, term.reshape(-1, *[1] * len(kernel)), kept)
