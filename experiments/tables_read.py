"""What ``omenn bench -o DIR`` left in results.json, as tables again, and its command."""

from __future__ import annotations

import json
import math
import shlex
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.report import ROOT
from omenn.bench.plan import Plan
from omenn.bench.plan_entries import Entry
from omenn.errors import OmennError
from omenn.metrics import protocols
from omenn.viz.bench_table import Bench, Column, Line, Table, Value

PLANS = ROOT / "experiments" / "plans"
FLAGS = ("data", "split", "classes", "limit", "models", "methods", "seed", "chunk", "device")
"""Keys of a plan that are flags beside it, in the order of the command."""


@dataclass(frozen=True)
class Run:
    """A folder of results. ``stem``: of the plan in ``experiments/plans``, or of the folder."""

    stem: str
    plan: Plan
    bench: Bench
    command: str

    @property
    def models(self) -> dict[str, Table]:
        """The tables by a short name of their models."""
        named = zip(self.plan.models, self.bench.tables, strict=True)
        return {model_name(entry): table for entry, table in named}


def read(folder: Path, plans: Path = PLANS) -> Run:
    """The results in a folder.

    Raises:
        SystemExit: there are none, or of another form.
    """
    file = folder / "results.json"
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        plan = Plan.from_words(tomllib.loads(record["plan"]))
        bench = _bench(record, plan)
    except OSError as error:
        raise SystemExit(
            f"tables: {file} cannot be read ({error.strerror}). "
            f"Make it with omenn bench -o {folder}."
        ) from None
    except (OmennError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SystemExit(
            f"tables: {file} is no result of this version of omenn bench "
            f"({type(error).__name__}: {error}). Delete the folder and run it again."
        ) from None
    known = same(plan, plans)
    stem = known.stem if known else folder.resolve().name
    return Run(stem, plan, bench, command(plan, known, stem))


def _bench(record: Mapping[str, Any], plan: Plan) -> Bench:
    columns = tuple(
        Column(metric.name, m.name, m.higher, m.headline, m.axis)
        for metric in plan.metrics
        for m in protocols.find(metric.base).measures
    )
    return Bench(
        data=record["data"],
        columns=columns,
        metrics=record["metrics"],
        tables=tuple(_table(model, columns) for model in record["models"]),
        plan=record["plan"],
        versions=record["versions"],
        seed=record["seed"],
    )


def _table(record: Mapping[str, Any], columns: Sequence[Column]) -> Table:
    return Table(
        model=record["model"],
        weights=record["weights"],
        warning=record["warning"],
        pictures=record["pictures"],
        facts={name: _value(value) for name, value in record["facts"].items()},
        lines=tuple(_line(line, columns) for line in record["methods"]),
    )


def _line(record: Mapping[str, Any], columns: Sequence[Column]) -> Line:
    by_name = {(column.metric, column.measure): column for column in columns}
    return Line(
        name=record["method"],
        trivial=record["trivial"],
        promise=record["promise"] or "",
        values={by_name[v["metric"], v["measure"]]: _value(v) for v in record["values"]},
        failures=record["failures"],
        counted=record["counted"],
        seconds=record["seconds_per_picture"],
        memory=record["peak_memory_bytes"],
    )


def _value(record: Mapping[str, Any]) -> Value:
    """None, JSON's word for it, becomes NaN; so does the interval of a single number."""
    ends = ("low", "high") if record["images"] > 1 else ()
    found = {key: record[key] for key in ("value", *ends)}
    numbers = {key: math.nan if one is None else float(one) for key, one in found.items()}
    numbers = {"low": math.nan, "high": math.nan, **numbers}
    return Value(**numbers, images=record["images"], chance=record["chance"])


def same(plan: Plan, folder: Path = PLANS) -> Path | None:
    """The file whose metrics a plan has, whatever else flags have changed."""
    for file in sorted(folder.glob("*.toml")):
        if Plan.from_file(file).metrics == plan.metrics:
            return file
    return None


def command(plan: Plan, file: Path | None, stem: str) -> str:
    """What makes these results again; folders of whoever ran it are left open.

    >>> command(Plan.from_words({"limit": 8}), None, "few")
    'omenn bench --limit 8 -o runs/bench/few'
    """
    usual = Plan.from_file(file) if file else Plan()
    words = ["omenn", "bench", *([f"experiments/plans/{file.name}"] if file else [])]
    changed = FLAGS if file else (*FLAGS, "metrics")
    own, other = plan.record(), usual.record()
    for key in changed:
        if own[key] != other[key] or (key == "data" and other[key].endswith(":FOLDER")):
            words += [f"--{key}", _flag(getattr(plan, key), key)]
    if plan.trivial != usual.trivial:
        words.append("--no-trivial")
    return " ".join(map(shlex.quote, [*words, "-o", f"runs/bench/{stem}"]))


def _flag(value: Any, key: str) -> str:
    if isinstance(value, Entry):
        return opened(value.name)
    if isinstance(value, tuple):
        return ",".join(_written(one) if isinstance(one, Entry) else str(one) for one in value)
    return str(value)


def _written(entry: Entry) -> str:
    """As on a command line, where entries have no name of their own."""
    options = ";".join(f"{name}={value}" for name, value in entry.options.items())
    return opened(f"{entry.base}[{options}]" if options else entry.base)


def opened(text: str) -> str:
    """Data and weights without the folder that somebody had them in.

    >>> opened("funnybirds:/a/b"), opened("net.py:build[weights=/a/b/w.th]"), opened("birds")
    ('funnybirds:FOLDER', 'net.py:build[weights=w.th]', 'birds')
    """
    head, bracket, options = text.partition("[weights=")
    if bracket:
        kept = options if _ours(options.split(";")[0].rstrip("]")) else Path(options).name
        return f"{head}[weights={kept}"
    kind, colon, place = text.partition(":")
    return f"{kind}:FOLDER" if colon and ("/" in place or "\\" in place) else text


def _ours(place: str) -> bool:
    """Whether a path is one that commands of this repository write to."""
    return place.startswith("runs/")


def model_name(entry: Entry) -> str:
    """What a table calls a model: the function of a file, and its weights.

    >>> model_name(Entry.read("experiments/nets.py:build[weights=/a/w.th]", "model"))
    'build'
    """
    if entry.name.startswith(entry.base) and ".py:" in entry.base:
        return entry.base.rpartition(":")[2]
    return entry.name
