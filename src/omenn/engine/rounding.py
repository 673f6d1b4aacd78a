"""How much of an output is rounding: the ordinary model once more, each operator rounded otherwise.

NOTE [noise] The mean of what is centred, the difference of two equal branches: such an output is
zero but for rounding, and two correct passes need not agree in a single digit of it. How large the
rounding is cannot be seen in the output, nor in Σ|C|, which is zero as well. So it is measured, as
in Monte Carlo arithmetic (Parker, 1997): the inputs, and what each operator makes of them, are
moved by up to two units in their last place, and the output moves by its rounding.

NOTE [ties] A decision that a tie hangs on (``floor``, ``>``) moves the output by far more. So all
numbers go up, and once more down, and the smaller change counts; and a change by half of the digits
of the largest tensor is not taken for rounding. A tensor is as large as its median: a mask is −∞.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from omenn.engine.operators.unruled import UNTOUCHED
from omenn.engine.trace.call import substitute
from omenn.engine.trace.handler import Handler
from omenn.engine.trace.marks import addresses, memory_of, tensors_in

if TYPE_CHECKING:
    from omenn.engine.fidelity import Compared

_PASSES = 3  # in each direction


class Rerounded(Handler):
    """Moves ``inputs``, and the results of operators that depend on them, up or down."""

    def __init__(self, inputs: Any, direction: int, seed: int) -> None:
        super().__init__()
        self.direction, self.count, self.largest = direction, seed, 0.0
        self.inputs = substitute(inputs, self._moved)
        self.dependent = WeakIdKeyDictionary(dict.fromkeys(tensors_in(self.inputs)))

    def handle(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        out = func(*args, **kwargs)
        given = tensors_in((*args, *kwargs.values()))
        if func in UNTOUCHED or not any(t in self.dependent for t in given):
            return out
        taken = addresses(given)  # of views, and of what was written in place
        out = substitute(out, lambda t: t if memory_of(t) in taken else self._moved(t))
        self.dependent.update(dict.fromkeys(tensors_in((out,))))
        return out

    def _moved(self, t: Tensor) -> Tensor:
        if not t.is_floating_point() or not t.numel():
            return t
        self.count += 1
        self.largest = max(self.largest, float(t.detach().abs().median()))
        steps = torch.arange(1, t.numel() + 1, device=t.device, dtype=torch.float64) + self.count
        share = torch.frac(steps * 0.6180339887498949).reshape(t.shape)
        far = 2 * self.direction * torch.finfo(t.dtype).eps
        return t * (1 + far * share).to(t.dtype)


def rounding(run: Compared, output: Any, grad: bool, ordinary: Tensor) -> float:
    """The largest change of ``ordinary``, a picked output, by other rounding; 0 if not known."""
    try:
        found = min(_change(run, output, grad, ordinary, direction) for direction in (1, -1))
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception:  # with other numbers the model does not run
        return 0.0
    return found


def _change(run: Compared, output: Any, grad: bool, ordinary: Tensor, direction: int) -> float:
    """The same in one direction."""
    eps = torch.finfo(run.mode.coarsest or ordinary.dtype).eps
    found = largest = 0.0
    for k in range(_PASSES):
        mode = Rerounded(run.inputs.arguments(), direction, 1000 * k)
        args, kwargs = mode.inputs
        with mode:
            other = run.ordinary(output, args, kwargs, grad)
        change = (other - ordinary).detach().abs().nan_to_num(0.0, 0.0, 0.0)
        found, largest = max(found, float(change.max())), max(largest, mode.largest)
    return found if found <= math.sqrt(eps) * largest else 0.0
