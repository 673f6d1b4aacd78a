"""docs/benchmarks.md from what ``omenn bench`` found; the page names the command of each table.

    omenn bench experiments/plans/birds.toml -o runs/bench/birds
    python -m experiments.tables birds --results runs/bench/birds runs/bench/birds-slow --write

Without --write the block is printed. Several folders are written one below the other: plans that
cost more have fewer pictures, and their rows are never mixed.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import torch

from experiments import tables_published
from experiments.report import ROOT, write_block
from experiments.tables_figure import draw
from experiments.tables_read import PLANS, Run, read
from experiments.tables_text import block
from omenn.bench.plan_entries import Entry
from omenn.errors import OmennError

if TYPE_CHECKING:
    from omenn.models.sources import Source

PAGE = ROOT / "docs" / "benchmarks.md"
KINDS = ("birds", "official", "cifar")


def picture(stem: str, model: str) -> str:
    """The file of a picture.

    >>> picture("birds-slow", "timm:vit[a=1]")
    'bench-birds-slow-timm-vit-a-1.png'
    """
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", model).strip("-")
    return f"bench-{stem}-{plain.removeprefix(stem.partition('-')[0] + '-')}.png"


def drawn(run: Run, folder: Path) -> dict[str, str]:
    """Model → its picture, which is in ``folder`` then, as a page beside that folder names it."""
    found = {}
    for name, table in run.models.items():
        if any(line.values for line in table.lines):
            file = folder / picture(run.stem, name)
            draw(run, table, name, file)
            found[name] = f"{folder.name}/{file.name}"
    return found


def sizes(runs: Sequence[Run]) -> dict[str, tuple[int, int]]:
    """Model → its parameters and the side of its pictures, of those that can be built."""
    from omenn.models import sources

    found = {}
    for run in runs:
        for name, entry in zip(run.models, run.plan.models, strict=True):
            built = _built(sources, entry)
            if built is not None and name not in found:
                count = sum(p.numel() for p in built.model.parameters())
                found[name] = (count, built.preprocessing.size[0])
    return found


def _built(sources: ModuleType, entry: Entry) -> Source | None:
    try:
        with torch.random.fork_rng(devices=[]):
            return sources.load(entry.base)
    except OmennError:  # the file is not here any more: the page does without
        return None


def text(kind: str, runs: Sequence[Run], folder: Path | None) -> str:
    """The block of a kind of data; pictures are drawn into ``folder``, if there is one."""
    parts = []
    if kind == "official":
        parts.append(tables_published.beside(runs, sizes(runs)))
    parts += [block(run, drawn(run, folder) if folder else {}) for run in runs]
    return "\n\n".join(filter(None, parts))


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="experiments.tables",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("kind", choices=KINDS, help="which block of the page")
    add("--results", type=Path, nargs="+", required=True, help="folders of omenn bench -o")
    add("--write", action="store_true", help="write the block and its pictures")
    add("--page", type=Path, default=PAGE, help="(docs/benchmarks.md)")
    a = parser.parse_args(words)
    runs = [read(folder, PLANS) for folder in a.results]
    twice = [run.stem for run in runs if [r.stem for r in runs].count(run.stem) > 1]
    if twice:
        raise SystemExit(
            f"tables: two folders hold results of '{twice[0]}'. Give those that belong together."
        )
    if not a.write:
        print(text(a.kind, runs, None))
        return
    made = text(a.kind, runs, a.page.parent / "images")
    write_block(a.page, f"bench-{a.kind}", made)
    print(f"wrote the block bench-{a.kind} of {a.page}")


if __name__ == "__main__":
    main()
