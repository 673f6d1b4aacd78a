"""Affine operators: linear, convolution, sums, averages; constants are carried to U."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from omenn.engine import location as places
from omenn.engine.kernels.columns import layer_of, plain, product_of
from omenn.engine.location import Place
from omenn.engine.location.constants import finite
from omenn.engine.location.lookups import bag
from omenn.engine.location.placers import folded, fourier_place, sampled_place, windows
from omenn.engine.operators import degrees
from omenn.engine.operators.layout import LINEAR, linear
from omenn.engine.operators.products import biased, freeze_factors
from omenn.engine.operators.record import (
    DROPOUT,
    Operator,
    at_source,
    contracted,
    named,
    same,
    spatial,
    unlocated,
)
from omenn.engine.operators.stable import log_softmax, noted
from omenn.engine.torch_private import unsafe_view
from omenn.engine.trace.call import Call


def linear_layer(call: Call) -> Tensor:
    """W x + b with a backward of its own, in which other rules find its columns."""
    x, weight, bias = call.get("input"), call.get("weight"), call.get("bias")
    if len(call.active) > 1 or not call.is_active(x) or not plain(weight) or x.is_complex():
        return affine_layer(call)
    if weight.ndim != 2:  # a single row, without a dimension of its own in the output
        return affine_layer(call)
    value = call.value()
    if value._is_view():  # of a tensor that nobody else has
        value = unsafe_view(value, value.shape)
    weight, term = call.constant(weight), None
    if bias is not None and call.context.location.grid is not None:
        term = finite(call.constant(bias))
    if term is None:
        out = call.frozen(x, value, product_of(x), weight)
    else:
        out = call.affine(x, value, product_of(x), term, weight)
    call.layer = layer_of(call, x, out, weight, term)
    return out


def affine_layer(call: Call) -> Tensor:
    """``linear`` and convolutions: W x + b. A weight that depends on the input is a factor."""
    weight = call.get("weight")
    shape = (-1,) if call.operator == "linear" else (-1, *[1] * (weight.ndim - 2))
    return biased(call, [call.get("input"), weight], call.get("bias"), shape)


def added(call: Call) -> Tensor:
    """a + α b and a − α b; the argument that does not depend on the input is a constant term."""
    a, b = call.get("input"), call.get("other")
    sign = -1 if call.operator == "sub" else 1
    alpha = sign * (call.get("alpha") if call.get("alpha") is not None else 1)
    if call.reverse:
        a, b = b, a
    if isinstance(a, Tensor) and isinstance(b, Tensor) and abs(alpha) == 1 and not call.inplace:
        noted(call, a, b)
        if alpha == -1 and (out := log_softmax(call, a, b)) is not None:
            return out
    term = None
    if not call.is_active(a):
        term = _kept(call, a)
    elif not call.is_active(b):
        term = _kept(call, b)
        term = term if alpha == 1 else alpha * term
    out = call.run()
    if term is None or (not isinstance(term, Tensor) and term == 0):
        return out
    if not isinstance(term, Tensor):
        term = torch.as_tensor(term, dtype=out.dtype, device=out.device)
    return call.attach(out, term)


def _kept(call: Call, value: Any) -> Any:
    """A constant as it is now, NOTE [outlive the write]; the model's own weights stay."""
    if not isinstance(value, Tensor):
        return value
    term = call.constant(value)
    return term if id(value) in call.context.own else term.clone()


@at_source
def reduced(call: Call, out: Any, x: Tensor, place: Place) -> Any:
    """Sums and means over dimensions: the mean place over them."""
    first = out[0] if isinstance(out, (tuple, list)) else out
    dim = call.get("dim")
    dims: Sequence[int]
    if dim is None or isinstance(dim, bool) or (isinstance(dim, (tuple, list)) and not dim):
        dims = range(first.ndim if 0 < first.ndim < x.ndim else 0, x.ndim)
    elif isinstance(dim, (tuple, list)):
        dims = [d % x.ndim for d in dim]
    elif isinstance(dim, int) and x.ndim:
        dims = [dim % x.ndim]
    else:
        return unlocated(call, out)
    key = (x.ndim, tuple(dims), first.ndim)
    there = call.context.location.once(
        (place,), key, lambda: places.reduced(place, x.shape, dims, first.ndim == x.ndim)
    )
    return there if first is out else [there] * len(out)


