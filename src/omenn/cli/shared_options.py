"""The options of the command line that several commands share, with their help."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal

import typer

_BIAS_HELP = (
    "Where the constants are put: at their place; those of a class token along the "
    "attention; evenly; or kept apart. Each choice keeps the sum."
)

Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        metavar="SPEC",
        help="birds-resnet, birds-vit, birds-convnet, birds-xconvnet, timm:NAME, torchvision:NAME, "
        "or path/to/file.py:function (runs that file).",
    ),
]
Weights = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Trained weights: safetensors, or torch.save of tensors."),
]
Target = Annotated[
    str | None,
    typer.Option(metavar="N|NAME", help="The answer to explain (default: the largest logit)."),
]
Contrast = Annotated[
    str | None,
    typer.Option(
        "--contrast",
        "-c",
        metavar="N|NAME|rest|runner-up",
        help="Explain the logit of the target minus this one: a class, the mean of all others "
        "(rest), or the largest of them (runner-up).",
    ),
]
At = Annotated[
    str | None, typer.Option(metavar="MODULE", help="Start from a module's output, not the input.")
]
Bias = Annotated[
    Literal["spatial", "attention", "uniform", "separate"], typer.Option(help=_BIAS_HELP)
]
BiasOfMethod = Annotated[
    Literal["spatial", "attention", "uniform", "separate"] | None,
    typer.Option(help=f"{_BIAS_HELP} Default: spatial. Of methods that collect constants."),
]
MethodName = Annotated[
    str, typer.Option("--method", metavar="NAME", help="The method; omenn methods lists them.")
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="OPTION=VALUE", help="An option of the method; may be repeated."),
]
Post = Annotated[
    list[str] | None,
    typer.Option(
        metavar="STEP",
        help="Change the map afterwards: clean, clamp:0.01, gaussian:2, …; may be repeated, in "
        "order. What it does to the sum is said.",
    ),
]


def _finite(value: float | None) -> float | None:
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is no number of entries, expected such as 2.5.")
    return value


Smooth = Annotated[
    float | None,
    typer.Option(
        metavar="S",
        min=0.0,
        callback=_finite,
        help="Also draw the maps under a Gaussian of S entries that keeps the sum "
        "(default: a fortieth of the picture; 0: not).",
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        "-o",
        metavar="OUT",
        help=".png, .html, .safetensors, .json, or a folder for several pictures.",
    ),
]
Methods = Annotated[
    str | None,
    typer.Option(
        metavar="NAME,…|all",
        help="Which methods, with commas (default: one of each family that is installed).",
    ),
]
SettingsOfMethods = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="METHOD.OPTION=VALUE",
        help="An option of one of the methods; may be repeated.",
    ),
]
Classes = Annotated[
    int,
    typer.Option(
        metavar="N", min=0, max=20, help="Also compare for the N likeliest answers; 0: not."
    ),
]
OutOfComparison = Annotated[
    Path | None, typer.Option("--out", "-o", metavar="OUT", help=".html, or .png of the maps.")
]
Output = Annotated[
    str | None,
    typer.Option(
        metavar="KEY|N",
        help="Where the logits are, if the model returns a dictionary or several things.",
    ),
]
Seed = Annotated[int, typer.Option(metavar="N", help="Seed of random weights and numbers.")]
Device = Annotated[str, typer.Option(metavar="NAME", help="cpu, cuda, cuda:1, mps.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the numbers as JSON.")]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Show warnings, and the traceback of an error.")
]
