"""The tracer: a torch function mode that sees every call of a model, and what it makes of each.

NOTE [the gates] ``__torch_function__`` alone decides whether a call is looked at: what tells no
value of a tensor is not (shape, type, device), nor what the engine calls itself; gradients stay
on, and what would be computed again in the backward pass (checkpointing) is kept. What comes
through goes to :meth:`Tracer.handle`, which other kinds of passes have of their own (ordinary
gradients, degrees of homogeneity, the scan before a conversion).

NOTE [one tensor, one mark] (``marks.py``) An operator without marked arguments is a constant and
runs as it is, without history; one with marked arguments is looked up in the spelling table and
replaced by its rule; without a rule the result is opaque (``opaque.py``). A tensor with a history
but without a mark has passed through something the mode cannot see (TorchScript, a custom
``autograd.Function``) and is opaque, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from omenn.engine import probabilities
from omenn.engine.location.constants import Location
from omenn.engine.location.lookups import converted
from omenn.engine.model_state import Own, State
from omenn.engine.operators.table import OPERATORS, Operator
from omenn.engine.operators.unruled import UNTOUCHED, VALUED, valued
from omenn.engine.operators.user_results import run_own
from omenn.engine.torch_private import (
    function_modes,
    innermost_transform,
    saved_tensor_hooks,
    set_gradients,
)
from omenn.engine.trace import refusals, transforms
from omenn.engine.trace.attempt import Pass
from omenn.engine.trace.autograd_nodes import NODES, saved_apart
from omenn.engine.trace.call import Call, running_module, tensors_in
from omenn.engine.trace.chains import Chains
from omenn.engine.trace.checkpointing import checkpointed, kept
from omenn.engine.trace.departures import Departures
from omenn.engine.trace.graph import Flow, reaches
from omenn.engine.trace.inplace import owned, place_base, prepare_write, seen_through
from omenn.engine.trace.marks import (
    ACTIVE,
    FROZEN,
    IDS,
    MARK,
    OPAQUE,
    Mark,
    Origins,
    coarser,
    names_in,
    opened,
    version,
)
from omenn.engine.trace.opaque import frozen_result, native, unknown
from omenn.engine.trace.spelling import by_function
from omenn.errors import UnsupportedOperator

_PYTHON_NODE = torch.autograd.function.BackwardCFunction
# Nodes that an in-place write through a view leaves on tensors the mode has not seen written.
_VIEW_NODES = ("CopySlices", "AsStridedBackward")

# Makes a float of an explained integer input a leaf: (float, integers, their mark).
Lookup = Callable[[Tensor, Tensor, Mark], Tensor]
Convolved = Callable[[Tensor, Mark, int], None]  # see Context


class Tracer(TorchFunctionMode):
    """Runs what is called under it in frozen form. One per explanation, never shared.

    ``products``: which factor of a product of two equally bounded tensors stays active: ``"half"``
    of each, ``"left"`` or ``"right"``. ``create_graph``: keep the coefficients differentiable.
    ``rules``: the table of rules, the frozen one if not given. ``freeze_bounded``: whether the
    bounded factor of a product is frozen, or all factors count as equal.
    """

    locating: type[Location] = Location

    def __init__(
        self,
        model: nn.Module | None = None,
        *,
        products: str = "half",
        create_graph: bool = False,
        rules: dict[str, Operator] | None = None,
        freeze_bounded: bool = True,
        state: State | None = None,
        how: Pass | None = None,
    ) -> None:
        super().__init__()
        self.how = how or Pass()
        self.products, self.create_graph = products, create_graph
        self.freeze_bounded = freeze_bounded
        self.rules = OPERATORS if rules is None else rules
        self.engine = rules is None and type(self) is Tracer  # no other table, no subclass
        self.notes: dict[str, Any] = {}  # what the rules of a table keep between two calls
        self._spellings = by_function()
        self.state = state  # learns what is written into, and puts it back
        self._model = Own(model, state)
        self.names, self.own, self.memory = self._model.names, self._model.ids, self._model.memory
        self.dtype = self._model.dtype
        # Gives the name of the innermost module whose method is running.
        self.module_path = partial(running_module, self.names)
        self.location = self.locating(
            self.rules, self.module_path, self.how.along_attention, self.how.smooth
        )
        self.followed = opened(self.how.strong, create_graph or self.how.keep_history)
        self.roots: list[Tensor] = []  # tensors whose dependence is followed
        self.rooted: list[frozenset[Any]] = []  # the inputs that they are of
        self.leaves: dict[int, tuple[Tensor, Mark]] = {}  # the caller's own tensors
        # Explanations inside of which this one runs: what depends on their input is refused.
        self.outer = [m for m in function_modes() if isinstance(m, Tracer)]
        self.outside = Origins()
        self.aside = transforms.Aside(self.how.history)
        self.departures = Departures(self.how)
        self.chains = Chains(self)
        self.paused = False  # while the engine itself works between two of the model's calls
        self.last_frozen = ""  # the last operator whose result was frozen
        self.coarsest: torch.dtype | None = None  # the least precise type of an active value
        self.made: Lookup | None = None
        self.convolved: Convolved | None = None

    # --- inputs ----------------------------------------------------------------------------

    def follow(self, leaf: Tensor, inputs: frozenset[Any]) -> None:
        """What depends on this leaf, which is of these inputs, is followed."""
        self.roots.append(leaf)
        self.rooted.append(inputs)

    def follow_own(self, x: Tensor) -> None:
        """A tensor of the caller is an explained input; nothing is hung on it."""
        true, inputs = x.detach() if self.create_graph else None, frozenset([id(x)])
        self.leaves[id(x)] = (x, Mark(self, ACTIVE, None, 0, inputs, true))
        self.follow(x, inputs)

    @contextmanager
    def taking(self, made: Lookup | None, convolved: Convolved | None) -> Iterator[None]:
        """Around a pass: what makes leaves of integer inputs, and learns of convolutions.

        NOTE [no cycle] An explanation is freed as soon as it is dropped.
        """
        self.made, self.convolved = made, convolved
        try:
            yield
        finally:
            self.made = self.convolved = None

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Inside, calls are the engine's own, and are not looked at."""
        before, self.paused = self.paused, True
        try:
            yield
        finally:
            self.paused = before

    def stop(self) -> None:
        """From now on nothing of the pass is looked at."""
        self.paused = True

    # --- marks -----------------------------------------------------------------------------

    def worn(self, t: Tensor) -> Mark | None:
        """The mark that a tensor wears, if it wears one."""
        mark = t.__dict__.get(MARK)
        if mark is not None and mark.owner is self:
            return mark
        entry = self.leaves.get(id(t))
        return entry[1] if entry is not None and entry[0] is t else None

    def mark_of(self, t: Tensor) -> Mark | None:
        """The same; one without, whose history reaches the input, is taken over or refused."""
        mark = self.worn(t)
        if mark is not None:
            return mark
        if getattr(t.__dict__.get(MARK), "owner", None) in self.outer:
            raise refusals.nested()
        return self._adopt(t)

    def refuse_foreign(self, t: Tensor) -> None:
        """Raises InputError for a tensor that an explanation around this one follows."""
        mark = t.__dict__.get(MARK)
        if any((mark is not None and mark.owner is o) or id(t) in o.leaves for o in self.outer):
            raise refusals.nested()

    def set_mark(self, t: Tensor, mark: Mark) -> None:
        if id(t) in self.leaves and self.leaves[id(t)][0] is t:
            return
        setattr(t, MARK, mark)
        self.followed.add(t, mark.kind)

    def _adopt(self, t: Tensor) -> Mark | None:
        """A tensor with history but no mark: constant, a base written through a view, or alien."""
        node = t.grad_fn
        if node is None or not reaches(node, self.roots):
            return None
        if type(node).__name__.startswith(_VIEW_NODES):
            inputs = self.upstream(node)
            whole = None if t._base is None else self.worn(t._base)
            there = None if whole is None else whole.place
            place = None if there is None else seen_through(t, there)
            place = place or self.location.home(t, inputs) or self.location.nowhere(t, inputs)
            mark = Mark(self, ACTIVE, place, inputs=inputs)
            self.set_mark(t, mark)
            return mark
        return self._alien(t, node)

    def upstream(self, node: Any) -> frozenset[Any]:
        """The inputs that a node of the graph is made of."""
        roots = zip(self.rooted, self.roots, strict=True)
        return frozenset().union(*(names for names, root in roots if reaches(node, [root])))

    def _alien(self, t: Tensor, node: Any) -> Mark:
        """The mark of what unseen code made."""
        mark = Mark(self, OPAQUE, error=refusals.alien(self, node))
        self.set_mark(t, mark)
        return mark

    def marked(self, func: Any, args: Any, kwargs: dict[str, Any]) -> list[tuple[Tensor, Mark]]:
        """The tensors among the arguments that have a mark, each as often as it is given."""
        found: list[tuple[Tensor, Mark]] = []
        if func in VALUED:
            args, kwargs = valued(func, args, kwargs)
        for values in (args, kwargs.values()) if kwargs else (args,):
            for value in values:
                if isinstance(value, Tensor):
                    self._look(value, found)
                elif isinstance(value, (list, tuple, dict)) and value:
                    for t in tensors_in((value,)):
                        self._look(t, found)
        return found

    def _look(self, t: Tensor, found: list[tuple[Tensor, Mark]]) -> None:
        mark = t.__dict__.get(MARK)
        if mark is None or mark.owner is not self:
            if mark is None and id(t) in self.own and not self.leaves:
                return
            mark = self.mark_of(t)
            if mark is None:
                self._check_constant(t)
                return
        if mark.kind == ACTIVE:
            node = t.grad_fn
            alien = isinstance(node, _PYTHON_NODE) and not isinstance(node, NODES)
            if alien and node not in self.followed.vouched:
                mark = self._alien(t, node)
            if not t.requires_grad:
                raise refusals.cut(self)
        elif mark.kind != OPAQUE and self.followed.active.holds(t):
            raise refusals.alias(self)
        found.append((t, mark))

    def _check_constant(self, t: Tensor) -> None:
        """Refuses what counts as a constant, being none of the model's own, and may not be one."""
        if id(t) in self.own:
            return
        if self.followed.active.holds(t):  # NOTE [one memory, one story]
            raise refusals.alias(self)
        if self.aside.whole is not None:
            transforms.check_outside(self, t)
        self.outside.meet(t)
        if t.is_nested:
            raise refusals.packed(self)

    def computed_in(self, dtype: torch.dtype) -> None:
        """A model that computes in float32 inside of float64 is exact to float32."""
        if dtype is not self.coarsest:
            self.coarsest = coarser(self.coarsest, dtype)

    # --- the gates -------------------------------------------------------------------------

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in UNTOUCHED or self.paused:
            return func(*args, **kwargs)
        if func is set_gradients and innermost_transform() is None:
            # Gradients stay on: what is frozen needs them, and what escapes is noticed by them.
            self.aside.gradients = bool(args[0])
            return None
        keeps = saved_tensor_hooks() is not None and checkpointed()
        if not (keeps or torch.is_inference_mode_enabled()):
            return self._seen(func, args, kwargs)
        with kept() if keeps else nullcontext(), torch.inference_mode(False):
            return self._seen(func, args, kwargs)

    def _seen(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """A call that came through the gates."""
        if self.state is not None and (kwargs or getattr(func, "__name__", "")[-1:] == "_"):
            self.state.before_write(func, args, kwargs)
        return self.handle(func, args, kwargs)

    # --- the handler -----------------------------------------------------------------------

    def handle(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """What a call returns at fixed coefficients, with its mark."""
        if innermost_transform() is not None or func in transforms.DERIVATIVES:
            return transforms.run(self, func, args, kwargs)
        marked = self.marked(func, args, kwargs)
        if not marked:
            return transforms.plain(self, func, args, kwargs)
        if self.aside.duals:
            transforms.check_duals(self, args, kwargs)
        kinds = {m.kind for _, m in marked}
        if IDS in kinds:
            again = converted(self, func, args, kwargs, marked)
            if again is not None:
                return again
        spelling = self._spellings.get(func)
        row = self.rules.get(spelling.operator) if spelling else None
        if spelling is None or row is None or OPAQUE in kinds:
            if ACTIVE in kinds or OPAQUE in kinds:
                return unknown(self, func, args, kwargs, marked)
            return frozen_result(self, None, func, args, kwargs, marked)
        call = Call(self, func, spelling, args, kwargs, marked)
        if ACTIVE in kinds:
            return self._ruled(call, row)
        return frozen_result(self, (call, row), func, args, kwargs, marked)

    def _ruled(self, call: Call, row: Operator) -> Any:
        """The rule's result; the operator's own, opaque, where the rule refuses this call."""
        before = version(call.first) if call.inplace else 0
        try:
            if torch.is_grad_enabled() and not self.how.finite:
                return self._apply(call, row)
            with torch.enable_grad(), saved_apart() if self.how.finite else nullcontext():
                return self._apply(call, row)
        except UnsupportedOperator as error:
            if call.inplace and (owned(self, call.first) or version(call.first) != before):
                raise  # nothing may be written, or a part of it was
            refused = error
        return native(self, call.func, call.args, call.kwargs, call.marked, refused)

    def _apply(self, call: Call, row: Operator) -> Any:
        """What the rule of a row makes of a call, with its marks."""
        if "out" in call.kwargs and call.kwargs["out"] is not None:
            raise call.refuse("out= is not supported")
        if row.composite:
            return row.rule(call)
        chain = self.chains.found(call) if row.link and not row.own else None
        if call.inplace:
            prepare_write(self, call)
        logits = probabilities.begun(self, call) if call.operator in probabilities.LAST else None
        use = chain or call
        use.flow = Flow(use.active, use.marked) if self.create_graph else None
        if chain is not None:
            out = chain.applied()
        elif row.own:
            out, nodes = run_own(call, row)
            self.followed.vouched |= nodes
        else:
            out = row.rule(call)
        self._mark_outputs(use, row, out)
        if call.inplace:
            place_base(self, call)
        if logits is not None or any(m.end is not None for _, m in call.marked):
            probabilities.note(self, call, out, logits)
        if call.link is not None:
            self.chains.add(call, out)
        return None if call.operator == "setitem" else out

    def _mark_outputs(self, call: Call, row: Operator, out: Any) -> None:
        if call.result_frozen:
            self.last_frozen = call.operator
        found = call.places or self.location.places(call, row, out)
        boundedness = call.boundedness if row.bounded is None else row.bounded
        if boundedness is None:
            boundedness = min([m.boundedness for _, m in call.marked if m.kind == ACTIVE])
        inputs = of = call.marked[0][1].inputs
        if len(call.marked) > 1:
            inputs, of = names_in(call.marked), call.inputs
        twin = call.twin(out) if self.create_graph else None
        for k, t in enumerate([out] if isinstance(out, Tensor) else out):
            if not isinstance(t, Tensor):
                continue
            place = found[k] if k < len(found) else None
            if not (t.is_floating_point() or t.is_complex()):
                # Indices and rounded values: should they be added somewhere, the result says so.
                self.set_mark(t, Mark(self, FROZEN, place, 0, inputs))
                continue
            active = t.requires_grad and t.grad_fn is not None and not call.result_frozen
            active = active and (call.flow is None or call.flow.reaches(t))
            if active:
                self.computed_in(t.dtype)
            true = twin[k] if twin else None
            kind, names = (ACTIVE, of) if active else (FROZEN, inputs)
            layer = call.layer or next((m.layer for g, m in call.marked if g is t), None)
            new = Mark(self, kind, place, boundedness, names, true, layer, shift=call.shift)
            self.set_mark(t, new)

    def curved(self, t: Tensor) -> bool:
        return self.chains.curved(t)
