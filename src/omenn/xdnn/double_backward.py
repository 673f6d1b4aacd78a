"""The ordinary model, with a gradient by the input that is cheap to differentiate once more.

PyTorch differentiates twice, but it is slow at it in three places. The backward passes of ReLU and
of batch norm in evaluation mode do not depend on the input, and a tensor of zeros is sent on from
there through the whole forward pass. The weight's part in a convolution's second derivative is a
convolution with a kernel as large as the image. Fused attention has no second derivative at all.
Here the first two are replaced by what they are equal to, and the third by the products that it
stands for. What is not the usual call of the three runs as PyTorch has it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from omenn.engine.torch_private import (
    forward_ad_level,
    innermost_transform,
    pop_saved_tensor_hooks,
    push_saved_tensor_hooks,
)
from omenn.engine.trace.checkpointing import checkpointed
from omenn.engine.trace.handler import Handler

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
    """W ∗ x + b, W and b leaves; while ``mode.pulling`` the gradient is that by x alone."""

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
    """Batch norm in evaluation, as :class:`Convolved`."""

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


class Ordinary(Handler):
    """Around a forward pass: the same numbers, with ``graph`` ready to be differentiated twice."""

    def __init__(self, graph: bool) -> None:
        super().__init__()
        self.graph, self.pulling = graph, False

    def handle(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        _keep_what_is_saved()
        if func in _RECURRENT:  # cuDNN has no derivative in evaluation mode, and no second one
            with torch.backends.cudnn.flags(enabled=False):
                return func(*args, **kwargs)
        replacement = _REPLACEMENTS.get(func) if self.graph else None
        found = None if replacement is None else replacement(self, func, args, kwargs)
        return func(*args, **kwargs) if found is None else found

    @contextmanager
    def running(self) -> Iterator[None]:
        """Inside, a model runs so."""
        kernels = sdpa_kernel(SDPBackend.MATH) if self.graph else nullcontext()
        with kernels, self:
            yield

    def gradient(self, f: Tensor, x: Tensor) -> Tensor | None:
        """∂Σf/∂x, with ``graph`` differentiable; None where f does not depend on x."""
        self.pulling = True
        try:
            (found,) = torch.autograd.grad(f.sum(), x, create_graph=self.graph, allow_unused=True)
        finally:
            self.pulling = False
        return found


def _keep_what_is_saved() -> None:
    """Switches the rest of a checkpointed part (``torch.utils.checkpoint``) to ordinary storage.

    It would run again in the backward pass of the loss, where the model is in training mode.
    """
    if checkpointed():
        pop_saved_tensor_hooks()
        push_saved_tensor_hooks(_same, _same)


def _same(saved: Any) -> Any:
    return saved


# --- the usual calls: each returns None for another one


def _relu(mode: Ordinary, func: Any, args: Any, kwargs: dict[str, Any]) -> Tensor | None:
    if len(args) != 1 or not _usual(args[0]):
        return None
    return Rectified.apply(args[0], bool(kwargs.get("inplace", func in _INPLACE)))


def _convolution(mode: Ordinary, func: Any, args: Any, kwargs: dict[str, Any]) -> Tensor | None:
    given = _CONV_DEFAULTS | dict(zip(_CONV_NAMES, args, strict=False)) | kwargs
    x, weight, bias = given["input"], given["weight"], given["bias"]
    n = _DIMS[func]
    if not (_usual(x) and x.ndim == n + 2 and _given(weight) and _given(bias)):
        return None
    numbers = [given[name] for name in ("stride", "padding", "dilation")]
    if not all(isinstance(k, (int, tuple, list)) for k in numbers):
        return None
    numbers = [[k] * n if isinstance(k, int) else list(k) for k in numbers]
    return Convolved.apply(x, weight, bias, (*numbers, False, [0] * n, given["groups"]), mode)


def _batch_norm(mode: Ordinary, func: Any, args: Any, kwargs: dict[str, Any]) -> Tensor | None:
    given = _NORM_DEFAULTS | dict(zip(_NORM_NAMES, args, strict=False)) | kwargs
    x, mean, var = given["input"], given["running_mean"], given["running_var"]
    affine = given["weight"], given["bias"]
    if given["training"] or not _usual(x) or not all(_real(t) for t in (mean, var)):
        return None
    if mean.requires_grad or var.requires_grad or not all(_given(t) for t in affine):
        return None
    return Normalised.apply(x, (mean, var, given["eps"]), mode, *affine)


def _usual(x: Any) -> bool:
    """Whether x is a tensor with a derivative, where PyTorch does nothing else besides."""
    return (
        _real(x)
        and x.requires_grad
        and not torch.is_autocast_enabled(x.device.type)
        and innermost_transform() is None
        and forward_ad_level() < 0
    )


def _given(t: Any) -> bool:
    """Whether t is none or made of nothing else: what is made of the input has a derivative too."""
    return t is None or (_real(t) and t.grad_fn is None)


def _real(t: Any) -> bool:
    return type(t) in (Tensor, nn.Parameter) and t.is_floating_point()


_INPLACE = (torch.relu_, Tensor.relu_)
_DIMS = {torch.conv1d: 1, torch.conv2d: 2, torch.conv3d: 3}
_CONV_NAMES = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_CONV_DEFAULTS: dict[str, Any] = {
    "input": None, "weight": None, "bias": None,
    "stride": 1, "padding": 0, "dilation": 1, "groups": 1,
}  # fmt: skip
_NORM_NAMES = "input running_mean running_var weight bias training momentum eps".split()
_NORM_DEFAULTS: dict[str, Any] = dict.fromkeys(_NORM_NAMES) | {"training": False, "eps": 1e-5}
_REPLACEMENTS: dict[Any, Any] = {
    **dict.fromkeys((F.relu, torch.relu, Tensor.relu, *_INPLACE), _relu),
    **dict.fromkeys(_DIMS, _convolution),
    F.batch_norm: _batch_norm,
}
_RECURRENT = (torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu)
