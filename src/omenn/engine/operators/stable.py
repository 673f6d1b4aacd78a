"""Log-softmaxes that a model writes out in their stable form: the logits less a frozen number.

With m = max y, both y − m − log Σ exp(y − m) and y − (m + log Σ exp(y − m)) are y − log Σ exp y,
whatever m is. ``log_softmax`` holds the logarithm and lets y through; so do these, and m, which a
logarithm that is frozen by itself would leave in the map, drops out.

NOTE [a look at the values] How the logarithm was spelled does not matter: it is the number that
normalises the logits. It is looked at where a frozen number, or one made with it, is taken off.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from omenn.engine.trace.autograd_nodes import Several
from omenn.engine.trace.call import FROZEN, Call

_NEAR = 1e-3  # a constant may be added under the logarithm


class Shift(NamedTuple):
    """What was taken off a tensor, at its version; None: a frozen number was added to it."""

    by: Tensor | None
    version: int = 0


def noted(call: Call, a: Tensor, b: Tensor) -> None:
    """Remembers of a sum what the stable form of a logarithm starts with: y − m, or m + ⟦…⟧."""
    if call.operator == "add":
        marks = [call.mark(a), call.mark(b)]
        if any(mark is not None and mark.kind == FROZEN for mark in marks):
            call.shift = Shift(None)
    elif call.is_active(a) and call.is_active(b) and b.numel() < a.numel():
        call.shift = Shift(b, b._version)


def log_softmax(call: Call, a: Tensor, b: Tensor) -> Tensor | None:
    """a − b, if it is a log-softmax in its stable form: y − ⟦log Σ exp y⟧."""
    frozen = not call.is_active(b)
    mark = call.mark(a if frozen else b)
    shift = None if mark is None else mark.shift
    if shift is None or not call.is_active(a) or (shift.by is None) == frozen:
        return None
    if not _normalises(b, a):
        return None
    if shift.by is None:
        out = call.frozen(a, call.value(), lambda grad: grad)
        return call.attach(out, call.true_value() - call.true(a), frozen=True)
    m, mark = shift.by, call.context.mark_of(shift.by)
    if mark is None or m._version != shift.version or not _largest(a, m):
        return None
    call.marked.append((m, mark))
    call.active.append(m)
    vjp = lambda grads: (grads[0], grads[0].sum_to_size(m.shape))  # noqa: E731
    (out,) = Several.apply([call.value()], vjp, 2, a, m)  # type: ignore[misc]
    return call.attach(out, call.true_value() - call.true(a) - call.true(m), frozen=True)


def _normalises(number: Tensor, y: Tensor) -> bool:
    """Whether a number is log Σ exp y, summed over what it is repeated along."""
    dims = _repeated(number, y)
    if not dims or not fits(number, y.shape) or not y.is_floating_point():
        return False
    right = torch.logsumexp(y.detach(), dims, keepdim=True)
    return torch.allclose(number.detach().to(right.dtype).expand_as(right), right, 0, _NEAR)


def _largest(z: Tensor, m: Tensor) -> bool:
    """Whether m is the largest of the numbers that it was taken off, which gave z."""
    return not bool(z.detach().amax(_repeated(m, z)).any())


def _repeated(t: Tensor, y: Tensor) -> list[int]:
    dims = range(-y.ndim, 0)
    return [d for d in dims if y.shape[d] > 1 and (-d > t.ndim or t.shape[d] == 1)]


def fits(constant: Tensor, shape: torch.Size) -> bool:
    """Whether a constant leaves a result the shape that it is combined with."""
    given = tuple(constant.shape)
    there = shape[len(shape) - len(given) :]
    return len(given) <= len(shape) and all(a in (1, b) for a, b in zip(given, there, strict=True))
