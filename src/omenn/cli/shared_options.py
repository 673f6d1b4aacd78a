"""The options that several commands share, with their help."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal

import typer

_BIAS_HELP = (
    "Where constants are attributed: where they act, in blocks or smoothly (bilinear); along the "
    "attention for those of a class token; evenly; or apart. Each choice keeps the sum."
)


def _finite(value: float | None) -> float | None:
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a number of entries. Expected is one like 2.5.")
    return value


def _key_or_position(value: str | None) -> str | int | None:
    """Where the logits are in an output: a position if it is a number, else a key."""
    return int(value) if value is not None and value.removeprefix("-").isdecimal() else value


def _known_steps(steps: list[str] | None) -> list[str]:
    """Refuses an unknown step of post-processing before any work."""
    if steps:
        from omenn.viz.postprocess import parsed

        for step in steps:
            parsed(step)
    return steps or []


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
    typer.Option(metavar="N|NAME", help="The class to explain (default: the largest logit)."),
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
    str | None,
    typer.Option(metavar="MODULE", help="Explain the output of a module instead of the input."),
]
Placement = Literal["spatial", "bilinear", "attention", "uniform", "separate"]
Bias = Annotated[Placement, typer.Option(help=_BIAS_HELP)]
BiasOfMethod = Annotated[
    Placement | None,
    typer.Option(help=f"{_BIAS_HELP} Default: spatial. For methods that attribute constants."),
]
MethodName = Annotated[
    str | None,
    typer.Option(
        "--method",
        metavar="NAME|FILE.toml",
        help="One method alone, with its options as in gamma\\[gamma=0.5] (omenn methods lists "
        "them), or a file that has both (default: omenn, and of a picture omenn-clear, as well).",
    ),
]
Methods = Annotated[
    str | None,
    typer.Option(
        metavar="NAME,…|all",
        help="Methods, separated by commas, with options as in gamma\\[gamma=0.5] (default: one of "
        "each family that is installed).",
    ),
]
Post = Annotated[
    list[str] | None,
    typer.Option(
        metavar="STEP",
        callback=_known_steps,
        help="Process the map: clean, clamp:0.01, gaussian:2, …; may be repeated, in order. The "
        "result says what this does to the sum.",
    ),
]
Smooth = Annotated[
    float | None,
    typer.Option(
        metavar="S",
        min=0.0,
        callback=_finite,
        help="Also draw the maps under a Gaussian of S entries that keeps the sum "
        "(default: a fortieth of the picture; 0: none).",
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
CalibrationFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="A file of omenn calibrate: say what replacing the main regions costs.",
    ),
]
OutFolder = Annotated[
    Path, typer.Option("--out", "-o", metavar="FOLDER", help="The folder for all results.")
]
OutOfComparison = Annotated[
    Path | None, typer.Option("--out", "-o", metavar="OUT", help=".html, or .png of the maps.")
]
CommonScale = Annotated[
    bool,
    typer.Option(
        "--common-scale",
        help="One scale for all maps of the answer, not one for each. The page has a switch.",
    ),
]
Classes = Annotated[
    int,
    typer.Option(
        metavar="N", min=0, max=20, help="Also compare for the N likeliest classes (0: none)."
    ),
]
Output = Annotated[
    str | None,
    typer.Option(
        metavar="KEY|N",
        callback=_key_or_position,
        help="Where the logits are if the model returns a dictionary or several values.",
    ),
]
Seed = Annotated[int, typer.Option(metavar="N", help="Seed of random weights and numbers.")]
Device = Annotated[str, typer.Option(metavar="NAME", help="cpu, cuda, cuda:1, mps.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the numbers as JSON.")]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Show warnings, and the traceback of an error.")
]
