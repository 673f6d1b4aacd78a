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
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch

from experiments import scaling_tables, timing
from experiments.axes import AXES, MODES, call_of, load
from experiments.report import ROOT, environment, write_block
from experiments.scaling_figure import draw
from experiments.scaling_tables import Curves, Point
from omenn.progress import progress_bar

COMMAND = "experiments.scaling"


def measure(name: str, value: int, rounds: int, threads: int) -> dict[str, Any]:
    """Seconds of each mode in each round, and megabytes of each."""
    made = load(AXES[name], value)
    calls = {mode: call_of(AXES[name], value, mode, made) for mode in MODES}
    taken = timing.paired(calls, rounds, 1)
    del made, calls
    arguments = [("--peak", name, value, mode, "--threads", threads) for mode in MODES]
    with ThreadPoolExecutor(2) as pool:
        used = pool.map(lambda a: timing.in_process_of_its_own(COMMAND, *a), arguments)
        return {"seconds": taken, "megabytes": dict(zip(MODES, used, strict=True))}


def run(a: argparse.Namespace, results: timing.Results) -> Curves:
    """The points of every axis that was asked for, those on disk included."""
    wanted = [
        (name, value)
        for name in a.only
        for value in AXES[name].values
        if a.most is None or value <= a.most
    ]
    curves: Curves = {}
    with progress_bar() as bar:
        task = bar.add_task("measuring", total=len(wanted))
        for name, value in wanted:
            bar.update(task, description=f"{AXES[name].title}: {value} {AXES[name].unit}")
            key = f"{name}-{value}-t{a.threads}-r{a.rounds}"
            found = results.take(key, partial(measure, name, value, a.rounds, a.threads))
            curves.setdefault(name, []).append(Point.of(value, found))
            bar.advance(task)
    return curves


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", default=list(AXES), help=", ".join(AXES))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--most", type=int, help="no values above this")
    parser.add_argument("--fresh", action="store_true", help="measure all again")
    parser.add_argument("--write", action="store_true", help="update docs/performance.md")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "scaling", help="results")
    parser.add_argument("--figure", type=Path, help="where to draw the curves")
    parser.add_argument("--peak", nargs=3, help=argparse.SUPPRESS)
    a = parser.parse_args(words)
    for name in a.only:
        if name not in AXES:
            timing.fail(COMMAND, f"no axis {name!r}. Choose from: {', '.join(AXES)}.")
    warnings.filterwarnings("ignore")
    torch.set_num_threads(a.threads)
    if a.peak:
        axis, value, mode = AXES[a.peak[0]], int(a.peak[1]), a.peak[2]
        call = call_of(axis, value, mode, load(axis, value))
        print(timing.high_water(call, call))
        return
    with timing.resumable(COMMAND):
        curves = run(a, timing.Results(a.work, a.fresh))
    note = f"Medians of {a.rounds} paired rounds; {environment()}."
    text = f"{scaling_tables.growth(curves)}\n\n{note}"
    print(text)
    if a.figure or a.write:
        draw(curves, a.figure or ROOT / "docs" / "images" / "scaling.png")
    if a.write:
        every = f"<details><summary>All points</summary>\n\n{scaling_tables.complete(curves)}"
        note = f"Written by `python -m experiments.scaling --write`. {note}"
        figure = "![Seconds and peak memory against six sizes](images/scaling.png)"
        table = scaling_tables.growth(curves)
        text = f"{figure}\n\n{table}\n\n{note}\n\n{every}\n\n</details>"
        write_block(ROOT / "docs" / "performance.md", "scaling", text)


if __name__ == "__main__":
    main()
