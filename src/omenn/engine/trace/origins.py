"""Where the constants of a run come from: operators that were seen, or somewhere else.

What counts as a constant was made by an operator seen on constants, or was there before the run, or
comes from where the tracer cannot see: a TorchScript function, a worker thread, NumPy, memory
shared with another library. The last may depend on the input. A tensor is known by its memory, and
by how often that was written into.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn

from omenn.engine.operators.unruled import FROM_DATA
from omenn.engine.trace.call import tensors_in
from omenn.engine.trace.marks import memory_of


class Origins:
    """The memory that seen operators made in one run, and the tensors that came from elsewhere.

    ``met``: those, as they were met, with their version. ``meets`` is called with each.
    """

    def __init__(self, meets: Callable[[Tensor], None] | None = None) -> None:
        # By the address of the data: the memory, and the versions in which it is known. There may
        # be several: ``t.data`` counts its own.
        self._made: dict[int, tuple[ref[torch.UntypedStorage], set[int]]] = {}
        self.met: list[tuple[Tensor, int]] = []
        self._meets = meets

    def made(self, t: Tensor) -> None:
        """The tensor is the output of an operator that was seen."""
        if _continuous(t):
            inner = stored(t)
            address = memory_of(inner)
            known = self._made.get(address)
            if known is not None and known[0]() is not None:
                known[1].add(version(inner))
            elif address:
                self._made[address] = (ref(inner.untyped_storage()), {version(inner)})

    def meet(self, t: Tensor) -> None:
        """The tensor is the argument of an operator, and counts as a constant."""
        if not _continuous(t) or not t.numel():
            return  # whole numbers and truth values are decisions; and there is nothing to follow
        inner = stored(t)
        known, now = self._made.get(memory_of(inner)), version(inner)
        if known is not None and now in known[1] and known[0]() is not None:
            return
        self.met.append((t, now))
        self.made(t)
        if self._meets is not None:
            self._meets(t)

    def unknown(self) -> bool:
        """Whether anything was met that is no parameter, as those of a function around a model."""
        return any(not isinstance(t, nn.Parameter) for t, _ in self.met)

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


def _continuous(t: Tensor) -> bool:
    """Whether it holds numbers at all (a FakeTensor does not), which are not whole ones."""
    return (t.is_floating_point() or t.is_complex()) and not hasattr(t, "fake_mode")


def stored(t: Tensor) -> Tensor:
    """The tensor whose memory tells about t: the values of a sparse one."""
    if t.layout is torch.sparse_coo:
        return t._values()
    return t if t.layout is torch.strided else t.values() if t.is_sparse_csr else t
