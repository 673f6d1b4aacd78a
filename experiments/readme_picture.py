"""The picture of README.md: a photograph of the demonstration with both of its maps.

    python -m experiments.readme_picture                  writes docs/images/demo.png
    python -m experiments.readme_picture --to FILE        to another place

It is the figure that ``omenn demo --real`` writes, smaller and in 256 colours.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

from PIL import Image

from experiments.command import DOCS
from omenn.cli.demonstration import REAL, photographs
from omenn.cli.explain_images import Request, explain_tensor
from omenn.models import sources
from omenn.viz.figure import figure_png

TITLE = "A cup of coffee"
WIDTH = 1360  # pixels
COLOURS = 256


def picture() -> bytes:
    """The figure as a PNG file."""
    source = sources.load(REAL[0])
    (tensor,) = [tensor for title, tensor, _ in photographs(source) if title == TITLE]
    case = explain_tensor(TITLE, tensor, source, Request(readable=True), rival=True)
    image = Image.open(io.BytesIO(figure_png(case))).convert("RGB")
    height = round(image.height * WIDTH / image.width)
    image = image.resize((WIDTH, height), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    colours = image.quantize(COLOURS)
    image.quantize(palette=colours, dither=Image.Dither.FLOYDSTEINBERG).save(
        out, format="PNG", optimize=True
    )
    return out.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description="The picture of README.md.")
    parser.add_argument("--to", type=Path, default=DOCS / "images" / "demo.png", metavar="FILE")
    parser.parse_args().to.write_bytes(picture())


if __name__ == "__main__":
    main()
