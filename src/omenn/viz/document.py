"""The pieces of which pages are made: the frame of a document, pictures, colour bars, badges."""

from __future__ import annotations

import base64
import importlib.resources
import re
from collections.abc import Sequence
from html import escape

import numpy as np

from omenn.files.printable import printable
from omenn.viz.heatmaps import colours, png
from omenn.viz.panels import View
from omenn.viz.wording import Verdict, number

DIALOG = (
    '<dialog aria-label="Enlarged picture"><form method="dialog"><button>Close</button></form>'
    '<img alt=""><p></p></dialog>'
)


def document(title: str, body: Sequence[str], names: Sequence[str] = ("page",)) -> str:
    """A whole HTML document; ``names`` are those of the style sheets and scripts inside of it."""
    styles = "".join(_resource(f"{name}.css") for name in names)
    scripts = "".join(_resource(f"{name}.js") for name in names)
    return printable(
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n"
        f"<style>\n:root {{ --scale: {_gradient()}; }}\n{styles}</style>\n"
        f"</head>\n<body>\n{chr(10).join(body)}\n<script>\n{scripts}</script>\n"
        "</body>\n</html>\n"
    )


def _resource(name: str) -> str:
    return importlib.resources.files("omenn.viz").joinpath(name).read_text(encoding="utf-8")


def _gradient() -> str:
    stops = colours()[np.linspace(0, len(colours()) - 1, 17).astype(int)]
    return f"linear-gradient(90deg, {', '.join(f'#{bytes(stop).hex()}' for stop in stops)})"


def warnings_of(texts: Sequence[str]) -> str:
    """Each warning once, in a box."""
    return "".join(
        f'<div class="warning" role="note"><p>{escape(text)}</p></div>'
        for text in dict.fromkeys(filter(None, texts))
    )


def badge(verdict: Verdict) -> str:
    """What a sum is, as a coloured word."""
    return f'<span class="badge {verdict.kind}">{escape(verdict.words)}</span>'


def symbols(text: str) -> str:
    """Escaped text in which the symbols C_w and C_b have their subscripts."""
    return re.sub(r"C_([wb])\b", r"C<sub>\1</sub>", escape(text))


def picture(images: str, what: str) -> str:
    """A button with the images of one picture, that enlarges the one that can be seen."""
    return (
        f'<button class="picture" type="button" aria-label="Enlarge: {escape(what)}">'
        f"{images}</button>"
    )


def image(view: View, alt: str, name: str = "") -> str:
    """An image with everything inside; ``name`` are its classes, by which views are switched."""
    content = base64.b64encode(png(view.pixels)).decode("ascii")
    height, width = view.pixels.shape[:2]
    kind = f"map {view.form}".strip() if view.scale is not None else ""
    return (
        f'<img class="{f"{name} {kind}".strip()}" width="{width}" height="{height}" '
        f'alt="{escape(alt)}" src="data:image/png;base64,{content}">'
    )


def bar(scale: float | None, name: str = "") -> str:
    """The colours with the numbers at their ends; nothing for a photograph."""
    if scale is None:
        return ""
    end = number(scale, digits=2)
    return (
        f'<div class="{f"bar {name}".strip()}"><i aria-hidden="true"></i>'
        f"<span><b>−{end}</b><b>0</b><b>{end}</b></span></div>"
    )


def views(sigma: float, exact: bool) -> str:
    """The switch between maps entry by entry, which may be ``exact``, and smoothed ones."""
    if not sigma:
        return ""
    return f"""<fieldset class="views"><legend>Maps</legend>
<label><input type="radio" name="view" id="view-exact" checked> {"exact, " * exact}entry by
entry</label>
<label><input type="radio" name="view" id="view-smoothed"> smoothed (Gaussian, σ = {sigma:g}
entries, same sum)</label></fieldset>"""