def dropped(call: Call) -> Any:
    """Dropout in evaluation is the identity; in training there is nothing exact to say."""
    if call.get("training", call.operator == "feature_alpha_dropout") and call.get("p", 0.5):
        raise call.refuse(*DROPOUT)
    return call.run()


def shuffled(call: Call) -> Any:
    """Channel shuffle; its native twin has no derivative."""
    return torch.channel_shuffle(call.active[0], call.get("groups"))


def sampled(call: Call) -> Any:
    """Grid sampling: the positions are frozen, the image is active."""
    if not call.is_active(call.get("input")):
        return call.freeze()
    return call.run(freeze_factors(call, [call.get("input"), call.get("grid")], keep=0))


LAYER = Operator(
    linear_layer,
    contracted,
    degrees.affine("input", "weight"),
    arguments="input weight bias",
    factors="input weight",
    weight="weight",
    summand="bias",
    kind="layer",
    bounded=0,
)
_SUM = Operator(
    added,
    same,
    degree=degrees.joining("input", "other"),
    arguments="input other alpha",
    summand="other",
    joins=True,
    terms=True,
    true=True,
    link="shift",
    together="sum",
)
_SUMMED = Operator(linear, reduced, degree=1, arguments="input dim keepdim", true=True, kind="sum")
_RESAMPLED = Operator(linear, spatial, degree=1, true=True)

RECORDS: dict[str, Operator] = {
    "linear": LAYER,
    "add": replace(_SUM, names="__add__ __iadd__ __radd__"),
    "sub": replace(
        _SUM, names="__sub__ __isub__ __rsub__ subtract rsub", exchanged="__rsub__ rsub"
    ),
    "sum": replace(_SUMMED, names="nansum"),
    "mean": _SUMMED,
    "dropout": Operator(
        dropped,
        same,
        degrees.dropped,
        true=True,
        moves="keeps",
        link="linear",
        names="dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout feature_dropout",
        arguments="input p training inplace",
        orders={"torch.dropout": "input p training"},
    ),
    "avg_pool": replace(
        _RESAMPLED,
        names="avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d "
        "adaptive_avg_pool3d",
        kind="sum",
    ),
    "interpolate": replace(_RESAMPLED, names="upsample", kind="sum"),
    **named(_RESAMPLED, "pixel_shuffle pixel_unshuffle"),
    "max_unpool": replace(_RESAMPLED, names="max_unpool1d max_unpool2d max_unpool3d"),
    **named(
        Operator(shuffled, same, 1, arguments="input groups", true=True),
        "channel_shuffle native_channel_shuffle",
    ),
    "unfold": replace(LINEAR, names="unfold_copy", placer=windows),
    "fold": replace(LINEAR, placer=folded, kind="sum"),
    "affine_grid": replace(LINEAR, names="affine_grid_generator"),
    "fourier": replace(
        LINEAR,
        names="fft ifft rfft irfft fft2 ifft2 rfft2 irfft2 fftn ifftn rfftn irfftn fftshift "
        "ifftshift hfft ihfft hfft2 ihfft2 hfftn ihfftn",
        placer=fourier_place,
        kind="complex",
    ),
    "grid_sample": Operator(
        sampled,
        sampled_place,
        degrees.at_fixed("grid", "grid", degrees.joining("input")),
        names="grid_sampler grid_sampler_2d grid_sampler_3d",
        arguments="input grid",
        factors="grid",
    ),
    "embedding": Operator(
        linear, degree=degrees.same, true=True, takes=True, arguments="input weight"
    ),
    "embedding_bag": Operator(bag, degree=degrees.same, true=True, takes=True, composite=True),
}
