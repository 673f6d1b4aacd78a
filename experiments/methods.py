"""What every method of attribution costs, as a ratio to a plain input gradient.

    python -m experiments.methods                    ResNet-50 and ViT-B/16, one image
    python -m experiments.methods --write            and into docs/methods.md
    python -m experiments.methods --models resnet50 --methods omenn abslrp

Each method is timed in rounds of its own together with a plain gradient; a ratio is the median over
rounds of the ratio within a round, with the quartiles. Peak memory is that of a process of its own,
above the loaded model. Finished measurements are kept in runs/methods and used again as long as the
code is the same.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache, lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn

import omenn
from experiments import timing
from experiments.command import Command, Job
from experiments.modes import MODES
from experiments.report import environment, quartiles, spread, table
from experiments.store import Result, version
from experiments.timed_models import SUBJECTS
from omenn.attribution import Method
from omenn.errors import OmennError

PUBLISHED = ("resnet50", "vit_base")
SLOW, FEW = 5, 2  # seconds a call: from there on, so many rounds
HEADER = ["method", "steps", "time", "seconds", "peak memory", "sum"]
COMMAND = Command(
    "methods", __doc__, "rounds", "threads", "fresh", "write", "work", "peak", rounds=5
)
COMMAND.choose("model", SUBJECTS, PUBLISHED)
COMMAND.choose("method", omenn.methods(), omenn.methods(), option="methods")


@lru_cache(maxsize=2)
def loaded(model: str) -> tuple[nn.Module, Tensor]:
    return SUBJECTS[model].load(1, "cpu", torch.float32)


def call_of(method: str, model: str) -> Callable[[], Any]:
    net, x = loaded(model)
    if method == "gradient":
        return lambda: MODES["gradient"](SUBJECTS[model], net, x)
    return lambda: omenn.explain(net, x, 0, method=method)


def measure(method: str, model: str, rounds: int, threads: int) -> Result:
    """Seconds and megabytes of a method and of a gradient, and how far the sum is off; or why not.

    One call without a clock comes first, and tells how long a call takes.
    """
    call = call_of(method, model)
    try:
        start = time.perf_counter()
        e = call()
        first = time.perf_counter() - start
    except Exception as error:
        return {"failed": str(error).splitlines()[0].split(".")[0]}
    calls = {"gradient": call_of("gradient", model), method: call}
    slow = first >= SLOW
    taken = timing.paired(calls, min(FEW, rounds) if slow else rounds, warm_up=0 if slow else 1)
    return {
        "seconds": taken,
        "missed": float((e.residual.abs() / (1 + e.magnitude)).max()),
        "megabytes": {name: peak(name, model, threads) for name in ("gradient", method)},
    }


@cache
def peak(method: str, model: str, threads: int) -> float:
    """Megabytes of a call above the loaded model."""
    return timing.peaks(COMMAND.name, [model], [method], threads)[method]


def once(method: str) -> None:
    """Loads and sets up what a method needs, on a network that costs nothing."""
    with suppress(OmennError):
        call_of(method, "tiny")()


def row(method: Method, found: Result) -> list[str]:
    steps = str(method.options.get("steps", "–"))
    if "failed" in found:
        return [method.name, steps, found["failed"], "–", "–", "–"]
    taken, used = found["seconds"], found["megabytes"]
    return [
        method.name,
        steps,
        quartiles(timing.ratios(taken, method.name, "gradient")),
        f"{spread(taken[method.name])[1]:.2f}",
        f"{used[method.name] / used['gradient']:.2f}",
        f"{found['missed']:.0e}",
    ]


def measured(a: argparse.Namespace) -> dict[str, list[list[str]]]:
    """The rows of each model."""
    pairs = [(model, name) for model in a.models for name in a.methods]
    jobs = [
        Job(
            f"{SUBJECTS[model].label}: {name}",
            f"{model}-{name}-{version()}-{a.rounds}-t{a.threads}",
            partial(measure, name, model, a.rounds, a.threads),
        )
        for model, name in pairs
    ]
    rows: dict[str, list[list[str]]] = {}
    for (model, name), found in zip(pairs, COMMAND.results(a, jobs), strict=True):
        rows.setdefault(model, []).append(row(omenn.methods()[name], found))
    return rows


def main(words: Sequence[str] | None = None) -> None:
    a = COMMAND.parse(words)
    if a.peak:
        model, name = a.peak
        print(timing.high_water(call_of(name, model), lambda: once(name)))
        return
    rows = measured(a)
    parts = [f"{SUBJECTS[m].label}:\n\n{table(HEADER, found)}" for m, found in rows.items()]
    note = (
        "Ratios to a plain input gradient, one image 224 × 224, float32, every option at its "
        f"default; *sum*: |f − ΣC| / (1 + Σ|C|). Medians of {a.rounds} paired rounds ({FEW} "
        f"for what takes {SLOW} s or more), quartiles in brackets (of few: least and most). "
        f"{COMMAND.written()}; {environment()}."
    )
    COMMAND.publish(a, "methods.md", methods="\n\n".join([*parts, note]))


if __name__ == "__main__":
    main()
