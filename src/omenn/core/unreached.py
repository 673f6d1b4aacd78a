"""Coefficients that are not finite and do not reach the output.

NOTE zero times infinity. ``torch.where(n > 0, s / n, 0)`` is finite where n is zero, and nothing
flows back into its quotient; but the backward pass of the quotient multiplies this nothing by 1/0,
which gives NaN. A coefficient that is not finite cannot be part of a finite output, so the gradient
that meets it is zero, and any finite number may stand in its place. To look for such coefficients
costs time, and hardly a model has them: where a finite output is pulled back to NaN, the model runs
once more, and every tensor is saved for the backward pass with finite numbers alone. Where one of
them did reach the output after all, the sum is missed, and the explanation says that it is inexact.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks


def saved_finite() -> saved_tensors_hooks:
    """A context: what is saved for the backward pass is finite. Values stay as they are."""
    return saved_tensors_hooks(_finite, lambda t: t)


def _finite(t: Tensor) -> Tensor:
    if not (t.is_floating_point() or t.is_complex()) or bool(t.detach().isfinite().all()):
        return t
    # ±∞ become the largest numbers, which compare with others as ±∞ do (the largest of a row).
    return t.detach().nan_to_num()


def all_finite(tensors: Iterable[Tensor | None]) -> bool:
    """Whether no gradient is NaN or infinite; a sum tells, which only reads."""
    return all(t is None or bool(t.detach().sum().isfinite()) for t in tensors)
