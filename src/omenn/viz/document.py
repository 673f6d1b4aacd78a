"""Pages from templates: one HTML file with style, script and pictures inside, no network."""

from __future__ import annotations

import base64
import functools
import importlib.resources
import re
from typing import TYPE_CHECKING, Any

import numpy as np

from omenn.files.printable import printable
from omenn.viz import wording
from omenn.viz.heatmaps import colours, png

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

    from omenn.viz.panels import View


_WORDING = (
    "PROMISES", "collects", "divided", "in_logits", "is_omenn", "memory", "method_of", "number",
    "percent", "seconds", "sentence", "sum_line", "symbol", "verdict",
)  # fmt: skip
"""Functions of ``wording`` that templates may call."""


def rendered(template: str, **names: Any) -> str:
    """The page of a template, which sees ``names`` and the functions of _WORDING.

    Text from outside is escaped, invisible characters too.
    """
    return printable(_environment().get_template(template).render(**names))


@functools.cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    made = Environment(
        loader=PackageLoader("omenn.viz"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals.update(
        {name: getattr(wording, name) for name in _WORDING}, gradient=_gradient, resource=_resource
    )
    made.filters.update(
        symbols=_symbols, data_uri=_data_uri, pixels_uri=_pixels_uri, sentence=wording.sentence
    )
    return made


def _resource(name: str) -> Markup:
    """A style sheet or a script, not escaped."""
    from markupsafe import Markup

    path = importlib.resources.files("omenn.viz").joinpath("templates", name)
    return Markup(path.read_text(encoding="utf-8"))


def _gradient() -> str:
    stops = colours()[np.linspace(0, len(colours()) - 1, 17).astype(int)]
    return f"linear-gradient(90deg, {', '.join(f'#{bytes(stop).hex()}' for stop in stops)})"


def _symbols(text: str) -> Markup:
    """Escaped text in which the symbols C_w and C_b have their subscripts.

    >>> print(_symbols("C_w < C_b"))
    C<sub>w</sub> &lt; C<sub>b</sub>
    """
    from markupsafe import Markup, escape

    return Markup(re.sub(r"C_([wb])\b", r"C<sub>\1</sub>", str(escape(text))))


def _data_uri(view: View) -> str:
    """The pixels of a view as a PNG inside the page."""
    return _pixels_uri(view.pixels)


def _pixels_uri(pixels: np.ndarray) -> str:
    return f"data:image/png;base64,{base64.b64encode(png(pixels)).decode('ascii')}"
