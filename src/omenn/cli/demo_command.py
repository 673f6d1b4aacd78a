"""``omenn demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from omenn.cli import terminal
from omenn.cli.shared_options import AsJson, Device, OutFolder, Verbose

Real = Annotated[
    bool, typer.Option("--real", help="Photographs and a network trained on ImageNet.")
]


def demo(
    out: OutFolder = Path("omenn-demo"),
    real: Real = False,
    device: Device = "cpu",
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Explain four generated birds with the bundled networks; works offline.

    With --real: four photographs and EfficientNet-Lite0, trained on ImageNet (extra zoo).

    Writes FOLDER/index.html, one page with everything in it, and every picture as PNG.

    The exit code is 0 if every sum is exact, 1 if not.

    [bold]Example:[/]  omenn demo --out birds
    """
    from omenn.cli import demonstration

    with terminal.progress(demonstration.steps(real)) as tick:
        found = demonstration.demo(out, real=real, device=device, tick=tick)
    terminal.answer(found, as_json)
