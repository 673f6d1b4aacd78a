"""Numbers that leave PyTorch: allowed where they only go to a log or a record, and proven to.

NOTE [shaken] A number in Python (``y.item()``, an array of NumPy) wears no mark. So what leaves is
noted, and the frozen pass is run once more with each such number moved by a percent. If the
explained number moves with it, the model computes with it, which is refused; else nothing that
leaves matters. Then the model runs in its ordinary form, so that what it or a hook keeps is of the
true numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from omenn.engine.trace.attempt import Pass
from omenn.engine.trace.call import ACTIVE, OPAQUE, substitute
from omenn.errors import UnsupportedOperator

if TYPE_CHECKING:
    from omenn.engine.run import FrozenRun
    from omenn.engine.trace.tracer import Tracer

Key = tuple[str, str]  # operator and module
_MOST = 8  # places of which it is tried which one it was


@dataclass
class Departures:
    """What left in one run."""

    how: Pass
    errors: dict[Key, UnsupportedOperator] = field(default_factory=dict)
    _count: int = 0

    def leave(self, mode: Tracer, call: Any, error: UnsupportedOperator) -> Any:
        """The result of ``call`` (function, arguments, keywords) on copies of what it is given.

        Copies, because an array shares memory with the tensor it was made from.
        """
        key = (error.operator, error.module)
        self.errors.setdefault(key, error)
        moved = self.how.shaken and self.how.only in (None, key)

        def out(t: Tensor) -> Tensor:
            mark = mode.mark_of(t)
            if mark is None or mark.kind not in (ACTIVE, OPAQUE):
                return t
            value = t.detach().clone()
            return self._moved(value) if moved else value

        func, args, kwargs = call
        with torch.no_grad():
            return func(*substitute(args, out), **substitute(kwargs, out))

    def _moved(self, t: Tensor) -> Tensor:
        """Each number a percent or two further from zero, none by the same factor."""
        self._count += 1
        steps = torch.arange(1, t.numel() + 1, device=t.device, dtype=torch.float64) + self._count
        far = 0.01 + 0.01 * torch.frac(steps * 0.6180339887498949).reshape(t.shape)
        return torch.where(t == 0, far.to(t.dtype), t * (1 + far).to(t.dtype))


def check_departures(run: FrozenRun, f: Tensor, same: Callable[[Any], Tensor]) -> None:
    """Raises the error of the number that left and that f was computed with, if there is one.

    ``same``: what f is in another run.
    """
    errors = run.mode.departures.errors
    if not errors:
        return
    guilty = None
    if _moves(run, f, same, None):
        some = list(errors)[:_MOST] if len(errors) > 1 else []
        guilty = next((k for k in some if _moves(run, f, same, k)), next(iter(errors)))
    args, kwargs = run.inputs.arguments()
    with torch.no_grad(), run.state.kept():
        run.model(*args, **kwargs)
    if guilty is not None:
        raise copy(errors[guilty])


def _moves(run: FrozenRun, f: Tensor, same: Callable[[Any], Tensor], only: Key | None) -> bool:
    """Whether the explained number moves with what leaves."""
    twin = run.shaken.get(only)
    if twin is None:
        try:
            twin = run.another(shaken=True, only=only)
        except Exception:  # with other numbers the model does not run
            return True
        run.shaken[only] = twin
    try:
        other = same(twin).detach()
    except Exception:
        return True
    there = f.detach()
    if other.shape != there.shape:
        return True
    eps = torch.finfo(run.mode.coarsest or there.dtype).eps
    return not bool(((other - there).abs() <= 8 * eps * there.abs().max()).all())
