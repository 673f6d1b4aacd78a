"""``omenn tune``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from omenn.cli import terminal
from omenn.cli.shared_options import AsJson, Device, Output, Seed, Verbose, Weights
from omenn.files.locks import locked

EXAMPLES = """[bold]Examples:[/]

omenn tune efficientnet-lite0 photographs/ -o tuned

omenn tune net.py:build photographs/ --seconds 600

omenn tune birds-vit birds/ --candidates "omenn-clear,gamma\\[gamma=0.5;complete=true]"

omenn explain cat.jpg -m efficientnet-lite0 --method tuned/method.toml -o cat.html"""

Words = Annotated[
    list[str],
    typer.Argument(
        metavar="MODEL IMAGES...",
        help="The model, as for --model of omenn explain, and pictures or folders with pictures.",
    ),
]
ModelBeside = Annotated[
    str | None,
    typer.Option("--model", "-m", metavar="SPEC", help="The model, if it does not come first."),
]
Candidates = Annotated[
    str | None,
    typer.Option(
        metavar="NAME,…",
        help="Exact methods to choose from, with options as in gamma\\[gamma=0.5;complete=true] "
        "(default: a grid of five methods).",
    ),
]
Against = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="What they have to beat (default: that of omenn explain)."),
]
Passes = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="A budget in forward passes: fewer pictures are used if it is not enough for all.",
    ),
]
Seconds = Annotated[
    float | None, typer.Option(metavar="S", help="The same in seconds, which are estimated.")
]
Sets = Annotated[
    int, typer.Option(metavar="N", help="How many unions of cells of a picture are replaced.")
]
Across = Annotated[int, typer.Option(metavar="N", help="Cells along each side of a picture.")]
Fill = Annotated[
    str, typer.Option(metavar="NAME", help="What replaces them: blur, mean, black, white, zero.")
]
NoCheck = Annotated[
    bool, typer.Option("--no-check", help="Omit insertion minus deletion on held-out pictures.")
]
OutFolder = Annotated[
    Path,
    typer.Option("--out", "-o", metavar="FOLDER", help="For method.toml, index.html and figures."),
]


def tune(
    words: Words,
    model: ModelBeside = None,
    weights: Weights = None,
    candidates: Candidates = None,
    against: Against = None,
    passes: Passes = None,
    seconds: Seconds = None,
    sets: Sets = 64,
    across: Across = 14,
    fill: Fill = "blur",
    no_check: NoCheck = False,
    output: Output = None,
    out: OutFolder = Path("omenn-tuned"),
    seed: Seed = 0,
    device: Device = "cpu",
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Choose the exact method that explains a network best on your pictures; no labels needed.

    Parts of the pictures are replaced, and the maps of every candidate are compared with what the
    network loses. The best one on half of the pictures is compared with the default on the others,
    and the result says whether it is better.

    Writes method.toml, which --method of omenn explain takes, index.html and results.json. The same
    command continues where it was interrupted.
    """
    from omenn.cli import tuning_files

    asked = tuning_files.Asked(
        candidates=candidates,
        against=against,
        passes=passes,
        seconds=seconds,
        sets=sets,
        across=across,
        fill=fill,
        check=not no_check,
        seed=seed,
    )
    with terminal.resumable(out, "pictures/*"), locked(out):
        with terminal.progress(2) as tick:
            tick("building the model")
            source, files = tuning_files.read(words, model, weights, seed, device, output)
            tick("measuring what a map costs")
            search = tuning_files.prepare(source, files, asked, out, device)
        with terminal.progress(search.steps + 1) as tick:
            found = tuning_files.run(search, source, files, out, device, tick)
    terminal.answer(found, as_json)
