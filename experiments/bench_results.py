"""Results of ``omenn bench``, kept as a long table and a few sentences in ``experiments/results``.

``keep`` reads the folder of a run and writes ``<plan>.csv``, one row for each method and measure,
and ``<plan>.json``, what is said of the run and of each model. Everything that compares methods
(first, near the first, better than the trivial maps, place) is computed there, before rounding.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from experiments import bench_command
from experiments.report import ROOT
from omenn.attribution.registry import distinct
from omenn.bench.plan import Plan
from omenn.errors import OmennError
from omenn.files.atomic import write_files
from omenn.metrics import metric_registry
from omenn.viz.bench_table import Row, fewer, notes

KEPT = ROOT / "experiments" / "results" / "bench"
PLANS = ROOT / "experiments" / "plans"
OWN = ("omenn", "omenn-focused")
COST = "Cost of a map"
GROUPS: Mapping[str, tuple[str, ...]] = {
    "FunnyBirds": ("funnybirds",),
    "What the model says of changed pictures": (
        "gae",
        "insertion-deletion",
        "pixel-flipping",
        "pixel-deletion",
        "srg",
        "keep-remove",
        "road",
    ),
    "Sums of the map against what the logit loses": (
        "faithfulness-correlation",
        "faithfulness-estimate",
        "sensitivity-n",
        "monotonicity-correlation",
        "cell-deletion",
        "idsds",
        "completeness",
    ),
    "Where the map is": (
        "energy-pointing-game",
        "pointing-game",
        "relevance-mass",
        "relevance-rank",
        "grid-pointing-game",
    ),
    "The form of the map": ("sparseness", "complexity", "effective-complexity"),
    "Other pictures, models and classes": (
        "sensitivity",
        "local-lipschitz",
        "mprt",
        "smooth-mprt",
        "efficient-mprt",
        "random-logit",
    ),
}
"""Protocols that stand in one table; the others come last."""
Titles = Mapping[tuple[str, str], tuple[str, str]]
"""(Metric, measure) → title of its column, and of its group."""
WHOLE = ("gae",)  # a product that is often 0: shown with its factors


@dataclass(frozen=True, eq=False)
class Run:
    """What is kept of a run.

    ``about``: command, provenance, and for each model its sentences. ``rows`` has the columns
    model, method, trivial, group, measure, higher, value, low, high, first, near, good, place.
    """

    stem: str
    about: dict[str, Any]
    rows: pd.DataFrame

    @property
    def models(self) -> dict[str, dict[str, Any]]:
        return self.about["models"]

    def of(self, model: str) -> pd.DataFrame:
        """The measured rows of a model, without the costs."""
        return self.rows[(self.rows.model == model) & (self.rows.group != COST)]


def read(stem: str, folder: Path = KEPT) -> Run:
    """A run that was kept."""
    about = json.loads((folder / f"{stem}.json").read_text(encoding="utf-8"))
    rows = pd.read_csv(folder / f"{stem}.csv")
    flags = ["trivial", "higher", "first", "near", "good"]
    return Run(stem, about, rows.astype(dict.fromkeys(flags, bool)))


def keep(folder: Path, kept: Path = KEPT, plans: Path = PLANS) -> Run:
    """Reads results.json of a run and writes what is kept of it.

    Raises:
        SystemExit: there are no results, or they have another form.
    """
    file = folder / "results.json"
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        run = _run(record, Plan.from_words(tomllib.loads(record["plan"])), folder, plans)
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
    about = json.dumps(run.about, indent=1, ensure_ascii=False) + "\n"
    csv = run.rows.to_csv(index=False, float_format="%.5g")
    made = {f"{run.stem}.json": about.encode(), f"{run.stem}.csv": csv.encode()}
    write_files({kept / name: content for name, content in made.items()})
    return read(run.stem, kept)


def _run(record: Mapping[str, Any], plan: Plan, folder: Path, plans: Path) -> Run:
    known = bench_command.same(plan, plans)
    stem = known.stem if known else folder.resolve().name
    names = {entry.name: bench_command.model_name(entry) for entry in plan.models}
    titles = _titles(plan)
    rows = pd.concat([_measures(record, titles), _costs(record)], ignore_index=True)
    rows["model"] = rows["model"].map(names)
    pictures = {names[m["model"]]: m["pictures"] for m in record["models"]}
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    data = [bench_command.opened(plan.data.name), *record["data"].split(", ")[1:]]
    count = " or ".join(map(str, sorted(set(pictures.values()))))
    about = {
        "command": bench_command.command(plan, known, stem),
        "provenance": f"Data: {', '.join(data)}; {count} pictures. Seed {plan.seed}. "
        f"Versions: {versions}.",
        "models": {
            names[m["model"]]: _about(m, rows[rows.model == names[m["model"]]], titles)
            | {"size": bench_command.size(entry)}
            for m, entry in zip(record["models"], plan.models, strict=True)
        },
    }
    return Run(stem, about, rows.drop(columns=["metric", "images"]))


# --- rows --------------------------------------------------------------------------------------


def _measures(record: Mapping[str, Any], titles: Titles) -> pd.DataFrame:
    """The rows of the measures that are shown, compared with each other."""
    flat = pd.json_normalize(
        record["models"],
        ["methods", "values"],
        ["model", ["methods", "method"], ["methods", "trivial"]],
    ).rename(columns={"methods.method": "method", "methods.trivial": "trivial"})
    flat = flat.rename(columns={"higher_is_better": "higher"})
    keys = list(zip(flat.metric, flat.measure, strict=True))
    flat = flat[[key in titles for key in keys]].copy()
    keys = [key for key in keys if key in titles]
    flat["measure"] = [titles[key][0] for key in keys]
    flat["group"] = [titles[key][1] for key in keys]
    for name in ("value", "low", "high"):
        flat[name] = pd.to_numeric(flat[name])
    # NOTE one-number: the interval of a single number says nothing, and nothing lies within it.
    flat.loc[flat.images <= 1, ["low", "high"]] = float("nan")
    judged = [compared(group) for _, group in flat.groupby(["model", "measure"], sort=False)]
    columns = ["model", "method", "trivial", "group", "metric", "measure", "higher", "value"]
    columns += ["low", "high", "images", "first", "near", "good", "place"]
    return pd.concat(judged).sort_index()[columns]


def compared(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of one measure on one model with ``first``, ``near``, ``good`` and ``place``.

    ``first``: the best method, and the best trivial map; ``near``: not below the whole interval of
    the first; ``good``: better than every trivial map; ``place`` among the methods, equal values
    share the best.
    """
    higher = bool(rows.higher.iloc[0])
    sign = 1 if higher else -1
    method = ~rows.trivial.astype(bool)
    value = sign * rows.value
    first = method & (value == value[method].max())
    edge = (sign * rows[first]["low" if higher else "high"]).min()
    floor = value[~method].max()
    good = method & value.notna() & ((value > floor) | pd.isna(floor))
    place = value[method].rank(method="min", ascending=False)
    near = method & ~first & (value >= edge)
    first |= ~method & (value == floor)
    return rows.assign(first=first, near=near, good=good, place=place)


