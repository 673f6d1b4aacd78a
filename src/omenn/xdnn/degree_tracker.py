"""A tracer that follows the degree of homogeneity through the ordinary model.

NOTE a degree belongs to memory. Views, detached and in-place results are the same numbers under
other names, so the degree is kept by the address of what holds them. The memory is kept as long as
the run lasts: no address is given out twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from omenn.attribution.ordinary_gradient import Moved
from omenn.engine.operators.degree_step import ANY, NotHomogeneous, Step, shown, vanishes
from omenn.engine.operators.degrees import chosen, degree_of
from omenn.engine.operators.table import OPERATORS
from omenn.engine.operators.unruled import EMPTY, METADATA, valued
from omenn.engine.torch_private import set_gradients, unwrapped
from omenn.engine.trace.call import ACTIVE, IDS, Call, Mark, tensors_in
from omenn.engine.trace.graph import reaches, short
from omenn.engine.trace.marks import memory_of
from omenn.engine.trace.spelling import spell
from omenn.errors import UnsupportedOperator


@dataclass(frozen=True)
class Operator:
    """One call of an operator in a forward pass.

    ``inputs``: the degrees of those arguments that depend on the input (∞: zero, which is of every
    degree). ``degree``: that of the result, None if there is none, and then ``reason`` says why.
    What comes after such an operator is judged as if it had been replaced by its nearest
    homogeneous form.
    """

    operator: str
    module: str
    inputs: tuple[float, ...]
    degree: float | None
    reason: str = ""

    def __str__(self) -> str:
        where = f"{self.operator} in '{self.module or '(model)'}'"
        if self.degree is None:
            return f"{where}: {self.reason}"
        return f"{where}: degree {', '.join(map(shown, self.inputs))} → {shown(self.degree)}"


class Known(NamedTuple):
    """What is known of the numbers in one piece of memory.

    ``offenders``: the records of operators before it that are not homogeneous, by their number.
    """

    degree: float
    offenders: frozenset[int]
    storage: Any = None


_HARMLESS = (type(None), str, torch.Size, torch.dtype, torch.device, torch.layout)


class DegreeTracker(Moved):
    """Runs a model in its ordinary form and records what becomes of the degree."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.degrees: dict[int, Known] = {}
        self.operators: list[Operator] = []
        self.leaked: frozenset[int] = frozenset()  # offenders that reached Python

    # --- what is known of a tensor -----------------------------------------------------------

    def set_mark(self, t: Tensor, mark: Mark) -> None:
        super().set_mark(t, mark)
        if mark.kind == ACTIVE and mark.inputs:  # an input of the model
            self._learn(t, 1.0, frozenset())

    def _learn(self, t: Tensor, degree: float, offenders: frozenset[int]) -> bool:
        """Whether the tensor has a memory by which it can be followed."""
        inner = unwrapped(t)
        if _is_number(inner):
            self.computed_in(inner.dtype)
        else:
            degree = 0.0  # an index or a mask; rounding to it makes an offender
        address = memory_of(inner)
        if address:
            self.degrees[address] = Known(degree, offenders, inner.untyped_storage())
        return bool(address) or inner.numel() == 0

    def known_of(self, t: Tensor) -> Known | None:
        """None: a constant."""
        inner = unwrapped(t)
        address = memory_of(inner)
        found = self.degrees.get(address) if address else None
        if found is not None or not t.numel():
            return found
        if inner.is_nested:  # made by a copy that is not seen
            name, why = "nested_tensor", "what is in it cannot be followed"
        elif inner.grad_fn is not None and reaches(inner.grad_fn, self.roots):
            name = short(inner.grad_fn)
            why = "it is code that cannot be seen (TorchScript, a kernel of its own)"
        else:
            return None
        offenders = frozenset([self._record(name, (), None, why)])
        self._learn(t, 1.0, offenders)
        return Known(1.0, offenders)

    def _record(
        self, name: str, degrees: Sequence[float], degree: float | None, reason: str = ""
    ) -> int:
        made = Operator(name, self.module_path(), tuple(degrees), degree, reason)
        self.operators.append(made)
        return len(self.operators) - 1

    # --- the handler -------------------------------------------------------------------------

    def handle(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if func is set_gradients:
            return None  # with a history unseen code can be noticed
        given = {k: v for k, v in kwargs.items() if k != "out"}
        counted, named = valued(func, args, given)
        seen = [(t, known) for t in tensors_in((*counted, *named.values()))
                if (known := self.known_of(t)) is not None]  # fmt: skip
        name = getattr(func, "__name__", "")
        if not (seen or len(given) < len(kwargs)):
            return self._unmoved(func, name, args, kwargs)
        spelling = spell(func)
        row = OPERATORS.get(spelling.operator) if spelling else None
        if spelling is not None and row is not None and row.composite:
            marked = [(t, Mark(self, ACTIVE)) for t, _ in seen]
            try:
                return row.rule(Call(self, func, spelling, args, kwargs, marked))
            except UnsupportedOperator:
                pass  # it has no parts that are known
        step = Step(func, args, given, [(t, known.degree) for t, known in seen])
        with torch.enable_grad():
            return self._judged(step, seen, kwargs.get("out"))

    def _unmoved(self, func: Any, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
        """Nothing depends on the input, but for ids, which become it where they are embedded."""
        tensors = tensors_in((*args, *kwargs.values()))
        with torch.set_grad_enabled(not any(t.requires_grad for t in tensors)):
            out = func(*args, **kwargs)
        if name in EMPTY:
            out.zero_()  # what is not there yet may be of any degree
        marked = [(t, mark) for t in tensors if (mark := self.mark_of(t)) is not None]
        index, ids = next(((t, m) for t, m in marked if m.kind == IDS), (None, None))
        if index is None or ids is None:
            return out
        spelling = spell(func)
        if spelling is not None and spelling.operator == "embedding" and self.made:
            return self.made(out, index, ids)
        for t in tensors_in([out]):
            if not _is_number(t) and t.dtype != torch.bool:
                self.set_mark(t, ids)
        return out

    def _adopt(self, t: Tensor) -> Mark | None:
        return None  # see known_of

    def _judged(self, step: Step, seen: list[tuple[Tensor, Known]], out: Any) -> Any:
        try:
            found, why = degree_of(step, step.known.degree), ""
        except NotHomogeneous as error:
            found, why = error.instead, error.why
        given = tensors_in((*step.args, *step.kwargs.values(), out))
        targets = [t for t in (out, step.first if step.inplace else None) if isinstance(t, Tensor)]
        before = {id(t): self._before(t) for t in targets}
        versions = [_version(t) for t in given]
        result = self._native(step, out)
        outs = tensors_in([result])
        many = isinstance(found, tuple)
        degrees = list(found) if many else [found] * len(outs)
        degree = found[0] if many else found
        writes = []
        for t, version in zip(given, versions, strict=True):
            if _version(t) != version:
                old = degree if _whole(t) else before.get(id(t), 0.0)
                writes.append((t, old if degree == ANY else degree))
                if ANY not in (old, degree) and old != degree:
                    why = why or f"degree {shown(degree)} in a part of what is of {shown(old)}"
        if any(_rounds(step, t, d) for t, d in zip(outs, degrees, strict=True)):
            why = why or f"it rounds what is of degree {shown(degree)}"
        if step.known.overwrites and seen and seen[0][0] is step.first and _whole(step.first):
            seen = seen[1:]  # what was there is gone
        tells = not outs and _tells(step, result)
        if outs or writes or tells:
            number = self._record(step.name, step.degrees, None if why else degree, why)
            earlier = (known.offenders for _, known in seen)
            offenders = frozenset([number] if why else []).union(*earlier)
            if tells or step.known.degree is None:
                self.leaked |= offenders
            self._leak_shapes(step, seen)
            for t, new in writes:
                self._learn(t, new, offenders)
            self._settle(step, given, list(zip(outs, degrees, strict=True)), offenders)
        return result

    def _leak_shapes(self, step: Step, seen: list[tuple[Tensor, Known]]) -> None:
        """What is behind the shape of a result reaches Python with it."""
        by = step.known.shaped_by
        every = by == "values" or (step.operator == "where" and len(step.bound) == 1)
        if every or by == "index":
            behind = [known.offenders for t, known in seen if every or not _is_number(t)]
            self.leaked = self.leaked.union(*behind)

    def _before(self, t: Tensor) -> float:
        """The degree of the whole of what is written into."""
        known, t = self.known_of(t), unwrapped(t)
        if known is not None or not memory_of(t):
            return 0.0 if known is None else known.degree
        whole = torch.empty(0, dtype=t.dtype, device=t.device).set_(t.untyped_storage())
        return ANY if vanishes(whole) else 0.0

    def _native(self, step: Step, out: Any) -> Any:
        kwargs = step.kwargs if out is None else step.kwargs | {"out": out}
        own = step.inplace and memory_of(unwrapped(step.first)) in self.memory
        with torch.set_grad_enabled(not own and out is None):
            try:
                result = step.func(*step.args, **kwargs)
                return _each_alone(step, result) if step.known.parts else result
            except RuntimeError:
                if not step.inplace:
                    raise
        with torch.no_grad():  # some views may be written into only without a history
            return step.func(*step.args, **kwargs)

    def _settle(
        self,
        step: Step,
        given: list[Tensor],
        outs: list[tuple[Tensor, float]],
        offenders: frozenset[int],
    ) -> None:
        """Remembers what is known of the results."""
        there = {memory_of(unwrapped(t)) for t in given}
        for t, degree in outs:
            address = memory_of(unwrapped(t))
            old = self.degrees.get(address)
            if old is not None and address in there:  # a view
                self.degrees[address] = old._replace(offenders=old.offenders | offenders)
                continue
            fresh = address == 0 or address not in there  # else a constant, handed back
            if fresh and not self._learn(t, degree, offenders):
                why = "its result is of a kind that cannot be followed"
                self.leaked |= offenders | {self._record(step.name, step.degrees, None, why)}
            if _is_number(t) and not any(t is g for g in given):
                self.set_mark(t, Mark(self, ACTIVE))


def _each_alone(step: Step, result: Any) -> Any:
    """Views that autograd lets a model write into, as it does where it records nothing."""
    x: Tensor = step.first
    parts = x.unbind() if step.operator == "iter" else result
    if unwrapped(x) is not x or any(memory_of(t) != memory_of(x) for t in parts):
        return result
    alone = tuple(x.as_strided(t.shape, t.stride(), t.storage_offset()) for t in parts)
    return iter(alone) if step.operator == "iter" else alone


def _is_number(t: Tensor) -> bool:
    return t.is_floating_point() or t.is_complex()


def _rounds(step: Step, t: Tensor, degree: float) -> bool:
    """Whether numbers become whole ones, other than as indices, zeros and ones."""
    truth = t.dtype == torch.bool and step.operator == "to"
    return not (_is_number(t) or degree in (0, ANY) or step.known.degree is chosen or truth)


def _version(t: Tensor) -> int:
    t = unwrapped(t)
    return 0 if t.is_inference() else t._version


def _whole(t: Tensor) -> bool:
    """Whether a tensor is all that lies in its memory."""
    t = unwrapped(t)
    return t.numel() * t.element_size() == t.untyped_storage().nbytes()


def _tells(step: Step, result: Any) -> bool:
    """Whether a result that is no tensor tells of the numbers."""
    name = getattr(step.func, "__name__", "")
    metadata = name == "__get__" or name.startswith("is_") or step.name in METADATA
    return not (metadata or isinstance(result, _HARMLESS))
