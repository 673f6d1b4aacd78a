"""What ``omenn tune`` found as one HTML file: the verdict, the table, maps before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from omenn.viz.comparison import Cell, own_views
from omenn.viz.document import rendered
from omenn.viz.panels import View


@dataclass(frozen=True)
class Line:
    """A row of the table in words; ``kind``: default, candidate or trivial."""

    name: str
    kind: str
    chosen: str
    held: str
    check: str
    passes: str
    error: str = ""


@dataclass(frozen=True, eq=False)
class Example:
    """A held-out picture, and its map by each finalist: the default first."""

    name: str
    target: str
    image: np.ndarray | None
    maps: Mapping[str, Cell]


@dataclass(frozen=True, eq=False)
class TunePage:
    """The content of the page; ``settings`` are those of ``omenn.tune``, by their names."""

    model: str
    verdict: str
    better: bool
    default: str
    best: str
    chosen: str
    lines: Sequence[Line]
    examples: Sequence[Example]
    pictures: int
    settings: Mapping[str, Any]
    remarks: Sequence[str] = ()
    warning: str = ""
    sigma: float = 0.0
    toml: str = ""
    footer: str = ""


@dataclass(frozen=True)
class Drawn:
    """An example with its views: of the input, and of each map as it is and smoothed."""

    example: Example
    image: View | None
    maps: Sequence[tuple[str, Cell, Mapping[str, View | None]]]


def tune_page(page: TunePage) -> str:
    """The result as one HTML document: no other file, no network."""
    return rendered(
        "tune.html.j2",
        parts=["page", "compare"],
        title=f"The method for {page.model}",
        footer=page.footer,
        warnings=[page.warning],
        page=page,
        examples=[_drawn(one, page.sigma) for one in page.examples],
    )


def _drawn(example: Example, sigma: float) -> Drawn:
    kinds = {"exact": 0.0} | ({"smoothed": sigma} if sigma else {})
    maps = [
        (name, cell, {kind: own_views([cell], width)[0] for kind, width in kinds.items()})
        for name, cell in example.maps.items()
    ]
    return Drawn(example, None if example.image is None else View(example.image), maps)
