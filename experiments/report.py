"""Numbers as text, tables in Markdown, blocks of the documents, and the name of the machine."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
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


def versions(*packages: str) -> str:
    """``captum 0.9.0, zennit 1.0.1``, of the packages that are installed."""
    found = []
    for package in packages:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


def write_block(path: Path, marker: str, text: str) -> None:
    """Replaces what stands between ``<!-- marker:begin -->`` and ``<!-- marker:end -->``."""
    begin, end = f"<!-- {marker}:begin -->", f"<!-- {marker}:end -->"
    old = path.read_text(encoding="utf-8")
    if begin not in old or end not in old:
        raise SystemExit(f"{path} has no block '{marker}': put {begin} and {end} into it.")
    head, rest = old.split(begin, 1)
    tail = rest.split(end, 1)[1]
    write_files({path: f"{head}{begin}\n{text}\n{end}{tail}".encode()})


# --- numbers -----------------------------------------------------------------------------------


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile (of few values: the smallest and the largest)."""
    if len(values) < 5:
        return min(values), statistics.median(values), max(values)
    low, mid, high = statistics.quantiles(values, n=4)
    return low, mid, high


def quartiles(values: Sequence[float], form: str = ".2f") -> str:
    """The median, with the quartiles in brackets.

    >>> quartiles([1.0, 2.0, 4.0])
    '2.00 (1.00–4.00)'
    """
    low, mid, high = spread(values)
    return f"{mid:{form}} ({low:{form}}–{high:{form}})"


def deviation(values: Sequence[float], digits: int = 1, sign: bool = False) -> str:
    """Mean ± standard deviation; the number alone if there is one.

    >>> deviation([1.0, 3.0]), deviation([-1.5]), deviation([])
    ('2.0 ± 1.4', '−1.5', '–')
    """
    if not values:
        return "–"
    form = f"{'+' if sign else ''}.{digits}f"
    mean = f"{statistics.fmean(values) + 0.0:{form}}".replace("-", "−")
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """The mean, and its 95 % bootstrap interval."""
    from omenn.metrics.score import bootstrap_interval

    t = torch.tensor(values, dtype=torch.float64)
    return (float(t.mean()), *bootstrap_interval(t))