def _titles(plan: Plan) -> Titles:
    """(metric, measure) → title of the column and of its group, of the measures that are shown.

    Shown are the headlines of each protocol, and all measures of a few.
    """
    found, seen = {}, set()
    for metric in plan.metrics:
        measures = metric_registry.find(metric.base).measures
        shown = [m.name for m in measures if m.headline or metric.base in WHOLE]
        group = next((title for title, bases in GROUPS.items() if metric.base in bases), "Others")
        if metric.base in seen:  # the same protocol with other options has a table of its own
            group = f"{group}: {metric.name}"
        seen.add(metric.base)
        for name in shown:
            title = name
            if metric.name != metric.base or len(shown) > 1:
                title = metric.name if len(shown) == 1 else f"{metric.name}: {name}"
            found[metric.name, name] = (title, group)
    return found


def _costs(record: Mapping[str, Any]) -> pd.DataFrame:
    lines = []
    for model in record["models"]:
        for method in model["methods"]:
            if method["trivial"] or not method["seconds_per_picture"]:
                continue
            megabytes = (method["peak_memory_bytes"] or float("nan")) / 1e6
            for name, value in (
                ("seconds a picture", method["seconds_per_picture"]),
                ("peak memory, MB", megabytes),
            ):
                line = {"model": model["model"], "method": method["method"], "trivial": False}
                lines.append(line | {"group": COST, "measure": name, "value": value})
    flags = dict.fromkeys(("higher", "first", "near", "good"), False)
    return pd.DataFrame(lines).assign(**flags)


