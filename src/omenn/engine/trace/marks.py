"""What tensors wear during a run: their marks, and what is remembered of them until it is over.

NOTE [marks] Every tensor that depends on the explained input wears a mark (an attribute, until the
run is over). An operator without marked arguments is a constant and runs as it is, without history.

NOTE [plain again] A model may keep what it computed (features, an attention map, a moving average),
and so may the caller (a target function, a hook). To them these are plain values, as in an ordinary
pass without gradients; with the history of the frozen network they could be neither copied, saved
nor read by NumPy, and all of the graph would stay in memory. So when a run ends, no tensor that is
still there wears a mark or a history of the engine.

NOTE [one memory, one story] A tensor without a mark counts as a constant. It must then not share
memory with one that is active: an alias made where no mark can follow (``nn.Parameter(y)``, a
detached or NumPy alias of a buffer that is written later) would take a part of the input for a
constant, and the sum would still be right. So the memory of every active tensor is remembered,
weakly, and a constant found in it is refused.

NOTE [where constants come from] What counts as a constant was made by an operator seen on
constants, or was there before the run, or comes from where the tracer cannot see: a TorchScript
function, a worker thread, NumPy, memory shared with another library. The last may depend on the
input. A tensor is known by its memory, and by how often that was written into.
"""

from __future__ import annotations

import numbers
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import ref

import torch
from torch import Tensor

from omenn.engine.torch_private import DisableTorchFunction, swap_tensors
from omenn.errors import UnsupportedOperator

if TYPE_CHECKING:
    from omenn.engine.location import Place
    from omenn.engine.operators.stable import Shift
    from omenn.engine.probabilities import End
    from omenn.engine.trace.call import Context

ACTIVE, FROZEN, IDS, OPAQUE = "active", "frozen", "ids", "opaque"
MARK = "_omenn_mark"
# These make a tensor from numbers of Python or another library.
FROM_DATA = frozenset([torch.tensor, torch.as_tensor, torch.asarray])


@dataclass(slots=True, eq=False)
class Mark:
    """What the tracer knows of a tensor.

    ``kind``: ``active`` (affine in the explained input), ``frozen`` (depends on the input, but
    held constant), ``ids`` (explained integer ids) or ``opaque`` (depends on the input in a way
    that no rule knows; ``error`` says since which operator). ``boundedness``: how readily a factor
    is frozen in a product (2 softmax and sigmoid, 1 tanh, 0 unbounded). ``inputs``: keys of the
    explained inputs. ``true``: the same tensor in the ordinary graph, kept for second derivatives.
    ``layer``: the linear layer that it is the output of. ``shift``: what was taken off it last.
    """

    owner: Context  # the tracer that knows it
    kind: str
    place: Place | None = None
    boundedness: int = 0
    inputs: frozenset[Any] = frozenset()
    true: Tensor | None = None
    layer: Layer | None = None
    error: UnsupportedOperator | None = None
    end: End | None = None  # of what logits it is the probability
    shift: Shift | None = None  # see operators/stable.py

    def __reduce__(self) -> Any:
        raise UnsupportedOperator(
            "pickle",
            self.owner.module_path(),
            "a tensor that depends on the input is written as bytes, where it cannot be followed",
            "Keep it a tensor, or explain at a later module with at=.",
        )


class Layer(NamedTuple):
    """A linear layer y = x Wᵀ + b as it was called, for a rule that needs but some columns of y.

    ``input`` may be gone, and ``versions`` (of x, y, W, b) tell whether one was written into since.
    """

    input: weakref.ref[Tensor]
    weight: Tensor
    bias: Tensor | None
    name: str
    versions: tuple[int, ...]


Marked = Sequence[tuple[Tensor, Mark]]


def names_in(marked: Marked, kinds: Sequence[str] = (ACTIVE, FROZEN, IDS, OPAQUE)) -> Any:
    """Keys of the explained inputs that any of the tensors depends on; of these kinds alone."""
    if len(marked) == 1 and marked[0][1].kind in kinds:
        return marked[0][1].inputs
    return frozenset().union(*[m.inputs for _, m in marked if m.kind in kinds])


