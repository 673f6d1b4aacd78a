"""Affine operators: linear, convolution, sums, averages; constants are carried to U."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from omenn.core import place as places
from omenn.core.call import Call
from omenn.core.rules.layout import linear
from omenn.core.rules.products import freeze_factors
from omenn.core.rules.row import Row, contracted, rows, same, source, spatial, unlocated


def affine_layer(call: Call) -> Tensor:
    """``linear`` and convolutions: W x + b. A weight that depends on the input is a factor."""
    bias = call.get("bias")
    x, weight = call.get("input"), call.get("weight")
    out = call.run(freeze_factors(call, [x, weight]))
    if call.is_carried(bias):
        return out
    if bias is None:
        return out
    shape = (-1,) if call.operator == "linear" else (-1, *[1] * (weight.ndim - 2))
    return call.attach(out, call.constant(bias).reshape(shape))


def added(call: Call) -> Tensor:
    """a + α b and a − α b; the argument that does not depend on the input is a constant term."""
    a, b = call.get("input"), call.get("other")
    sign = -1 if call.operator == "sub" else 1
    alpha = sign * (call.get("alpha") if call.get("alpha") is not None else 1)
    if call.reverse:
        a, b = b, a
    term = None
    if not call.is_carried(a):
        term = call.constant(a) if isinstance(a, Tensor) else a
        term = term.clone() if call.inplace and isinstance(term, Tensor) else term
    elif not call.is_carried(b):
        b = call.constant(b) if isinstance(b, Tensor) else b
        term = b if alpha == 1 else alpha * b
    out = call.run()
    if term is None or (not isinstance(term, Tensor) and term == 0):
        return out
    if not isinstance(term, Tensor):
        term = torch.as_tensor(term, dtype=out.dtype, device=out.device)
    return call.attach(out, term)


def reduced(call: Call, out: Any) -> Any:
    """Sums and means over dimensions: the mean place over them."""
    found = source(call)
    if found is None:
        return None
    x, place = found
    first = out[0] if isinstance(out, (tuple, list)) else out
    dim = call.get("dim")
    dims: Sequence[int]
    if dim is None or (isinstance(dim, (tuple, list)) and not dim):
        dims = range(x.ndim)
    elif isinstance(dim, (tuple, list)):
        dims = [d % x.ndim for d in dim]
    elif isinstance(dim, int) and x.ndim:
        dims = [dim % x.ndim]
    else:
        return unlocated(call, out)
    there = places.reduced(place, x.shape, dims, first.ndim == x.ndim)
    return there if first is out else [there] * len(out)


def dropped(call: Call) -> Any:
    """Dropout in evaluation is the identity; in training there is nothing exact to say."""
    if call.get("training", call.operator == "feature_alpha_dropout") and call.get("p", 0.5):
        raise call.refuse("dropout is active", "Call model.eval() before explaining.")
    return call.run()


def resized(call: Call) -> Any:
    """Interpolation: linear in the image for every mode that torch has."""
    return call.run()


def sampled(call: Call) -> Any:
    """Grid sampling: the positions are frozen, the image is carried."""
    return call.run(freeze_factors(call, [call.get("input"), call.get("grid")], keep=0))


def looked_up(call: Call) -> Any:
    """Embedding lookup in a table that depends on the input."""
    return call.run()


def transformed(call: Call) -> Any:
    """Discrete Fourier transforms are linear."""
    return call.run()


ROWS: dict[str, Row] = (
    rows("linear", affine_layer, contracted)
    | rows("conv conv_transpose", affine_layer, spatial)
    | rows("add sub", added, same)
    | rows("sum mean nanmean", linear, reduced)
    | rows("dropout", dropped, same)
    | rows("avg_pool pixel_shuffle pixel_unshuffle", linear, spatial)
    | rows("interpolate upsample_nearest upsample_bilinear", resized, spatial)
    | rows("channel_shuffle native_channel_shuffle", linear, same)
    | rows("fold unfold", linear, unlocated)
    | rows("grid_sample", sampled, spatial)
    | rows("fourier", transformed, unlocated)
    | rows("embedding", looked_up, unlocated)
)
