"""``omenn compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from omenn.cli import terminal
from omenn.cli.shared_options import (
    AsJson,
    Classes,
    CommonScale,
    Contrast,
    Device,
    Methods,
    Model,
    OutOfComparison,
    Output,
    Seed,
    Smooth,
    Target,
    Verbose,
    Weights,
)

EXAMPLES = """[bold]Examples:[/]

omenn compare bird.png -m birds-vit -o compare.html

omenn compare cat.jpg -m timm:resnet50 --methods "omenn,gamma\\[gamma=0.5]\""""


def compare(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A picture.")],
    model: Model,
    methods: Methods = None,
    weights: Weights = None,
    target: Target = None,
    contrast: Contrast = None,
    output: Output = None,
    classes: Classes = 5,
    smooth: Smooth = None,
    common_scale: CommonScale = False,
    out: OutOfComparison = None,
    seed: Seed = 0,
    device: Device = "cpu",
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Put the maps of several methods side by side, with the cost of each.

    The page shows them for one class, each map on a scale of its own, and for the likeliest
    classes, method by method. Where a method fails, the page says why.

    The exit code is 1 if a sum that a method promises to be exact is not, else 0.
    """
    from omenn.cli import comparing
    from omenn.cli.explain_images import Request
    from omenn.models import sources

    if out is not None:
        comparing.check_output(out)
    with terminal.progress(1) as tick:
        tick(f"building {model}")
        source = sources.load(model, weights=weights, seed=seed, device=device, output=output)
    chosen = comparing.chosen(methods)  # only now, as the file of the model may register one
    request = Request(target, contrast)
    with terminal.progress(comparing.steps(chosen, classes) + 1) as tick:
        found = comparing.compare_file(
            file,
            source,
            request,
            chosen,
            classes=classes,
            sigma=smooth,
            device=device,
            common_scale=common_scale,
            tick=tick,
        )
        if out is not None:
            tick(f"writing {out}")
            comparing.write(out, found)
    terminal.answer(comparing.answer(found, out), as_json)
