"""The autograd nodes that the frozen network adds to PyTorch's own linear ones.

Each is linear in the gradient that it receives, and made of differentiable operators on saved
coefficients, so an explanation can itself be differentiated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from omenn.engine.torch_private import batched, node_class

# (gradient, tensors, complete) ↦ a gradient for each tensor, and what is kept; see Joint.
Pulled = tuple[Sequence[Tensor | None], Tensor | None]
Pull = Callable[[Tensor, Sequence[Tensor], bool], Pulled]


class Frozen(torch.autograd.Function):
    """A value computed by the native kernel whose backward is ``vjp(grad, *coefficients)``."""

    @staticmethod
    def forward(
        ctx, x: Tensor, value: list[Tensor], vjp: Callable[..., Tensor], *coefficients: Tensor
    ) -> Tensor:
        ctx.vjp = vjp
        ctx.save_for_backward(*coefficients)
        # Handed over in a list: a tensor argument that is returned would become a view of itself.
        return value.pop()

    @staticmethod
    def backward(ctx, *grads: Tensor):
        (grad,) = grads
        saved = ctx.saved_tensors
        return ctx.vjp(grad, *saved), None, None, *[None] * len(saved)


class Rewritten(torch.autograd.Function):
    """x, already overwritten with its new value; the backward is ``vjp(grad, *coefficients)``."""

    @staticmethod
    def forward(ctx, x: Tensor, vjp: Callable[..., Tensor], *coefficients: Tensor) -> Tensor:
        ctx.vjp = vjp
        ctx.save_for_backward(*coefficients)
        ctx.mark_dirty(x)
        return x

    @staticmethod
    def backward(ctx, *grads: Tensor):
        saved = ctx.saved_tensors
        return ctx.vjp(grads[0], *saved), None, *[None] * len(saved)


class Affine(torch.autograd.Function):
    """A value W x + term ⊙ u computed by the native kernel: backward by x and by the ones u.

    ``vjp(grad, *coefficients)`` is Wᵀ grad.
    """

    @staticmethod
    def forward(
        ctx,
        x: Tensor,
        value: list[Tensor],
        vjp: Callable[..., Tensor],
        term: Tensor,
        u: Tensor,
        *coefficients: Tensor,
    ) -> Tensor:
        ctx.vjp = vjp
        ctx.ones = (u.shape, u.dtype)
        ctx.save_for_backward(term, *coefficients)
        return value.pop()

    @staticmethod
    def backward(ctx, *grads: Tensor):
        grad, (term, *saved) = dense(grads[0]), ctx.saved_tensors
        at_ones = weighted_sum(grad, term, *ctx.ones)
        return ctx.vjp(grad, *saved), None, None, None, at_ones, *[None] * len(saved)


class Constant(torch.autograd.Function):
    """y + (u − 1) ⊙ term for the ones u: returns y unchanged, and carries the term to u."""

    @staticmethod
    def forward(ctx, y: Tensor, u: Tensor, term: Tensor) -> Tensor:
        ctx.save_for_backward(term)
        ctx.ones = (u.shape, u.dtype)
        # In place, so that y may still be modified in place by the model (ReLU, residual add).
        ctx.mark_dirty(y)
        return y

    @staticmethod
    def backward(ctx, *grads: Tensor):
        grad, (term,) = dense(grads[0]), ctx.saved_tensors
        return grad, weighted_sum(grad, term, *ctx.ones), None


class Overwrite(torch.autograd.Function):
    """Writes y into x in place: x has the value and the history of y from then on."""

    @staticmethod
    def forward(ctx, x: Tensor, y: Tensor) -> Tensor:
        ctx.part = x._is_view()
        x.copy_(y)
        ctx.mark_dirty(x)
        return x

    @staticmethod
    def backward(ctx, *grads: Tensor):
        # For a part of a tensor zeros, not None: torch would drop the gradient of the rest.
        return torch.zeros_like(grads[0]) if ctx.part else None, grads[0]


class Opaque(torch.autograd.Function):
    """A value that no rule made: nothing flows back through it to what it was made of, ``parents``.

    ``overwritten``: the tensor that it was written into in place, if it was.
    """

    @staticmethod
    def forward(
        ctx, error: Exception, overwritten: Tensor | None, value: list[Tensor], *parents: Tensor
    ) -> Tensor:
        ctx.error = error
        if overwritten is None:
            return value.pop()
        ctx.mark_dirty(overwritten)
        return overwritten

    @staticmethod
    def backward(ctx, *grads: Tensor):
        raise copy(ctx.error)


class Halve(torch.autograd.Function):
    """The identity that passes half of the gradient: one factor of an even product."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.detach()  # not a view, which no longer may be read once x is written into

    @staticmethod
    def backward(ctx, *grads: Tensor):
        return grads[0] * 0.5


