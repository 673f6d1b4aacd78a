"""Wᵀu as a function of u, which can be differentiated by it (NOTE [columns from rows])."""

from __future__ import annotations

import torch
from torch import Tensor

from omenn.engine.backward import Overwritten, all_finite, overwritten
from omenn.engine.segment import Span
from omenn.engine.trace.autograd_nodes import own_precision
from omenn.engine.trace.refusals import no_way_back
from omenn.errors import ModelError


def _generic(like: Tensor) -> Tensor:
    """Random numbers, the same every time; the global random state is not touched."""
    source = torch.Generator().manual_seed(0)
    return torch.randn(like.shape, generator=source, dtype=torch.float64).to(like)


def pulled(span: Span) -> tuple[Tensor, Tensor, list[Tensor]]:
    """f, a random u, and Wᵀu at the input and at the ones of the constants."""
    found = span.result()
    try:
        with torch.inference_mode(False), torch.enable_grad():
            dual = _generic(found).requires_grad_()
            back = _transposed(found, [*span.inputs.leaves, *span.mode.location.ones()], dual)
        if span.how.finite or all_finite(back):
            return found, dual, back
    except Overwritten as error:
        if span.how.finite:
            raise no_way_back(error) from error
    span.forward_finite()
    return pulled(span)


def _transposed(end: Tensor, wrt: list[Tensor], dual: Tensor) -> list[Tensor]:
    """g(u) = Wᵀu for each of ``wrt`` as a function of u (see NOTE [columns from rows])."""
    try:
        with own_precision(end):
            grads = torch.autograd.grad(end, wrt, dual, create_graph=True, allow_unused=True)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        if overwritten(error):
            raise Overwritten(str(error)) from error
        raise no_way_back(error) from error
    if any(g is not None and not g.requires_grad and bool(g.any()) for g in grads):
        raise ModelError(
            "a rule gives a gradient that cannot be differentiated, so no vector can go forward. "
            "Write the backward of your own rule in differentiable operators."
        )
    # What does not reach the output has the gradient zero, whatever u is.
    zero = dual.sum() * 0
    return [
        zero * torch.zeros_like(w) if g is None or not g.requires_grad else g
        for g, w in zip(grads, wrt, strict=True)
    ]
