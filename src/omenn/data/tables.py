"""Tables from CSV files: features as numbers, a target column of classes, and their scale.

>>> import tempfile
>>> path = Path(tempfile.mkdtemp()) / "people.csv"
>>> _ = path.write_text("age,smokes,outcome\\n61,1,ill\\n35,0,well\\n48,0,well\\n")
>>> table = read_table(path, "outcome")
>>> table.names, table.classes, table.target.tolist()
(('age', 'smokes'), ('ill', 'well'), [0, 1, 1])
>>> x = Scale.of(table.features).applied(table.features)
>>> assert x.mean(0).abs().max() < 1e-6
"""

from __future__ import annotations

import csv
import io
import math
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from omenn.check import choose
from omenn.errors import InputError, did_you_mean, reason
from omenn.files.reading import GB, opened

MOST = 2 * GB
COLUMNS = 100_000
"""More of a file than this is refused before it is read."""

MISSING = frozenset({"", "na", "n/a", "nan", "null", "none", "?", "."})
"""What counts as a missing cell, in small letters and without blanks around it."""


@dataclass(frozen=True, eq=False)
class Table:
    """Rows of numbers with a class each.

    ``features`` (N, F); ``target`` (N,) int64, an index into ``classes``; ``names``: the F columns.
    A missing cell, where they are allowed, is NaN.
    """

    features: Tensor
    target: Tensor
    names: tuple[str, ...]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.target)


@dataclass(frozen=True, eq=False)
class Scale:
    """Mean and standard deviation of columns, (F,) each, as measured on training rows."""

    mean: Tensor
    deviation: Tensor

    @classmethod
    def of(cls, features: Tensor) -> Scale:
        """The scale of features (N, F); missing cells (NaN) are left out.

        The deviation is √(mean of squares), not the estimate with N - 1. It is 1 for a column
        that is constant (or missing) in these rows, so that nothing is divided by zero.

        >>> scale = Scale.of(torch.tensor([[1.0, 7.0], [3.0, 7.0]]))
        >>> scale.mean.tolist(), scale.deviation.tolist()
        ([2.0, 7.0], [1.0, 1.0])
        """
        values = features.double()
        mean = values.nanmean(0).nan_to_num(0.0)
        deviation = (values - mean).square().nanmean(0).nan_to_num(0.0).sqrt()
        rounding = 1e-7 * values.abs().nan_to_num(0.0).amax(0)  # of float32
        constant = deviation <= rounding
        deviation = torch.where(constant, torch.ones_like(deviation), deviation)
        return cls(mean.to(features.dtype), deviation.to(features.dtype))

    def applied(self, features: Tensor) -> Tensor:
        """(features - mean) / deviation; a missing cell becomes the mean, which is 0."""
        return ((features - self.mean) / self.deviation).nan_to_num(nan=0.0)


@dataclass
class _Reading:
    """A file on its way into a table."""

    path: Path
    header: list[str]
    position: int  # of the target column
    missing: Literal["refuse", "mean"]
    largest: float  # that the type of the features holds
    numbers: array[float] = field(default_factory=lambda: array("d"))
    labels: list[str] = field(default_factory=list)

    def add(self, cells: Sequence[str], line: int) -> None:
        if len(cells) != len(self.header):
            raise InputError(
                f"line {line} of {self.path} has {len(cells)} cells, the header "
                f"{len(self.header)}.",
                argument="path",
                got=str(len(cells)),
                expected=str(len(self.header)),
                remedy="Give every row as many cells; quote those with a comma.",
            )
        label = cells[self.position].strip()
        if label.lower() in MISSING:
            raise InputError(
                f"line {line} of {self.path} has no value in the target column "
                f"'{self.header[self.position]}' (it holds '{label}').",
                argument="target",
                got=label,
                remedy="Fill it, or remove the row.",
            )
        self.labels.append(label)
        for position, cell in enumerate(cells):
            if position != self.position:
                self.numbers.append(self._number(cell.strip(), line, self.header[position]))

    def _number(self, cell: str, line: int, column: str) -> float:
        if cell.lower() in MISSING:
            if self.missing == "mean":
                return math.nan
            raise InputError(
                f"line {line} of {self.path} has no value in column '{column}' (it holds "
                f"'{cell}').",
                argument=column,
                got=cell,
                remedy=(
                    "Fill it, remove the row, or choose missing='mean' (--missing mean) for "
                    "the column's training mean."
                ),
            )
        value = _parsed(cell)
        if value is None:
            raise InputError(
                f"line {line} of {self.path} holds '{cell}' in column '{column}', which is not "
                "a number.",
                argument=column,
                got=cell,
                expected="a number",
                remedy=(
                    "Write numbers with a decimal point, a category as one column of 0 and 1 "
                    "for each value, or remove the column."
                ),
            )
        if abs(value) > self.largest:
            raise InputError(
                f"line {line} of {self.path} holds '{cell}' in column '{column}', which is not "
                f"finite (up to {self.largest:.3g}).",
                argument=column,
                got=cell,
                expected="a finite number",
                remedy="Replace it, or remove the row.",
            )
        return value


