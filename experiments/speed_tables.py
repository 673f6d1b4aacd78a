"""The tables of ``experiments.speed``: goals beside what was reached, seconds, rows and peers."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping
from typing import Any

from experiments import timing
from experiments.modes import PACKAGES, STEPS
from experiments.report import environment, spread, table, versions
from experiments.timed_models import MEMORY_GOAL, SUBJECTS

Measured = dict[str, Any]
Found = Mapping[tuple[str, int], Measured]
NONE = "–"


def marker(a: argparse.Namespace) -> str:
    """The block of the document that these arguments fill."""
    usual = (a.device, a.dtype) == ("cpu", "float32")
    return "speed" if usual else f"speed-{a.device.split(':')[0]}-{a.dtype}"


# --- cells ------------------------------------------------------------------------------------


def ratio(found: Measured, kind: str, mode: str, base: str = "gradient", times: int = 1) -> Any:
    """(low, median, high) of seconds of a mode over those of another, round by round; or None."""
    taken = found.get(kind, {}).get("seconds")
    if not taken:
        return None
    return spread([value / times for value in timing.ratios(taken, mode, base)])


def memory_ratio(found: Measured, mode: str) -> float | None:
    used = found.get("memory", {}).get("megabytes")
    if not used or mode not in used or not used["gradient"]:
        return None
    return used[mode] / used["gradient"]


def shown(value: Any) -> str:
    """``1.03 (1.00–1.05)``."""
    if value is None:
        return NONE
    low, mid, high = value
    digits = 2 if mid < 10 else 1 if mid < 100 else 0
    return f"{mid:.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"


def two_digits(value: float | None) -> str:
    return NONE if value is None else f"{value:.2f}"


def met(value: float | None, goal: float | None) -> list[str]:
    """The goal, and whether it is met to the two digits that are shown."""
    if goal is None or value is None:
        return [NONE if goal is None else f"{goal:.2f}", NONE]
    return [f"{goal:.2f}", "yes" if round(value, 2) <= goal else "**no**"]


def named(key: tuple[str, int]) -> list[str]:
    return [SUBJECTS[key[0]].label, str(key[1])]


# --- tables -----------------------------------------------------------------------------------


def goals(found: Found) -> str:
    header = ["model", "batch", "C_w ⊙ X alone", "with bias", "goal", "met"]
    header += ["peak memory", "goal", "met"]
    out = []
    for key, cell in found.items():
        subject = SUBJECTS[key[0]]
        if subject.for_peers:
            continue
        full, used = ratio(cell, "own", "explain"), memory_ratio(cell, "explain")
        cells = [*named(key), shown(ratio(cell, "own", "contribution")), f"**{shown(full)}**"]
        cells += met(full[1], subject.goal)
        out.append([*cells, two_digits(used), *met(used, MEMORY_GOAL)])
    return table(header, out)


def seconds(found: Found) -> str:
    header = ["median", "batch", "forward", "gradient", "C_w ⊙ X alone", "with bias"]
    header += ["gradient, peak", "with bias, peak"]
    out = []
    for key, cell in found.items():
        taken = cell["own"]["seconds"]
        used = cell.get("memory", {}).get("megabytes", {})
        out.append(
            named(key)
            + [f"{statistics.median(taken[m]):.3f} s" for m in taken]
            + [f"{used[m]:.0f} MB" if m in used else NONE for m in ("gradient", "explain")]
        )
    return table(header, out)


def rows(found: Found) -> str:
    header = ["model", "batch", "10 rows", "100 rows", "100 rows : 100 explanations", "goal", "met"]
    header += ["100 rows, peak memory"]
    out = []
    for key, cell in found.items():
        apart = ratio(cell, "rows_100", "rows_100", "explain", 100)
        if apart is None:
            continue
        cells = [*named(key), *(shown(ratio(cell, m, m)) for m in ("rows_10", "rows_100"))]
        cells += [f"**{shown(apart)}**", *met(apart[1], SUBJECTS[key[0]].rows_goal)]
        out.append([*cells, two_digits(memory_ratio(cell, "rows_100"))])
    return table(header, out) if out else ""


def peers(found: Found) -> str:
    header = ["model", "batch", "omenn, with bias", "captum InputXGradient"]
    header += [f"captum IntegratedGradients, {STEPS} steps", "zennit EpsilonPlus"]
    out = []
    for key, cell in found.items():
        if not any(mode in cell for mode in PACKAGES):
            continue
        cells = []
        for mode in PACKAGES:
            failed = cell.get(mode, {}).get("failed")
            cells.append(failed or shown(ratio(cell, mode, mode)))
        out.append([*named(key), shown(ratio(cell, "own", "explain")), *cells])
    return table(header, out) if out else ""


def complete(found: Found, a: argparse.Namespace) -> str:
    """Everything that was measured, for docs/performance.md."""
    parts = [goals(found), note(found, a), seconds(found)]
    if not a.quick:
        parts += [
            "Many rows of W(x) from one forward pass, as ratios to one plain input gradient; and "
            "100 rows to 100 times an explanation of the same round:",
            rows(found),
            "Other libraries on the same model and input, as ratios to one plain input gradient. "
            "zennit has canonizers for ResNet and VGG alone:",
            peers(found),
        ]
    return "\n\n".join(part for part in parts if part)


def short(found: Found, a: argparse.Namespace) -> str:
    """A line a model, for the README."""
    batches = sorted(a.batch)
    header = ["", *(f"time, batch {b}" for b in batches), f"peak memory, batch {batches[-1]}"]
    out = []
    for name in a.models:
        if SUBJECTS[name].for_peers:
            continue
        cells = [found[name, b] for b in batches]
        used = memory_ratio(cells[-1], "explain")
        times = [shown(ratio(c, "own", "explain")) for c in cells]
        out.append([SUBJECTS[name].label, *times, two_digits(used)])
    text = "An explanation with bias and checks, as a ratio to a plain input gradient"
    return f"{table(header, out)}\n\n{text} ({rounds_of(found)}; {environment()})."


def rounds_of(found: Found) -> str:
    counts = {len(cell["own"]["seconds"]["explain"]) for cell in found.values()}
    return f"medians of {min(counts)} paired rounds, quartiles in brackets"


def note(found: Found, a: argparse.Namespace) -> str:
    slow = sorted(
        {
            len(result["seconds"]["gradient"])
            for cell in found.values()
            for kind, result in cell.items()
            if kind not in ("own", "memory") and "seconds" in result
        }
    )
    used = {PACKAGES[kind] for cell in found.values() for kind in cell if kind in PACKAGES}
    peers_used = versions(*sorted(used))
    several = " to ".join(str(n) for n in dict.fromkeys([slow[0], slow[-1]])) if slow else ""
    return (
        f"Written by `python -m experiments.speed --write`: {a.dtype} on {a.device}, "
        f"{rounds_of(found)}"
        + (f" (rows and peers: {several} rounds, least and most in brackets)" if several else "")
        + f"; {'; '.join(filter(None, [environment(), peers_used]))}."
    )
