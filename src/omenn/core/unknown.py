"""Operators that have no rule: harmless if nothing continuous comes out of them, else refused."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from omenn.core.call import FROZEN, IDS, Mark
from omenn.errors import UnsupportedOperator

if TYPE_CHECKING:
    from omenn.core.intercept import Interceptor

LEAVES_TORCH = frozenset(
    "item tolist numpy __float__ __int__ __array__ __complex__ __dlpack__ data_ptr".split()
)

# These hand a value over where no mark can follow it, and return nothing that could be judged.
_UNSEEN = frozenset("__set__ set_ backward untyped_storage storage _typed_storage".split())


def tensors_in(values: Iterable[Any]) -> Iterator[Tensor]:
    """Tensors in arguments, also inside (nested) tuples, lists and dicts."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from tensors_in(value)
        elif isinstance(value, dict):
            yield from tensors_in(value.values())


def needs_gradient(args: Any, kwargs: dict[str, Any]) -> bool:
    return any(t.requires_grad for t in tensors_in((*args, *kwargs.values())))


def unknown(mode: Interceptor, func: Any, args: Any, kwargs: Any, marked: Any) -> Any:
    """An operator without a rule is harmless only if nothing continuous comes out of it."""
    name = getattr(func, "__name__", str(func))
    if name == "__get__":
        name = getattr(getattr(func, "__self__", None), "__name__", name)
    if name not in LEAVES_TORCH and name not in _UNSEEN:
        before = _versions(args, kwargs)
        with torch.no_grad():
            out = func(*args, **kwargs)
        if _versions(args, kwargs) == before and not _continuous(out):
            inputs = frozenset().union(*(m.inputs for _, m in marked if m.kind != IDS))
            for t in tensors_in([out]):
                if t.dtype != torch.bool:
                    mode.set_mark(t, Mark(mode, FROZEN, None, 0, inputs))
            return out
    if name in LEAVES_TORCH or name in _UNSEEN:
        why = "its value leaves PyTorch, where it cannot be followed"
        remedy = "Keep it a tensor, or explain a later module with at=."
    else:
        why = "there is no rule that makes it linear at fixed coefficients"
        remedy = f"Give it one with omenn.rule({name!r}, ...), or explain a later module with at=."
    raise UnsupportedOperator(name, mode.module_path(), why, remedy)


def _versions(args: Any, kwargs: Any) -> list[int]:
    """How often each argument was written into: an operator may return nothing and write."""
    return [t._version for t in tensors_in((*args, *kwargs.values())) if not t.is_inference()]


def _continuous(out: Any) -> bool:
    if isinstance(out, Tensor):
        return out.is_floating_point() or out.is_complex()
    if isinstance(out, (list, tuple)) and not isinstance(out, torch.Size):
        return any(_continuous(o) for o in out)
    if isinstance(out, dict):
        return any(_continuous(o) for o in out.values())
    return isinstance(out, (float, complex))
