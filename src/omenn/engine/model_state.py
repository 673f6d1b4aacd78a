"""The state of a model around a forward pass: every pass starts from it, and it is as before after.

A forward pass may change its model: count its calls, keep features, move an average, replace a
buffer, draw random numbers. An explanation takes several passes, and none of them is one of the
caller's; so each starts from the state in which the model was given.

NOTE [never a copy too late] What a pass writes in place is exchanged before the pass for a twin in
memory of its own, as views of it may be made before the first write, and as the graph of the pass
may hold what was written long after it. That it is written is seen at the first write, which then
does not happen: the pass is broken off and starts again.
"""

from __future__ import annotations

import random
import sys
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from operator import is_, itemgetter
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from omenn.engine.torch_private import DisableTorchFunction, swap_tensors
from omenn.engine.trace.call import tensors_in
from omenn.engine.trace.compiled import COMPILER, eager
from omenn.engine.trace.handler import Handler
from omenn.engine.trace.marks import addresses, memory_of
from omenn.errors import ModelError

Result = TypeVar("Result")


class Again(BaseException):
    """Breaks a pass off, to start it anew: not for the model to catch.

    ``written``: address of memory of the model that the pass was about to write into.
    """

    def __init__(self, written: int | None = None) -> None:
        super().__init__(written)
        self.written = written


class State:
    """What a model, or a function around models, holds when it is made."""

    def __init__(self, model: Any) -> None:
        # All that the model has is held, so that no id and no address of it is given out again.
        found = [m for root in modules_behind(model) for _, m in modules_of(root)]
        self.modules = [m for m in found if "_modules" in vars(m)]  # a traced one is C++
        self._attributes = [(vars(m), dict(vars(m))) for m in self.modules]
        self._containers: list[tuple[Any, Any]] = []
        self._hooks: list[tuple[Any, Any]] = []
        self._tensors: list[Tensor] = []
        self._seen: set[int] = set()
        for now, before in self._attributes:
            hooks = _HOOKS(before)
            self._hooks.append((hooks, [*map(_copied, hooks)] if any(hooks) else None))
            self._containers.append((now["_modules"], _copied(before["_modules"])))
            for name in now.keys() - _STANDARD:
                self._note(before[name])
        self._flags = [t.requires_grad for t in self._tensors]
        self._written: set[int] = set()
        self._addresses: dict[int, list[Tensor]] | None = None
        self._randomness = Randomness(self._tensors)

    def _note(self, value: Any) -> None:
        kind = type(value)
        if kind in _PLAIN or id(value) in self._seen:
            return
        if kind is tuple:
            for inner in value:
                self._note(inner)
        elif kind in _CONTAINERS:
            self._seen.add(id(value))
            self._containers.append((value, _copied(value)))
            for inner in value.values() if kind in _MAPPINGS else value:
                self._note(inner)
        elif issubclass(kind, Tensor):
            self._seen.add(id(value))
            self._tensors.append(value)

    @property
    def _memory(self) -> dict[int, list[Tensor]]:
        """Address → the model's tensors there. Asked for when something is written."""
        if self._addresses is None:
            self._addresses = {}
            for t in self._tensors:
                address = memory_of(t)
                if address:
                    self._addresses.setdefault(address, []).append(t)
        return self._addresses

    # --- passes ----------------------------------------------------------------------------

    def run(self, attempt: Callable[[], Result]) -> Result:
        """The result of one pass, which reports what it writes to :meth:`before_write`.

        ``attempt`` may be called several times, so it makes what it gives to the model.
        """
        while True:
            before = COMPILER in sys.modules
            try:
                with self.kept():
                    out = attempt()
            except Again as found:
                if found.written is not None:
                    self._written.add(found.written)
                continue
            except Exception:
                if (COMPILER in sys.modules) is before:
                    raise
                continue
            if (COMPILER in sys.modules) is before:
                return out
            # NOTE [late compiler] This pass imported it, and so may have run compiled parts.

    def watched(self, attempt: Callable[[], Result]) -> Result:
        """One pass of the ordinary model, of which it is not yet known what it writes."""

        def watching() -> Result:
            with _Watch(self):
                return attempt()

        return self.run(watching)

    @contextmanager
    def kept(self, shared: Sequence[str] = ()) -> Iterator[None]:
        """Around one pass of which it is known what it writes, by a pass before.

        ``shared``: attributes of modules that another library has set, with hooks, for longer than
        this pass. All of them stay, and the random numbers that it draws go on.
        """
        twins = [pair for address in self._written for pair in self._twins(address)]
        self._exchange(twins)
        if not shared:
            self._randomness.put_back()
        try:
            with eager() if COMPILER in sys.modules else nullcontext():
                yield
        finally:
            self._exchange(twins)
            self._put_back(shared)

    def before_write(self, func: Any, args: Any, kwargs: dict[str, Any]) -> None:
        """Breaks the pass off where an operator is about to write into memory of the model."""
        if not _writes(func, kwargs):
            return
        for t in tensors_in(_targets(args, kwargs)):
            address = memory_of(t)
            if address in self._memory and address not in self._written:
                raise Again(address)

    def exchanged(self) -> set[int]:
        """Ids of the model's tensors that a pass writes into which runs now, twins meanwhile."""
        return {id(t) for address in self._written for t in self._memory[address]}

    # --- memory ----------------------------------------------------------------------------

    def _twins(self, address: int) -> list[tuple[Tensor, Tensor]]:
        """The model's tensors at an address, each with its like in a copy of that memory."""
        there = self._memory[address]
        with torch.inference_mode(False), torch.no_grad(), DisableTorchFunction():
            memory = there[0].untyped_storage().clone()
            pairs = []
            for t in there:
                twin = torch.empty(0, dtype=t.dtype, device=t.device)
                twin.set_(memory, t.storage_offset(), t.size(), t.stride())
                pairs.append((t, twin.requires_grad_(t.requires_grad)))
            return pairs

    @staticmethod
    def _exchange(twins: list[tuple[Tensor, Tensor]]) -> None:
        """Each of the model's tensors, the same object, gets the memory of its twin."""
        for t, twin in twins:
            try:
                swap_tensors(t, twin)
            except RuntimeError as error:
                raise ModelError(
                    "the model writes into a parameter or buffer that C++ code refers to, so its "
                    "state could not be put back. Let it work on a copy (.clone()) of it."
                ) from error

    def _put_back(self, shared: Sequence[str]) -> None:
        for now, before in self._attributes:
            if now.keys() != before.keys() or not _same(now.values(), before.values()):
                if not shared:
                    now.clear()
                now.update({k: v for k, v in before.items() if k not in shared})
        if not shared:
            self._put_hooks_back()
        for now, before in self._containers:
            _restore(now, before)
        if not shared:
            self._randomness.put_back()
        for t, flag in zip(self._tensors, self._flags, strict=True):
            if t.requires_grad is not flag and t.is_leaf:
                t.requires_grad_(flag)

    def _put_hooks_back(self) -> None:
        for hooks, before in self._hooks:
            if before is not None or any(hooks):
                for now, was in zip(hooks, before or ((),) * len(hooks), strict=True):
                    _restore(now, was)


