"""``omenn demo``."""

from __future__ import annotations

from pathlib import Path

from omenn.cli import terminal
from omenn.cli.shared_options import AsJson, Device, OutFolder, Verbose


def demo(
    out: OutFolder = Path("omenn-demo"),
    device: Device = "cpu",
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Explain four generated birds with the bundled networks; works offline.

    Writes FOLDER/index.html, one page with everything in it, and every picture as PNG.

    The exit code is 0 if every sum is exact, 1 if not.

    [bold]Example:[/]  omenn demo --out birds
    """
    from omenn.cli import demonstration

    with terminal.progress(demonstration.steps()) as tick:
        found = demonstration.demo(out, device=device, tick=tick)
    terminal.answer(found, as_json)
