"""The cost of a call: seconds, and the peak of memory as far as the process can observe it.

NOTE [peak memory]
On a GPU it is what torch has allocated at most, above what there was before. Elsewhere it is the
resident set of the whole process, looked at every two milliseconds in a thread, above what there
was before: an estimate, as a short peak is missed, and what the allocator kept from before is not
counted. Where neither can be had it is None.
"""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_STATM = Path("/proc/self/statm")
_EVERY = 0.002  # seconds


@dataclass
class Spent:
    """Seconds, and bytes at the peak (see NOTE [peak memory]); filled when the call is over."""

    seconds: float = 0.0
    memory: int | None = None


@contextmanager
def spending(device: str = "cpu") -> Iterator[Spent]:
    """Measures the block; the numbers are available after it.

    >>> with spending() as spent:
    ...     squares = [n * n for n in range(1000)]
    >>> assert spent.seconds > 0
    """
    spent = Spent()
    watch = _Gpu(device) if device.startswith("cuda") else _Resident()
    started = time.perf_counter()
    try:
        yield spent
    finally:
        watch.wait()
        spent.seconds = time.perf_counter() - started
        spent.memory = watch.peak()


class _Gpu:
    def __init__(self, device: str) -> None:
        import torch

        self.cuda, self.device = torch.cuda, device
        self.cuda.synchronize(device)
        self.cuda.reset_peak_memory_stats(device)
        self.before = self.cuda.memory_allocated(device)

    def wait(self) -> None:
        self.cuda.synchronize(self.device)

    def peak(self) -> int:
        return self.cuda.max_memory_allocated(self.device) - self.before


class _Resident:
    def __init__(self) -> None:
        _trim()
        self.before = self.most = _resident()
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._look, daemon=True)
        self.thread.start()

    def _look(self) -> None:
        while not self.done.wait(_EVERY):
            self._once()

    def _once(self) -> None:
        now = _resident()
        if self.most is not None and now is not None:
            self.most = max(self.most, now)

    def wait(self) -> None:
        """Nothing is under way when a call on the processor returns."""

    def peak(self) -> int | None:
        self._once()
        self.done.set()
        self.thread.join()
        return None if self.most is None or self.before is None else self.most - self.before


def _resident() -> int | None:
    try:
        return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError, AttributeError):
        return None  # no Linux


def _trim() -> None:
    """Return freed memory from glibc to the system, or the next call would seem to need less."""
    trim = None
    if _STATM.exists():
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
