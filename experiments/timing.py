"""Measuring one call beside another: seconds in paired rounds, peak memory in a process alone."""

from __future__ import annotations

import ctypes
import gc
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from experiments.report import ROOT

Seconds = dict[str, list[float]]

# --- seconds ----------------------------------------------------------------------------------


def seconds(
    call: Callable[[], object], device: str = "cpu", clock: Callable[[], float] | None = None
) -> float:
    """Time of one call (on the wall by default), the device's queue included."""
    clock = clock or time.perf_counter
    _synchronize(device)
    start = clock()
    call()
    _synchronize(device)
    return clock() - start


def paired(
    calls: Mapping[str, Callable[[], object]],
    rounds: int,
    warm_up: int = 2,
    device: str = "cpu",
    clock: Callable[[], float] | None = None,
) -> Seconds:
    """Seconds of every call in every round.

    All calls are timed in each round, so that a slower moment of the machine falls on all of them,
    and the order is turned round from one to the next, so that none always follows the same other.
    """
    found: Seconds = {name: [] for name in calls}
    gc.collect()
    gc.freeze()  # what is there already need not be looked through every time
    try:
        for k in range(-warm_up, rounds):
            for name in list(calls) if k % 2 else reversed(calls):
                gc.collect()
                t = seconds(calls[name], device, clock)
                if k >= 0:
                    found[name].append(t)
    finally:
        gc.unfreeze()
    return found


def ratios(taken: Mapping[str, Sequence[float]], above: str, below: str) -> list[float]:
    """Seconds of one call over those of another, round by round."""
    return [a / b for a, b in zip(taken[above], taken[below], strict=True)]


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
    """Freed memory goes back to the system, so that it does not count as used."""
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


def peaks(
    module: str, where: Sequence[object], modes: Sequence[str], threads: int, device: str = "cpu"
) -> dict[str, float]:
    """Megabytes of each mode, which ``python -m module --peak *where mode`` prints."""
    arguments = [("--peak", *where, mode, "--threads", threads) for mode in modes]
    with ThreadPoolExecutor(2 if device == "cpu" else 1) as pool:
        found = pool.map(lambda a: in_process_of_its_own(module, *a), arguments)
        return dict(zip(modes, found, strict=True))