def read_table(
    path: Path | str,
    target: str,
    *,
    missing: Literal["refuse", "mean"] = "refuse",
    dtype: torch.dtype = torch.float32,
) -> Table:
    """A CSV file with a header as a table; the column ``target`` holds the classes.

    Every other column is a feature and holds numbers. Classes are sorted, as numbers where all
    are numbers (``1`` and ``1.0`` are the same), otherwise as text. With ``missing="mean"`` empty
    cells and NA are allowed in features; they are NaN here and 0 once ``Scale.applied``.

    Raises InputError, naming line and column, for a file that cannot be read as UTF-8, without
    rows or without that column, with names twice, with rows of another length, with a cell that is
    missing or no finite number, or with one class alone.
    """
    path = Path(path)
    choose("missing", missing, ("refuse", "mean"))
    choose("dtype", str(dtype), ("torch.float32", "torch.float64"))
    rows = _rows(path)
    _, header = next(rows, (0, []))
    header = [name.strip() for name in header]
    _check_header(path, header, target)
    reading = _Reading(path, header, header.index(target), missing, torch.finfo(dtype).max)
    for line, cells in rows:
        reading.add(cells, line)
    return _table(reading, dtype)


def _table(reading: _Reading, dtype: torch.dtype) -> Table:
    if not reading.labels:
        raise InputError(
            f"{reading.path} has a header and no rows.",
            argument="path",
            got=str(reading.path),
            remedy="Give it at least one a class.",
        )
    classes, target = _classes(reading.labels)
    column = reading.header[reading.position]
    if len(classes) == 1:
        raise InputError(
            f"the target column '{column}' of {reading.path} holds one class alone, "
            f"'{classes[0]}'.",
            argument="target",
            got=column,
            remedy="Give rows of at least two classes, or name another column.",
        )
    names = tuple(name for name in reading.header if name != column)
    features = torch.frombuffer(reading.numbers, dtype=torch.float64).view(-1, len(names))
    return Table(features.to(dtype, copy=True), target, names, classes)


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The rows that are not empty, each with the number of its (last) line."""
    try:
        with (
            opened(path, "table", most=MOST, empty=True) as content,
            io.TextIOWrapper(content, encoding="utf-8-sig", newline="") as file,
        ):
            reader = csv.reader(file)
            for cells in reader:
                if cells:
                    yield reader.line_num, cells
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8 (byte {error.start} is 0x{error.object[error.start]:02x}).",
            argument="path",
            got=str(path),
            remedy="Save it as UTF-8.",
        ) from error
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(
            f"{path} cannot be read as CSV: {reason(error)}.",
            argument="path",
            got=str(path),
            remedy="Check the file.",
        ) from error


def _check_header(path: Path, header: list[str], target: str) -> None:
    if not header:
        raise InputError(
            f"{path} is empty. The first line names the columns, the others are rows.",
            argument="path",
            got=str(path),
        )
    if len(header) == 1 and (found := [mark for mark in ";\t|" if mark in header[0]]):
        raise InputError(
            f"the header of {path} is one cell with {found[0]!r} in it.",
            argument="path",
            got=str(path),
            remedy="Save the file with commas between the cells.",
        )
    if len(header) > COLUMNS:
        raise InputError(
            f"{path} has {len(header)} columns, and at most {COLUMNS} are read.",
            argument="path",
            got=str(len(header)),
            expected=str(COLUMNS),
            remedy="Write each row as a line, or keep the columns that matter.",
        )
    if twice := [name for name, count in Counter(header).items() if count > 1]:
        raise InputError(
            f"{path} has two columns '{twice[0]}'.",
            argument="path",
            got=twice[0],
            remedy="Give each column its own name.",
        )
    if target not in header:
        raise InputError(
            f"{path} has no column '{target}':",
            argument="target",
            got=target,
            expected=", ".join(header),
            remedy=did_you_mean(target, header),
        )
    if len(header) == 1:
        raise InputError(
            f"{path} has no column beside the target '{target}'.",
            argument="target",
            got=target,
            remedy="Give at least one feature.",
        )


def _classes(labels: Iterable[str]) -> tuple[tuple[str, ...], Tensor]:
    """The classes in order, and of every label the index of its class."""
    labels = list(labels)
    values = {label: _parsed(label) for label in set(labels)}
    if all(value is not None for value in values.values()):
        labels = [_spelled(float(label)) for label in labels]
        classes = sorted(set(labels), key=float)
    else:
        classes = sorted(set(labels))
    index = {name: k for k, name in enumerate(classes)}
    return tuple(classes), torch.tensor([index[label] for label in labels])


def _spelled(value: float) -> str:
    return str(int(value)) if value.is_integer() else str(value)


def _parsed(cell: str) -> float | None:
    """The number that a cell spells; Python would also read 1_000."""
    try:
        return None if "_" in cell else float(cell)
    except ValueError:
        return None
