"""Gradient checkpointing inside of the model: what it would compute again is kept instead.

``torch.utils.checkpoint`` (``use_reentrant=False``) stores nothing in the forward pass and runs it
again in the backward pass. There the model would run in its ordinary form, and the coefficients of
the frozen one would be missing. So its hooks are off while a rule runs, and the explanation takes
the memory that the model takes without checkpointing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_AUTOGRAD: Any = torch._C._autograd  # pyright: ignore[reportAttributeAccessIssue]
_MODULE = "torch.utils.checkpoint"


def checkpointed() -> bool:
    """Whether what is saved for the backward pass now would be dropped and computed again."""
    hooks = _AUTOGRAD._top_saved_tensors_default_hooks(False)
    return hooks is not None and getattr(hooks[0], "__module__", "") == _MODULE


@contextmanager
def kept() -> Iterator[None]:
    """Inside, saved tensors are kept. Hooks of the user stay as they are."""
    taken = []
    try:
        while checkpointed():
            taken.append(_AUTOGRAD._top_saved_tensors_default_hooks(False))
            _AUTOGRAD._pop_saved_tensors_default_hooks()
        yield
    finally:
        for hooks in reversed(taken):
            _AUTOGRAD._push_saved_tensors_default_hooks(*hooks)
