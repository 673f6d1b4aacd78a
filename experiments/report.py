"""Writing measured tables into Markdown files, between markers, and naming the machine."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from pathlib import Path

import torch

from omenn.files.atomic import write_files

ROOT = Path(__file__).resolve().parent.parent


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first are right-aligned."""
    lines = ["| " + " | ".join(header) + " |", "|---" + "|---:" * (len(header) - 1) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def environment() -> str:
    """Versions and size of the machine, in a line."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return (
        f"torch {torch.__version__}, Python {platform.python_version()}, {platform.machine()}, "
        f"{cores} cores, {torch.get_num_threads()} threads"
    )


def write_block(path: Path, marker: str, text: str) -> None:
    """Replaces what stands between ``<!-- marker:begin -->`` and ``<!-- marker:end -->``."""
    begin, end = f"<!-- {marker}:begin -->", f"<!-- {marker}:end -->"
    old = path.read_text(encoding="utf-8")
    if begin not in old or end not in old:
        raise SystemExit(f"{path} has no block '{marker}': put {begin} and {end} into it.")
    head, rest = old.split(begin, 1)
    tail = rest.split(end, 1)[1]
    write_files({path: f"{head}{begin}\n{text}\n{end}{tail}".encode()})
