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
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn

from experiments import speed_tables, timing
from experiments.modes import MODES, PACKAGES
from experiments.report import ROOT, write_block
from experiments.speed_tables import Measured, Setting
from experiments.timed_models import PUBLISHED, SUBJECTS
from omenn.progress import progress_bar

COMMAND = "experiments.speed"
OWN = ("forward", "gradient", "contribution", "explain")
# The modes that take as long as many gradients have fewer rounds, each beside a gradient and an
# explanation of its own.
SLOW = {"rows_10": 3, "rows_100": 3, "integrated_gradients": 3}
PEERS = {"input_x_gradient": 5, "epsilon_plus": 5}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


@dataclass(frozen=True)
class Job:
    """One measurement: modes of one model at one batch size, in the same rounds."""

    model: str
    batch: int
    kind: str  # "own", the name of a slow or peer mode, or "memory"
    modes: tuple[str, ...]
    rounds: int

    def key(self, setting: Setting) -> str:
        size = f"b{self.batch}-{setting.device}-{setting.dtype}-t{setting.threads}"
        return f"{self.model}-{size}-{self.kind}-{len(self.modes)}x{self.rounds}"


def jobs(setting: Setting) -> Iterator[Job]:
    """What is measured, model by model. Rows and peers at the smallest batch alone."""
    for name in setting.models:
        subject = SUBJECTS[name]
        for batch in sorted(setting.batches):
            small = batch == min(setting.batches)
            if subject.for_peers and (setting.quick or not small):
                continue
            yield Job(name, batch, "own", OWN, setting.rounds)
            if setting.quick:
                continue
            for mode, rounds in (SLOW | PEERS if small else {}).items():
                rows_too = not subject.for_peers or mode in PACKAGES
                if rows_too and (mode != "epsilon_plus" or subject.canonizer):
                    modes = ("gradient", "explain", mode)
                    yield Job(name, batch, mode, modes, min(rounds, setting.rounds))
            if not subject.for_peers:
                measured = OWN[1:] + (("rows_100",) if small else ())
                yield Job(name, batch, "memory", measured, 1)


@lru_cache(maxsize=1)
def _loaded(name: str, batch: int, device: str, dtype: str) -> tuple[nn.Module, Tensor]:
    return SUBJECTS[name].load(batch, device, DTYPES[dtype])


def call_of(mode: str, model: str, batch: int, device: str, dtype: str) -> Callable[[], object]:
    net, x = _loaded(model, batch, device, dtype)
    return lambda: MODES[mode](SUBJECTS[model], net, x)


def measure(job: Job, setting: Setting) -> Measured:
    """Seconds of each mode in each round, or megabytes of each; or why there are none."""
    where = (job.model, job.batch, setting.device, setting.dtype)
    if job.kind == "memory":
        arguments = [("--peak", *where, mode, "--threads", setting.threads) for mode in job.modes]
        with ThreadPoolExecutor(2 if setting.device == "cpu" else 1) as pool:
            found = pool.map(lambda a: timing.in_process_of_its_own(COMMAND, *a), arguments)
            return {"megabytes": dict(zip(job.modes, found, strict=True))}
    calls = {mode: call_of(mode, *where) for mode in job.modes}
    warm_up = 2
    try:
        if job.kind != "own":
            warm_up = 0
            # A short peer warms up with the others; many rows and many steps warm up themselves.
            for mode in job.modes[: 2 if job.kind in SLOW else 3]:
                calls[mode]()  # a peer's refusal is a result here
        taken = timing.paired(calls, job.rounds, warm_up, setting.device)
        return {"seconds": taken}
    except ImportError:
        return {"failed": "not installed"}
    except Exception as error:
        if job.kind not in PACKAGES:
            raise
        return {"failed": type(error).__name__}


def run(setting: Setting, results: timing.Results) -> dict[tuple[str, int], Measured]:
    """All measurements of each (model, batch), those on disk included."""
    found: dict[tuple[str, int], Measured] = {}
    todo = list(jobs(setting))
    with progress_bar() as bar:
        task = bar.add_task("measuring", total=len(todo))
        for job in todo:
            bar.update(task, description=f"{SUBJECTS[job.model].label}, {job.batch}: {job.kind}")
            result = results.get(job.key(setting))
            if result is None:
                result = measure(job, setting)
                if result.get("failed") != "not installed":  # it may be, the next time
                    results.put(job.key(setting), result)
            found.setdefault((job.model, job.batch), {})[job.kind] = result
            bar.advance(task)
    return found


def parsed(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", default=list(PUBLISHED), help=", ".join(SUBJECTS))
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8], help="batch sizes")
    parser.add_argument("--rounds", type=int, default=15, help="of the modes that are quick")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", default="float32", choices=DTYPES)
    parser.add_argument("--quick", action="store_true", help="without rows, peers and memory")
    parser.add_argument("--fresh", action="store_true", help="measure all again")
    parser.add_argument("--write", action="store_true", help="update docs and README")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "speed", help="results")
    parser.add_argument("--peak", nargs=5, help=argparse.SUPPRESS)
    a = parser.parse_args(words)
    for name in a.models:
        if name not in SUBJECTS:
            timing.fail(COMMAND, f"no model {name!r}. Choose from: {', '.join(SUBJECTS)}.")
    if a.device.startswith("cuda") and not torch.cuda.is_available():
        timing.fail(COMMAND, f"--device {a.device}: this torch sees no GPU.")
    if min(*a.batch, a.rounds, a.threads) < 1:
        timing.fail(COMMAND, "--batch, --rounds and --threads are at least 1.")
    return a


def main(words: Sequence[str] | None = None) -> None:
    a = parsed(words)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(a.threads)
    if a.peak:
        model, batch, device, dtype, mode = a.peak
        where = (model, int(batch), device, dtype)
        first = call_of("explain" if mode.startswith("rows") else mode, *where)
        print(timing.high_water(call_of(mode, *where), first, device))
        return
    setting = Setting(
        tuple(a.models), tuple(a.batch), a.rounds, a.threads, a.device, a.dtype, a.quick
    )
    with timing.resumable(COMMAND):
        found = run(setting, timing.Results(a.work, a.fresh))
    text = speed_tables.complete(found, setting)
    print(text)
    if a.write:
        marker = speed_tables.marker(setting)
        write_block(ROOT / "docs" / "performance.md", marker, text)
        if marker == "speed":
            write_block(ROOT / "README.md", marker, speed_tables.short(found, setting))


if __name__ == "__main__":
    main()