# --- sentences ---------------------------------------------------------------------------------


def _about(model: Mapping[str, Any], rows: pd.DataFrame, titles: Titles) -> dict[str, Any]:
    measured = rows[rows.group != COST]
    every = [
        Row(
            model=model["model"],
            method=method["method"],
            trivial=method["trivial"],
            counted=method["counted"].get(value["metric"], {}),
            **value,
        )
        for method in model["methods"]
        for value in method["values"]
    ]
    shown = [row for row in every if (row.metric, row.measure) in titles]
    return {
        "subject": _subject(model),
        "accuracy": model["facts"].get("accuracy", {}).get("value"),
        "pictures": model["pictures"],
        "summary": _summary(measured),
        "few": fewer(shown, model["pictures"]),
        "failures": _failures(model["methods"]),
        "counted": [f"{of}: {what}: {who}" for (of, what), who in notes(every).items()],
    }


def _subject(model: Mapping[str, Any]) -> str:
    facts = []
    for name, fact in model["facts"].items():
        ends = f" [{fact['low']:.2f}, {fact['high']:.2f}]" if fact["images"] > 1 else ""
        facts.append(f"{name} {fact['value']:.3f}{ends}")
    said = "; ".join(filter(None, [model["weights"], ", ".join(facts)])) + "."
    said = said[:1].upper() + said[1:]
    return f"{said} **{model['warning']}**" if model["warning"] else said


def _summary(rows: pd.DataFrame) -> str:
    """How many methods and measures; where no method, and which method never, beats a constant."""
    methods = rows[~rows.trivial.astype(bool)]
    if len(methods) == len(rows):
        return "There are no trivial rows in this run: nothing says what its numbers are worth."
    good = methods.groupby("measure", sort=False).good.any()
    ever = methods.groupby("method", sort=False).good.any()
    count = len(distinct(list(ever.index)))
    twice = f", {len(ever) - count} of them under two names," if count < len(ever) else ""
    none, never = list(good.index[~good]), list(ever.index[~ever])
    said = [
        f"{count} methods{twice} on {len(good)} measures.",
        f"No method is better than the best trivial row on {', '.join(none)}." if none else "",
        f"Better than it on no measure: {', '.join(never)}." if never else "",
    ]
    return " ".join(filter(None, said))


def _failures(methods: list[dict[str, Any]]) -> list[str]:
    """Why there is no value, a sentence for each reason."""
    found: dict[str, dict[str, list[str]]] = {}
    for method in methods:
        for metric, why in method["failures"].items():
            why = why.partition(". ")[0].rstrip(".")  # without the remedy
            found.setdefault(why, {}).setdefault(method["method"], []).append(metric)
    partly = {method["method"] for method in methods if method["values"]}
    said = []
    for why, where in found.items():
        metrics = sorted({m for ms in where.values() for m in ms})
        some = f" ({', '.join(metrics)})" if partly & set(where) else ""
        said.append(f"No value: {', '.join(where)}{some}: {why}.")
    return said
