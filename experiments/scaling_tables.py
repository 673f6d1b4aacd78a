"""The curves of ``experiments.scaling`` as a table of growth and a table of all points."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from experiments.axes import AXES, MODES
from experiments.report import table
from experiments.timing import spread


@dataclass(frozen=True)
class Point:
    """What was measured at one value of an axis."""

    value: int
    seconds: dict[str, float]
    ratio: tuple[float, float, float]
    megabytes: dict[str, float]

    @staticmethod
    def of(value: int, found: dict[str, Any]) -> Point:
        taken = found["seconds"]
        pairs = zip(taken["explain"], taken["gradient"], strict=True)
        medians = {mode: statistics.median(taken[mode]) for mode in MODES}
        return Point(value, medians, spread([a / b for a, b in pairs]), found["megabytes"])

    @property
    def memory_ratio(self) -> float:
        return self.megabytes["explain"] / max(self.megabytes["gradient"], 1e-3)


Curves = dict[str, list[Point]]


def exponent(points: Sequence[Point], quantity: Callable[[Point], float]) -> float:
    """p of cost ∝ value^p between the middle and the end of a curve."""
    a, b = points[(len(points) - 1) // 2], points[-1]
    if a.value == b.value:
        return math.nan
    grown = max(quantity(b), 1e-9) / max(quantity(a), 1e-9)
    return math.log(grown) / math.log(b.value / a.value)


def growth(curves: Curves) -> str:
    """A line an axis: ratios along it, and how each cost grows at its end."""
    header = ["", "from – to", "seconds, ratio", "peak memory, ratio"]
    header += ["seconds grow, plain", "omenn", "memory grows, plain", "omenn"]
    out = []
    for name, points in curves.items():
        axis, ends = AXES[name], (points[0], points[-1])
        powers = [
            exponent(points, lambda p, kind=kind, mode=mode: getattr(p, kind)[mode])
            for kind in ("seconds", "megabytes")
            for mode in MODES
        ]
        grown = ["–" if math.isnan(p) else f"n^{p:.1f}" for p in powers]
        times = " – ".join(f"{p.ratio[1]:.2f}" for p in ends)
        memory = " – ".join(f"{p.memory_ratio:.2f}" for p in ends)
        between = f"{ends[0].value} – {ends[1].value} {axis.unit}"
        out.append([axis.title, between, times, memory, *grown])
    return table(header, out)


def complete(curves: Curves) -> str:
    """A line a point."""
    header = ["", "n", "seconds, plain", "omenn", "ratio (quartiles)"]
    header += ["peak MB, plain", "omenn", "ratio"]
    out = []
    for name, points in curves.items():
        for p in points:
            low, mid, high = p.ratio
            cells = [f"{p.seconds[m]:.3f}" for m in MODES]
            cells += [f"{mid:.2f} ({low:.2f}–{high:.2f})"]
            cells += [f"{p.megabytes[m]:.0f}" for m in MODES]
            title = f"{AXES[name].title}, {AXES[name].unit}"
            out.append([title, str(p.value), *cells, f"{p.memory_ratio:.2f}"])
    return table(header, out)
