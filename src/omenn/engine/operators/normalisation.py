"""Normalisation: centring stays linear, ⟦1/σ⟧ is frozen, the shift is a constant term."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from omenn.engine.operators import degrees
from omenn.engine.operators.record import Operator, same
from omenn.engine.trace.autograd_nodes import scaled
from omenn.engine.trace.call import Call


def _column(vector: Tensor, ndim: int) -> Tensor:
    """A per-channel vector as (C, 1, …) for a tensor (N, C, …)."""
    return vector.reshape(-1, *[1] * (ndim - 2))


def _affine(call: Call, norm: Callable[..., Tensor], per_channel: bool = True) -> Tensor | None:
    """γ x̂ + β in its parts where γ or β depends on the input (conditional, adaptive): a product.

    ``norm`` makes x̂, the same normalisation without γ and β. None where both are constant.
    """
    x, weight, bias = call.get("input"), call.get("weight"), call.get("bias")
    if len(call.marked) == 1 and call.marked[0][0] is x:
        return None
    if not (call.is_active(weight) or call.is_active(bias)):
        return None
    shape = (-1, *[1] * (x.ndim - 2)) if per_channel else None
    with call.context:  # back in force: what follows is seen operator by operator
        out = norm(x)
        if weight is not None:
            out = out * (weight if shape is None else weight.reshape(shape))
        if bias is not None:
            out = out + (bias if shape is None else bias.reshape(shape))
        out = out.to(x.dtype)
    mark = call.context.mark_of(out)
    call.places = [None if mark is None else mark.place]
    return out


def batch_norm(call: Call) -> Tensor:
    """γ (x − m)/√(v + ε) + β with running statistics: affine."""
    x, eps = call.get("input"), call.get("eps")
    mean, var = call.get("running_mean"), call.get("running_var")
    if call.get("training") or mean is None or var is None:
        raise call.refuse(
            "batch normalisation uses the statistics of the batch, so samples depend on each other",
            "Call model.eval(), and keep running statistics (track_running_stats=True).",
        )
    eps = 1e-5 if eps is None else eps
    parts = _affine(call, lambda t: F.batch_norm(t, mean, var, eps=eps))
    if parts is not None:
        return parts
    scale, shift = _scale_and_shift(call, mean, var, eps)
    scale, shift = _column(scale, x.ndim).to(x.dtype), _column(shift, x.ndim)
    return call.affine(x, call.value(), scaled, shift, scale)


def _scale_and_shift(call: Call, mean: Tensor, var: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """γ/√(v + ε) and β − m γ/√(v + ε)."""
    weight, bias = call.get("weight"), call.get("bias")
    if len(call.marked) > 1:  # no statistics that depend on the input
        mean, var = call.constant(mean), call.constant(var)
    with torch.set_grad_enabled(call.context.create_graph):
        scale = torch.rsqrt(var + eps)
        if weight is not None:
            scale = scale * weight
        return scale, -mean * scale if bias is None else torch.addcmul(bias, mean, scale, value=-1)


def layer_norm(call: Call) -> Tensor:
    """γ (x − μ) ⟦1/σ⟧ + β over the last dimensions."""
    x = call.get("input")
    shape = list(call.get("normalized_shape"))
    weight, bias, eps = call.get("weight"), call.get("bias"), call.get("eps")
    dims = list(range(-len(shape), 0))
    eps, dtype = 1e-5 if eps is None else eps, x.dtype
    parts = _affine(call, lambda t: F.layer_norm(t, shape, eps=eps), per_channel=False)
    if parts is not None:
        return parts
    gamma = None if weight is None else call.constant(weight)
    if call.context.create_graph:
        value, rstd = call.value(), _inverse_deviation(call.true(x), dims, eps)
    else:  # one native kernel gives the value and 1/σ
        with torch.no_grad():
            value, _, rstd = torch.native_layer_norm(x.detach(), shape, gamma, bias, eps)

    def vjp(grad: Tensor, rstd: Tensor, weight: Tensor | None) -> Tensor:
        if weight is not None:
            grad = grad * weight
        return ((grad - grad.mean(dims, keepdim=True)) * rstd).to(dtype)

    out = call.frozen(x, value, vjp, rstd, gamma)
    return out if bias is None else call.attach(out, call.constant(bias))


def _inverse_deviation(x: Tensor, dims: list[int], eps: float) -> Tensor:
    return torch.rsqrt(x.var(dims, unbiased=False, keepdim=True) + eps)


def _grouped(call: Call, x: Tensor, groups: int, eps: float) -> Tensor:
    """Normalisation over groups of channels and all positions of (N, C, …)."""
    weight, bias = call.get("weight"), call.get("bias")
    n, dtype = x.shape[0], x.dtype
    true = call.true(x).reshape(n, groups, -1)
    rstd = _inverse_deviation(true, [-1], eps)
    gamma = None if weight is None else _column(call.constant(weight), x.ndim)

    def vjp(grad: Tensor, rstd: Tensor, gamma: Tensor | None) -> Tensor:
        if gamma is not None:
            grad = grad * gamma
        flat = grad.reshape(n, groups, -1)
        return ((flat - flat.mean(-1, keepdim=True)) * rstd).reshape(grad.shape).to(dtype)

    out = call.frozen(x, call.value(), vjp, rstd, gamma)
    return out if bias is None else call.attach(out, _column(call.constant(bias), x.ndim))


def group_norm(call: Call) -> Tensor:
    """γ (x − μ_g) ⟦1/σ_g⟧ + β for each group g of channels."""
    x, groups = call.get("input"), call.get("num_groups")
    eps = 1e-5 if call.get("eps") is None else call.get("eps")
    parts = _affine(call, lambda t: F.group_norm(t, groups, eps=eps))
    return _grouped(call, x, groups, eps) if parts is None else parts


def instance_norm(call: Call) -> Tensor:
    """One group a channel; with running statistics it is an affine map like batch norm."""
    if call.get("use_input_stats") is False:
        call.bound["training"] = False
        return batch_norm(call)
    x, eps = call.get("input"), 1e-5 if call.get("eps") is None else call.get("eps")
    parts = _affine(call, lambda t: F.instance_norm(t, eps=eps))
    return _grouped(call, x, x.shape[1], eps) if parts is None else parts


def rms_norm(call: Call) -> Tensor:
    """γ x ⟦1/√(mean x² + ε)⟧."""
    x, weight, eps = call.get("input"), call.get("weight"), call.get("eps")
    shape = list(call.get("normalized_shape"))
    parts = _affine(call, lambda t: F.rms_norm(t, shape, eps=eps), per_channel=False)
    if parts is not None:
        return parts
    dims = list(range(-len(shape), 0))
    true = call.true(x)
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    scale = torch.rsqrt((true * true).mean(dims, keepdim=True) + eps)
    gamma = None if weight is None else call.constant(weight)

    def vjp(grad: Tensor, scale: Tensor, gamma: Tensor | None) -> Tensor:
        return grad * scale if gamma is None else grad * gamma * scale

    return call.frozen(x, call.value(), vjp, scale, gamma)


def normalised(call: Call) -> Tensor:
    """x ⟦1/max(‖x‖, ε)⟧ (``F.normalize``)."""
    x, p, dim = call.get("input"), call.get("p", 2.0), call.get("dim", 1)
    norm = call.true(x).norm(p, dim, keepdim=True).clamp_min(call.get("eps", 1e-12))
    return call.frozen(x, call.value(), scaled, norm.reciprocal())


def local_response(call: Call) -> Tensor:
    """x ⟦(k + α · local mean of x²)^−β⟧."""
    x = call.get("input")
    value, true = call.value(), call.true(x)
    if call.context.create_graph:
        result: Any = call.true_value()
        ones = torch.where(true == 0, torch.ones_like(true), true)
        return call.frozen(x, value, scaled, torch.where(true == 0, 0, result / ones))
    size, alpha = call.get("size"), call.get("alpha", 1e-4)
    beta, k = call.get("beta", 0.75), call.get("k", 1.0)
    flat = (true * true).reshape(true.shape[0], 1, true.shape[1], -1)
    local = F.avg_pool2d(F.pad(flat, (0, 0, size // 2, (size - 1) // 2)), (size, 1), stride=1)
    scale = (local.reshape(true.shape) * alpha + k) ** -beta
    return call.frozen(x, value, scaled, scale)


_STATISTICS = "input running_mean running_var weight bias"
_OF_TORCH = "input weight bias running_mean running_var"

_NORMALISED = Operator(placer=same, degree=degrees.normalised, kind="normalisation", summand="bias")
_RESCALED = Operator(placer=same, degree=degrees.normalised, kind="rescaling")

RECORDS: dict[str, Operator] = {
    "batch_norm": replace(
        _NORMALISED,
        rule=batch_norm,
        degree=degrees.batch_norm,
        arguments=f"{_STATISTICS} training momentum eps",
        orders={"torch.batch_norm": f"{_OF_TORCH} training momentum eps cudnn"},
        summand="",
        true=True,
    ),
    "layer_norm": replace(
        _NORMALISED, rule=layer_norm, arguments="input normalized_shape weight bias eps"
    ),
    "group_norm": replace(
        _NORMALISED, rule=group_norm, arguments="input num_groups weight bias eps"
    ),
    "instance_norm": replace(
        _NORMALISED,
        rule=instance_norm,
        arguments=f"{_STATISTICS} use_input_stats momentum eps",
        orders={"torch.instance_norm": f"{_OF_TORCH} use_input_stats momentum eps cudnn"},
    ),
    "rms_norm": replace(
        _NORMALISED, rule=rms_norm, arguments="input normalized_shape weight eps", summand=""
    ),
    "normalize": replace(_RESCALED, rule=normalised, arguments="input p dim eps"),
    "local_response_norm": replace(
        _RESCALED, rule=local_response, degree=degrees.smooth, arguments="input size alpha beta k"
    ),
}
