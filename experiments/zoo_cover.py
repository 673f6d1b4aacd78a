"""Which few models stand for the whole zoo in the tests: a greedy set cover of what they call.

    python -m experiments.zoo_cover            the choice, and what each model adds
    python -m experiments.zoo_cover --write    and into experiments/zoo_cover.json

To be covered is every rule of the table in every spelling ("mul: in place mul_") that any model of
the finished rows of ``experiments.zoo`` calls with something that depends on its input. Small
models are preferred: a model costs one, one more for every five million parameters, and
one more for every fifth of a second that a plain gradient takes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from experiments.report import ROOT
from experiments.zoo_run import store

WORK = ROOT / "runs" / "zoo"
RECORD = ROOT / "experiments" / "zoo_cover.json"


def cost(row: Mapping[str, Any]) -> float:
    seconds = row.get("seconds", {}).get("gradient", [0.0])
    return 1 + row["parameters"] / 5e6 + 5 * min(seconds)


def spellings(row: Mapping[str, Any]) -> frozenset[str]:
    return frozenset(s for d in ("float64", "float32") for s in row.get(d, {}).get("spellings", ()))


def cover(rows: Iterable[Mapping[str, Any]]) -> list[tuple[Mapping[str, Any], frozenset[str]]]:
    """(row, what it adds) of the models chosen, the most useful for its cost first.

    >>> row = lambda name, *calls: {"name": name, "parameters": 0, "float64": {"spellings": calls}}
    >>> found = cover([row("a", "add"), row("b", "add", "mul", "sub"), row("c", "mul", "exp")])
    >>> [(r["name"], sorted(adds)) for r, adds in found]
    [('b', ['add', 'mul', 'sub']), ('c', ['exp'])]
    """
    calls = {id(row): (row, spellings(row)) for row in rows}
    left = frozenset[str]().union(*(s for _, s in calls.values()))
    chosen: list[Mapping[str, Any]] = []
    while left:
        row, found = max(calls.values(), key=lambda rs: len(rs[1] & left) / cost(rs[0]))
        chosen.append(row)
        left -= found
    for row in list(chosen):  # what later ones cover as well is not needed
        if spellings(row) <= frozenset[str]().union(
            *(spellings(r) for r in chosen if r is not row)
        ):
            chosen.remove(row)
    before = frozenset[str]()
    adds: list[frozenset[str]] = []
    for row in chosen:
        adds.append(spellings(row) - before)
        before |= adds[-1]
    return list(zip(chosen, adds, strict=True))


def record(rows: list[dict[str, Any]]) -> dict[str, Any]:
    chosen = cover(rows)
    everything = frozenset[str]().union(*(spellings(r) for r in rows))
    return {
        "versions": store(WORK).made["versions"],
        "models_of_the_zoo": len({(r["group"], r["name"]) for r in rows}),
        "chosen": [
            {"group": r["group"], "family": r["family"], "name": r["name"], "adds": sorted(adds)}
            for r, adds in chosen
        ],
        "covered": sorted(everything),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, default=WORK, help="folder of the rows")
    parser.add_argument("--write", action="store_true", help=f"write {RECORD.name}")
    a = parser.parse_args()
    rows = [r for r in store(a.work).all() if r["status"] in ("exact", "not exact")]
    if not rows:
        raise SystemExit(f"no finished rows in {a.work}: run python -m experiments.zoo first.")
    found = record(rows)
    for model in found["chosen"]:
        print(f"{model['group']}/{model['name']}: {', '.join(model['adds'])}")
    print(f"{len(found['chosen'])} models for {len(found['covered'])} spellings")
    if a.write:
        text = json.dumps(found, indent=1, ensure_ascii=False) + "\n"
        RECORD.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
