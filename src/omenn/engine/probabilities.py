"""Probabilities at the end of a model, and the logits in front of them.

A sigmoid has the constant ½ and a logarithm of a softmax that of the other classes, which are most
of what would be shown; a softmax has no linear part at all. So of a class the logit in front of
them is explained. An output wears with its mark how the same output is made of logits: what only
arranges numbers anew is followed, and done with the logits when they are asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from omenn.engine.torch_private import DisableTorchFunction
from omenn.engine.trace.call import Call, substitute
from omenn.errors import TargetError

if TYPE_CHECKING:
    from omenn.engine.trace.tracer import Tracer

_SIGMOIDS = ("sigmoid", "logsigmoid")
LAST = {
    "sigmoid": torch.sigmoid,
    "logsigmoid": torch.nn.functional.logsigmoid,
    "softmax": torch.softmax,
    "log_softmax": torch.log_softmax,
}
# What one of these becomes under another function.
_UNDER = {
    ("log", "sigmoid"): "logsigmoid",
    ("exp", "logsigmoid"): "sigmoid",
    ("log", "softmax"): "log_softmax",
    ("exp", "log_softmax"): "softmax",
}
_FOLLOWED = ("keeps", "reshapes", "permutes", "selects")
_LOGARITHM_OR_POWER = frozenset(name for name, _ in _UNDER)


@dataclass(frozen=True, slots=True)
class End:
    """That a tensor is ``operator`` of ``logits()``; ``version``: of the tensor, as it was then."""

    operator: str
    logits: Callable[[], Tensor]
    version: int


def begun(mode: Tracer, call: Call) -> Callable[[], Tensor] | None:
    """The logits, where the call is one of these functions, before it may write over them.

    NOTE [a few only] The logits are held as long as the result is: those of a row for each sample
    are small, those of attentions and pixels are not, and are never a class of a sample.
    """
    x = call.first
    if call.operator not in LAST or getattr(call.func, "__name__", "") == "softmin":
        return None
    if not call.is_active(x) or sum(n > 1 for n in x.shape) > 2:
        return None
    if call.inplace:
        with mode:
            x = x.clone()
    version = x._version

    def logits() -> Tensor:
        if x._version != version:
            raise TargetError(
                f"the logits in front of the {call.operator} at the end of the model are written "
                "over afterwards. Explain what the model returns: target=lambda out: out[:, 0]."
            )
        return x

    return logits


def note(mode: Tracer, call: Call, out: Any, logits: Callable[[], Tensor] | None) -> None:
    """Puts on the mark of a result how it is made of logits, if it is."""
    operator, moves = call.operator, call.known.moves in _FOLLOWED
    if not isinstance(out, Tensor):
        return
    if logits is None and not (moves or operator in _LOGARITHM_OR_POWER):
        return
    if logits is None:
        given = {id(t): m.end for t, m in call.marked}
        ends = {end.operator for end in given.values() if end is not None}
        if None in given.values() or len(ends) != 1:
            return
        (last,) = ends
        follow = _arranged(call, out, {i: end.logits for i, end in given.items() if end})
        operator = _UNDER.get((operator, last), last if moves else "")
        if not operator or follow is None:
            return
        logits = follow
    mark = mode.worn(out)
    if mark is not None:
        mark.end = End(operator, logits, out._version)


def _arranged(
    call: Call, out: Tensor, known: dict[int, Callable[[], Tensor]]
) -> Callable[[], Tensor] | None:
    """The same arrangement of logits as the call is of what is made of them."""
    first = known.get(id(call.first))
    if call.known.moves in ("permutes", "selects"):
        if call.inplace:
            return None
        return lambda: call.func(
            *substitute(call.args, lambda t: known[id(t)]() if id(t) in known else t),
            **substitute(call.kwargs, lambda t: known[id(t)]() if id(t) in known else t),
        )
    shape = tuple(out.shape)
    return None if first is None else lambda: first().reshape(shape)


def logits_of(end: End, out: Tensor) -> tuple[Tensor, str]:
    """The logits in front of an output of probabilities, and what they are; else the output."""
    if end.version != out._version:
        return out, ""
    logits = end.logits()
    if end.operator not in _SIGMOIDS and not _over_classes(end.operator, logits, out):
        return out, ""
    return logits, f"the logit before {end.operator}"


def _over_classes(operator: str, logits: Tensor, out: Tensor) -> bool:
    """Whether these are probabilities of the classes of each sample: of each row (B, classes)."""
    if out.ndim != 2 or logits.shape != out.shape:
        return False
    tolerance = 16 * torch.finfo(out.dtype).eps
    with DisableTorchFunction():  # a look, no part of the model
        there = LAST[operator](logits.detach().double(), 1)
        return torch.allclose(there, out.detach().double(), tolerance, tolerance)
