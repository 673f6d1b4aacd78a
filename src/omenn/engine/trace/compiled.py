"""Compiled parts of a model run as the Python they were compiled from."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from omenn.engine.torch_private import set_compiled_frames


class _Stance:
    """``torch.compiler.set_stance`` is one for the process: the first in sets it, the last out
    puts back what was there, so that threads do not restore each other's."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._held: Any = None

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._held = torch.compiler.set_stance("force_eager")
            self._inside += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._held.__exit__(*error)
                self._held = None


_STANCE = _Stance()
# Whether this is in ``sys.modules``: importing it takes seconds, so nobody does it for nothing.
COMPILER = "torch._dynamo"


@contextmanager
def eager() -> Iterator[None]:
    """Compiled modules and functions run as Python. Only where the compiler is imported."""
    prior = set_compiled_frames(None)  # of this thread: where the caller itself is compiled
    try:
        with _STANCE:
            yield
    finally:
        set_compiled_frames(prior)