class Joint(torch.autograd.Function):
    """A value of several tensors with a rule of its own for the way back.

    ``pull(grad, tensors, complete)`` gives one gradient for each tensor and, if ``complete``, what
    the rule keeps: t = y − Σ V x for the coefficients V that it passes relevance on with. NOTE
    [kept shares] t goes to the ones as a constant does, so that y = Σ V x + t whatever V is, and
    the sum of a map does not depend on the rules. ``ones`` is None where constants are not
    collected. ``note`` stays on the node, for the operator that comes next.
    """

    @staticmethod
    def forward(
        ctx, value: list[Tensor], pull: Pull, note: Any, ones: Tensor | None, *xs: Tensor
    ) -> Tensor:
        ctx.pull, ctx.note = pull, note
        ctx.ones = None if ones is None else (ones.shape, ones.dtype)
        ctx.save_for_backward(*xs)
        return value.pop()

    @staticmethod
    def backward(ctx, *grads: Tensor):
        xs = [x.detach() for x in ctx.saved_tensors]
        found, kept = ctx.pull(grads[0], xs, ctx.ones is not None)
        to_ones = None
        if kept is not None:
            # A masked place, −∞, reaches no finite output.
            kept = kept.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
            to_ones = weighted_sum(dense(grads[0]), kept, *ctx.ones)
        return None, None, None, to_ones, *found


class Several(torch.autograd.Function):
    """Values made by the native kernels of several tensors, with one frozen backward.

    ``vjp(grads, *coefficients)`` takes a gradient at each value, and gives one at each of the first
    ``count`` tensors; the coefficients come behind them.
    """

    @staticmethod
    def forward(
        ctx,
        values: list[Tensor],
        vjp: Callable[..., Sequence[Tensor | None]],
        count: int,
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.vjp, ctx.coefficients = vjp, len(tensors) - count
        ctx.save_for_backward(*tensors[count:])
        return tuple(values)

    @staticmethod
    def backward(ctx, *grads: Tensor):
        found = ctx.vjp(grads, *ctx.saved_tensors)
        return None, None, None, *found, *[None] * ctx.coefficients


NODES = tuple(
    node_class(f) for f in (Frozen, Rewritten, Affine, Constant, Overwrite, Halve, Joint, Several)
)


def own_precision(t: Tensor) -> torch.autocast:
    """A context for the pass back, which has the precision of each value, whatever is around it.

    PyTorch's own nodes ask for the same: autocast is for the forward pass.
    """
    return torch.autocast(t.device.type, enabled=False)


def dense(grad: Tensor) -> Tensor:
    """The gradient laid out once, if it has gaps: sum and layer behind would each copy it."""
    if batched(grad):  # has no layout of its own
        return grad.contiguous()
    last = grad.ndim == 4 and grad.is_contiguous(memory_format=torch.channels_last)
    return grad if last else grad.contiguous()


def scaled(grad: Tensor, coefficient: Tensor) -> Tensor:
    """The backward of every elementwise rule (the conjugate, where numbers are complex)."""
    return grad * (coefficient.conj() if coefficient.is_complex() else coefficient)


def weighted_sum(grad: Tensor, term: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """(grad ⊙ term) summed to ``shape``, in ``dtype``; without a temporary where term is a row."""
    grad, term = _real(grad, term)
    grad, term = grad.to(dtype), term.to(dtype)  # the term may be of integers
    wide = [d for d in range(-term.ndim, 0) if term.shape[d] > 1]
    if len(wide) == 1 and not term.requires_grad:
        dim = wide[0]
        ones = len(shape) < -dim or shape[dim] == 1
        if ones and grad.shape[dim] == term.shape[dim]:
            row = term.reshape(-1)
            if dim == -1:
                return (grad @ row).unsqueeze(-1).sum_to_size(shape)
            at = grad.ndim + dim
            if at == 1 and grad.ndim == 4 and not grad.is_contiguous():  # channels last
                return (grad.permute(0, 2, 3, 1) @ row).unsqueeze(1).sum_to_size(shape)
            if grad.is_contiguous():
                if at == 1 and grad.shape[0] == 1:
                    total = (row @ grad.reshape(grad.shape[1], -1)).reshape(1, 1, *grad.shape[2:])
                    return total if total.shape == shape else total.sum_to_size(shape)
                flat = grad.reshape(*grad.shape[: at + 1], -1)
                total = (row @ flat).reshape(*grad.shape[:at], 1, *grad.shape[at + 1 :])
                return total.sum_to_size(shape)
    return (grad * term).sum_to_size(shape)


def _real(grad: Tensor, term: Tensor) -> tuple[Tensor, Tensor]:
    """Complex terms (Fourier layers) contribute Re(conj(grad) · term)."""
    if not (grad.is_complex() or term.is_complex()):
        return grad, term
    return (grad.conj() * term).real, torch.ones((), device=grad.device)


def saved_apart() -> saved_tensors_hooks:
    """A context: what is saved for the backward pass is a copy, and finite (see backward.py)."""
    return saved_tensors_hooks(_finite_copy, lambda t: t)


def _finite_copy(t: Tensor) -> Tensor:
    t = t.detach()
    if not (t.is_floating_point() or t.is_complex()) or bool(t.isfinite().all()):
        return t.clone()
    # ±∞ become the largest numbers, which compare with others as ±∞ do (the largest of a row).
    return t.nan_to_num()
