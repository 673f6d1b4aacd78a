"""The ordinary model beside its frozen form: both must have the same output, on every call.

A difference means that the frozen pass is another function than the model: a derivative that came
out as zero, a random number, a branch that asks whether gradients are on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from omenn.engine.rounding import rounding
from omenn.engine.target import pick_output
from omenn.engine.trace.foreign import look_again
from omenn.engine.trace.refusals import blame
from omenn.errors import OmennError

if TYPE_CHECKING:
    from omenn.engine.inputs import Inputs
    from omenn.engine.model_state import State
    from omenn.engine.trace.tracer import Tracer

# How far the frozen forward pass may be from the ordinary one, relative to the largest output.
FIDELITY = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 6e-2}

_NOISE = 8  # times the rounding of an output: how far two correct passes may be apart
_SMALL = 1e-3  # outputs that the 1 of 1 + Σ|C| would hide


class Fidelity(NamedTuple):
    """``distance``: the largest |frozen − ordinary| relative to the largest |output|.

    If that is more than ``allowed``, the rounding of the output is measured (rounding.py). Where
    it is large beside the output, the difference is relative to it: 8 times the rounding is
    ``allowed``. So an output that is noise is no false alarm, and small outputs are held strictly.

    ``without``: the same beside the ordinary model without gradients, where it is another one.
    """

    distance: float
    allowed: float
    without: float

    @property
    def fused(self) -> bool:
        """Whether the ordinary output is the frozen one only with gradients on."""
        return self.kept and not self.without <= self.allowed

    @property
    def kept(self) -> bool:
        return self.distance <= self.allowed


class Compared:
    """A run of the frozen model that can be held against an ordinary one."""

    model: Any
    mode: Tracer
    inputs: Inputs
    out: Any
    at: str | None
    state: State
    fidelity: Fidelity | None = None
    beside: tuple[Any, bool, Tensor] | None = None  # of an ordinary pass: output=, gradients, out

    def picked(self, output: Any) -> Tensor:
        """The output of this pass that ``output`` says."""
        return pick_output(self.out, output)

    def ordinary(self, output: Any, args: Any, kwargs: dict[str, Any], grad: bool) -> Tensor:
        """The same of one pass of the ordinary model."""
        with self.state.kept(), torch.inference_mode(False), torch.set_grad_enabled(grad):
            return pick_output(self.model(*args, **kwargs), output)

    def compared(self) -> dict[str, Any]:
        """What an explanation says of it."""
        if self.fidelity is None:
            return {}
        return {"fidelity": self.fidelity.distance, "fidelity_tolerance": self.fidelity.allowed}

    def compare(self, output: Any, thorough: bool = False) -> Fidelity:
        """One ordinary pass without gradients, as in production, held against the frozen one.

        Where they differ it is taken once more with gradients on: PyTorch's fused inference path
        (as of ``nn.TransformerEncoder`` with padding) has other numbers of its own. If the frozen
        pass met tensors of unknown origin, or for ``thorough``, a second look comes before, see
        foreign.py. So what a model keeps elsewhere is of the input itself in the end.

        Raises UnsupportedOperator if what cannot be followed moves with the input, InputError or
        ModelError if the ordinary model fails both ways.
        """
        # A function around a model has its parameters from outside.
        unknown = any(not isinstance(t, nn.Parameter) for t, _ in self.mode.outside.met)
        if thorough or unknown:
            look_again(self, output, thorough)
        frozen = self.picked(output)
        allowed = FIDELITY.get(self.mode.coarsest or frozen.dtype, 1e-5)
        passes: dict[bool, Tensor] = {}
        noise = 0.0
        for grad in (False, True):
            args, kwargs = self.inputs.arguments()
            try:
                passes[grad] = self.ordinary(output, args, kwargs, grad)
            except (OmennError, MemoryError, torch.OutOfMemoryError):
                raise
            except Exception as error:  # without gradients it cannot take a derivative inside
                if grad and not passes:
                    raise blame(self.model, self.inputs, error, self.state) from error
                continue
            if distance(frozen, passes[grad]) <= allowed:
                break
        else:
            noise = _NOISE * rounding(self, output, *next(iter(passes.items())))
        found = [distance(frozen, ordinary, noise / allowed) for ordinary in passes.values()]
        self.fidelity = Fidelity(min(found), allowed, without=found[0])
        self.beside = (output, *next(iter(passes.items())))
        return self.fidelity

    def scale(self, residual: Tensor, magnitude: Tensor, tolerance: float) -> float:
        """What Σ|C| is added to where the sum is checked: 1, or less if all outputs are small.

        It is 1000 times the largest |output| then; if that refuses a residual, at least that of
        which the rounding of the output would be the most that is allowed.
        """
        if self.beside is None:
            return 1.0
        largest = max(_largest(_real(self.beside[2])) / _SMALL, 1e-300)
        if largest >= 1:
            return 1.0
        if bool((residual.detach().abs() <= tolerance * (largest + magnitude.detach())).all()):
            return largest
        return min(1.0, max(largest, _NOISE * rounding(self, *self.beside) / tolerance))


def distance(frozen: Tensor, ordinary: Tensor, least: float = 0.0) -> float:
    """The largest |frozen − ordinary|, relative to the largest finite |ordinary|, or ``least``."""
    here, there = _real(frozen), _real(ordinary)
    if here.shape != there.shape:
        return float("inf")
    scale = max(_largest(there), least, 1e-300)
    difference = (here - there).abs()
    difference[here == there] = 0.0  # equal infinities (masked logits) are equal
    difference[here.isnan() & there.isnan()] = 0.0
    return float(difference.max() / scale)


def _largest(t: Tensor) -> float:
    """The largest finite magnitude."""
    return float(t.abs().nan_to_num(0.0, 0.0, 0.0).max())


def _real(t: Tensor) -> Tensor:
    """The numbers of a tensor in double precision; two for each complex one."""
    t = t.detach()
    return (torch.view_as_real(t.resolve_conj()) if t.is_complex() else t).double()
