"""``omenn train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from omenn.run import terminal
from omenn.run.arguments import Device, Verbose

app = typer.Typer(no_args_is_help=True, help="Train a bundled network again.")


@app.command("birds")
def train_birds(
    arch: Annotated[
        Literal["birds-resnet", "birds-vit", "birds-convnet"],
        typer.Option(help="Which network."),
    ],
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Where weights, card and checkpoints go.")
    ] = Path("runs/birds"),
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of data and weights.")] = 0,
    epochs: Annotated[
        int | None, typer.Option(metavar="N", help="Fewer or more than the recipe says.")
    ] = None,
    train_scenes: Annotated[
        int | None, typer.Option(metavar="N", help="How many scenes to train on.")
    ] = None,
    device: Device = "cpu",
    verbose: Verbose = False,
) -> None:
    """Train one of the bundled networks on generated birds.

    Started again with the same arguments, an interrupted training goes on where it stopped.

    [bold]Example:[/]  omenn train birds --arch birds-resnet --out runs/resnet --device cuda
    """
    from omenn.models import sources, training

    sources.check_device(device)
    with terminal.resumable():
        path = training.train_birds(
            arch, out, seed=seed, epochs=epochs, train_scenes=train_scenes, device=device
        )
    terminal.show(f"wrote {path}")
