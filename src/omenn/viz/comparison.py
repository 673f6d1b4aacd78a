"""Several methods on one input: the views of each, and their scale.

NOTE [one scale for several methods]
Maps whose method promises the logit, exactly or approximately, have entries in logits and share one
scale. Other maps have a different unit. They are rescaled so that Σ|R| is that of the reference,
the first exact map if there is one; equal colours then mean equal shares of a map. The bar ends at
the 99.5 % quantile of the reference. In a map with fewer entries each entry covers a larger area,
so its bar ends at a number that is larger by this factor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from omenn.explanation import PROMISES, Explanation
from omenn.viz.flat_map import drawn
from omenn.viz.heatmaps import scale_of, signed_rgb, smooth
from omenn.viz.panels import View
from omenn.viz.wording import Verdict, verdict


@dataclass(frozen=True, eq=False)
class Cell:
    """One map (H, W) with its sum, the explained number and the residual; or why there is none."""

    values: np.ndarray | None = None
    total: float = float("nan")
    output: float = float("nan")
    residual: float = float("nan")
    exact: bool = False
    promise: str = ""
    said: Verdict = field(default_factory=lambda: Verdict("failed", "no"))
    error: str = ""


@dataclass(frozen=True)
class Row:
    """A method, its map of the explained answer, its maps of the classes, and its cost.

    ``seconds`` and ``memory`` (bytes at the peak) are medians of its calls; None: unknown.
    """

    method: str
    promise: str
    summary: str
    source: str
    cell: Cell
    options: str = ""
    classes: tuple[Cell, ...] = ()
    seconds: float | None = None
    memory: int | None = None


@dataclass(frozen=True)
class Answer:
    """A class: its index, its name, its logit and its probability (softmax)."""

    index: int
    name: str
    logit: float
    probability: float


@dataclass(frozen=True, eq=False)
class Comparison:
    """Methods on one input, for the answer ``target``, whose number is ``logit``.

    ``image`` (H, W, 3): the input as a picture, None if it is not one.
    """

    name: str
    model: str
    target: str
    logit: float
    image: np.ndarray | None
    rows: Sequence[Row]
    answers: Sequence[Answer] = ()
    weights: str = ""
    warning: str = ""
    sigma: float = 0.0
    footer: str = ""


def cell_of(explanation: Explanation) -> Cell:
    """The cell for the first sample of a result.

    Raises:
        InputError: the map has no picture.
    """
    return Cell(
        values=np.nan_to_num(drawn(explanation)),
        total=float(explanation.total[0].detach()),
        output=float(explanation.output[0].detach()),
        residual=float(explanation.residual[0].detach()),
        exact=explanation.exact,
        promise=explanation.promise,
        said=verdict(explanation),
    )


def reference(rows: Sequence[Row]) -> Row | None:
    """The row that sets the scale: the first with the strongest promise; None if all failed."""
    there = [row for row in rows if row.cell.values is not None]
    return min(there, key=lambda row: PROMISES.index(row.promise)) if there else None


def shared_views(rows: Sequence[Row], sigma: float = 0.0) -> dict[str, View]:
    """Method → its map on the common scale (see NOTE [one scale for several methods])."""
    first = reference(rows)
    if first is None:
        return {}
    there = [row for row in rows if row.cell.values is not None]
    maps = {row.method: smooth(row.cell.values, sigma) for row in there}
    norm = maps[first.method]
    end, mass = scale_of(norm), float(np.abs(norm).sum()) or 1.0
    views = {}
    for row in there:
        values = maps[row.method]
        unit = float(np.abs(values).sum()) / mass or 1.0 if row.promise == "none" else 1.0
        scale = end * unit * norm.size / values.size
        views[row.method] = View(signed_rgb(values, scale), scale)
    return views


def own_views(cells: Sequence[Cell], sigma: float = 0.0) -> list[View | None]:
    """Maps of one method on one separate scale; None for a map that failed."""
    maps = [None if cell.values is None else smooth(cell.values, sigma) for cell in cells]
    there = [values for values in maps if values is not None]
    if not there:
        return [None] * len(cells)
    scale = scale_of(*there)
    return [None if m is None else View(signed_rgb(m, scale), scale) for m in maps]