def _restore(now: Any, before: Any) -> None:
    if (now or before) and not _unchanged(now, before):
        now.clear()
        (now.update if isinstance(now, (dict, set)) else now.extend)(before)


_HOOK_NAMES = tuple(name for name in vars(nn.Module()) if name.endswith("hooks"))
_STANDARD = frozenset((*_HOOK_NAMES, "training", "_modules"))
_HOOKS = itemgetter(*_HOOK_NAMES)
_PLAIN = frozenset((bool, int, float, str, type(None), torch.dtype, torch.device))
_MAPPINGS = (dict, OrderedDict, defaultdict)
_CONTAINERS = frozenset((*_MAPPINGS, list, set, deque))


def _same(a: Any, b: Any) -> bool:
    return len(a) == len(b) and all(map(is_, a, b))


def _copied(container: Any) -> Any:
    if not container:
        return ()
    kind = type(container)
    return dict(container) if kind in _MAPPINGS else set(container) if kind is set else [*container]


def _unchanged(now: Any, before: Any) -> bool:
    """Whether a container holds the same objects; one with hooks of the engine is let alone.

    Another explanation in another thread may have hung them there, and takes them off itself.
    """
    if not isinstance(now, dict):
        return now == before if isinstance(now, set) else _same(now, before)
    before = before or {}
    if _same(now, before) and _same(now.values(), before.values()):
        return True
    return any(map(_of_the_engine, (*now.values(), *before.values())))


def _of_the_engine(hook: Any) -> bool:
    return callable(hook) and str(getattr(hook, "__module__", "")).startswith("omenn.")


def modules_behind(model: Any) -> list[nn.Module]:
    """The model, or the modules that a function (a method, a ``partial``, a closure) calls."""
    if isinstance(model, nn.Module):
        return [model]
    parts = [getattr(model, "__self__", None), getattr(model, "func", None)]
    parts += [*getattr(model, "args", ()), *getattr(model, "keywords", {}).values()]
    function = getattr(model, "__func__", model)
    for cell in getattr(function, "__closure__", None) or ():
        try:
            parts.append(cell.cell_contents)
        except ValueError:  # not assigned yet
            continue
    names = getattr(getattr(function, "__code__", None), "co_names", ())
    parts += [getattr(function, "__globals__", {}).get(name) for name in names]
    return [part for part in parts if isinstance(part, nn.Module)]


