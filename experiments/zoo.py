"""Which models are exact? The support matrix, measured on the models people use.

    python -m experiments.zoo                         one variant a family of timm; all other groups
    python -m experiments.zoo --all                   every timm variant below 100 M parameters
    python -m experiments.zoo --families --all        both
    python -m experiments.zoo --group timm --only 'swin*'
    python -m experiments.zoo --write                 docs/support.md and results/support.csv

Each model is measured in a process of its own, with a time-out and a memory limit, and its row is
kept in a file, so an interrupted run goes on where it stopped. Rows of another engine or library
version are measured anew.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import signal
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.report import ROOT, write_block
from omenn.files.atomic import write_files

if TYPE_CHECKING:
    from experiments.store import Results
    from experiments.zoo_entries import Entry
    from experiments.zoo_run import Runner

WORK = ROOT / "runs" / "zoo"
SUPPORT = ROOT / "experiments" / "results" / "support.csv"
ROUNDS = {"native": 3, "small": 1}


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--families",
        action="store_true",
        help="one variant a family, at its own size (the default)",
    )
    add("--all", action="store_true", help="every timm variant below 100 M, at a small size")
    add("--group", nargs="*", default=[], help="timm, torchvision, transformers, graphs")
    add("--only", nargs="*", default=[], help="names of models or families, with * and ?")
    add("--retry", action="store_true", help="measure rows that failed again")
    add("--older", action="store_true", help="keep rows of an older engine or library")
    add("--jobs", type=int, default=1, help="models at a time")
    add("--seconds", type=float, default=900, help="time-out of one model")
    add("--memory", type=float, default=12, help="limit of one model in GB")
    add("--work", type=Path, default=WORK, help="folder of the rows")
    add(
        "--write",
        action="store_true",
        help="write the table of the finished rows; measure none",
    )
    add("--list", action="store_true", help="name what would be measured")
    a = parser.parse_args()
    wrong = set(a.group) - {"timm", "torchvision", "transformers", "graphs"}
    if wrong:
        parser.error(f"unknown group {', '.join(sorted(wrong))}")
    return a


def parameters(runner: Runner, work: Path) -> dict[str, int]:
    """Parameters of every timm variant, counted once for each version of timm."""
    import timm

    from experiments.zoo_entries import Entry, timm_parameters

    path = work / f"parameters-timm-{timm.__version__}.json"
    if not path.exists():
        print("counting the parameters of timm's models, once", file=sys.stderr)
        counting = Entry("timm", "parameters", "parameters", ())
        runner.measure = lambda _: {"status": "exact", "counts": dict(timm_parameters())}
        ((_, row),) = runner([counting])
        if "counts" not in row:
            raise SystemExit(f"the models could not be counted: {row.get('reason')}")
        path.write_text(json.dumps(row["counts"]), encoding="utf-8")
    return json.loads(path.read_text(encoding="utf-8"))


def chosen(a: argparse.Namespace, runner: Runner) -> dict[str, list[Entry]]:
    """Size → entries: families at their native size, all variants at a small one."""
    from experiments import zoo_entries as z

    groups = a.group or list(z.GROUPS)
    native: list[Entry] = []
    small: list[Entry] = []
    counts = parameters(runner, a.work) if "timm" in groups else {}
    if a.all and "timm" in groups:
        below = {n for n, c in counts.items() if c < z.LIMIT}
        names = [(f, n) for f, ns in z.timm_families().items() for n in ns if n in below]
        names.sort(key=lambda family_and_name: counts[family_and_name[1]])
        small = [z.timm_entry(f, n, z.SMALL) for f, n in names]
    if a.families or not a.all:
        found = {
            "graphs": z.graph_entries,
            "transformers": z.transformers_entries,
            "timm": lambda: (z.timm_entry(f, n, z.NATIVE) for f, n in z.timm_smallest(counts)),
            # Last and small, because some have more than half a billion parameters.
            "torchvision": lambda: z.torchvision_entries(z.SMALL),
        }
        native = [e for group, make in found.items() if group in groups for e in make()]
    return {"native": _named(native, a.only), "small": _named(small, a.only)}


def _named(entries: list[Entry], patterns: list[str]) -> list[Entry]:
    def wanted(e: Entry) -> bool:
        return any(fnmatch.fnmatch(s, p) for p in patterns for s in (e.name, e.family, e.key))

    return [e for e in entries if not patterns or wanted(e)]


def run(a: argparse.Namespace, runner: Runner, kept: Results, entries: dict[str, Any]) -> None:
    """Measures what is missing; prints every row that is not exact, and the count."""
    from experiments.zoo_measure import measure
    from experiments.zoo_run import key, missing
    from omenn.progress import progress_bar

    plan = {size: missing(kept, found, size, a.retry) for size, found in entries.items()}
    rows = [row for _, done in plan.values() for row in done]
    total = sum(len(found) for found in entries.values())
    with progress_bar() as bar:
        # Nothing may run beside the forks, so the bar is drawn by hand.
        bar.live.auto_refresh = False
        task = bar.add_task("models", total=total, completed=len(rows))
        for size, (todo, _) in plan.items():
            runner.measure = partial(measure, rounds=ROUNDS[size])
            for entry, measured in runner(todo):
                row = kept.put(key(entry, size), measured | {"size": size})
                rows.append(row)
                bar.update(task, advance=1, description=entry.name, refresh=True)
                if row["status"] != "exact":
                    bar.console.print(f"{entry.key}: {row['status']} {_why(row)}", markup=False)
    exact = sum(r["status"] == "exact" for r in rows)
    print(f"exact: {exact} of {len(rows)} rows; python -m experiments.zoo --write makes the table")


def _why(row: dict[str, Any]) -> str:
    inner = [row.get(d, {}).get("reason") for d in ("float64", "float32")]
    return next((w for w in (row.get("reason"), *inner) if w), "")


def main() -> None:
    a = parsed()
    warnings.filterwarnings("ignore")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # children are ended with it
    os.environ["OMP_NUM_THREADS"] = "1"  # one thread a model, and none before a fork
    import torch

    torch.set_num_threads(1)
    from experiments.zoo_run import Runner, store
    from experiments.zoo_table import every_model, matrix

    kept = store(a.work, a.older)
    if a.write:
        rows = list(kept.all())
        write_files({SUPPORT: every_model(rows).to_csv(index=False).encode()})
        write_block(ROOT / "docs" / "support.md", "support", matrix(rows))
        return
    from experiments.zoo_entries import prepare

    prepare()
    a.work.mkdir(parents=True, exist_ok=True)
    runner = Runner(lambda _: {}, a.work / ".running", a.jobs, a.seconds, a.memory)
    entries = chosen(a, runner)
    if a.list:
        for size, found in entries.items():
            for entry in found:
                print(f"{entry.key}  ({entry.family}, {size})")
        return
    try:
        run(a, runner, kept, entries)
    except KeyboardInterrupt:
        raise SystemExit("stopped; the same command goes on with what is missing") from None


if __name__ == "__main__":
    main()
