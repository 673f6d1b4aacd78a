"""Experiment 3: does a sparsity prior help a network that has 100 rows to learn from?

python -m experiments.xdnn.sparsity                       breast cancer data and 88 noise columns
python -m experiments.xdnn.sparsity --data sparse         generated rows, 8 of 118 columns matter
python -m experiments.xdnn.sparsity --survey FOLDER       X_sparsity.csv and y_sparsity.npy
python -m experiments.xdnn.sparsity --short               minutes: a few repetitions, no cache
python -m experiments.xdnn.sparsity --methods none --write    what is measured into the page

What is measured stays in ``experiments/xdnn/results``: an interrupted run goes on where it stopped,
and one with more ``--repetitions`` adds to it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from experiments.command import Command
from experiments.report import ROOT, environment
from experiments.xdnn import sparsity_data, sparsity_single, sparsity_stacked, sparsity_tables
from experiments.xdnn.sparsity_data import Rows, Split, repetition, stacked
from experiments.xdnn.sparsity_stacked import EPOCHS, METHODS, Method
from omenn.errors import OmennError
from omenn.files.atomic import write_files

WORK = ROOT / "experiments" / "xdnn" / "results" / "sparsity"
WEIGHTS = (0.01, 0.1, 1.0, 10.0, 100.0)
ROWS_AT_ONCE = 2_000  # of all repetitions that are trained side by side, with their references


class Record:
    """What is known of a method: chosen weight, ROC-AUC by repetition, seconds; kept in a file."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path = path
        self.content: dict[str, Any] = {
            "settings": settings,
            "selection": {},  # weight → repetition → validation and test ROC-AUC
            "weight": None,
            "repetitions": {},  # repetition → validation and test ROC-AUC
            "seconds": [],
        }
        if path.exists():
            known = json.loads(path.read_text(encoding="utf-8"))
            if known["settings"] != settings:
                raise SystemExit(f"{path} is of other settings. Remove it, or choose --work.")
            self.content = known

    def save(self) -> None:
        write_files({self.path: (json.dumps(self.content, indent=1) + "\n").encode()})


class Experiment:
    """The methods on one set of rows."""

    def __init__(self, rows: Rows, work: Path, epochs: int, selection: int) -> None:
        self.rows, self.work, self.epochs, self.selection = rows, work, epochs, selection
        self._splits: dict[int, Split] = {}

    def record(self, method: Method) -> Record:
        features = self.rows.features
        settings = {"rows": list(features.shape), "epochs": self.epochs}
        settings |= {"selection": self.selection, "weights": list(WEIGHTS)}
        return Record(self.work / self.rows.name / f"{method.name}.json", settings)

    def measure(self, method: Method, repetitions: int, timed: int) -> None:
        """Choose the weight, time single trainings, and train all repetitions that are left."""
        record = self.record(method)
        self._choose(method, record)
        weight = record.content["weight"]
        for number in range(len(record.content["seconds"]), timed):
            split = self._split(number)
            seconds, _ = sparsity_single.train(method, weight, split, number, self.epochs)
            record.content["seconds"].append(round(seconds, 3))
            record.content["environment"] = environment()
            record.save()
        self._train(method, weight, range(repetitions), record.content["repetitions"], record)

    def _choose(self, method: Method, record: Record) -> None:
        """The weight whose mean validation ROC-AUC over the first repetitions is the best."""
        if record.content["weight"] is not None:
            return
        if method.kind == "none":
            record.content["weight"] = 0.0
        elif method.references > 1:  # as in the first implementation, chosen with one reference
            single = METHODS["eg-1"]
            known = self.record(single)
            self._choose(single, known)
            record.content["weight"] = known.content["weight"]
        else:
            means = {}
            for weight in WEIGHTS:
                found = record.content["selection"].setdefault(str(weight), {})
                self._train(method, weight, range(self.selection), found, record)
                means[weight] = statistics.fmean(v for v, _ in found.values())
            best = max(means, key=means.__getitem__)
            record.content["weight"] = best
            record.content["repetitions"] = dict(record.content["selection"][str(best)])
        record.save()

    def _train(
        self,
        method: Method,
        weight: float,
        numbers: Sequence[int],
        found: dict[str, Any],
        record: Record,
    ) -> None:
        left = [number for number in numbers if str(number) not in found]
        for some in _chunks(left, ROWS_AT_ONCE // 100 // max(1, method.references)):
            split = stacked([self._split(number) for number in some])
            aucs = sparsity_stacked.train(method, weight, split, some, self.epochs)
            found |= {str(number): pair for number, pair in zip(some, aucs, strict=True)}
            record.save()

    def _split(self, number: int) -> Split:
        if number not in self._splits:
            self._splits = {number: repetition(self.rows, number), **self._splits}
            if len(self._splits) > 256 or len(self.rows.target) > 1_000:
                self._splits = {number: self._splits[number]}
        return self._splits[number]


def _chunks(numbers: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    size = max(1, size)
    for start in range(0, len(numbers), size):
        yield numbers[start : start + size]


def _rows(args: argparse.Namespace) -> Rows:
    if args.survey is not None:
        return sparsity_data.survey(args.survey)
    return {"breast-cancer": sparsity_data.breast_cancer, "sparse": sparsity_data.sparse}[
        args.data
    ]()


COMMAND = Command("xdnn.sparsity", __doc__, "short", "write", "work", work=WORK)
COMMAND.choose("method", METHODS, METHODS, option="methods")
COMMAND.add("--data", choices=["breast-cancer", "sparse"], default="breast-cancer")
COMMAND.add("--survey", type=Path, metavar="FOLDER", help="the survey's own files")
COMMAND.add("--repetitions", type=int, default=200, metavar="N")
COMMAND.add("--selection", type=int, default=20, metavar="N", help="choose the weight")
COMMAND.add("--timed", type=int, default=3, metavar="N", help="single trainings")
COMMAND.add("--epochs", type=int, default=EPOCHS, metavar="N")


def main(words: Sequence[str] | None = None) -> None:
    args = COMMAND.parse(words)
    with tempfile.TemporaryDirectory() as folder:
        if args.short:
            args.work, args.repetitions, args.selection, args.timed = Path(folder), 10, 5, 1
            args.methods = [name for name in args.methods if METHODS[name].references <= 8]
        try:
            rows = _rows(args)
        except OmennError as error:
            raise SystemExit(f"error: {error}") from error
        experiment = Experiment(rows, args.work, args.epochs, args.selection)
        for name in args.methods:
            experiment.measure(METHODS[name], args.repetitions, args.timed)
            print(f"{rows.name}, {name}: done", flush=True)
        print(sparsity_tables.block(args.work, [rows.name]))
    if args.write:
        sparsity_tables.write(args.work)


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    main()
