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
import hashlib
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import omenn
from experiments import timing
from experiments.modes import MODES
from experiments.report import ROOT, environment, table, write_block
from experiments.timed_models import SUBJECTS
from omenn.errors import OmennError
from omenn.methods import Method
from omenn.progress import progress_bar

COMMAND = "experiments.methods"
PUBLISHED = ("resnet50", "vit_base")
SLOW, FEW = 5, 2  # seconds a call: from there on, so many rounds
HEADER = ["method", "steps", "time", "seconds", "peak memory", "sum"]


@lru_cache(maxsize=2)
def loaded(model: str) -> tuple[nn.Module, Tensor]:
    return SUBJECTS[model].load(1, "cpu", torch.float32)


def call_of(method: str, model: str) -> Callable[[], Any]:
    net, x = loaded(model)
    if method == "gradient":
        return lambda: MODES["gradient"](SUBJECTS[model], net, x)
    return lambda: omenn.explain(net, x, 0, method=method)


def measure(method: str, model: str, rounds: int, threads: int) -> dict[str, Any]:
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
    arguments = ("--peak", model, method, "--threads", threads)
    return timing.in_process_of_its_own(COMMAND, *arguments)


def once(method: str) -> None:
    """Loads and sets up what a method needs, on a network that costs nothing."""
    with suppress(OmennError):
        call_of(method, "tiny")()


def version() -> str:
    """A digest of the methods' own code; that of the engine is looked after by the results."""
    digest = hashlib.sha256()
    for path in sorted((Path(omenn.__file__).parent / "methods").rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def row(method: Method, found: dict[str, Any]) -> list[str]:
    steps = str(method.options.get("steps", "–"))
    if "failed" in found:
        return [method.name, steps, found["failed"], "–", "–", "–"]
    taken, used = found["seconds"], found["megabytes"]
    own = timing.spread(taken[method.name])[1]
    each = zip(taken[method.name], taken["gradient"], strict=True)
    low, mid, high = timing.spread([a / b for a, b in each])
    return [
        method.name,
        steps,
        f"{mid:.2f} ({low:.2f}–{high:.2f})",
        f"{own:.2f}",
        f"{used[method.name] / used['gradient']:.2f}",
        f"{found['missed']:.0e}",
    ]


def parsed(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__.split("\n")[0])
    known = list(omenn.list_methods())
    parser.add_argument("--models", nargs="+", default=list(PUBLISHED), help=", ".join(SUBJECTS))
    parser.add_argument("--methods", nargs="+", default=known, help=", ".join(known))
    parser.add_argument("--rounds", type=int, default=5, help="of a method that is quick")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--fresh", action="store_true", help="measure all again")
    parser.add_argument("--write", action="store_true", help="update docs/methods.md")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "methods", help="results")
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    a = parser.parse_args(words)
    for given, names, what in ((a.models, SUBJECTS, "model"), (a.methods, known, "method")):
        for name in given:
            if name not in names:
                timing.fail(COMMAND, f"no {what} {name!r}. Choose from: {', '.join(names)}.")
    if min(a.rounds, a.threads) < 1:
        timing.fail(COMMAND, "--rounds and --threads are at least 1.")
    return a


def measured(a: argparse.Namespace) -> dict[str, list[list[str]]]:
    """The rows of each model."""
    results, rows = timing.Results(a.work, a.fresh), {}
    with progress_bar() as bar:
        task = bar.add_task("measuring", total=len(a.models) * len(a.methods))
        for model in a.models:
            for name in a.methods:
                bar.update(task, description=f"{SUBJECTS[model].label}: {name}")
                key = f"{model}-{name}-{version()}-{a.rounds}-t{a.threads}"
                found = results.get(key) or measure(name, model, a.rounds, a.threads)
                results.put(key, found)
                rows.setdefault(model, []).append(row(omenn.list_methods()[name], found))
                bar.advance(task)
    return rows


def main(words: Sequence[str] | None = None) -> None:
    a = parsed(words)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(a.threads)
    if a.peak:
        model, name = a.peak
        print(timing.high_water(call_of(name, model), lambda: once(name)))
        return
    with timing.resumable(COMMAND):
        rows = measured(a)
    parts = [f"{SUBJECTS[m].label}:\n\n{table(HEADER, found)}" for m, found in rows.items()]
    text = "\n\n".join(parts)
    note = (
        "Ratios to a plain input gradient, one image 224 × 224, float32, every option as it is "
        f"when not given; *sum*: |f − ΣC| / (1 + Σ|C|). Medians of {a.rounds} paired rounds ({FEW} "
        f"for what takes {SLOW} s or more), quartiles in brackets (of few: least and most). "
        f"Written by `python -m experiments.methods --write`; {environment()}."
    )
    print(f"{text}\n\n{note}")
    if a.write:
        write_block(ROOT / "docs" / "methods.md", "methods", f"{text}\n\n{note}")


if __name__ == "__main__":
    main()
