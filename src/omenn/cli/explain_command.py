"""``omenn explain``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from omenn.cli import terminal
from omenn.cli.shared_options import (
    AsJson,
    At,
    BiasOfMethod,
    CalibrationFile,
    Contrast,
    Device,
    MethodName,
    Model,
    Out,
    Output,
    Post,
    Seed,
    Smooth,
    Target,
    Verbose,
    Weights,
)

EXAMPLES = """[bold]Examples:[/]

omenn explain cat.jpg -m torchvision:resnet18 --weights r18.pth -o cat.html

omenn explain bird.png -m birds-resnet --target Larkolin -o bird.png

omenn explain bird.png -m birds-vit --method "gamma\\[gamma=0.5]" -o bird.html

omenn explain *.jpg -m net.py:build --contrast runner-up -o explained/"""


def explain(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Pictures.")],
    model: Model,
    weights: Weights = None,
    target: Target = None,
    contrast: Contrast = None,
    method: MethodName = None,
    output: Output = None,
    at: At = None,
    bias: BiasOfMethod = None,
    post: Post = None,
    smooth: Smooth = None,
    out: Out = None,
    calibration: CalibrationFile = None,
    seed: Seed = 0,
    device: Device = "cpu",
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Explain what a network sees in pictures.

    Pictures are preprocessed as the configuration of the model says.

    A page or figure shows a readable exact map (omenn-clear) large over the picture, then C,
    C_w ⊙ X and C_b of omenn at the pixels. All of them add up to the logit. --method shows one
    method alone.

    Models of timm and torchvision have random weights unless --weights names a file. Nothing is
    downloaded.

    The exit code is 1 if a sum that the method promises to be exact is not (results are written
    all the same), else 0.
    """
    from omenn.bench.method_options import method_and_options
    from omenn.cli import explain_results
    from omenn.cli.explain_images import Request
    from omenn.cli.readable_maps import fits
    from omenn.models import sources

    if out is not None:
        explain_results.check_output(out, len(files), smooth)
    with terminal.progress(len(files) + 2) as tick:
        tick(f"building {model}")
        source = sources.load(model, weights=weights, seed=seed, device=device, output=output)
        # only now, as the file of the model may register a method
        depths = at.split(",") if at and "," in at else at
        name, options = method_and_options(method or "omenn", {"at": depths, "bias": bias})
        steps = tuple(post or ())
        readable = method is None and fits(options, steps) and explain_results.shows_both(out)
        request = Request(target, contrast, name, options, steps, readable)
        found = explain_results.explain_and_write(
            files,
            source,
            request,
            out,
            smooth=smooth,
            device=device,
            tick=tick,
            calibration=calibration,
        )
    terminal.answer(found, as_json)
