"""Measuring one call beside another: seconds in paired rounds, peak memory in a process of its own.

Results are kept in a work folder, one file each, so that an interrupted run goes on where it
stopped. A result is used again only if it was made by the same engine with the same torch.
"""

from __future__ import annotations

import ctypes
import gc
import hashlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import torch

import omenn
from experiments.report import ROOT, environment
from omenn.files.atomic import replacing

RESUMABLE = "interrupted; what is finished stays; run the same command again to go on"


def fail(command: str, message: str) -> NoReturn:
    """One line on standard error, exit code 2."""
    print(f"{command}: error: {message}", file=sys.stderr)
    raise SystemExit(2)


@contextmanager
def resumable(command: str) -> Iterator[None]:
    """Ctrl-C inside is one line and exit code 2."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"{command}: {RESUMABLE}", file=sys.stderr)
        raise SystemExit(2) from None


# --- seconds ----------------------------------------------------------------------------------


def seconds(call: Callable[[], object], device: str = "cpu") -> float:
    """Wall-clock time of one call, the device's queue included."""
    _synchronize(device)
    start = time.perf_counter()
    call()
    _synchronize(device)
    return time.perf_counter() - start


def paired(
    calls: Mapping[str, Callable[[], object]],
    rounds: int,
    warm_up: int = 2,
    device: str = "cpu",
) -> dict[str, list[float]]:
    """Seconds of every call in every round.

    All calls are timed in each round, so that a slower moment of the machine falls on all of them,
    and the order is turned round from one to the next, so that none always follows the same other.
    """
    found: dict[str, list[float]] = {name: [] for name in calls}
    gc.collect()
    gc.freeze()  # what is there already need not be looked through every time
    try:
        for k in range(-warm_up, rounds):
            for name in list(calls) if k % 2 else reversed(calls):
                gc.collect()
                t = seconds(calls[name], device)
                if k >= 0:
                    found[name].append(t)
    finally:
        gc.unfreeze()
    return found


def _synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


# --- memory -----------------------------------------------------------------------------------


def high_water(
    call: Callable[[], object], warm_up: Callable[[], object], device: str = "cpu"
) -> float:
    """Megabytes that a call needs at its peak above what the process held before it."""
    warm_up()  # what is set up once is not the call's
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    _give_back()
    try:
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    except OSError as error:
        raise SystemExit("peak memory can only be measured on Linux") from error
    before = _status("VmRSS")
    call()
    return (_status("VmHWM") - before) / 1024


def _give_back() -> None:
    """Freed memory goes back to the system, so that it is not counted as held."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _status(key: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return float(line.split()[1])
    raise SystemExit("this system does not tell its memory use")


def in_process_of_its_own(module: str, *arguments: object) -> float:
    """The number that ``python -m module arguments`` prints last."""
    # Large blocks are mapped one by one, so that freeing them is seen at once and the peak is that
    # of the tensors, not of the allocator's habits.
    environ = os.environ | {"MALLOC_MMAP_THRESHOLD_": "1048576", "MALLOC_TRIM_THRESHOLD_": "0"}
    command = [sys.executable, "-m", module, *map(str, arguments)]
    out = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True)
    if out.returncode:
        last = (out.stderr.strip().splitlines() or ["no message"])[-1]
        raise RuntimeError(f"{' '.join(command[1:])} failed: {last}")
    return float(out.stdout.strip().splitlines()[-1])


# --- results ----------------------------------------------------------------------------------


@cache
def engine() -> str:
    """A short digest of the code that is measured, with torch's version."""
    digest = hashlib.sha256(torch.__version__.encode())
    folder = Path(omenn.__file__).parent / "engine"
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


class Results:
    """A folder with one JSON file a result."""

    def __init__(self, folder: Path, fresh: bool = False) -> None:
        self.folder, self.fresh = folder, fresh

    def get(self, key: str) -> dict[str, Any] | None:
        """The result, if there is one of this engine."""
        path = self._path(key)
        if self.fresh or not path.exists():
            return None
        found = json.loads(path.read_text(encoding="utf-8"))
        return found["result"] if found["engine"] == engine() else None

    def put(self, key: str, result: dict[str, Any]) -> None:
        made = {"engine": engine(), "environment": environment(), "result": result}
        with replacing(self._path(key)) as beside:
            beside.write_text(json.dumps(made, indent=1), encoding="utf-8")

    def take(self, key: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The result of this engine, made and kept if there is none."""
        found = self.get(key)
        if found is None:
            found = make()
            self.put(key, found)
        return found

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.json"


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile (of few values: the smallest and the largest)."""
    if len(values) < 5:
        return min(values), statistics.median(values), max(values)
    low, mid, high = statistics.quantiles(values, n=4)
    return low, mid, high
