"""The ordinary model, with a gradient by the input that is cheap to differentiate once more.

PyTorch differentiates twice, but it is slow at it in three places. The backward passes of ReLU and
of batch norm in evaluation mode do not depend on the input, and a tensor of zeros is sent on from
there through the whole forward pass. The weight's part in a convolution's second derivative is a
convolution with a kernel as large as the image. Fused attention has no second derivative at all.
Here the first two are replaced by what they are equal to, and the third by the products that it
stands for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

_CONVOLUTION = torch.ops.aten.convolution.default
_BACKWARD = torch.ops.aten.convolution_backward.default
_MASK = torch.ops.aten.threshold_backward.default


class Rectified(torch.autograd.Function):
    """max(x, 0); where it is positive is a constant, which has no derivative to be sent on."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, inplace: bool) -> Tensor:
        y = torch.relu_(x) if inplace else torch.relu(x)
        if inplace:
            ctx.mark_dirty(y)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (y,) = ctx.saved_tensors
        return _MASK(grads[0], y.detach(), 0), None


class Convolved(torch.autograd.Function):
    """W ∗ x + b; while ``mode.pulling`` the gradient is that by x alone."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, options: Any, mode: Any
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.options, ctx.mode = options, mode
        ctx.bias = None if bias is None else list(bias.shape)
        return _CONVOLUTION(x, weight, bias, *options)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        (grad,), (x, weight) = grads, ctx.saved_tensors
        if ctx.mode.pulling:
            return PulledBack.apply(grad, weight, x.detach(), ctx.options), None, None, None, None
        wanted = list(ctx.needs_input_grad[:3])
        found = _BACKWARD(grad, x, weight, ctx.bias, *ctx.options, wanted)
        return *found, None, None


class Normalised(torch.autograd.Function):
    """Batch norm in evaluation; while ``mode.pulling`` the gradient is that by x alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, given: Any, mode: Ordinary, *affine: Tensor | None) -> Tensor:
        mean, var, eps = given
        weight, bias = affine
        ctx.save_for_backward(x, weight, mean, var)
        ctx.eps, ctx.mode, ctx.bias = eps, mode, bias is not None
        return F.batch_norm(x, mean, var, weight, bias, False, 0.0, eps)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        (grad,), (x, weight, mean, var) = grads, ctx.saved_tensors
        column = (-1, *[1] * (x.ndim - 2))
        each = torch.rsqrt(var + ctx.eps)
        scale = each if weight is None else each * weight
        by_x = grad * scale.reshape(column)
        if ctx.mode.pulling:
            return by_x, None, None, None, None
        dims = [d for d in range(x.ndim) if d != 1]
        by_weight = None
        if weight is not None:
            centred = (x - mean.reshape(column)) * each.reshape(column)
            by_weight = (grad * centred).sum(dims)
        return by_x, None, None, by_weight, grad.sum(dims) if ctx.bias else None


class PulledBack(torch.autograd.Function):
    """Wᵀ ∗ g, linear in both: ⟨Wᵀ ∗ g, v⟩ = ⟨g, W ∗ v⟩, so each derivative is one kernel."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, weight: Tensor, like: Tensor, options: Any) -> Tensor:
        ctx.save_for_backward(grad, weight)
        ctx.options = options
        return _BACKWARD(grad, like, weight, None, *options, [True, False, False])[0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        (v,), (grad, weight) = grads, ctx.saved_tensors
        by_grad = by_weight = None
        if ctx.needs_input_grad[0]:
            by_grad = _CONVOLUTION(v, weight, None, *ctx.options)
        if ctx.needs_input_grad[1]:
            by_weight = _BACKWARD(grad, v, weight, None, *ctx.options, [False, True, False])[1]
        return by_grad, by_weight, None, None


class Ordinary(TorchFunctionMode):
    """Around a forward pass: the same numbers, with ``graph`` ready to be differentiated twice."""

    def __init__(self, graph: bool) -> None:
        super().__init__()
        self.graph, self.pulling = graph, False

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _RELU and len(args) == 1 and args[0].requires_grad:
            return Rectified.apply(args[0], bool(kwargs.get("inplace", func in _INPLACE)))
        if func in _CONV:
            plain = _arguments(_CONV[func], args, kwargs)
            if plain is not None:
                return Convolved.apply(*plain, self)
        if func is F.batch_norm:
            given: dict[str, Any] = (
                {"training": False} | dict(zip(_NORM, args, strict=False)) | kwargs
            )
            x = given["input"]
            if x.requires_grad and given.get("running_mean") is not None and not given["training"]:
                statistics = (given["running_mean"], given["running_var"], given.get("eps", 1e-5))
                affine = given.get("weight"), given.get("bias")
                return Normalised.apply(x, statistics, self, *affine)
        return func(*args, **kwargs)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Inside, a model runs so."""
        if not self.graph:
            yield
            return
        with sdpa_kernel(SDPBackend.MATH), self:
            yield

    def gradient(self, f: Tensor, x: Tensor) -> Tensor | None:
        """∂Σf/∂x, with ``graph`` differentiable; None where f does not depend on x."""
        self.pulling = True
        try:
            (found,) = torch.autograd.grad(f.sum(), x, create_graph=self.graph, allow_unused=True)
        finally:
            self.pulling = False
        return found


_INPLACE = (torch.relu_, Tensor.relu_)
_RELU = (F.relu, torch.relu, Tensor.relu, *_INPLACE)
_NORM = "input running_mean running_var weight bias training momentum eps".split()
_CONV = {torch.conv1d: 1, torch.conv2d: 2, torch.conv3d: 3}
_NAMES = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_DEFAULTS = {"bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1}


def _arguments(n: int, args: Any, kwargs: dict[str, Any]) -> tuple[Any, ...] | None:
    """(x, W, b, what the kernel wants to know), or None for a call that is not the usual one."""
    given = _DEFAULTS | dict(zip(_NAMES, args, strict=False)) | kwargs
    x, weight, padding = given["input"], given["weight"], given["padding"]
    if isinstance(padding, str) or x.ndim != n + 2 or not x.requires_grad or x.is_complex():
        return None
    stride, padding, dilation = (
        [k] * n if isinstance(k, int) else list(k)
        for k in (given["stride"], padding, given["dilation"])
    )
    return x, weight, given["bias"], (stride, padding, dilation, False, [0] * n, given["groups"])
