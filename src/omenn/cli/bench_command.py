"""``omenn bench``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from omenn.cli import terminal
from omenn.cli.shared_options import AsJson, OutFolder, Verbose
from omenn.files.locks import locked

if TYPE_CHECKING:
    from omenn.bench.running import Done

EXAMPLES = """[bold]Examples:[/]

omenn bench --models birds-resnet,birds-vit --methods omenn,abslrp -o bench

omenn bench --metrics "insertion-deletion\\[step=64],gae" --methods "omenn\\[at=auto],all"

omenn bench --data imagenet:FOLDER --classes 207 --models
"torchvision:vit_b_16\\[weights=vit.pth]" --metrics faithfulness-correlation

omenn bench plan.toml -o bench

omenn bench --list"""
Names = "NAME,…|all"
PlanFile = Annotated[
    Path | None, typer.Argument(metavar="[PLAN.toml]", help="The options below as a file.")
]
Data = Annotated[
    str | None,
    typer.Option(
        metavar="DATA",
        help="birds (default), a folder, or NAME:FOLDER such as voc:FOLDER; --list has all.",
    ),
]
Split = Annotated[
    str | None, typer.Option(metavar="NAME", help="For birds: test (default), validation, train.")
]
OfClasses = Annotated[
    str | None,
    typer.Option(metavar="N,…", help="Classes to evaluate, by number (default: all)."),
]
Models = Annotated[
    str | None,
    typer.Option(
        metavar="SPEC,…", help="Models, separated by commas: birds-vit, timm:NAME, file.py:f."
    ),
]
BenchMethods = Annotated[
    str | None,
    typer.Option(
        metavar=Names, help="Methods, separated by commas, with options as in omenn\\[at=auto]."
    ),
]
Metrics = Annotated[
    str | None,
    typer.Option(
        metavar=Names,
        help="Metrics, separated by commas, with options as in funnybirds\\[positive=true].",
    ),
]
Limit = Annotated[int | None, typer.Option(metavar="N", help="At most N pictures (default: 64).")]
BenchSeed = Annotated[
    int | None,
    typer.Option(metavar="N", help="For metrics, methods, intervals (default: 0)."),
]
Chunk = Annotated[
    int | None, typer.Option(metavar="N", help="Pictures explained at once (default: 16).")
]
NoTrivial = Annotated[
    bool, typer.Option("--no-trivial", help="Omit the maps that do not depend on the model.")
]
BenchDevice = Annotated[str | None, typer.Option(metavar="NAME", help="cpu (default), cuda, mps.")]
List = Annotated[bool, typer.Option("--list", help="List data, models, methods and metrics.")]


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
    """Evaluate methods by published protocols: models × methods × metrics, into one folder.

    Writes index.html, results.md, results.json, results.parquet and a file for every cell: the
    same command continues where it was interrupted. Maps that do not depend on the model are
    evaluated as well, as a bound from below.

    The exit code is 0, also if some cells failed; 1 if no method could be evaluated, or none by
    one of the metrics; 2 for a plan that cannot be run.
    """
    from omenn.bench import running
    from omenn.cli import bench_list

    if listed:
        return terminal.answer(terminal.Answer(bench_list.records(), [bench_list.table()]), as_json)
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
    with terminal.resumable(out, "cells/*"), locked(out):
        prepared = running.prepare(plan, {k: v for k, v in flags.items() if v is not None}, out)
        with terminal.progress(prepared.steps) as tick:
            done = running.run(prepared, tick)
    return terminal.answer(_answer(done), as_json)


def _answer(done: Done) -> terminal.Answer:
    record = {**done.record, "files": [str(file) for file in done.files]}
    return terminal.Answer(record, [*done.tables, *done.remarks], not done.failed)
