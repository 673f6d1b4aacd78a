"""``omenn data``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from omenn.cli import terminal
from omenn.cli.shared_options import Verbose
from omenn.files.locks import locked

app = typer.Typer(no_args_is_help=True, help="Write a data set that omenn generates.")


@app.command("birds")
def data_birds(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write to.")],
    train_scenes: Annotated[int, typer.Option(metavar="N", help="Training scenes.")] = 1000,
    test_scenes: Annotated[
        int, typer.Option(metavar="N", help="Test scenes, with their interventions.")
    ] = 100,
    size: Annotated[int, typer.Option(metavar="N", help="Side in pixels.")] = 256,
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of the scenes.")] = 0,
    verbose: Verbose = False,
) -> None:
    """Write generated birds with part maps and all interventions, in FunnyBirds' layout.

    Started again with the same arguments, an interrupted run continues.

    [bold]Example:[/]  omenn data birds birds/ --train-scenes 5000 --size 128
    """
    from omenn.data import birds

    with terminal.resumable(out, "*/*/*.png"), locked(out):
        folder = birds.write(
            out, train_scenes=train_scenes, test_scenes=test_scenes, size=size, seed=seed
        )
    terminal.show(f"wrote {folder}")
