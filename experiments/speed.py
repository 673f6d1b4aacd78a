"""What an exact explanation costs, as ratios to a plain input gradient of the same model.

    python -m experiments.speed                      all models, batches 1 and 8; goes on if stopped
    python -m experiments.speed --write              and into docs/performance.md and the README
    python -m experiments.speed --quick              without rows, peers and memory
    python -m experiments.speed --models vit_base swin_tiny --batch 4
    python -m experiments.speed --device cuda --dtype bfloat16 --batch 64

All modes are timed in turn within each round, so that a slower moment of the machine falls on all
of them; a ratio is the median over rounds of the ratio within a round, with its quartiles. Finished
measurements are kept in runs/speed and used again as long as the engine is the same.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import torch
from torch import Tensor, nn

from experiments import speed_tables, timing
from experiments.command import Command, Job
from experiments.modes import MODES, PACKAGES
from experiments.report import ROOT, write_block
from experiments.speed_tables import Found
from experiments.store import Result
from experiments.timed_models import PUBLISHED, SUBJECTS

OWN = ("forward", "gradient", "contribution", "explain")
# The modes that take as long as many gradients have fewer rounds, each beside a gradient and an
# explanation of its own.
SLOW = {"rows_10": 3, "rows_100": 3, "integrated_gradients": 3}
PEERS = {"input_x_gradient": 5, "epsilon_plus": 5}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}
SHARED = ("rounds", "threads", "device", "fresh", "write", "work", "peak")
COMMAND = Command("speed", __doc__, *SHARED, rounds=15, threads=2)
COMMAND.choose("model", SUBJECTS, PUBLISHED)
COMMAND.add("--batch", type=int, nargs="+", default=[1, 8], help="batch sizes")
COMMAND.add("--dtype", default="float32", choices=DTYPES)
COMMAND.add("--quick", action="store_true", help="without rows, peers and memory")


@dataclass(frozen=True)
class Part:
    """One measurement: modes of one model at one batch size, in the same rounds."""

    model: str
    batch: int
    kind: str  # "own", the name of a slow or peer mode, or "memory"
    modes: tuple[str, ...]
    rounds: int

    def job(self, a: argparse.Namespace) -> Job:
        size = f"b{self.batch}-{a.device}-{a.dtype}-t{a.threads}"
        key = f"{self.model}-{size}-{self.kind}-{len(self.modes)}x{self.rounds}"
        title = f"{SUBJECTS[self.model].label}, {self.batch}: {self.kind}"
        return Job(title, key, partial(measure, self, a))


def parts(a: argparse.Namespace) -> Iterator[Part]:
    """What is measured, model by model. Rows and peers at the smallest batch alone."""
    for name in a.models:
        subject = SUBJECTS[name]
        for batch in sorted(a.batch):
            small = batch == min(a.batch)
            if subject.for_peers and (a.quick or not small):
                continue
            yield Part(name, batch, "own", OWN, a.rounds)
            if a.quick:
                continue
            for mode, rounds in (SLOW | PEERS if small else {}).items():
                rows_too = not subject.for_peers or mode in PACKAGES
                if rows_too and (mode != "epsilon_plus" or subject.canonizer):
                    modes = ("gradient", "explain", mode)
                    yield Part(name, batch, mode, modes, min(rounds, a.rounds))
            if not subject.for_peers:
                measured = OWN[1:] + (("rows_100",) if small else ())
                yield Part(name, batch, "memory", measured, 1)


@lru_cache(maxsize=1)
def _loaded(name: str, batch: int, device: str, dtype: str) -> tuple[nn.Module, Tensor]:
    return SUBJECTS[name].load(batch, device, DTYPES[dtype])


def call_of(mode: str, model: str, batch: int, device: str, dtype: str) -> Callable[[], object]:
    net, x = _loaded(model, batch, device, dtype)
    return lambda: MODES[mode](SUBJECTS[model], net, x)


def measure(part: Part, a: argparse.Namespace) -> Result:
    """Seconds of each mode in each round, or megabytes of each; or why there are none."""
    where = (part.model, part.batch, a.device, a.dtype)
    if part.kind == "memory":
        used = timing.peaks(COMMAND.name, where, part.modes, a.threads, a.device)
        return {"megabytes": used}
    calls = {mode: call_of(mode, *where) for mode in part.modes}
    warm_up = 2
    try:
        if part.kind != "own":
            warm_up = 0
            # A short peer warms up with the others; many rows and many steps warm up themselves.
            for mode in part.modes[: 2 if part.kind in SLOW else 3]:
                calls[mode]()  # a peer's refusal is a result here
        return {"seconds": timing.paired(calls, part.rounds, warm_up, a.device)}
    except ImportError:
        return {"failed": "not installed"}
    except Exception as error:
        if part.kind not in PACKAGES:
            raise
        return {"failed": type(error).__name__}


def run(a: argparse.Namespace) -> Found:
    """All measurements of each (model, batch), those on disk included."""
    found: dict[tuple[str, int], Result] = {}
    todo = list(parts(a))
    for part, result in zip(todo, COMMAND.results(a, [p.job(a) for p in todo]), strict=True):
        found.setdefault((part.model, part.batch), {})[part.kind] = result
    return found


def main(words: Sequence[str] | None = None) -> None:
    a = COMMAND.parse(words)
    if a.peak:
        model, batch, device, dtype, mode = a.peak
        where = (model, int(batch), device, dtype)
        first = call_of("explain" if mode.startswith("rows") else mode, *where)
        print(timing.high_water(call_of(mode, *where), first, device))
        return
    found = run(a)
    marker = speed_tables.marker(a)
    COMMAND.publish(a, "performance.md", **{marker: speed_tables.complete(found, a)})
    if a.write and marker == "speed":
        write_block(ROOT / "README.md", marker, speed_tables.short(found, a))


if __name__ == "__main__":
    main()
