"""Transforms of functions and derivatives that a model takes while it runs.

``torch.vmap``, ``torch.func`` and forward-mode AD wrap tensors, so that no mark can follow what is
inside; and a derivative of the frozen network is not the model's. Of constants alone both are what
they are without omenn. With a tensor that depends on the explained input they are refused.

NOTE [history of constants] A constant has no history, until the model makes a tensor that requires
gradients or asks for a derivative: from then on constants have the history that the model gives
them. If the derivative is by what was there before, the model must run once more from its start
(:class:`NeedsHistory`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from omenn.engine.torch_private import innermost_transform, is_wrapped, make_dual, unwrapped
from omenn.engine.trace.marks import Memory, tensors_in
from omenn.errors import UnsupportedOperator

if TYPE_CHECKING:
    from omenn.engine.trace.tracer import Tracer

DERIVATIVES = frozenset([torch.autograd.grad, torch.autograd.backward, Tensor.backward])
_REQUIRED: Any = Tensor.requires_grad
_REQUIRES = frozenset([Tensor.requires_grad_, _REQUIRED.__set__])

_LATER = "or explain at a later module with at=."
_DERIVATIVE = f"Compute the derivative before and give it to the model as a constant, {_LATER}"
_REMEDIES = {
    "torch.vmap": f"Write it with a batch dimension in place of torch.vmap, {_LATER}",
    "torch.func.grad": _DERIVATIVE,
    "torch.func.jvp": _DERIVATIVE,
}


class NeedsHistory(UnsupportedOperator):
    """The model differentiates constants, so it must be run with ``Aside.history``."""


@dataclass
class Aside:
    """What one run knows of transforms and derivatives of constants."""

    history: bool  # whether constants keep a history
    gradients: bool = True  # whether the model has gradients on, as far as it said
    duals: bool = False  # whether it makes dual tensors, for forward-mode AD
    # Of whole numbers that depend on the input, made inside of ``torch.vmap``.
    whole: Memory | None = None

    def holds(self, t: Tensor) -> bool:
        """Whether a tensor is made of such numbers."""
        return self.whole is not None and self.whole.holds(t)

    def add(self, t: Tensor) -> None:
        self.whole = self.whole or Memory()
        self.whole.add(t)


def run(mode: Tracer, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """A call in a transform, or a derivative: of constants alone as it stands, else refused.

    Integers may be looked up in there, as masks of attention are: what is made of them counts as a
    decision as long as it is a truth value.
    """
    if innermost_transform() is None:
        return _differentiate(mode, func, args, kwargs)
    ids = False
    for t in tensors_in((*args, *kwargs.values())):
        inner = unwrapped(t)
        if mode.mark_of(inner) is None and mode.mark_of(t) is None and not mode.aside.holds(inner):
            mode.outside.meet(inner)
        elif inner.is_floating_point() or inner.is_complex():
            raise refusal(mode, _name(), "tensor")
        else:
            ids = True
    out = func(*args, **kwargs)
    for t in tensors_in((out,)):
        inner = unwrapped(t)
        if ids and (inner.is_floating_point() or inner.is_complex()):
            raise refusal(mode, _name(), "integer tensor")
        if ids and inner.dtype != torch.bool:
            mode.aside.add(inner)
        mode.outside.made(inner)
    return out


def _differentiate(mode: Tracer, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """``torch.autograd.grad`` or ``backward`` inside of a forward pass."""
    if mode.marked(func, args, kwargs):
        raise refusal(mode, f"torch.autograd.{func.__name__}", "tensor")
    # What torch.func.vjp returned is called outside of its transform; its history is still there.
    inside = any(is_wrapped(t) for t in tensors_in((*args, *kwargs.values())))
    if not (inside or mode.aside.history):
        raise NeedsHistory(
            f"torch.autograd.{func.__name__}",
            mode.module_path(),
            "a derivative by a parameter is taken in the forward pass, which this function does "
            "not follow",
            _DERIVATIVE,
        )
    out = func(*args, **kwargs)
    for t in tensors_in((out,)):
        mode.outside.made(t)
    return out


def plain(mode: Tracer, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """A call of constants alone, without history where there is nothing to differentiate."""
    if func is make_dual:
        mode.aside.duals = True
    elif func in _REQUIRES:
        mode.aside.history |= bool(args[1] if len(args) > 1 else kwargs.get("requires_grad", True))
    elif kwargs.get("requires_grad"):
        mode.aside.history = True
    # Without a history to avoid, a view is made with gradients on: it may be written into.
    given = tensors_in((*args, *kwargs.values()))
    gradients = mode.create_graph or not any(t.requires_grad for t in given)
    with torch.set_grad_enabled(mode.aside.gradients if mode.aside.history else gradients):
        out = func(*args, **kwargs)
    mode.outside.called(func, args, kwargs, out)
    return out


def check_duals(mode: Tracer, args: Any, kwargs: dict[str, Any]) -> None:
    """Refuses forward-mode AD of something that depends on the input."""
    duals = (forward_ad.unpack_dual(t).tangent for t in tensors_in((*args, *kwargs.values())))
    if any(tangent is not None for tangent in duals):
        raise refusal(mode, "torch.autograd.forward_ad", "tensor")


def check_outside(mode: Tracer, t: Tensor) -> None:
    """Refuses what left a transform without its mark: whole numbers made of explained ids."""
    if mode.aside.holds(unwrapped(t)) and t.dtype != torch.bool:
        raise refusal(mode, "torch.vmap", "integer tensor")


def refusal(mode: Tracer, name: str, what: str) -> UnsupportedOperator:
    return UnsupportedOperator(
        name,
        mode.module_path(),
        f"{'a function transform' if name == 'torch.vmap' else 'a derivative'} of something that "
        f"uses a{'n' if what[0] == 'i' else ''} {what} that depends on the input cannot be "
        "followed",
        _REMEDIES.get(name, _DERIVATIVE),
    )


def _name() -> str:
    kind = innermost_transform().key().name
    return {"Vmap": "torch.vmap", "Grad": "torch.func.grad"}.get(kind, "torch.func.jvp")
