"""``omenn certify``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from omenn.cli import terminal
from omenn.cli.shared_options import (
    AsJson,
    At,
    Bias,
    Device,
    Model,
    Output,
    Seed,
    Target,
    Verbose,
    Weights,
)

EXAMPLES = """[bold]Examples:[/]

omenn certify -m timm:vit_base_patch16_224

omenn certify -m net.py:build --input cat.jpg --json

omenn certify --homogeneous -m net.py:build"""


def certify(
    model: Model,
    file: Annotated[
        Path | None, typer.Option("--input", metavar="FILE", help="A picture to run it on.")
    ] = None,
    weights: Weights = None,
    target: Target = None,
    output: Output = None,
    at: At = None,
    bias: Bias = "spatial",
    homogeneous: Annotated[
        bool, typer.Option("--homogeneous", help="Check F(αx) = α F(x) instead, for X-Gradient.")
    ] = False,
    seed: Seed = 0,
    device: Device = "cpu",
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Check that explanations of a model are exact, with the evidence.

    The exit code is 0 if they are, 1 if not, 2 if the model cannot be checked.

    With --homogeneous: whether F(αx) = α F(x), by its operators and by numbers. Modules that are
    not homogeneous are named.

    Without --input the model runs on its own example_inputs (and example_target) or on random
    numbers.
    """
    from omenn.cli import check_model
    from omenn.models import sources

    if homogeneous:
        check_model.whole_model(
            {"--target": target, "--at": at, "--bias": None if bias == "spatial" else bias}
        )
    source = sources.load(model, weights=weights, seed=seed, device=device, output=output)
    inputs, words = check_model.inputs_for(source, file, seed, device)
    if homogeneous:
        found = check_model.homogeneity(source, inputs)
    else:
        asked = check_model.target_for(source, target)
        found = check_model.exactness(source, inputs, asked, at=at, bias=bias)
    terminal.answer(check_model.answer(found, source, words), as_json)
