"""How the cost of an explanation grows, beside that of a plain input gradient.

    python -m experiments.scaling             all curves; goes on if it was stopped
    python -m experiments.scaling --write     and into docs/performance.md and docs/images
    python -m experiments.scaling --only tokens depth --figure curves.png

Seconds are medians of paired rounds, peak memory is that above the loaded model, measured in a
process of its own. Finished points are kept in runs/scaling and used again as long as the engine
is the same.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from experiments import timing
from experiments.axes import AXES, MODES, call_of, load
from experiments.command import DOCS, Command, Job
from experiments.report import environment, quartiles, spread, table
from experiments.store import Result

COMMAND = Command(
    "scaling", __doc__, "rounds", "threads", "fresh", "write", "work", "peak", rounds=7, threads=2
)
COMMAND.choose("axis", AXES, AXES, option="only")
COMMAND.add("--most", type=int, help="no values above this")
COMMAND.add("--figure", type=Path, help="where to draw the curves")


@dataclass(frozen=True)
class Point:
    """What was measured at one value of an axis."""

    value: int
    seconds: dict[str, float]
    ratios: list[float]
    megabytes: dict[str, float]

    @staticmethod
    def of(value: int, found: Result) -> Point:
        taken = found["seconds"]
        medians = {mode: statistics.median(taken[mode]) for mode in MODES}
        each = timing.ratios(taken, "explain", "gradient")
        return Point(value, medians, each, found["megabytes"])

    @property
    def ratio(self) -> tuple[float, float, float]:
        return spread(self.ratios)

    @property
    def memory_ratio(self) -> float:
        return self.megabytes["explain"] / max(self.megabytes["gradient"], 1e-3)


Curves = dict[str, list[Point]]


def measure(name: str, value: int, rounds: int, threads: int) -> Result:
    """Seconds of each mode in each round, and megabytes of each."""
    made = load(AXES[name], value)
    calls = {mode: call_of(AXES[name], value, mode, made) for mode in MODES}
    taken = timing.paired(calls, rounds, 1)
    del made, calls
    return {
        "seconds": taken,
        "megabytes": timing.peaks(COMMAND.name, (name, value), MODES, threads),
    }


def curves_of(a: argparse.Namespace) -> Curves:
    """The points of every axis that was asked for."""
    wanted = [(n, v) for n in a.only for v in AXES[n].values if a.most is None or v <= a.most]
    jobs = [
        Job(
            f"{AXES[name].title}: {value} {AXES[name].unit}",
            f"{name}-{value}-t{a.threads}-r{a.rounds}",
            partial(measure, name, value, a.rounds, a.threads),
        )
        for name, value in wanted
    ]
    curves: Curves = {}
    for (name, value), found in zip(wanted, COMMAND.results(a, jobs), strict=True):
        curves.setdefault(name, []).append(Point.of(value, found))
    return curves


# --- tables ------------------------------------------------------------------------------------


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
            cells = [*(f"{p.seconds[m]:.3f}" for m in MODES), quartiles(p.ratios)]
            cells += [f"{p.megabytes[m]:.0f}" for m in MODES]
            title = f"{AXES[name].title}, {AXES[name].unit}"
            out.append([title, str(p.value), *cells, f"{p.memory_ratio:.2f}"])
    return table(header, out)


def main(words: Sequence[str] | None = None) -> None:
    from experiments.scaling_figure import draw

    a = COMMAND.parse(words)
    if a.peak:
        axis, value, mode = AXES[a.peak[0]], int(a.peak[1]), a.peak[2]
        call = call_of(axis, value, mode, load(axis, value))
        print(timing.high_water(call, call))
        return
    curves = curves_of(a)
    if a.figure or a.write:
        draw(curves, a.figure or DOCS / "images" / "scaling.png")
    note = f"{COMMAND.written()}. Medians of {a.rounds} paired rounds; {environment()}."
    figure = "![Seconds and peak memory against six sizes](images/scaling.png)"
    every = f"<details><summary>All points</summary>\n\n{complete(curves)}\n\n</details>"
    text = "\n\n".join([figure, growth(curves), note, every])
    COMMAND.publish(a, "performance.md", scaling=text)


if __name__ == "__main__":
    main()
