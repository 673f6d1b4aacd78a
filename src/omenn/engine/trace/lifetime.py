"""The end of a run: no tensor that is still there wears a mark or a history of the engine.

A model may keep what it computed (features, an attention map, a moving average), and so may the
caller (a target function, a hook). To them these are plain values, as in an ordinary pass without
gradients; with the history of the frozen network they could be neither copied, saved nor read by
NumPy, and all of the graph would stay in memory.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import ref

import torch
from torch import Tensor

from omenn.engine.torch_private import DisableTorchFunction, swap_tensors

MARK = "_omenn_mark"


class Touched:
    """The tensors that one run has marked, or given a history.

    They are not kept alive, unless ``strong`` is set: ``torch.utils.swap_tensors`` refuses what has
    weak references.
    """

    def __init__(self) -> None:
        self._seen: list[Callable[[], Tensor | None]] = []
        self.vouched: set[Any] = set()  # nodes of the autograd graph that rules of users made
        self.strong = False
        self.keep_history = False  # derivatives of the frozen network are wanted afterwards

    def add(self, t: Tensor) -> None:
        self._seen.append((lambda: t) if self.strong else ref(t))

    def forget_dead(self) -> None:
        self._seen[:] = [r for r in self._seen if r() is not None]

    def release(self) -> None:
        """Makes plain values of what is still there: same object, same memory, same numbers."""
        alive = {id(t): t for r in self._seen if (t := r()) is not None}
        self._seen.clear()
        self.vouched.clear()  # else a cycle through the graph
        for t in alive.values():
            mark = t.__dict__.get(MARK)
            if mark is not None and mark.owner.touched is self:
                delattr(t, MARK)
            if not self.keep_history and _has_history(t):
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
        self.open: list[list[Touched]] = []


_SCOPES = _Scopes()


def opened() -> Touched:
    """What a new run of this thread touches, released when the scope it is made in ends."""
    touched = Touched()
    if _SCOPES.open:
        scope = _SCOPES.open[-1]
        if scope:
            scope[-1].forget_dead()
        scope.append(touched)
    return touched


@contextmanager
def released() -> Iterator[None]:
    """Around an entry of the engine: at its end, also by an exception, the runs in it are over."""
    scope: list[Touched] = []
    _SCOPES.open.append(scope)
    try:
        yield
    finally:
        _SCOPES.open[:] = [s for s in _SCOPES.open if s is not scope]
        with DisableTorchFunction(), torch.inference_mode(False):
            for touched in scope:
                touched.release()
