"""The tables of docs/ablation.md."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from experiments.ablation.board import PROTOCOLS, TOP, Board
from experiments.ablation.configurations import EXACT, FOCUSED, PEER, SMOOTHED, TRIVIAL, Row
from experiments.report import table

PICTURE = (
    "![Values and intervals on test scenes of the chosen configuration, the default, the other "
    "methods and the trivial maps, best mean rank first](images/ablation.png)"
)


def number(board: Board, model: str, row: Row, protocol: str) -> str:
    """A value with its interval."""
    cell = board.cell(model, row, protocol)
    if math.isnan(cell.value):
        return "–"
    return f"{cell.value:.3f} ({cell.low:.3f}–{cell.high:.3f})"


def choices(validation: Board) -> tuple[dict[str, Row], Row]:
    """For each model the best exact configuration, and the default of all, by validation alone."""
    return {model: validation.chosen(model) for model in validation.models}, validation.default()


def goal(validation: Board, test: Board, chosen: Mapping[str, Row], default: Row) -> str:
    """Per model and protocol: is an exact row first or near it, the default among the best?

    Two choices on validation scenes: the best by this protocol, and one for all protocols.
    """
    header = ["model", "protocol", "first of all rows", "others within"]
    header += ["chosen for it", "met", "chosen for all", "met", "default", "place", "met"]
    rows = []
    for model in test.models:
        for protocol in PROTOCOLS:
            first = test.first(model, protocol)
            equal = test.equal(model, protocol, first)
            name = first.label + f" and {equal} more" * (equal > 0)
            line = [model, protocol, f"{name}: {number(test, model, first, protocol)}"]
            others = test.there(model, PEER, SMOOTHED, TRIVIAL)
            near = sum(test.within(model, protocol, row, first) for row in others)
            line.append(f"{near} of {len(others)}")
            for own in (validation.best(model, protocol), chosen[model]):
                line.append(number(test, model, own, protocol))
                met = test.within(model, protocol, own, first)
                line.append(_said(met, test, model, protocol, own))
            place = test.place(model, protocol, default)
            line += [number(test, model, default, protocol), str(place)]
            rows.append([*line, _said(place <= TOP, test, model, protocol, default)])
    return table(header, rows)


def _said(met: bool, test: Board, model: str, protocol: str, row: Row) -> str:
    said = "**yes**" if met else "no"
    return said + ", but not above a trivial map" * (not _above(test, model, protocol, row))


def _above(test: Board, model: str, protocol: str, row: Row) -> bool:
    """Whether a row is better than every map that knows no model."""
    blind = test.first(model, protocol, test.there(model, TRIVIAL))
    best = test.cell(model, blind, protocol).value
    return not test.cell(model, row, protocol).value <= best


def goal_in_words(validation: Board, test: Board, chosen: Mapping[str, Row], default: Row) -> str:
    """How often the goal is met, by rows that are above every trivial map."""
    keys = [(m, p) for m in test.models for p in PROTOCOLS]
    own, near = (
        sum(
            test.within(m, p, row(m, p), test.first(m, p)) and _above(test, m, p, row(m, p))
            for m, p in keys
        )
        for row in (validation.best, lambda m, p: chosen[m])
    )
    top = sum(test.place(m, p, default) <= TOP and _above(test, m, p, default) for m, p in keys)
    library = "is" if default.name == FOCUSED else "is not"
    return (
        f"Of {len(keys)} pairs of model and protocol, the exact configuration that was chosen for "
        f"the pair is above every trivial map and first, or within the interval of the first, in "
        f"{own}; the one that was chosen for all protocols of the model in {near}. The default is "
        f"above every trivial map and among the first {TOP} of the other methods, smoothed or not, "
        f"in {top}; it {library} `{FOCUSED}` as the library makes it."
    )


def selection(validation: Board, chosen: Mapping[str, Row], default: Row) -> str:
    """What was chosen on validation scenes, and how near it came there."""
    header = ["model", "choice", "configuration", "shortfall", "mean rank", "places", *PROTOCOLS]
    rows = []
    for model in validation.models:
        for what, row in (("best", chosen[model]), ("default", default)):
            rows.append(
                [
                    model,
                    what,
                    row.label,
                    f"{validation.shortfall(model, row):.2f}",
                    f"{validation.mean_rank(row, [model]):.1f}",
                    ", ".join(str(validation.place(model, p, row)) for p in PROTOCOLS),
                    *(number(validation, model, row, p) for p in PROTOCOLS),
                ]
            )
    return table(header, rows)


def ablation(board: Board, model: str, groups: Sequence[str], marks: Mapping[str, str]) -> str:
    """All rows of some groups on a model; the first of all rows in bold."""
    header = ["configuration", *PROTOCOLS, "shortfall", "ms an image"]
    firsts = {p: board.first(model, p) for p in PROTOCOLS}
    rows = []
    for row in board.rows:
        if row.group not in groups:
            continue
        if (model, row.name) not in board.found:
            if why := board.why.get((model, row.name)):
                rows.append([row.label, why.split(". ")[0], "–", "–", "–", "–"])
            continue
        cells = []
        for protocol in PROTOCOLS:
            text = number(board, model, row, protocol)
            cells.append(f"**{text}**" if firsts[protocol] == row else text)
        cost = board.cost.get((model, row.name), math.nan)
        label = row.label + (f" ({marks[row.name]})" if row.name in marks else "")
        short, spent = board.shortfall(model, row), "–" if math.isnan(cost) else f"{1e3 * cost:.1f}"
        rows.append([label, *cells, f"{short:.2f}", spent])
    return table(header, rows)


def blocks(
    validation: Board, test: Board, chosen: Mapping[str, Row], default: Row, note: str
) -> dict[str, str]:
    """Marker → text, of all that is written into the page."""
    found = {
        "ablation-goal": f"{goal_in_words(validation, test, chosen, default)}\n\n"
        f"{goal(validation, test, chosen, default)}\n\n{PICTURE}\n\n{note}",
        "ablation-choice": selection(validation, chosen, default),
    }
    for name, groups in (("exact", (EXACT,)), ("peers", (PEER, SMOOTHED, TRIVIAL))):
        parts = []
        for model in test.models:
            marks = {default.name: "default"}
            marks[chosen[model].name] = "chosen" + ", default" * (chosen[model] == default)
            parts.append(f"{model}:\n\n{ablation(test, model, groups, marks)}")
        found[f"ablation-{name}"] = "\n\n".join(parts)
    return found


def ranking(board: Board, model: str, count: int) -> str:
    """The rows of a model by mean rank, for the terminal."""
    order = sorted(board.there(model), key=lambda row: board.mean_rank(row, [model]))
    rows = [
        [
            row.label,
            row.group,
            f"{board.mean_rank(row, [model]):.1f}",
            f"{board.shortfall(model, row):.2f}",
            *(number(board, model, row, p) for p in PROTOCOLS),
        ]
        for row in order[:count]
    ]
    return table(["row", "group", "mean rank", "shortfall", *PROTOCOLS], rows)
