"""The ordinary gradient, of any model and any input that ``omenn.explain`` takes.

The model runs under a tracer whose operators are PyTorch's own, with PyTorch's own
derivatives: nothing is approximated, and operators without a rule pass as well. What the engine
adds are its checks, ids explained at their embedding, ``at=``, and targets of every kind. Constants
are noted where the frozen table notes them (biases, shifts), so that f = ∇f·x + Σ ∇_b f·b can be
completed. ``detach`` and ``no_grad`` inside of the model are ignored: this is the derivative of the
function that it computes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from omenn.attribution.lrp_layers import summand
from omenn.check import choose
from omenn.engine.depth import RESAMPLINGS
from omenn.engine.inputs import NOT_COLLECTED
from omenn.engine.operators.attention import fused
from omenn.engine.operators.chain import FROZEN_CHAIN
from omenn.engine.operators.degrees import chosen, norm, product, sloped
from omenn.engine.operators.record import DROPOUT
from omenn.engine.operators.recurrent import sequence
from omenn.engine.operators.selection import clamped, larger
from omenn.engine.operators.table import OPERATORS, Operator
from omenn.engine.operators.unruled import LEAVES_TORCH, WRITES
from omenn.engine.run import FrozenRun
from omenn.engine.torch_private import set_gradients
from omenn.engine.trace.call import ACTIVE, FROZEN, Call, Mark, inputs_of, tensors_in
from omenn.engine.trace.graph import reaches, short
from omenn.engine.trace.opaque import raise_opaque
from omenn.engine.trace.spelling import spell
from omenn.engine.trace.tracer import Tracer
from omenn.errors import TargetError, UnsupportedOperator

# (index of an explained input, its value) → the value that the model is given in its place.
Move = Callable[[int, Tensor], Tensor]


class Moved(Tracer):
    """A tracer whose explained inputs are moved on their way in.

    ``move(k, x)`` is what the model sees of the k-th input x. It is part of what is differentiated,
    so a gradient arrives at the x that was given.
    """

    def __init__(self, model: nn.Module | None = None, *, move: Move | None = None, **options: Any):
        super().__init__(model, **options)
        self.move = move
        self._entered: set[Any] = set()

    def set_mark(self, t: Tensor, mark: Mark) -> None:
        new = mark.inputs - self._entered if mark.kind == ACTIVE else ()
        super().set_mark(t, mark)
        if not new:
            return
        self._entered |= mark.inputs  # the first tensor with the key of an input is its copy
        if self.move is not None:
            (key,) = new
            with torch.enable_grad():
                t.copy_(self.move(key, t.clone()))


class OrdinaryTracer(Moved):
    """Runs a model in its ordinary form: every operator with its true derivative.

    ``not_homogeneous``: operator → the module that called it first.
    """

    def __init__(
        self,
        model: nn.Module | None = None,
        *,
        constants: bool = False,
        rules: dict[str, Operator] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(model, rules=rules or table(), **options)
        self.chains.off = not constants  # a derivative alone is the same in any spelling
        self.not_homogeneous: dict[str, str] = {}

    def handle(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if self._known(func):
            return super().handle(func, args, kwargs)
        marked = self.marked(func, args, kwargs)
        if any(m.kind == ACTIVE for _, m in marked):
            with torch.enable_grad():
                out = func(*args, **kwargs)
            if tensors_in([out]):
                return self._noted(func, out, marked)
        return super().handle(func, args, kwargs)

    def _known(self, func: Any) -> bool:
        """Whether the engine itself knows what to do, be it to refuse."""
        spelling, name = spell(func), getattr(func, "__name__", "")
        known = spelling is not None and spelling.operator in self.rules
        inside = func is set_gradients  # of a transform
        return known or name in LEAVES_TORCH or name in WRITES or inside

    def _noted(self, func: Any, out: Any, marked: Any) -> Any:
        """What an operator returns that the table does not know: with PyTorch's derivative."""
        inputs = inputs_of(marked)
        for t in tensors_in([out]):
            active = t.requires_grad and t.grad_fn is not None and reaches(t.grad_fn, self.roots)
            if active:
                self.note(getattr(func, "__name__", str(func)))
            if t.dtype != torch.bool:
                place = self.location.nowhere(t, inputs) if active else None
                kind = ACTIVE if active else FROZEN
                self.set_mark(t, Mark(self, kind, place, 0, inputs))
        return out

    def _look(self, t: Tensor, found: list[tuple[Tensor, Mark]]) -> None:
        mark = self.mark_of(t)
        if mark is not None and mark.kind == ACTIVE and t.requires_grad:
            found.append((t, mark))  # whatever made it
        else:
            super()._look(t, found)

    def _adopt(self, t: Tensor) -> Mark | None:
        """What comes from unseen code (TorchScript, an ``autograd.Function``) has a derivative."""
        if t.grad_fn is None or not reaches(t.grad_fn, self.roots):
            return None
        inputs = self.upstream(t.grad_fn)
        place = self.location.home(t, inputs) or self.location.nowhere(t, inputs)
        mark = Mark(self, ACTIVE, place, inputs=inputs)
        self.set_mark(t, mark)
        self.note(short(t.grad_fn))
        return mark

    def note(self, operator: str) -> None:
        """Remembers an operator that is not homogeneous."""
        self.not_homogeneous.setdefault(operator, self.module_path())


