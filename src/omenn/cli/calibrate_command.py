"""``omenn calibrate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from omenn.cli import terminal
from omenn.cli.shared_options import AsJson, Device, Output, Seed, Verbose, Weights

EXAMPLES = """[bold]Examples:[/]

omenn calibrate birds-resnet birds/ -o birds-resnet.json

omenn explain bird.png -m birds-resnet --calibration birds-resnet.json -o bird.html

omenn calibrate net.py:build photos/ --replace mean --budget 5000 -o net.json"""


Spec = Annotated[
    str, typer.Argument(metavar="MODEL", help="As for omenn explain: birds-resnet, timm:NAME …")
]
Images = Annotated[
    list[Path], typer.Argument(metavar="IMAGES...", help="Pictures, or folders of some.")
]
File = Annotated[Path, typer.Option("--out", "-o", metavar="FILE.json", help="The result.")]
Method = Annotated[str, typer.Option(metavar="NAME", help="The method, with options in brackets.")]
Replace = Annotated[
    str,
    typer.Option(
        metavar="HOW",
        help="What takes the place of a region: blur, blur:0.1 (σ as a share of the side), mean, "
        "black, white, zero.",
    ),
]
Level = Annotated[float, typer.Option(metavar="P", help="The usual probability of an interval.")]
Regions = Annotated[
    str, typer.Option(metavar="FORM,…", help="Of: cells, boxes, unions, superpixels.")
]
Each = Annotated[
    int, typer.Option(metavar="N", help="Regions of each of seven sizes in a picture.")
]
Budget = Annotated[
    int | None,
    typer.Option(metavar="N", help="At most so many forward passes (default: all pictures)."),
]


def calibrate(
    model: Spec,
    images: Images,
    out: File,
    weights: Weights = None,
    method: Method = "omenn-clear",
    replace: Replace = "blur:0.1",
    level: Level = 0.9,
    regions: Regions = "cells,boxes,unions",
    each: Each = 6,
    budget: Budget = None,
    output: Output = None,
    seed: Seed = 0,
    device: Device = "cpu",
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Measure error bars for the regions of a map, on your own pictures without labels.

    Regions of each picture are replaced one at a time. What the logit loses is compared with the
    map's sum over the region. The file says, for a new picture, between which limits the loss lies.

    100 pictures or more give narrow limits. An interrupted run goes on when the command is run
    again.
    """
    from omenn.calibration.regions import checked_forms
    from omenn.cli import calibrating_pictures as work
    from omenn.models import sources

    forms = checked_forms(regions)
    source, found = work.prepared(
        lambda: sources.load(model, weights=weights, seed=seed, device=device, output=output),
        out, images,
    )  # fmt: skip
    settings = {"replacement": replace, "level": level, "forms": forms, "each": each}
    settings |= {"budget": budget, "seed": seed}
    terminal.answer(work.calibrated(source, found, method, out, device, **settings), as_json)
