"""Table and figure of experiment 3, from what is measured."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from experiments.command import DOCS
from experiments.figures import figure, save
from experiments.report import table, write_block
from experiments.xdnn.sparsity_stacked import METHODS, REFERENCES

PAGE = DOCS / "xdnn-experiments.md"
FIGURE = DOCS / "images" / "xdnn-sparsity.png"
TITLES = {
    "breast-cancer": "Breast cancer data, 30 measurements and 88 columns of noise",
    "sparse": "Generated rows, 8 of 118 columns matter",
    "survey": "Health survey (NHANES I), 118 columns",
}
PUBLISHED = {
    "none": ".7077", "no-bias": ".7056", "grad": "≈ .715", "rrr": "≈ .714", "x-gradient": ".7673",
    "eg-1": ".7486", "eg-2": ".7518", "eg-4": ".7603", "eg-8": ".7607", "eg-16": ".7640",
    "eg-32": ".7679", "eg-64": ".7687", "eg-128": ".7722",
}  # fmt: skip
"""ROC-AUC on the health survey, arXiv 2111.07668; from its published results, ≈ from its figure."""

HEADER = [
    "what is made sparse",
    "ROC-AUC",
    "over no prior",
    "over X-Gradient",
    "s",
    "λ",
    "repetitions",
    "published (survey)",
]


def read(work: Path, data: str) -> dict[str, dict[str, Any]]:
    """Method → what was measured on these data, of the methods that have two repetitions."""
    found = {}
    for name in METHODS:
        path = work / data / f"{name}.json"
        if path.exists():
            content = json.loads(path.read_text(encoding="utf-8"))
            if len(content["repetitions"]) >= 2:
                found[name] = content
    return found


def mean_and_error(values: Iterable[float]) -> tuple[float, float]:
    """Mean and its standard error.

    >>> mean_and_error([1.0, 3.0])
    (2.0, 1.0)
    """
    values = list(values)
    return statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values))


def rows(found: dict[str, dict[str, Any]]) -> list[list[str]]:
    """The rows of the table. Differences are within repetitions, as all methods share them."""
    lines = []
    for name, content in found.items():
        line = [METHODS[name].label, _spread(_tests(content).values(), "")]
        line += [_difference(found, name, other) for other in ("none", "x-gradient")]
        seconds = content["seconds"]
        line.append(f"{statistics.median(seconds):.2g}" if seconds else "–")
        line.append(f"{content['weight']:g}" if content["weight"] else "–")
        lines.append([*line, str(len(content["repetitions"])), PUBLISHED.get(name, "–")])
    return lines


def _tests(content: dict[str, Any]) -> dict[str, float]:
    return {number: test for number, (_, test) in content["repetitions"].items()}


def _difference(found: dict[str, dict[str, Any]], name: str, other: str) -> str:
    if other == name or other not in found:
        return "–"
    mine, base = _tests(found[name]), _tests(found[other])
    pairs = [mine[number] - base[number] for number in mine if number in base]
    return _spread(pairs, "+") if len(pairs) >= 2 else "–"


def _spread(values: Iterable[float], sign: str) -> str:
    mean, error = mean_and_error(values)
    return f"{mean:{sign}.4f} ± {error:.4f}".replace("0.", ".").replace("-", "−")


def block(work: Path, data: Sequence[str]) -> str:
    """A table for each of the data that are measured, and what the columns are."""
    parts = []
    for name in data:
        found = read(work, name)
        if not found:
            continue
        settings = next(iter(found.values()))["settings"]
        count, width = settings["rows"]
        parts.append(f"**{TITLES[name]}** ({count} rows, {width} columns):")
        parts.append(table(HEADER, rows(found)))
        parts.append(_note(found, settings))
    return "\n\n".join(parts)


def _note(found: dict[str, dict[str, Any]], settings: dict[str, Any]) -> str:
    machines = {content.get("environment", "") for content in found.values()} - {""}
    counts = {len(content["repetitions"]) for content in found.values()}
    fewer = " Of fewer repetitions, the first: compare those rows by the differences."
    weights = ", ".join(f"{weight:g}" for weight in settings["weights"])
    return (
        "Mean ± standard error; differences are within repetitions."
        f"{fewer if len(counts) > 1 else ''} s: CPU seconds of one training "
        "alone with `AttributionPrior`, median of "
        f"{max(len(content['seconds']) for content in found.values())}. λ of {weights}: the best "
        f"validation ROC-AUC in the first {settings['selection']} repetitions, for expected "
        "gradients with one reference. Published: the health survey, arXiv 2111.07668. "
        f"({'; '.join(sorted(machines))})"
    )


def write(work: Path) -> None:
    """The block of docs/xdnn-experiments.md and the figure."""
    data = [name for name in TITLES if "none" in read(work, name)]
    if not data:
        raise SystemExit("all is compared with no prior: measure --methods none first")
    draw(work, data, FIGURE)
    image = f"![ROC-AUC and time of sparsity priors](images/{FIGURE.name})"
    command = "Made by `python -m experiments.xdnn.sparsity --write`"
    command += " (`--data sparse`, `--survey FOLDER` for the other data)."
    write_block(PAGE, "sparsity", "\n\n".join([block(work, data), image, command]))


def draw(work: Path, data: Sequence[str], path: Path) -> None:
    """ROC-AUC over no prior against CPU seconds, a panel for each of the data."""
    drawn = figure(5.6 * len(data), 4.2, dpi=150)
    panels = drawn.subplots(1, len(data), squeeze=False)[0]
    for panel, name in zip(panels, data, strict=True):
        _panel(panel, read(work, name))
        panel.set_title(TITLES[name], fontsize=9)
    save(drawn, path)


def points(found: dict[str, dict[str, Any]]) -> dict[str, tuple[float, float, float]]:
    """Method → seconds, and mean and standard error of ROC-AUC over no prior.

    Within repetitions, so that methods with fewer of them can be compared as well.
    """
    base = _tests(found["none"])
    places = {}
    for name, content in found.items():
        values = [test - base[number] for number, test in _tests(content).items() if number in base]
        if content["seconds"] and len(values) >= 2:
            places[name] = (statistics.median(content["seconds"]), *mean_and_error(values))
    return places


def _panel(panel: Any, found: dict[str, dict[str, Any]]) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    places = points(found)
    if names := [f"eg-{count}" for count in REFERENCES if f"eg-{count}" in places]:
        _references(panel, {name[3:]: places[name] for name in names})
    if "x-gradient" in places:  # as a line, to compare the others with it
        _, mean, error = places["x-gradient"]
        panel.axhline(mean, color="tab:red", lw=1, ls="--")
        panel.axhspan(mean - error, mean + error, color="tab:red", alpha=0.12, lw=0)
    styles = zip(
        ("x-gradient", "none", "no-bias", "grad", "rrr", "rrr-squares"),
        ("D", "s", "P", "^", "v", "X"),
        ("tab:red", "black", "grey", "tab:green", "tab:purple", "tab:orange"),
        strict=True,
    )
    for name, marker, colour in styles:
        if name in places:
            place, mean, error = places[name]
            label = METHODS[name].label.replace("*", "")
            panel.errorbar(
                place, mean, error, marker=marker, capsize=3, color=colour, ls="", label=label
            )
    panel.set(xscale="log", xlabel="CPU seconds a training", ylabel="ROC-AUC over no prior")
    panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.legend(fontsize=7)


def _references(panel: Any, places: dict[str, tuple[float, float, float]]) -> None:
    """Expected gradients as a line, each point with its number of references."""
    x, y, error = zip(*places.values(), strict=True)
    panel.errorbar(x, y, error, marker="o", capsize=3, color="tab:blue")
    panel.plot([], [], "o-", color="tab:blue", label="expected gradients, 1 … references")
    for count, place, height in zip(places, x, y, strict=True):
        panel.annotate(count, (place, height), (5, 5), textcoords="offset points", fontsize=7)
