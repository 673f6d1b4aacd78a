"""The inputs as they are given: by key, and checked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from omenn.engine.location.entries import Key
from omenn.engine.trace.call import tensors_in
from omenn.errors import InputError


def items_of(inputs: Any) -> tuple[str, list[tuple[Key, Any]]]:
    """Whether inputs are a ``tensor``, a ``tuple`` or a ``dict``; and what they are by key."""
    if isinstance(inputs, Tensor):
        return "tensor", [(None, _bare(inputs))]
    if isinstance(inputs, Mapping):
        bad = [k for k in inputs if not isinstance(k, str)]
        if bad:
            raise InputError(
                f"the keys of inputs must be argument names, but {bad[0]!r} was given."
            )
        return "dict", _plain(inputs.items())
    if isinstance(inputs, (tuple, list)):
        return "tuple", _plain(enumerate(inputs))
    raise InputError(
        f"inputs must be a tensor, a tuple or a dict of them, but {type(inputs).__name__} is given."
    )


def _plain(items: Iterable[tuple[Key, Any]]) -> list[tuple[Key, Any]]:
    """The items, none of which may hide tensors inside: those would not be explained."""
    found = list(items)
    for key, value in found:
        if not isinstance(value, Tensor) and tensors_in([value]):
            raise InputError(
                f"input {key!r} is a {type(value).__name__} of tensors. Give each tensor as an "
                "input of its own, and let a function put them together for the model."
            )
    return [(key, _bare(value)) for key, value in found]


def _bare(value: Any) -> Any:
    """A tensor without the class of its own that other libraries give it, and its metadata.

    Such a class (MONAI's MetaTensor, torchvision's tv_tensors) may copy the mark of a tensor along.
    """
    own = isinstance(value, Tensor) and type(value) is not Tensor and not value.is_nested
    return value.as_subclass(Tensor) if own else value


def check(key: Key, t: Tensor) -> None:
    """Raises InputError for a tensor that cannot be explained."""
    name = "the input" if key is None else f"input {key!r}"
    if isinstance(t, (UninitializedBuffer, UninitializedParameter)):
        raise InputError(f"{name} is not initialised: it has neither a shape nor numbers.")
    odd = t.layout != torch.strided or t.is_nested
    if odd or t.is_complex() or t.is_meta or t.is_quantized:
        kind = (
            "complex"
            if t.is_complex()
            else "meta"
            if t.is_meta
            else "nested"
            if t.is_nested
            else "sparse or quantised"
        )
        raise InputError(f"{name} is {kind}; give an ordinary tensor of real numbers.")
    if t.is_floating_point() and t.element_size() < 2:
        raise InputError(
            f"{name} is {str(t.dtype)[6:]}, a type for storage in which nothing is computed. "
            "Convert it with .float() or .half()."
        )
    if t.numel() == 0:
        raise InputError(f"{name} is empty: its shape is {tuple(t.shape)}.")
    if t.is_floating_point() and not bool(torch.isfinite(t).all()):
        count = int((~torch.isfinite(t)).sum())
        raise InputError(
            f"{name} has {count} values that are NaN or infinite; an explanation would be "
            "meaningless. Clean the input first."
        )
    if t.ndim == 0:
        raise InputError(f"{name} is a single number; a batch dimension is needed.")


def normal(value: Any) -> Any:
    """A tensor made under ``torch.inference_mode`` as one that autograd accepts."""
    return value.clone() if isinstance(value, Tensor) and value.is_inference() else value
