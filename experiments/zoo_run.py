"""Running rows: one forked process a model, with a time-out and a memory limit; one file a row.

The running process imports the model libraries once and computes nothing itself, so a fork of it
is as good as a fresh process and costs milliseconds. A row that crashes costs itself alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from experiments.store import Results
from experiments.zoo_entries import Entry
from omenn.files.atomic import write_files

Row = dict[str, Any]
FAILED = ("crash", "time-out", "memory", "error", "unbuilt")
PACKAGES = ("torch", "timm", "torchvision", "transformers", "torch_geometric")


def store(folder: Path, older: bool = False) -> Results:
    """The finished rows; those of another engine or library are measured again."""
    return Results(folder, older=older, versions={p: version(p) for p in PACKAGES})


def key(entry: Entry, size: str) -> str:
    """Where the row of an entry is kept."""
    return f"{size}/{entry.group}/{entry.name.replace('/', '_')}"


@dataclass
class Child:
    """A running measurement."""

    entry: Entry
    pid: int
    started: float
    answer: Path
    log: Path


class Runner:
    """At most ``jobs`` children at a time, each with ``seconds`` and ``gigabytes``."""

    def __init__(
        self,
        measure: Callable[[Entry], Row],
        folder: Path,
        jobs: int = 1,
        seconds: float = 600,
        gigabytes: float = 12,
    ) -> None:
        self.measure, self.folder = measure, folder
        self.jobs, self.seconds, self.gigabytes = jobs, seconds, gigabytes

    def __call__(self, entries: Iterable[Entry]) -> Iterator[tuple[Entry, Row]]:
        """Rows in the order in which they are finished; children are ended if it is closed."""
        waiting, running = list(entries)[::-1], []
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            while waiting or running:
                while waiting and len(running) < self.jobs:
                    running.append(self._start(waiting.pop()))
                for child in list(running):
                    row = self._ended(child)
                    if row is not None:
                        running.remove(child)
                        yield child.entry, row
                time.sleep(0.02)
        finally:
            for child in running:
                self._kill(child)

    def _start(self, entry: Entry) -> Child:
        stem = hashlib.sha256(entry.key.encode()).hexdigest()[:16]
        answer, log = self.folder / f"{stem}.json", self.folder / f"{stem}.log"
        answer.unlink(missing_ok=True)
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            self._child(entry, answer, log)
        return Child(entry, pid, time.monotonic(), answer, log)

    def _child(self, entry: Entry, answer: Path, log: Path) -> None:
        """In the forked process: measure, write the row, leave without any clean-up."""
        try:
            os.setsid()  # so that what it forks itself ends with it
            out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            os.dup2(out, 1)
            os.dup2(out, 2)
            limit = _address_space() + int(self.gigabytes * 2**30)
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
            try:
                row = self.measure(entry)
            except MemoryError:
                row = {"status": "memory"}
            except Exception as error:
                words = f"{type(error).__name__}: {error}"
                out_of_memory = "allocate memory" in words
                row = {"status": "memory" if out_of_memory else "crash", "reason": words[:300]}
                traceback.print_exc()
                sys.stderr.flush()
            write_files({answer: json.dumps(row).encode()})
        finally:
            os._exit(0)

    def _ended(self, child: Child) -> Row | None:
        pid, status = os.waitpid(child.pid, os.WNOHANG)
        took = time.monotonic() - child.started
        if pid == 0:
            if took < self.seconds:
                return None
            self._kill(child)
            row: Row = {"status": "time-out", "reason": f"more than {self.seconds:.0f} s"}
        elif child.answer.exists():
            row = json.loads(child.answer.read_text(encoding="utf-8"))
        else:
            code = os.waitstatus_to_exitcode(status)
            why = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            tail = child.log.read_text(errors="replace").strip().splitlines()[-1:]
            row = {"status": "crash", "reason": " ".join([why, *tail])[:300]}
        child.answer.unlink(missing_ok=True)
        if row["status"] not in ("crash", "error"):
            child.log.unlink(missing_ok=True)
        entry = child.entry
        named = {"group": entry.group, "family": entry.family, "name": entry.name}
        return named | {"took": round(took, 2)} | row

    def _kill(self, child: Child) -> None:
        try:
            os.killpg(child.pid, signal.SIGKILL)
        except ProcessLookupError:  # not yet the leader of a group of its own
            os.kill(child.pid, signal.SIGKILL)
        os.waitpid(child.pid, 0)


def _address_space() -> int:
    """Bytes of address space in use (Linux), else none."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:
        return 0
    return pages * resource.getpagesize()


def missing(
    kept: Results, entries: Sequence[Entry], size: str, retry: bool
) -> tuple[list[Entry], list[Row]]:
    """(entries still to measure, finished rows); ``retry`` measures failed rows again."""
    todo: list[Entry] = []
    done: list[Row] = []
    for entry in entries:
        row = kept.get(key(entry, size))
        if row is None or (retry and row["status"] in FAILED):
            todo.append(entry)
        else:
            done.append(row)
    return todo, done