class OrdinaryRun(FrozenRun):
    """One forward pass of the ordinary model, from which derivatives are pulled back.

    ``move``: see :class:`Moved`. With ``bias="spatial"`` constants are collected as well.
    """

    def __init__(
        self,
        model: Any,
        inputs: Any,
        *,
        at: str | None = None,
        channel_dim: int | None = None,
        bias: str = "none",
        move: Move | None = None,
        tracer: type[OrdinaryTracer] = OrdinaryTracer,
        resample: str = "none",
    ) -> None:
        choose("resample", resample, RESAMPLINGS)
        options = {"move": move, "constants": bias not in NOT_COLLECTED}
        super().__init__(model, inputs, at, bias, channel_dim, options, tracer, resample=resample)

    def _check(self, f: Tensor) -> None:
        raise_opaque(self.mode, f)
        try:
            super()._check(f)
        except UnsupportedOperator:  # not linear, as it may be here
            if not f.requires_grad:
                text = "the explained output has no derivative by the input."
                raise TargetError(text, argument="target") from None


# --- the table ---------------------------------------------------------------------------------


def native(call: Call) -> Any:
    """The operator as PyTorch has it, with its derivative by all that depends on the input."""
    degree = call.known.degree
    if degree != 1 and degree not in _HOMOGENEOUS and not (degree is product and _alone(call)):
        call.context.note(call.operator)  # type: ignore[attr-defined]
    return call.run()


_HOMOGENEOUS = (norm, chosen, sloped)  # in their first argument, with the constants that they take


def _alone(call: Call) -> bool:
    return len(call.active) == 1


def affine(call: Call) -> Any:
    """The frozen rule, right for one factor that depends on the input; else as it is."""
    names = call.known.factors.split()
    active = sum(call.is_active(call.get(name)) for name in names)
    single = len(names) == 1  # the argument in which the operator is not linear
    if call.operator == "div" and call.reverse:
        active = call.is_active(call.get("input"))
    if active <= (0 if single else 1):
        return OPERATORS[call.operator].rule(call)
    out, constant = native(call), summand(call)
    return out if constant is None else call.attach(out, constant)


def clipped(call: Call) -> Any:
    """Clipping is φ′(x) x and a constant; with the slope that PyTorch has at the edge."""
    x = call.active[0]
    if not _alone(call) or (value := call.value()).shape != x.shape:
        return native(call)
    call.context.note(call.operator)  # type: ignore[attr-defined]
    with torch.enable_grad():
        leaf = x.detach().clone().requires_grad_()
        y = call.run(lambda t: leaf * 1 if t is x else call.constant(t))
    (slope,) = torch.autograd.grad(y, leaf, torch.ones_like(y))
    term = torch.where(slope == 0, value, value - slope * x.detach())
    out = call.frozen(x, value, lambda grad, slope: grad * slope, slope)
    return call.attach(out, term)


def normalised(call: Call) -> Any:
    """A normalisation, whose shift is a constant."""
    if call.operator == "instance_norm" and call.get("use_input_stats") is False:
        return OPERATORS["instance_norm"].rule(call)
    out, bias = native(call), call.get("bias")
    if not isinstance(bias, Tensor) or call.is_active(bias):
        return out
    bias = call.constant(bias)
    column = call.operator != "layer_norm"
    return call.attach(out, bias.reshape(-1, *[1] * (out.ndim - 2)) if column else bias)


def attention(call: Call) -> Any:
    if call.get("dropout_p"):
        raise call.refuse(*DROPOUT)
    return native(call)


def recurrent(call: Call) -> Any:
    if call.active[0].is_cuda:
        raise call.refuse(
            "PyTorch's kernels of a GPU for it have no derivative in evaluation mode",
            "Explain the model on a CPU.",
        )
    return native(call)


# Rule at constant coefficients → the ordinary one, where that is not the native operator alone.
_ORDINARY = {clamped: clipped, larger: clipped, fused: attention, sequence: recurrent}


def _ordinary(row: Operator) -> Operator:
    """The same operator with its true derivative."""
    if row.true:
        return row
    rule = affine if row.factors else normalised if row.kind == "normalisation" else native
    return row.with_rule(_ORDINARY.get(row.rule, rule), composite=False)


def table() -> dict[str, Operator]:
    """The rows of the ordinary model: the frozen ones where they have the true derivative."""
    rows = {name: _ordinary(row) for name, row in OPERATORS.items()}
    return rows | {"chain": FROZEN_CHAIN.with_rule(native)}
