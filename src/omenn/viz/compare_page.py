"""The comparison as one HTML file: the maps of many methods side by side, and class by class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from omenn.viz.comparison import Comparison, Row, own_views, reference, shared_views
from omenn.viz.document import rendered
from omenn.viz.panels import View
from omenn.viz.wording import plural

Views = Mapping[str, View | None]  # class of an image → the image


@dataclass(frozen=True)
class ClassRow:
    """The maps of one method for all classes, and views that show their scales."""

    row: Row
    views: list[Views]
    ends: Views


def compare_page(comparison: Comparison) -> str:
    """The comparison as one HTML document: no other file, no network.

    Without script both tabs are visible, one below the other.
    """
    there = [row for row in comparison.rows if row.cell.case is not None]
    return rendered(
        "compare.html.j2",
        parts=["page", "compare"],
        title=f"{plural(len(comparison.rows), 'method')} on {comparison.name}",
        footer=comparison.footer,
        warnings=[comparison.warning],
        comparison=comparison,
        reference=reference(comparison.rows),
        rescaled=any(row.promise == "none" for row in there),
        by_area=len({row.cell.entries().size for row in there}) > 1,
        input_view=None if comparison.image is None else View(comparison.image),
        cards=_cards(comparison),
        class_rows=[_class_row(row, comparison.sigma) for row in comparison.rows],
    )


def _cards(comparison: Comparison) -> list[tuple[Row, Views]]:
    """Every method with its map on the common scale and on a separate one, exact and smoothed."""
    kinds = {"exact": 0.0} | ({"smoothed": comparison.sigma} if comparison.sigma else {})
    shared = {kind: shared_views(comparison.rows, sigma) for kind, sigma in kinds.items()}
    cards = []
    for row in comparison.rows:
        views: dict[str, View | None] = {}
        for kind, sigma in kinds.items():
            views[f"one {kind}"] = shared[kind].get(row.method)
            (views[f"own {kind}"],) = own_views([row.cell], sigma)
        cards.append((row, views))
    return cards


def _class_row(row: Row, sigma: float) -> ClassRow:
    exact = own_views(row.classes)
    smoothed = own_views(row.classes, sigma) if sigma else [None] * len(exact)
    return ClassRow(
        row,
        [{"exact": one, "smoothed": two} for one, two in zip(exact, smoothed, strict=True)],
        {
            "exact": next(filter(None, exact), None),
            "smoothed": next(filter(None, smoothed), None),
        },
    )
