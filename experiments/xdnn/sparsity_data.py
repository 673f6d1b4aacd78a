"""Rows of experiment 3: many columns, few of them of use, and 100 rows to learn from."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from omenn.data.tables import Scale
from omenn.errors import InputError, MissingExtra, reason

WIDTH = 118  # columns of the health survey
TRAIN, VALIDATION = 100, 100  # rows; the others test
FILES = ("X_sparsity.csv", "y_sparsity.npy")  # in the folder of the survey


@dataclass(frozen=True)
class Rows:
    """``features`` (N, F) float32, NaN where missing; ``target`` (N,) of 0 and 1."""

    name: str
    features: Tensor
    target: Tensor


@dataclass(frozen=True)
class Split:
    """Standardised rows of one repetition, or of several, stacked in a first dimension."""

    train: tuple[Tensor, Tensor]
    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


def breast_cancer(width: int = WIDTH, seed: int = 0) -> Rows:
    """Scikit-learn's 569 × 30 measurements, and columns of normal noise up to ``width``.

    Raises MissingExtra without scikit-learn.
    """
    try:
        from sklearn.datasets import load_breast_cancer
    except ImportError as error:
        raise MissingExtra("scikit-learn", "bench", "the breast cancer data") from error
    data, target = load_breast_cancer(return_X_y=True)
    real = torch.from_numpy(data).float()
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(len(real), width - real.shape[1], generator=generator)
    return Rows("breast-cancer", torch.cat([real, noise], 1), torch.from_numpy(target).float())


def sparse(count: int = 13_442, width: int = WIDTH, relevant: int = 8, seed: int = 0) -> Rows:
    """Generated rows in the survey's size, of whose normal columns few matter.

    log-odds = 1.8 + 2 Σ_k s_k x_k / √relevant, with signs s_k = ±1: about 75 % are positive.
    """
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(count, width, generator=generator)
    signs = (torch.arange(relevant) % 2 * 2 - 1).float()
    chance = (1.8 + 2 * features[:, :relevant] @ signs / relevant**0.5).sigmoid()
    target = torch.rand(count, generator=generator) < chance
    return Rows("sparse", features, target.float())


def survey(folder: Path) -> Rows:
    """The health survey (NHANES I) in the files of its authors' experiments.

    ``X_sparsity.csv``: a header, then a row a person; the first column is a row number, the others
    are features, empty where missing. ``y_sparsity.npy``: a one-dimensional array, whether the
    person died within ten years.

    Raises InputError for files that are absent, of another form, or do not belong together.
    """
    table, labels = (folder / name for name in FILES)
    if missing := [path for path in (table, labels) if not path.is_file()]:
        raise InputError(
            f"{missing[0]} does not exist. Give the folder that holds {' and '.join(FILES)}."
        )
    features = _features(table)
    try:
        target = np.asarray(np.load(labels, allow_pickle=False), dtype=np.float64).ravel()
    except (OSError, ValueError) as error:
        raise InputError(f"{labels} cannot be read: {reason(error)}. Use the survey's.") from error
    if len(target) != len(features):
        raise InputError(
            f"{table} has {len(features)} rows, {labels} {len(target)}. Use two that belong "
            "together."
        )
    if not set(target.tolist()) == {0.0, 1.0}:
        raise InputError(f"{labels} has to hold both 0 and 1, and nothing else.")
    if len(target) <= TRAIN + VALIDATION:
        raise InputError(
            f"{table} has {len(target)} rows; more than {TRAIN + VALIDATION} are needed."
        )
    return Rows("survey", features, torch.from_numpy(target).float())


def _features(path: Path) -> Tensor:
    import pandas as pd

    try:
        header, *cells = csv.reader(path.read_text(encoding="utf-8-sig").splitlines())
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{path} cannot be read as CSV: {reason(error)}.") from error
    for line, row in enumerate(cells, 2):
        if len(row) != len(header):
            raise InputError(
                f"line {line} of {path} has {len(row)} cells, the header {len(header)}. "
                "Use the survey's file as it is."
            )
    words = pd.DataFrame(cells, columns=header, dtype=str).iloc[:, 1:]
    if not words.size:
        raise InputError(f"{path} holds no features. Use the survey's file as it is.")
    named = words.apply(lambda column: column.str.lower()).replace({"true": "1", "false": "0"})
    numbers = named.apply(pd.to_numeric, errors="coerce")
    for line, column in zip(*((numbers.isna() & (words != "")).to_numpy().nonzero()), strict=True):
        raise InputError(
            f"line {line + 2} of {path} holds '{words.iat[line, column]}' in column "
            f"'{words.columns[column]}', which is not a number. Use the survey's file as it is."
        )
    return torch.from_numpy(numbers.to_numpy(np.float64, copy=True)).float()


def repetition(rows: Rows, number: int) -> Split:
    """One random split, filled with means of the training rows and then scaled by them."""
    generator = torch.Generator().manual_seed(number)
    order = torch.randperm(len(rows.target), generator=generator)
    parts = order.tensor_split([TRAIN, TRAIN + VALIDATION])
    mean = Scale.of(rows.features[parts[0]]).mean
    filled = rows.features.where(~rows.features.isnan(), mean)
    scale = Scale.of(filled[parts[0]])
    return Split(*((scale.applied(filled[p]), rows.target[p]) for p in parts))


def stacked(splits: list[Split]) -> Split:
    """(R, N, F) and (R, N) of R splits."""

    def joined(part: str) -> tuple[Tensor, Tensor]:
        pairs = [getattr(split, part) for split in splits]
        return torch.stack([x for x, _ in pairs]), torch.stack([y for _, y in pairs])

    return Split(joined("train"), joined("validation"), joined("test"))
