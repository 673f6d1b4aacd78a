"""What a first pass back cannot use: coefficients that are not finite, or were written over.

Hardly a model has them, and to look for them costs time. So the first pass takes what it finds, and
where it fails the model runs once more, and all that is saved for the pass back is a finite copy.

NOTE zero times infinity. ``torch.where(n > 0, s / n, 0)`` is finite where n is zero, and nothing
flows back into its quotient; but the backward pass of the quotient multiplies this nothing by 1/0,
which gives NaN. A coefficient that is not finite cannot be part of a finite output, so the gradient
that meets it is zero, and any finite number may stand in its place. Where one of them did reach the
output after all, the sum is missed, and the explanation says that it is inexact.

NOTE written over. ``y = relu(x); y += x`` runs without gradients, and cannot be differentiated, as
PyTorch keeps the result of the ReLU and not a copy of it. A coefficient is what it was when it was
used, so a copy is right.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks


class Overwritten(Exception):
    """The pass back needs what the forward pass wrote over."""


def overwritten(error: RuntimeError) -> bool:
    """Whether PyTorch refuses the pass back because a saved tensor was written into."""
    return "modified by an inplace operation" in str(error)


def saved_apart() -> saved_tensors_hooks:
    """A context: what is saved for the backward pass is a copy, and finite."""
    return saved_tensors_hooks(_finite_copy, lambda t: t)


def _finite_copy(t: Tensor) -> Tensor:
    t = t.detach()
    if not (t.is_floating_point() or t.is_complex()) or bool(t.isfinite().all()):
        return t.clone()
    # ±∞ become the largest numbers, which compare with others as ±∞ do (the largest of a row).
    return t.nan_to_num()


def all_finite(tensors: Iterable[Tensor | None]) -> bool:
    """Whether no gradient is NaN or infinite; a sum tells, which only reads."""
    return all(t is None or bool(t.detach().sum().isfinite()) for t in tensors)
