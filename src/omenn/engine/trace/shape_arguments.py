"""Arguments of which an operator reads the shape, the type or the device, and no value.

Nothing flows from them into the result, whatever they depend on.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_LIKE = "zeros_like ones_like full_like empty_like rand_like randn_like randint_like"
_NEW = "new_zeros new_ones new_full new_empty new_empty_strided new_tensor"
_AS = "expand_as view_as reshape_as type_as to"

# Function -> which of its positional arguments have values that count.
_VALUED: dict[Any, slice] = (
    {getattr(torch, name): slice(1, None) for name in _LIKE.split()}
    | {getattr(Tensor, name): slice(1, None) for name in _NEW.split()}
    | {getattr(Tensor, name): slice(0, 1) for name in _AS.split()}
    | {f: slice(0, 0) for f in (torch.is_same_size, Tensor.is_same_size)}
)
_NAMES = frozenset(("input", "self", "other", "tensor"))


def valued(func: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The arguments of a call without those that only lend their shape, type or device."""
    which = _VALUED.get(func)
    if which is None:
        return args, kwargs
    rest = {k: v for k, v in kwargs.items() if k not in _NAMES} if kwargs else kwargs
    return args[which], rest
