"""Functions of tensors that are no operators: what is known of those that have no rule.

They ask for the shape, compare, count, or take a value out of torch. ``UNRULED`` has the records of
those that give tensors, by their names without underscores; the sets are of names as they are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from omenn.engine.operators import degrees
from omenn.engine.operators.record import Operator, named

_COMPARED = degrees.told(degrees.valued(1, "other"))

_TOLD = degrees.told(degrees.same)

UNRULED: dict[str, Operator] = {
    **named(Operator(degree=_COMPARED, kind="elementwise", link="step"), "gt lt ge le eq ne"),
    **named(
        Operator(degree=_COMPARED, kind="elementwise"),
        "greater less greater_equal less_equal not_equal",
    ),
    "contains": Operator(degree=_COMPARED),
    **named(Operator(degree=_TOLD), "argmax argmin argsort equal"),
    **named(Operator(degree=_TOLD, kind="elementwise"), "searchsorted bucketize"),
    **named(
        Operator(degree=0, kind="elementwise"),  # signs and zeros, of whatever numbers
        "signbit logical_not logical_and logical_or logical_xor isnan isinf isfinite isposinf "
        "isneginf bool",
    ),
    **named(Operator(degree=0), "angle any all count_nonzero is_nonzero"),
    **named(Operator(degree=0, shaped_by="values"), "nonzero argwhere"),
    **named(Operator(degree=1, kind="elementwise"), "long int short char byte"),
    **named(Operator(degree=1), "reversed to_sparse"),
    **named(Operator(degree=degrees.random), "bernoulli multinomial poisson normal"),
    "sparse_mm": Operator(degree=degrees.product),
    "prod": Operator(degree=degrees.multiplied),
    **named(
        Operator(kind="elementwise"),
        "bitwise_and bitwise_or bitwise_xor bitwise_not and or xor invert iand ior ixor rand ror "
        "rxor isin isclose mod floordiv rfloordiv",
    ),
    "iter": Operator(parts=True),
}

# --- a value leaves torch ------------------------------------------------------------------------

# These give a number, or memory, of which a copy can be handed over.
NUMBERS = frozenset("item tolist numpy __float__ __int__ __array__ __complex__ __format__".split())
LEAVES_TORCH = NUMBERS | {"__dlpack__", "data_ptr"}
# These hand a value over without returning anything,
WRITES = frozenset("__set__ set_ backward".split())
# and these to where no mark can follow it.
UNSEEN = WRITES | frozenset("untyped_storage storage _typed_storage".split())
# What a model asks to be told of its own derivatives.
GRADIENT_HOOKS = frozenset("register_hook retain_grad".split())

# --- no value is read ----------------------------------------------------------------------------

_ATTRIBUTES = "shape dtype device ndim layout is_cuda is_sparse is_mkldnn is_quantized is_meta"
_METHODS = (
    "size dim ndimension numel nelement stride element_size get_device is_contiguous "
    "is_floating_point is_complex __len__"
)
# What tells shape, type or device of a tensor and no value of it.
UNTOUCHED: frozenset[Any] = frozenset(
    [getattr(Tensor, name).__get__ for name in _ATTRIBUTES.split()]
    + [getattr(Tensor, name) for name in _METHODS.split()]
    + [torch.is_floating_point, torch.is_complex, torch.numel]
)
# The same, of which a result that is no tensor comes.
METADATA = GRADIENT_HOOKS | frozenset("iter hash storage_offset".split())

# These make a tensor of which nothing is written yet.
EMPTY = frozenset("empty new_empty empty_like empty_strided new_empty_strided".split())

_LIKE = "zeros_like ones_like full_like empty_like rand_like randn_like randint_like"
_NEW = "new_zeros new_ones new_full new_empty new_empty_strided new_tensor"
_AS = "expand_as view_as reshape_as type_as to"

# Function -> which of its positional arguments have values that count.
VALUED: dict[Any, slice] = (
    {getattr(torch, name): slice(1, None) for name in _LIKE.split()}
    | {getattr(Tensor, name): slice(1, None) for name in _NEW.split()}
    | {getattr(Tensor, name): slice(0, 1) for name in _AS.split()}
    | {f: slice(0, 0) for f in (torch.is_same_size, Tensor.is_same_size)}
)
_NAMES = frozenset(("input", "self", "other", "tensor"))


def valued(func: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The arguments of a call without those that only lend their shape, type or device.

    Nothing flows from these into the result, whatever they depend on.
    """
    which = VALUED.get(func)
    if which is None:
        return args, kwargs
    rest = {k: v for k, v in kwargs.items() if k not in _NAMES} if kwargs else kwargs
    return args[which], rest
