"""Several methods on one input: the view of each, and its scale.

NOTE [one scale for several methods]
A map has a scale of its own, which ends at its 99.5 % quantile: on a common scale a map whose mass
is small or lies in few places would be white. A common one is drawn on request. There, maps whose
method promises the logit, exactly or approximately, have entries in logits and share one scale.
Other maps have a different unit. They are rescaled so that Σ|R| is that of the reference, the first
exact map if there is one; equal colours then mean equal shares of a map. The bar ends at the 99.5 %
quantile of the reference. In a map with fewer entries each entry covers a larger area, so its bar
ends at a number that is larger by this factor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from omenn.explanation import PROMISES
from omenn.viz.flat_map import drawing_of
from omenn.viz.heatmaps import scale_of
from omenn.viz.panels import Case, View
from omenn.viz.wording import Verdict, verdict

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, eq=False)
class Cell:
    """One explained number; or why there is none."""

    case: Case | None = None
    error: str = ""

    def value(self, name: str) -> float:
        """A number of the explanation: output, total or residual; NaN where there is none."""
        return float("nan") if self.case is None else self.case.value(name)

    @property
    def exact(self) -> bool | None:
        return None if self.case is None else self.case.explanation.exact

    @property
    def said(self) -> Verdict:
        """The verdict on its sum."""
        return Verdict("failed", "no") if self.case is None else verdict(self.case.explanation)

    def entries(self, sigma: float = 0.0) -> np.ndarray:
        """The entries of the map that set its scale, (1, n), smoothed.

        Raises:
            InputError: the map has no picture.
        """
        assert self.case is not None
        matrix = self.case.sample(self.case.explanation.matrix)
        return drawing_of(matrix, self.case.grid).smoothed(sigma).entries()

    def view(self, sigma: float, scale: float) -> View:
        """The map on a scale, as its modality draws it."""
        assert self.case is not None
        alone = replace(self.case, scale=scale, image=None, before=None)
        shown = alone.views(sigma)
        panel = next((one for one in shown if one.key in {"c", "weight"}), shown[0])
        return panel.smoothed or panel.exact


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

    ``image`` (H, W, 3): the input as a picture, None if it is not one. ``common_scale``: all maps
    of the answer have one scale (see NOTE [one scale for several methods]).
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
    common_scale: bool = False


def reference(rows: Sequence[Row]) -> Row | None:
    """The row that sets the scale: the first with the strongest promise; None if all failed."""
    there = [row for row in rows if row.cell.case is not None]
    return min(there, key=lambda row: PROMISES.index(row.promise)) if there else None


def shared_views(rows: Sequence[Row], sigma: float = 0.0) -> dict[str, View]:
    """Method → its map on the common scale (see NOTE [one scale for several methods])."""
    first = reference(rows)
    if first is None:
        return {}
    there = [row for row in rows if row.cell.case is not None]
    maps = {row.method: row.cell.entries(sigma) for row in there}
    norm = maps[first.method]
    end, mass = scale_of(norm), float(abs(norm).sum()) or 1.0
    views = {}
    for row in there:
        values = maps[row.method]
        unit = float(abs(values).sum()) / mass or 1.0 if row.promise == "none" else 1.0
        views[row.method] = row.cell.view(sigma, end * unit * norm.size / values.size)
    return views


def own_views(cells: Sequence[Cell], sigma: float = 0.0) -> list[View | None]:
    """Maps of one method on one separate scale; None for a map that failed."""
    there = [cell.entries(sigma) for cell in cells if cell.case is not None]
    if not there:
        return [None] * len(cells)
    scale = scale_of(*there)
    return [None if cell.case is None else cell.view(sigma, scale) for cell in cells]


def views_of(comparison: Comparison) -> dict[str, View]:
    """Method → its map of the answer, on its own scale or on the common one."""
    if comparison.common_scale:
        return shared_views(comparison.rows)
    own = {row.method: own_views([row.cell])[0] for row in comparison.rows}
    return {method: view for method, view in own.items() if view is not None}
