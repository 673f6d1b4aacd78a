"""Ways in which a value could pass by the tracer, and the errors that name them.

NOTE one memory, one story. A tensor without a mark counts as a constant. It must then not share
memory with one that carries: an alias made where no mark can follow (``nn.Parameter(y)``, a
detached or NumPy alias of a buffer that is written later) would take a part of the input for a
constant, and the sum would still be right. So the memory of every carried tensor is remembered,
weakly, and a constant found in it is refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import ref

import torch
from torch import Tensor

from omenn.engine.trace.graph import short
from omenn.engine.trace.inplace import memory_of
from omenn.engine.trace.transforms import check_outside
from omenn.errors import InputError, UnsupportedOperator

if TYPE_CHECKING:
    from omenn.engine.trace.tracer import Tracer


class Memory:
    """The memory that holds carried values, by address. Being remembered keeps no data alive.

    NOTE the object of a storage lives as long as the memory, whoever holds it (a tensor, a view, a
    NumPy array), so a weak reference to it tells whether the address is still the same memory.
    """

    def __init__(self) -> None:
        self._held: dict[int, ref[torch.UntypedStorage]] = {}  # by the address of the data

    def add(self, t: Tensor) -> None:
        try:
            storage = t.untyped_storage()
            address = storage.data_ptr()
        except (RuntimeError, NotImplementedError):  # sparse, nested, wrapped: it has none
            return
        held = self._held.get(address)
        if address and (held is None or held() is None):  # else a view of memory that is known
            self._held[address] = ref(storage)

    def drop(self, t: Tensor) -> None:
        """The whole of this memory was overwritten with a frozen value."""
        if self._held:
            self._held.pop(memory_of(t), None)

    def holds(self, t: Tensor) -> bool:
        held = self._held.get(memory_of(t)) if self._held else None
        return held is not None and held() is not None


def check_constant(mode: Tracer, t: Tensor) -> None:
    """Refuses what counts as a constant, being none of the model's own, and may not be one."""
    if id(t) in mode.own:
        return
    if mode.carrying.holds(t):
        raise alias(mode)
    check_outside(mode, t)
    mode.outside.meet(t)
    if t.is_nested:  # torch.nested.nested_tensor copies what it is given, unseen
        raise UnsupportedOperator(
            "nested_tensor",
            mode.module_path(),
            "what is in a nested tensor cannot be followed",
            "Use a padded tensor, or explain at a later module with at=.",
        )


def alias(mode: Tracer) -> UnsupportedOperator:
    return UnsupportedOperator(
        "alias",
        mode.module_path(),
        "a tensor shares the memory of one that depends on the input, but was made where that "
        "cannot be followed (nn.Parameter, copy.copy, DLPack, or a detached or NumPy alias of "
        "what was written later)",
        "Use the tensor itself or a .clone() of it, or explain at a later module with at=.",
    )


def alien(mode: Tracer, node: Any) -> UnsupportedOperator:
    name = short(node)
    remedy = "Use the plain Python form of it, or explain at a later module with at=."
    if isinstance(node, torch.autograd.function.BackwardCFunction):
        remedy = f"Give it a rule with omenn.rule({name!r}, ...). {remedy}"
    if name == "CheckpointFunction":
        remedy = "Turn gradient checkpointing off, or give it use_reentrant=False."
    if name == "BackwardHookFunction":
        remedy = "Remove the full backward hooks of this module while you explain."
    return UnsupportedOperator(
        name,
        mode.module_path(),
        "a tensor comes from code that cannot be seen (a TorchScript function, a compiled "
        "kernel or a custom autograd.Function)",
        remedy,
    )


def cut(mode: Tracer) -> UnsupportedOperator:
    return UnsupportedOperator(
        "no history",
        mode.module_path(),
        "a tensor that depends on the input lost its history in code that cannot be seen (a "
        "custom autograd.Function, torch._C.DisableTorchFunction)",
        "Use the plain Python form of it, or explain at a later module with at=.",
    )


def nested() -> InputError:
    return InputError(
        "an explanation inside of another one was given a tensor that depends on the input of "
        "the outer one, which could not follow it. Explain after the outer one has ended."
    )
