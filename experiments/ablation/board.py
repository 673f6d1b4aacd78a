"""The measured cells of a phase, and what is chosen by them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import omenn
from experiments.ablation import exact_map
from experiments.ablation.configurations import EXACT, GAE, METRICS, PEER, SMOOTHED, TRIVIAL, Row
from omenn.bench import cells
from omenn.bench.cell_store import Store
from omenn.bench.plan import Plan
from omenn.errors import InputError
from omenn.files.atomic import write_files

MEASURES = {
    "FunnyBirds mean": (METRICS[0], "mean"),
    "insertion − deletion": (METRICS[1], "insertion − deletion"),
    "GAE": (GAE, "gae"),
}
PROTOCOLS = tuple(MEASURES)
TOP = 3
SAME = 6  # digits
ROWS = "rows.txt"


@dataclass(frozen=True)
class Cell:
    """A mean with its interval by bootstrap over images (mosaics for GAE)."""

    value: float
    low: float
    high: float


FAILED = Cell(math.nan, math.nan, math.nan)


class Part:
    """Some of the protocols on some scenes, in a folder of their own."""

    def __init__(
        self, split: str, scenes: int, metrics: Sequence[str], work: Path, device: str
    ) -> None:
        words = {"split": split, "limit": scenes, "device": device, "metrics": list(metrics)}
        self._plan = Plan.from_words({**words, "trivial": False})
        self.folder = work / f"{split}-{metrics[0]}-{scenes}"
        self._store: Store | None = None

    def plan(self, models: Sequence[str], rows: Sequence[Row]) -> Plan:
        """What the benchmark is asked to work through."""
        words = self._plan.record() | {"models": list(models)}
        return Plan.from_words({**words, "methods": [row.entry.record("method") for row in rows]})

    @property
    def store(self) -> Store:
        """The folder, whose identity leaves out which models and methods there are."""
        if self._store is None:
            open_plan = replace(self._plan, models=(), methods=())
            self._store = Store(self.folder, open_plan)
            self._store.begin(open_plan)
            self._check_rows()
        return self._store

    def _check_rows(self) -> None:
        """Refuse cells of rows of other code: the store knows the package's, without what shows.

        Raises:
            InputError: the rows, or the steps that they postprocess maps with, have changed.
        """
        made = rows_code()
        path = self.folder / ROWS
        if not path.exists():
            write_files({path: made.encode()})
        elif path.read_text() != made:
            raise InputError(
                f"'{self.folder}' holds results of other rows: the code of exact_map.py or of "
                "postprocessing has changed. Choose another folder with --work, or delete this one."
            )


def rows_code() -> str:
    """A digest of what makes the rows of the ablation, beside the package's own methods."""
    package = Path(omenn.__file__).parent
    steps = ("filters", "viz/postprocess", "viz/smoothing", "viz/outliers", "viz/map_layout")
    digest = hashlib.sha256()
    for path in (Path(exact_map.__file__), *(package / f"{step}.py" for step in steps)):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:8]


class Phase:
    """The cells of one split; rows and models may be added later.

    GAE has one value for four scenes and costs little for one, so it has scenes of its own number.
    """

    def __init__(
        self, split: str, scenes: int, mosaics: int, work: Path, device: str = "cpu"
    ) -> None:
        self.split = split
        asked = ((METRICS, scenes), ((GAE,), 4 * mosaics))
        self.parts = [Part(split, count, metrics, work, device) for metrics, count in asked]
        self._metrics = {metric: k for k, (metrics, _) in enumerate(asked) for metric in metrics}

    def work(self, models: Sequence[str], rows: Sequence[Row], tick: Any) -> None:
        """Compute the cells that are not there; within ``registered()``."""
        for part in self.parts:
            cells.work(part.plan(models, rows), part.store, tick)

    def steps(self, models: Sequence[str], rows: Sequence[Row]) -> int:
        """How often ``work`` ticks."""
        return sum(cells.steps(part.plan(models, rows)) for part in self.parts)

    def _stored(self, key: tuple[str, str], metric: str) -> dict[str, Any] | None:
        return self.parts[self._metrics[metric]].store.read(*key, metric)

    def read(self, models: Sequence[str], rows: Sequence[Row]) -> Board:
        """What is finished. A row without all of its cells on a model is not on the board there."""
        found: dict[tuple[str, str], dict[str, Cell]] = {}
        why: dict[tuple[str, str], str] = {}
        cost: dict[tuple[str, str], float] = {}
        for model in models:
            for row in rows:
                key = (model, row.name)
                stored = {m: self._stored(key, m) for m in self._metrics}
                if None in stored.values():
                    continue
                errors = [s["error"] for s in stored.values() if s and s.get("error")]
                if errors:
                    why[key] = errors[0]
                    continue
                found[key] = {
                    name: _cell((stored[metric] or {})["measures"][measure])
                    for name, (metric, measure) in MEASURES.items()
                }
                cost[key] = (self.parts[0].store.read(*key) or {}).get("seconds", math.nan)
        return Board(tuple(models), tuple(rows), found, why, cost)