# --- what belongs to a model ---------------------------------------------------------------------


def modules_of(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """``list(model.named_modules())``: the same without a generator for each level of nesting."""
    found: list[tuple[str, nn.Module]] = []
    seen: set[int] = set()
    todo = [("", model)]
    while todo:
        prefix, module = todo.pop()
        if id(module) in seen:
            continue
        if type(module).named_modules is not nn.Module.named_modules:  # it counts its own way
            return list(model.named_modules())
        seen.add(id(module))
        found.append((prefix, module))
        below = [
            (f"{prefix}.{k}" if prefix else k, m)
            for k, m in module._modules.items()
            if m is not None
        ]
        todo += reversed(below)
    return found


class Own:
    """Names of modules and ids of tensors of a model, and the addresses of their memory.

    NOTE [held while they are keys] A forward pass may drop a buffer or a module; were it gone, a
    new tensor could get its id or its address, and count as the model's own.
    """

    def __init__(self, model: nn.Module | None, state: State | None) -> None:
        self.names: dict[int, str] = {}
        self.ids: set[int] = set()
        types: set[torch.dtype] = set()
        self._held: list[nn.Module | Tensor] = []
        for name, m in [] if model is None else modules_of(model):
            self.names[id(m)] = name
            found = [t for t in (*m._parameters.values(), *m._buffers.values()) if t is not None]
            self._held += [m, *found]
            self.ids.update(map(id, found))
            types.update([t.dtype for t in found])
        self.memory = addresses([t for t in self._held if isinstance(t, Tensor)])
        if state is not None:  # values of what is written into may change
            self.ids -= state.exchanged()
        self.dtype = precision(types)


def precision(types: set[torch.dtype]) -> torch.dtype:
    """That in which a model of such tensors computes: double if any is, or nobody knows."""
    single = any(t.is_floating_point for t in types) and torch.float64 not in types
    return torch.float32 if single else torch.float64


# --- writes --------------------------------------------------------------------------------------

_OPERATORS = frozenset(
    "__iadd__ __isub__ __imul__ __itruediv__ __ifloordiv__ __imod__ __ipow__ __iand__ __ior__ "
    "__ixor__ __ilshift__ __irshift__ __imatmul__ __setitem__ __set__".split()
)
# Arguments that make an operator write into its first one, or into any.
_FIRST, _ANY = ("inplace",), ("training", "use_input_stats", "max_norm")


def _writes(func: Any, kwargs: dict[str, Any]) -> bool:
    name = getattr(func, "__name__", "")
    if name.endswith("_"):
        return not name.endswith("__") or name in _OPERATORS
    return bool(kwargs) and _given(kwargs, (*_FIRST, *_ANY, "out"))


def _given(kwargs: dict[str, Any], names: tuple[str, ...]) -> bool:
    return any(kwargs.get(name) is not None and kwargs[name] is not False for name in names)


def _targets(args: Any, kwargs: dict[str, Any]) -> list[Any]:
    """What of the arguments may be written into."""
    if _given(kwargs, _ANY):
        return [*args, *kwargs.values()]
    first = args[0] if args else next(iter(kwargs.values()), None)
    return [first, kwargs.get("out")]


class _Watch(Handler):
    """Reports the writes of an ordinary pass."""

    def __init__(self, state: State) -> None:
        super().__init__()
        self.state = state

    def handle(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        self.state.before_write(func, args, kwargs)
        return func(*args, **kwargs)


# --- random numbers ------------------------------------------------------------------------------


class Randomness:
    """The global sources of random numbers: torch and its devices in use, Python, NumPy."""

    def __init__(self, tensors: list[Tensor]) -> None:
        self._torch = torch.get_rng_state()
        gpus = {t.device for t in tensors if t.is_cuda}
        self._gpus = {device: torch.cuda.get_rng_state(device) for device in gpus}
        self._python = random.getstate()
        numpy = sys.modules.get("numpy.random")  # NumPy imports it when it is first used
        self._numpy = None if numpy is None else numpy.get_state()

    def put_back(self) -> None:
        if not torch.equal(torch.get_rng_state(), self._torch):
            torch.set_rng_state(self._torch)
        for device, state in self._gpus.items():
            torch.cuda.set_rng_state(state, device)
        if random.getstate() != self._python:
            random.setstate(self._python)
        if self._numpy is not None:
            sys.modules["numpy.random"].set_state(self._numpy)
