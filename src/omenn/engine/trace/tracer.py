"""The tracer: a torch function mode under which a model runs as its frozen self.

NOTE one tensor, one mark. Every tensor that depends on the explained input wears a mark (an
attribute, until the run is over). An operator without marked arguments is a constant and runs as it
is, without history; one with marked arguments is looked up in the spelling table and replaced by
its rule; without a rule the result is opaque (``unknown.py``). A tensor with a history but without
a mark has passed through something the mode cannot see (TorchScript, a custom
``autograd.Function``) and is opaque, too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from omenn.engine import probabilities
from omenn.engine.location import Place
from omenn.engine.location.lookups import converted, looked_up
from omenn.engine.location.placing import Placing
from omenn.engine.location.provenance import mark_frozen, mark_written, names_in, taken
from omenn.engine.model_state import State
from omenn.engine.operators import OPERATORS, Operator
from omenn.engine.operators.unruled import LEAVES_TORCH, UNTOUCHED, valued
from omenn.engine.operators.user_results import run_own
from omenn.engine.torch_private import function_modes, set_gradients
from omenn.engine.trace import memory, transforms
from omenn.engine.trace.autograd_nodes import NODES
from omenn.engine.trace.belongings import Own
from omenn.engine.trace.call import CARRIED, FROZEN, OPAQUE, Call, Mark, coarser, inputs_of
from omenn.engine.trace.caller import running_module
from omenn.engine.trace.chains import Chains
from omenn.engine.trace.checkpointing import checkpointed, kept
from omenn.engine.trace.departures import Departures
from omenn.engine.trace.flow import Flow
from omenn.engine.trace.graph import reaches
from omenn.engine.trace.inplace import check_unshared, place_base, prepare_write, seen_through
from omenn.engine.trace.lifetime import MARK, opened
from omenn.engine.trace.opaque import ruled, tensors_in, unknown
from omenn.engine.trace.origins import Origins
from omenn.engine.trace.spelling import spell

_PYTHON_NODE = torch.autograd.function.BackwardCFunction
# Nodes that an in-place write through a view leaves on tensors the mode has not seen written.
_VIEW_NODES = ("CopySlices", "AsStridedBackward")


class Tracer(Placing):
    """Runs what is called under it in frozen form. One per explanation, never shared.

    ``products``: which factor of a product of two equally bounded tensors carries: ``"half"`` of
    each, ``"left"`` or ``"right"``. ``create_graph``: keep the coefficients differentiable.
    ``book``: the table of rules, the frozen one if not given. ``ranked``: whether the bounded
    factor of a product is frozen, or all factors count as equal.
    """

    def __init__(
        self,
        model: nn.Module | None = None,
        *,
        products: str = "half",
        create_graph: bool = False,
        book: dict[str, Operator] | None = None,
        ranked: bool = True,
        state: State | None = None,
    ) -> None:
        super().__init__()
        self.products = products
        self.create_graph = create_graph
        self.touched = opened()
        self.touched.keep_history = create_graph
        self.book = OPERATORS if book is None else book
        self.engine = book is None and type(self) is Tracer  # no other book, no subclass
        self.ranked = ranked
        self.notes: dict[str, Any] = {}  # what the rules of a book keep between two calls
        self.state = state  # is told what is written into, and puts it back
        self._model = Own(model, state)
        self.names, self.own, self.memory = self._model.names, self._model.ids, self._model.memory
        self.dtype = self._model.dtype
        self.leaves: dict[int, tuple[Tensor, Mark]] = {}  # the caller's own tensors
        # Explanations inside of which this one runs: what depends on their input is refused.
        self.outer = [m for m in function_modes() if isinstance(m, Tracer)]
        self.carrying = memory.Memory()
        self.outside = Origins()
        self.aside = transforms.Aside(memory.Memory())
        self.roots: list[Tensor] = []  # tensors whose dependence is followed
        self.rooted: list[frozenset[Any]] = []  # the inputs that they are of
        self.routes = False  # what sits in a class token goes along the frozen attention
        self.finite = False  # what is saved for the backward pass is finite: see unreached.py
        self.paused = False  # while the engine itself works between two of the model's calls
        self.chains = Chains(self)
        self.departures = Departures()
        self.held = ""  # the last operator whose result was frozen
        # Makes a float of an explained integer input a leaf: (float, integers, their mark).
        self.made: Callable[[Tensor, Tensor, Mark], Tensor] | None = None
        # Is told of convolutions: (what it slides over, its mark, over how many dimensions).
        self.convolved: Callable[[Tensor, Mark, int], None] | None = None
        self.coarsest: torch.dtype | None = None  # the least precise type that carried a value

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
            raise memory.nested()
        return self._adopt(t)

    def refuse_foreign(self, t: Tensor) -> None:
        """Raises InputError for a tensor that an explanation around this one follows."""
        mark = t.__dict__.get(MARK)
        if any((mark is not None and mark.owner is o) or id(t) in o.leaves for o in self.outer):
            raise memory.nested()

    def set_mark(self, t: Tensor, mark: Mark) -> None:
        if id(t) in self.leaves and self.leaves[id(t)][0] is t:
            return
        setattr(t, MARK, mark)
        self.touched.add(t)
        if mark.kind in (CARRIED, OPAQUE):
            self.carrying.add(t)
        elif mark.kind == FROZEN:
            self.carrying.drop(t)

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
            place = place or self.home(t, inputs) or self.nowhere(t, inputs)
            mark = Mark(self, CARRIED, place, inputs=inputs)
            self.set_mark(t, mark)
            return mark
        return self._alien(t, node)

    def upstream(self, node: Any) -> frozenset[Any]:
        """The inputs that a node of the graph is made of."""
        roots = zip(self.rooted, self.roots, strict=True)
        return frozenset().union(*(names for names, root in roots if reaches(node, [root])))

    def _alien(self, t: Tensor, node: Any) -> Mark:
        """The mark of what unseen code made."""
        mark = Mark(self, OPAQUE, error=memory.alien(self, node))
        self.set_mark(t, mark)
        return mark

    def marked(self, func: Any, args: Any, kwargs: dict[str, Any]) -> list[tuple[Tensor, Mark]]:
        """The tensors among the arguments that have a mark, each as often as it is given."""
        found: list[tuple[Tensor, Mark]] = []
        args, kwargs = valued(func, args, kwargs)
        for values in (args, kwargs.values()) if kwargs else (args,):
            for value in values:
                if isinstance(value, Tensor):
                    self._look(value, found)
                elif isinstance(value, (list, tuple, dict)):
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
                memory.check_constant(self, t)
                return
        if mark.kind == CARRIED:
            node = t.grad_fn
            alien = isinstance(node, _PYTHON_NODE) and not isinstance(node, NODES)
            if alien and node not in self.touched.vouched:
                mark = self._alien(t, node)
            if not t.requires_grad:
                raise memory.cut(self)
        elif mark.kind != OPAQUE and self.carrying.holds(t):
            raise memory.alias(self)
        found.append((t, mark))

    # --- the handler -----------------------------------------------------------------------

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in UNTOUCHED or self.paused:
            return func(*args, **(kwargs or {}))
        if checkpointed():
            with kept():
                return self.__torch_function__(func, types, args, kwargs)
        if func is set_gradients and not transforms.inside():
            # Gradients stay on: what is frozen needs them, and what escapes is noticed by them.
            self.aside.gradients = bool(args[0])
            return None
        if torch.is_inference_mode_enabled():  # as above
            with torch.inference_mode(False):
                return self.__torch_function__(func, types, args, kwargs)
        kwargs = kwargs or {}
        if self.state is not None:
            self.state.before_write(func, args, kwargs)
        if transforms.concern(func):
            return transforms.run(self, func, args, kwargs)
        marked = self.marked(func, args, kwargs)
        if not marked:
            return transforms.plain(self, func, args, kwargs)
        if self.aside.duals:
            transforms.check_duals(self, args, kwargs)
        again = converted(self, func, args, kwargs, marked)
        if again is not None:
            return again
        carried = any(m.kind == CARRIED for _, m in marked)
        spelling = spell(func)
        row = self.book.get(spelling.operator) if spelling else None
        opaque = any(m.kind == OPAQUE for _, m in marked)
        if spelling is None or row is None or opaque:
            if carried or opaque:
                return unknown(self, func, args, kwargs, marked)
            return self._constant(None, func, args, kwargs, marked)
        call = Call(self, func, spelling, args, kwargs, marked)
        if not carried:
            if spelling.operator == "embedding_bag":
                return row.rule(call)
            if (rows := looked_up(self, call)) is not None:
                return rows
            return self._constant((call, row), func, args, kwargs, marked)
        return ruled(self, call, row)

    def _apply(self, call: Call, row: Operator) -> Any:
        """What the rule of a row makes of a call, with its marks."""
        if call.kwargs.get("out") is not None:
            raise call.refuse("out= is not supported")
        if row.composite:
            return row.rule(call)
        chain = None if row.own else self.chains.found(call)
        if call.inplace:
            prepare_write(self, call)
        logits = probabilities.begun(self, call)
        use = chain or call
        use.flow = Flow(use.carried, use.marked) if self.create_graph else None
        if chain is not None:
            out = chain.applied()
        else:
            out = run_own(self, call, row) if row.own else row.rule(call)
        self._mark_outputs(use, row, out)
        if call.inplace:
            place_base(self, call)
        probabilities.note(self, call, out, logits)
        self.chains.add(call, out)
        return None if call.operator == "setitem" else out

    def _mark_outputs(self, call: Call, row: Operator, out: Any) -> None:
        if call.held:
            self.held = call.operator
        found = self._places(call, row, out)
        rank = call.rank
        if row.bounded is not None:
            rank = row.bounded
        elif rank is None:
            rank = min([m.rank for _, m in call.marked if m.kind == CARRIED])
        inputs = names_in(m for _, m in call.marked)
        carriers = names_in(m for _, m in call.marked if m.kind == CARRIED)
        twin = self._twin(call, out)
        outs = [out] if isinstance(out, Tensor) else list(out)
        for k, t in enumerate(outs):
            if not isinstance(t, Tensor):
                continue
            place = found[k] if k < len(found) else None
            if not (t.is_floating_point() or t.is_complex()):
                # Indices and rounded values: should they be added somewhere, it will be told.
                self.set_mark(t, Mark(self, FROZEN, place, 0, inputs))
                continue
            carries = t.requires_grad and t.grad_fn is not None and not call.held
            carries = carries and (call.flow is None or call.flow.reaches(t))
            kind = CARRIED if carries else FROZEN
            if carries and t.dtype is not self.coarsest:
                self.coarsest = coarser(self.coarsest, t.dtype)
            true = twin[k] if twin else None
            of = carriers if kind == CARRIED else inputs
            layer, shift = call.layer_of(t), call.shift
            self.set_mark(t, Mark(self, kind, place, rank, of, true, layer, shift=shift))

    def _twin(self, call: Call, out: Any) -> list[Any] | None:
        """The same call in the ordinary graph (only kept for second derivatives)."""
        if not self.create_graph or call.held:
            return None

        def ordinary(t: Tensor) -> Tensor:
            mark = call.mark(t)
            if t is call.first and call.spare is not None:
                return call.spare
            if mark is not None and mark.kind == CARRIED and mark.true is None:
                raise call.refuse("a write through a view, which cannot be differentiated twice")
            return t if mark is None or mark.true is None else mark.true

        # A detached tensor is followed like any other.
        true = ordinary(call.carried[0]) if call.operator == "detach" else call.again(ordinary)
        if call.operator == "setitem":
            true = ordinary(call.first)
        return [true] if isinstance(out, Tensor) else list(true)

    def _places(self, call: Call, row: Any, out: Any) -> list[Place | None]:
        if call.places is None:
            if torch.is_grad_enabled():
                found = row.placer(call, out)
            else:
                with torch.enable_grad():
                    found = row.placer(call, out)
            call.places = list(found) if isinstance(found, (list, tuple)) else [found]
        return call.places

    def _constant(
        self, known: tuple[Call, Operator] | None, func: Any, args: Any, kwargs: Any, marked: Any
    ) -> Any:
        """Only frozen (or id) tensors: the result is again frozen, or ids if it is integer."""
        with torch.set_grad_enabled(self.create_graph or self.aside.history):
            out = func(*args, **kwargs)
        place: list[Place | None] = []
        if known is not None and not known[1].composite:
            try:
                there = taken(known[0], out)
                place = self._places(*known, out) if there is None else [there]
            except (RuntimeError, IndexError, TypeError, ValueError, AttributeError):
                place = []  # a place is a courtesy here: the tensor carries nothing
        self.freeze(func, marked, out, place)
        if inputs_of(marked) and getattr(func, "__name__", "") in LEAVES_TORCH:
            self.frozen_constants.add(self.module_path())
        if known is not None:
            self.chains.note(known[0], out)
            probabilities.note(self, known[0], out, None)
            if known[0].inplace:
                check_unshared(known[0])
                mark_written(self, known[0].first, marked)
        return out

    def freeze(self, func: Any, marked: Any, out: Any, found: Sequence[Place | None] = ()) -> None:
        """Marks what came of an operator through which nothing flows."""
        mark_frozen(self, func, marked, out, found)

    # --- names -----------------------------------------------------------------------------

    def module_path(self) -> str:
        """Dotted name of the innermost module whose method is running, from the call stack."""
        return running_module(self.names)
