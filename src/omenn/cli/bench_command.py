"""``omenn bench``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from omenn.cli import terminal
from omenn.cli.shared_options import AsJson, Verbose
from omenn.files.locks import locked

EXIT_IN_VAIN = 1

Names = "NAME,…|all"
PlanFile = Annotated[
    Path | None, typer.Argument(metavar="[PLAN.toml]", help="What flags say, as a file.")
]
Data = Annotated[
    str | None,
    typer.Option(
        metavar="DATA",
        help="birds (default), a folder, or KIND:FOLDER (funnybirds, imagenet, imagenet-s, voc, "
        "cifar10).",
    ),
]
Split = Annotated[
    str | None, typer.Option(metavar="NAME", help="Of birds test (default), validation, train.")
]
OfClasses = Annotated[
    str | None, typer.Option(metavar="N,…", help="Numbers of the classes to judge (default: all).")
]
Models = Annotated[
    str | None,
    typer.Option(metavar="SPEC,…", help="Models, with commas: birds-resnet, timm:NAME, file.py:f."),
]
BenchMethods = Annotated[
    str | None,
    typer.Option(metavar=Names, help="Methods, with commas; options as omenn\\[at=auto]."),
]
Metrics = Annotated[
    str | None,
    typer.Option(
        metavar=Names, help="Metrics, with commas; options as funnybirds\\[positive=true]."
    ),
]
Limit = Annotated[
    int | None, typer.Option(metavar="N", help="How many pictures at most (default: 64).")
]
BenchSeed = Annotated[
    int | None, typer.Option(metavar="N", help="Of metrics, methods, intervals (default: 0).")
]
Chunk = Annotated[
    int | None, typer.Option(metavar="N", help="Pictures explained at once (default: 16).")
]
NoTrivial = Annotated[
    bool, typer.Option("--no-trivial", help="Leave out the maps that know no model.")
]
BenchDevice = Annotated[str | None, typer.Option(metavar="NAME", help="cpu (default), cuda, mps.")]
OutFolder = Annotated[
    Path, typer.Option("--out", "-o", metavar="FOLDER", help="Where cells and results go.")
]
List = Annotated[
    bool, typer.Option("--list", help="List the data, models, methods and metrics there are.")
]


def bench(
    plan: PlanFile = None,
    data: Data = None,
    split: Split = None,
    classes: OfClasses = None,
    models: Models = None,
    methods: BenchMethods = None,
    metrics: Metrics = None,
    limit: Limit = None,
    seed: BenchSeed = None,
    chunk: Chunk = None,
    no_trivial: NoTrivial = False,
    device: BenchDevice = None,
    out: OutFolder = Path("omenn-bench"),
    listed: List = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Judge methods by published protocols: models × methods × metrics, into one folder.

    Writes index.html, results.md, results.json, results.parquet, and a file for
    every cell, so that the same command goes on where it was interrupted. Maps
    that know no model are judged as well: what is not above them counts for nothing.

    Exit code 0, also if some cells failed; 1 if no method could be judged, or none
    by one of the metrics; 2 for a plan that cannot be run.

    [bold]Examples:[/]

      omenn bench --models birds-resnet,birds-vit --methods omenn,abslrp -o bench

      omenn bench --metrics "insertion-deletion\\[step=64],gae" --methods "omenn\\[at=auto],all"

      omenn bench --data imagenet:FOLDER --classes 207 --models
      "torchvision:vit_b_16\\[weights=vit.pth]" --metrics faithfulness-correlation

      omenn bench plan.toml -o bench

      omenn bench --list
    """
    from omenn.bench import listing, running

    if listed:
        if as_json:
            terminal.print_json(listing.records())
        else:
            terminal.show(listing.table())
        return
    flags = {
        "data": data,
        "split": split,
        "classes": classes,
        "models": models,
        "methods": methods,
        "metrics": metrics,
        "limit": limit,
        "seed": seed,
        "chunk": chunk,
        "device": device,
        "trivial": False if no_trivial else None,
    }
    with terminal.resumable(), locked(out):
        prepared = running.prepare(plan, {k: v for k, v in flags.items() if v is not None}, out)
        with terminal.progress(prepared.steps) as tick:
            done = running.run(prepared, tick)
    if as_json:
        terminal.print_json({**done.record, "files": [str(file) for file in done.files]})
    else:
        terminal.show(*done.tables, *done.remarks)
    if done.failed:
        raise typer.Exit(EXIT_IN_VAIN)
