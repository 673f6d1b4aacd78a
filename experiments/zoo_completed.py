"""Is a completed table of rules exact on every family of timm? LRP-γ, completed, on one of each.

    python -m experiments.zoo_completed                       the smallest variant of each family
    python -m experiments.zoo_completed --only 'resnet*' vision_transformer
    python -m experiments.zoo_completed --most 6 --write      below 6 M parameters, docs/support.md

Made and run as in ``experiments.zoo``, in float32 at a small image size, one process a model. The
whole zoo measures the same as the column *completed*.
"""

from __future__ import annotations

import argparse
import csv
import fnmatch
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

from experiments.command import Command
from experiments.report import ROOT, environment, table, versions

EXACT = 1e-5
SUPPORT = ROOT / "experiments" / "results" / "support.csv"
COMMAND = Command("zoo_completed", __doc__, "work", "write")
COMMAND.add("--only", nargs="*", default=[], help="names of models or families, with * and ?")
COMMAND.add("--most", type=float, default=100.0, help="million parameters (100)")
COMMAND.add("--retry", action="store_true", help="measure rows that failed again")
COMMAND.add("--older", action="store_true", help="keep rows of an older engine or library")
COMMAND.add("--no-run", action="store_true", help="report what is finished")
COMMAND.add("--seconds", type=float, default=300.0, help="time-out of one model (300)")
COMMAND.add("--memory", type=float, default=6.0, help="limit of one model in GB (6)")


def sizes() -> dict[str, float]:
    """Million parameters of each model of timm that the whole zoo has measured."""
    with SUPPORT.open(encoding="utf-8") as file:
        rows = [r for r in csv.DictReader(file) if r["group"] == "timm" and r["parameters"] != "–"]
    return {r["model"]: float(r["parameters"].removesuffix(" M")) for r in rows}


def entries(a: argparse.Namespace) -> list[Any]:
    """The smallest variant of each family with at most so many parameters, the least first."""
    from experiments import zoo_entries as z

    known, found = sizes(), []
    for family, names in z.timm_families().items():
        if family in z.BUILT_SMALL:
            names = [z.BUILT_SMALL[family][0] + z.SMALL_VARIANT]
        real = [n for n in names if known.get(n, a.most + 1) <= a.most and n[:5] != "test_"]
        if real:
            found.append((family, min(real, key=known.__getitem__)))
    found.sort(key=lambda one: known[one[1]])
    wanted = lambda one: any(fnmatch.fnmatch(s, p) for p in a.only for s in one)  # noqa: E731
    return [z.timm_entry(f, n, z.SMALL) for f, n in found if not a.only or wanted((f, n))]


def row(entry: Any) -> dict[str, Any]:
    """|f − ΣC| / (1 + Σ|C|) of a model, or why there is none."""
    from experiments.zoo_measure import completed, made

    found = made(entry)
    if isinstance(found, str):
        return {"status": "unbuilt", "reason": found}
    measured = completed(entry, *found)
    if "residual" not in measured:
        return {"status": "unsupported", **measured}
    exact = measured["residual"] <= EXACT and measured["exact"]
    return {"status": "exact" if exact else "not exact", **measured}


def report(rows: Sequence[dict[str, Any]]) -> str:
    """How many are exact, the largest residuals, and what is not exact."""
    exact = [r for r in rows if r["status"] == "exact"]
    worst = sorted((r for r in rows if "residual" in r), key=lambda r: -r["residual"])[:8]
    parts = [
        f"{len(exact)} of {len(rows)} families are exact, one model of each.",
        table(
            ["family", "model", "sum", "kept"],
            [[r["family"], r["name"], f"{r['residual']:.0e}", f"{r['kept']:.0%}"] for r in worst],
        ),
    ]
    lost = [f"- {r['name']}: {r['status']}: {r.get('reason', '')}" for r in rows if r not in exact]
    return "\n\n".join([*parts, *(["\n".join(lost)] if lost else [])])


def main(words: Sequence[str] | None = None) -> None:
    a = COMMAND.parse(words)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # children are ended with it
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)
    from experiments.zoo_entries import prepare
    from experiments.zoo_run import Runner, key, missing, store

    prepare()
    kept, every = store(a.work, a.older), entries(a)
    todo, done = missing(kept, every, "completed", a.retry)
    runner = Runner(row, a.work / ".running", 1, a.seconds, a.memory)
    with COMMAND.resumable():
        for entry, measured in runner([] if a.no_run else todo):
            done.append(kept.put(key(entry, "completed"), measured))
            print(entry.name, measured["status"], measured.get("residual", ""), file=sys.stderr)
    said = ["--only", *a.only] if a.only else ["--most", f"{a.most:g}"]
    older = " Rows of an earlier state of the engine are kept." if a.older else ""
    note = f"{COMMAND.written(*said)}; {versions('timm')}; {environment()}.{older}"
    COMMAND.publish(a, "support.md", completed=f"{report(done)}\n\n{note}")


if __name__ == "__main__":
    main()