def inputs_of(marked: Marked) -> frozenset[Any]:
    """The same, ids apart."""
    return names_in(marked, (ACTIVE, FROZEN, OPAQUE))


def coarser(a: torch.dtype | None, b: torch.dtype) -> torch.dtype:
    """The less precise of two types."""
    return b if a is None or torch.finfo(b).eps > torch.finfo(a).eps else a


# --- arguments -----------------------------------------------------------------------------------


def tensors_in(values: Iterable[Any]) -> list[Tensor]:
    """Tensors in arguments, also inside (nested) tuples, lists and dicts."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += tensors_in(value)
        elif isinstance(value, dict):
            found += tensors_in(value.values())
    return found


# --- memory --------------------------------------------------------------------------------------


def memory_of(t: Tensor) -> int:
    """Address of the memory behind a tensor, 0 where there is none (meta, lazy, sparse)."""
    try:
        return t.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError, ValueError):  # the last: uninitialised
        return 0


def addresses(tensors: Iterable[Tensor]) -> set[int]:
    """Those of the memory behind tensors, as far as they have any."""
    return {memory_of(t) for t in tensors} - {0}


@dataclass(eq=False)
class Memory:
    """The memory that holds some values, by address. Being remembered keeps no data alive.

    NOTE [storages] The object of a storage lives as long as the memory, whoever holds it (a tensor,
    a view, a NumPy array), so a weak reference to it tells whether the address is still the same
    memory.
    """

    _known: dict[int, ref[torch.UntypedStorage]] = field(default_factory=dict)  # by the address

    def add(self, t: Tensor) -> None:
        try:
            storage = t.untyped_storage()
            address = storage.data_ptr()
        except (RuntimeError, NotImplementedError):  # sparse, nested, wrapped: it has none
            return
        known = self._known.get(address)
        if address and (known is None or known() is None):  # else a view of memory that is known
            self._known[address] = ref(storage)

    def drop(self, t: Tensor) -> None:
        """The whole of this memory was overwritten with a frozen value."""
        if self._known:
            self._known.pop(memory_of(t), None)

    def holds(self, t: Tensor) -> bool:
        known = self._known.get(memory_of(t)) if self._known else None
        return known is not None and known() is not None


# --- constants -----------------------------------------------------------------------------------


@dataclass(eq=False)
class Origins:
    """The memory that seen operators made in one run, and the tensors that came from elsewhere.

    ``met``: those, as they were met, with their version. ``meets`` is called with each.
    """

    meets: Callable[[Tensor], None] | None = None
    met: list[tuple[Tensor, int]] = field(default_factory=list)
    # By the address of the data: the memory, and the versions in which it is known. There may be
    # several: ``t.data`` counts its own.
    _made: dict[int, tuple[ref[torch.UntypedStorage], set[int]]] = field(default_factory=dict)

    def made(self, t: Tensor) -> None:
        """The tensor is the output of an operator that was seen."""
        if continuous(t) and not hasattr(t, "fake_mode"):
            inner = stored(t)
            address = memory_of(inner)
            known = self._made.get(address)
            if known is not None and known[0]() is not None:
                known[1].add(version(inner))
            elif address:
                self._made[address] = (ref(inner.untyped_storage()), {version(inner)})

    def meet(self, t: Tensor) -> None:
        """The tensor is the argument of an operator, and counts as a constant."""
        if not continuous(t) or not t.numel() or hasattr(t, "fake_mode"):
            return  # there is nothing to follow
        inner = stored(t)
        known, now = self._made.get(memory_of(inner)), version(inner)
        if known is not None and now in known[1] and known[0]() is not None:
            return
        self.met.append((t, now))
        self.made(t)
        if self.meets is not None:
            self.meets(t)

    def called(self, func: Any, args: Any, kwargs: dict[str, Any], out: Any) -> None:
        """An operator was called on constants: its outputs, and what it wrote into, are known."""
        if func in FROM_DATA and not _plain(args[0] if args else kwargs.get("data")):
            return
        for t in tensors_in((out,)):
            self.made(t)
        for t in tensors_in((*args, *kwargs.values())):
            if memory_of(stored(t)) in self._made:
                self.made(t)


def version(t: Tensor) -> int:
    """How often the memory of a tensor was written into; -1 where that is not counted."""
    return -1 if t.is_inference() else t._version


def _plain(data: Any) -> bool:
    return isinstance(data, (numbers.Number, Tensor))


def continuous(t: Tensor) -> bool:
    """Whether its numbers are real or complex; whole numbers and truth values are decisions."""
    return t.is_floating_point() or t.is_complex()


def stored(t: Tensor) -> Tensor:
    """The tensor whose memory tells about t: the values of a sparse one."""
    if t.layout is torch.sparse_coo:
        return t._values()
    return t if t.layout is torch.strided else t.values() if t.is_sparse_csr else t


# --- the end of a run ----------------------------------------------------------------------------


class Followed:
    """The tensors that one run has marked, or given a history; and the memory of active ones.

    They are not kept alive, unless ``strong`` is set: ``torch.utils.swap_tensors`` refuses what has
    weak references. ``keep_history``: derivatives of the frozen network are wanted afterwards.
    """

    def __init__(self, strong: bool = False, keep_history: bool = False) -> None:
        self._seen: list[Callable[[], Tensor | None]] = []
        self.vouched: set[Any] = set()  # nodes of the autograd graph that rules of users made
        self.active = Memory()
        self._strong, self._keep_history = strong, keep_history

    def add(self, t: Tensor, kind: str = "") -> None:
        """From now on the tensor is followed, with a mark of this kind if it got one."""
        self._seen.append((lambda: t) if self._strong else ref(t))
        if kind in (ACTIVE, OPAQUE):
            self.active.add(t)
        elif kind == FROZEN:
            self.active.drop(t)

    def forget_dead(self) -> None:
        self._seen[:] = [r for r in self._seen if r() is not None]

    def release(self) -> None:
        """Makes plain values of what is still there: same object, same memory, same numbers."""
        alive = {id(t): t for r in self._seen if (t := r()) is not None}
        self._seen.clear()
        self.vouched.clear()  # else a cycle through the graph
        for t in alive.values():
            mark = t.__dict__.get(MARK)
            if mark is not None and getattr(mark.owner, "followed", None) is self:
                delattr(t, MARK)
            if not self._keep_history and _has_history(t):
                _detach(t)


def _has_history(t: Tensor) -> bool:
    try:
        return t.grad_fn is not None
    except RuntimeError:  # a view without one, of what was written into with one
        return True


def _detach(t: Tensor) -> None:
    """``t.detach_()``, which PyTorch refuses for a view, and of which a graph that is kept breaks.

    The object goes on with the implementation of its detached twin: no history, same memory.
    """
    twin = t.detach()
    try:
        swap_tensors(t, twin)
    except RuntimeError:  # C++ code refers to it weakly
        if not t._is_view():
            t.detach_()


class _Scopes(threading.local):
    def __init__(self) -> None:
        self.open: list[list[Followed]] = []


_SCOPES = _Scopes()


def opened(strong: bool = False, keep_history: bool = False) -> Followed:
    """What a new run of this thread follows, released when the scope it is made in ends."""
    followed = Followed(strong, keep_history)
    if _SCOPES.open:
        scope = _SCOPES.open[-1]
        if scope:
            scope[-1].forget_dead()
        scope.append(followed)
    return followed


@contextmanager
def released() -> Iterator[None]:
    """Around an entry of the engine: at its end, also by an exception, the runs in it are over."""
    scope: list[Followed] = []
    _SCOPES.open.append(scope)
    try:
        yield
    finally:
        _SCOPES.open[:] = [s for s in _SCOPES.open if s is not scope]
        with DisableTorchFunction(), torch.inference_mode(False):
            for followed in scope:
                followed.release()