def _cell(stored: Mapping[str, Any]) -> Cell:
    return Cell(*(math.nan if stored[k] is None else stored[k] for k in ("value", "low", "high")))


@dataclass(frozen=True)
class Board:
    """``found``: (model, row) → protocol → cell; ``why`` a row failed; ``cost``: seconds an image.

    A value that is no number ranks last.
    """

    models: tuple[str, ...]
    rows: tuple[Row, ...]
    found: Mapping[tuple[str, str], Mapping[str, Cell]]
    why: Mapping[tuple[str, str], str]
    cost: Mapping[tuple[str, str], float]

    def cell(self, model: str, row: Row, protocol: str) -> Cell:
        return self.found.get((model, row.name), {}).get(protocol, FAILED)

    def there(self, model: str, *groups: str) -> list[Row]:
        """The rows of these groups (all, if none is said) that are finished on a model."""
        return [
            row
            for row in self.rows
            if (model, row.name) in self.found and (not groups or row.group in groups)
        ]

    def first(self, model: str, protocol: str, rows: Sequence[Row] | None = None) -> Row:
        """The row with the largest value; of equal ones an exact row, then as they come."""
        among = self.there(model) if rows is None else rows
        return max(among, key=lambda row: _sortable(self.cell(model, row, protocol).value))

    def equal(self, model: str, protocol: str, first: Row) -> int:
        """How many other rows have the same value as a row."""
        values = [self.cell(model, row, protocol).value for row in self.there(model)]
        return sum(_same(value, self.cell(model, first, protocol).value) for value in values) - 1

    def within(self, model: str, protocol: str, row: Row, first: Row) -> bool:
        """Whether a row is the first, or not below the interval of the first."""
        return row == first or (
            self.cell(model, row, protocol).value >= self.cell(model, first, protocol).low
        )

    @cached_property
    def ranks(self) -> Mapping[tuple[str, str, str], float]:
        """(model, protocol, row) → rank among the rows there; equal values share the mean."""
        found = {}
        for model in self.models:
            rows = self.there(model)
            for protocol in PROTOCOLS:
                values = [_sortable(self.cell(model, row, protocol).value) for row in rows]
                for row, value in zip(rows, values, strict=True):
                    above = sum(other > value for other in values)
                    found[model, protocol, row.name] = above + (values.count(value) + 1) / 2
        return found

    def mean_rank(self, row: Row, models: Sequence[str] | None = None) -> float:
        """Over models × protocols; endless where the row is not on one of the models."""
        keys = [(m, p, row.name) for m in models or self.models for p in PROTOCOLS]
        return sum(self.ranks.get(key, math.inf) for key in keys) / len(keys)

    def shortfall(self, model: str, row: Row) -> float:
        """The largest, over protocols, of (first − value) / (first − its lower bound).

        At most 1: the row is first, or within the interval of the first, on every protocol.
        """
        worst = 0.0
        for protocol in PROTOCOLS:
            first = self.cell(model, self.first(model, protocol), protocol)
            gap = first.value - self.cell(model, row, protocol).value
            if math.isnan(gap):
                return math.inf
            if gap > 0:
                width = first.value - first.low
                worst = max(worst, gap / width if width > 0 else math.inf)
        return worst

    def best(self, model: str, protocol: str) -> Row:
        """The exact configuration with the largest value by one protocol."""
        return self.first(model, protocol, self.there(model, EXACT))

    def chosen(self, model: str) -> Row:
        """The exact configuration with the least shortfall, then the best mean rank."""
        rows = self.there(model, EXACT)
        return min(rows, key=lambda r: (self.shortfall(model, r), self.mean_rank(r, [model])))

    def default(self) -> Row:
        """The exact configuration that is most often among the first, then the best mean rank."""
        rows = [row for row in self.rows if row.group == EXACT]
        return min(rows, key=lambda row: (-self.among_first(row), self.mean_rank(row)))

    def among_first(self, row: Row) -> int:
        """In how many pairs of model and protocol a row has one of the first places."""
        there = [model for model in self.models if (model, row.name) in self.found]
        return sum(self.place(model, p, row) <= TOP for model in there for p in PROTOCOLS)

    def place(self, model: str, protocol: str, row: Row) -> int:
        """1 + how many other methods, smoothed or not, and trivial maps are above a row.

        Methods whose rules coincide on a model have the same map there and count once: those that
        agree in every protocol to :data:`SAME` digits.
        """
        value = _sortable(self.cell(model, row, protocol).value)
        above = {
            tuple(round(self.cell(model, other, p).value, SAME) for p in PROTOCOLS)
            for other in self.there(model, PEER, SMOOTHED, TRIVIAL)
            if _sortable(self.cell(model, other, protocol).value) > value
        }
        return 1 + len(above)


def _same(a: float, b: float) -> bool:
    return round(a, SAME) == round(b, SAME)


def _sortable(value: float) -> float:
    return -math.inf if math.isnan(value) else value
