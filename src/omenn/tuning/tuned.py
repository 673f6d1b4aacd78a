"""The result of a search: the method to use, what was gained, and by which figures."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import omenn
from omenn.attribution.method_file import ENDING, method_text
from omenn.check import path as checked_path
from omenn.errors import InputError
from omenn.files.atomic import write_files
from omenn.metrics.score import Measured
from omenn.tuning.candidates import Candidate

FEW = 10
"""Of fewer held-out pictures an interval is wide, and the result says so."""


@dataclass(frozen=True)
class Row:
    """One map: ``kind`` is ``"default"``, ``"candidate"`` or ``"trivial"``.

    ``chosen``: its score on the pictures to choose by; ``held``: on held-out pictures, of the
    finalists and the trivial maps; ``check``: insertion minus deletion there. None: not measured.
    ``passes``: what one map costs. ``error``: why there is none.
    """

    name: str
    kind: str
    chosen: Measured | None = None
    held: Measured | None = None
    check: Measured | None = None
    passes: float | None = None
    error: str = ""


@dataclass(frozen=True)
class Tuned:
    """What :func:`omenn.tune` found.

    ``default``: what had to be beaten. ``best``: the candidate with the largest mean score on the
    pictures to choose by. ``gain``: its score minus the default's on held-out pictures, with an
    interval; None where the default itself is best. ``checked``: the same of insertion minus
    deletion. ``better``: the interval of the gain lies above zero. ``pictures``: how many each half
    has. ``examples``: the numbers of two held-out pictures. ``remarks``: what a reader must know.
    """

    default: Candidate
    best: Candidate
    gain: Measured | None
    checked: Measured | None
    rows: Sequence[Row]
    pictures: int
    examples: Sequence[int]
    settings: Mapping[str, Any]
    remarks: Sequence[str] = ()

    @property
    def better(self) -> bool:
        return self.gain is not None and self.gain.low > 0

    @property
    def chosen(self) -> Candidate:
        """The method to use: the best one if it is better than the default, else the default."""
        return self.best if self.better else self.default

    @property
    def method(self) -> str:
        return self.chosen.method

    @property
    def options(self) -> Mapping[str, Any]:
        return self.chosen.options

    @property
    def verdict(self) -> str:
        """The result in a sentence."""
        if self.gain is None:
            count = sum(row.kind == "candidate" and row.chosen is not None for row in self.rows)
            return (
                f"No better than the default: none of {count} candidates has a larger score than "
                f"{self.default.name} on the pictures to choose by."
            )
        gained = f"{shown(self.gain, signed=True)} on {self.gain.images} held-out pictures"
        if self.better:
            return f"{self.best.name} is better than {self.default.name}: {gained}."
        return (
            f"No better than the default: {self.best.name} against {self.default.name}, {gained}."
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the method to use as a file that ``method=`` and ``--method`` take.

        Raises:
            InputError: the name does not end in .toml. OutputError: it cannot be written.
        """
        place = checked_path("path", path)
        if place.suffix != ENDING:
            raise InputError(
                f"'{place}' does not end in {ENDING}, as method files do.",
                argument="path",
                got=str(place),
                expected=f"a name that ends in {ENDING}",
                remedy=f"Write for example method{ENDING}.",
            )
        write_files({Path(place): self.toml().encode()})

    def toml(self) -> str:
        """The content of that file."""
        gained: dict[str, Any] = {"verdict": self.verdict, "default": self.default.name}
        if self.gain is not None:
            gain = {"gain": self.gain.value, "low": self.gain.low, "high": self.gain.high}
            gained |= {name: round(value, 4) for name, value in gain.items()}
        gained |= {"pictures": self.pictures, "seed": self.settings["seed"]}
        gained |= {"omenn": omenn.__version__}
        return method_text(self.method, self.options, gained)

    def record(self) -> dict[str, Any]:
        """All figures, for JSON."""
        return {
            "better": self.better,
            "verdict": self.verdict,
            "method": self.method,
            "options": dict(self.options),
            "default": self.default.name,
            "best": self.best.name,
            "gain": None if self.gain is None else asdict(self.gain),
            "checked": None if self.checked is None else asdict(self.checked),
            "pictures": self.pictures,
            "examples": list(self.examples),
            "settings": dict(self.settings),
            "rows": [asdict(row) for row in self.rows],
            "remarks": list(self.remarks),
        }

    def __str__(self) -> str:
        lines = [self.verdict, *self.remarks]
        wide = max(len(row.name) for row in self.rows)
        for row in self.rows:
            figures = f"{shown(row.chosen)}  {shown(row.held)}" if not row.error else row.error
            lines.append(f"  {row.name:{wide}}  {figures}")
        return "\n".join(lines)


def shown(found: Measured | None, *, signed: bool = False) -> str:
    """A number with its interval, as tables have it.

    >>> shown(Measured(0.123, 0.1, 0.2, 8), signed=True), shown(None)
    ('+0.123 [+0.100, +0.200]', '–')
    """
    if found is None:
        return "–"
    form = "+.3f" if signed else ".3f"
    # adding 0.0 makes a zero of what was rounded to -0.0
    value, low, high = (f"{round(n, 3) + 0.0:{form}}" for n in (found.value, found.low, found.high))
    return f"{value} [{low}, {high}]".replace("-", "−")
