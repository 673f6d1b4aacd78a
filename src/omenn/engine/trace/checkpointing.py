"""Gradient checkpointing inside of the model: what it would compute again is kept instead.

``torch.utils.checkpoint`` (``use_reentrant=False``) stores nothing in the forward pass and runs it
again in the backward pass. There the model would run in its ordinary form, and the coefficients of
the frozen one would be missing. So its hooks are off while a rule runs, and the explanation takes
the memory that the model takes without checkpointing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from omenn.engine.torch_private import (
    pop_saved_tensor_hooks,
    push_saved_tensor_hooks,
    saved_tensor_hooks,
)

_MODULE = "torch.utils.checkpoint"


def checkpointed() -> bool:
    """Whether what is saved for the backward pass now would be dropped and computed again."""
    hooks = saved_tensor_hooks()
    return hooks is not None and getattr(hooks[0], "__module__", "") == _MODULE


@contextmanager
def kept() -> Iterator[None]:
    """Inside, saved tensors are kept. Hooks of the user stay as they are."""
    taken = []
    try:
        while checkpointed():
            taken.append(saved_tensor_hooks())
            pop_saved_tensor_hooks()
        yield
    finally:
        for hooks in reversed(taken):
            push_saved_tensor_hooks(*hooks)
