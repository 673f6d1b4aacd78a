"""Table and words of the experiment with the spurious cue, from what is measured."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.command import DOCS
from experiments.report import deviation, table
from experiments.xdnn import cue_data
from experiments.xdnn.cue_conditions import ROWS, WEIGHTS
from experiments.xdnn.cue_data import Cue
from experiments.xdnn.cue_training import BLOCK, FRACTION, Recipe

COMMAND = "python -m experiments.xdnn.cue"
PICTURE = DOCS / "images" / "xdnn-cue.png"
TUNING_EPOCHS, ROUNDS = 3, 12
RECOVERY, RATIO = 0.8, 2.5
HEADER = [
    "condition",
    "weight",
    "lying marks, %",
    "recovered, %",
    "true marks, %",
    "no marks, %",
    "time ratio",
    "s an epoch",
]

Results = Mapping[str, Mapping[int, Mapping[str, Any]]]
"""Row → seed → result."""


def accuracies(found: Results, name: str, test: Cue = "lying") -> dict[int, float]:
    """Seed → test accuracy in percent."""
    return {seed: 100 * one["accuracy"]["test"][test] for seed, one in found.get(name, {}).items()}


def recovered(found: Results, name: str) -> list[float]:
    """Of what the cue took away, the part that is back, in percent; for every seed that lost."""
    row = ROWS[name]
    if row.condition.method is None:
        return []
    mine, limit, without = (accuracies(found, n) for n in (name, row.limit, row.without))
    seeds = sorted(mine.keys() & limit.keys() & without.keys())
    lost = [s for s in seeds if limit[s] > without[s]]
    return [100 * (mine[s] - without[s]) / (limit[s] - without[s]) for s in lost]


def ratio(costs: Mapping[str, Sequence[float]], name: str) -> float | None:
    """Median over rounds of the time of a step, as a multiple of that without a prior."""
    if name not in costs or "cue" not in costs:
        return None
    return statistics.median(a / b for a, b in zip(costs[name], costs["cue"], strict=True))


def rows(found: Results, costs: Mapping[str, Sequence[float]], recipe: Recipe) -> list[list[str]]:
    made = []
    steps = recipe.train_scenes // recipe.batch_size
    for name in filter(found.__contains__, ROWS):
        seeds = found[name]
        weight = next(iter(seeds.values()))["settings"]["condition"]["weight"]
        times = ratio(costs, name)
        line = [ROWS[name].condition.label, f"{weight:g}" if weight else "–"]
        line += [
            deviation(list(accuracies(found, name).values())),
            deviation(recovered(found, name)),
        ]
        line += [
            deviation(list(accuracies(found, name, test).values())) for test in ("true", "none")
        ]
        line += [f"{times:.2f}" if times else "–"]
        line += [f"{steps * statistics.median(costs[name]):.0f}" if times else "–"]
        made.append(line)
    return made


def verdict(found: Results, costs: Mapping[str, Sequence[float]], name: str) -> str:
    """Whether a prior reaches the goal, in a sentence; empty if it is not measured."""
    back, times = recovered(found, name), ratio(costs, name)
    if not back or times is None:
        return ""
    mean = statistics.fmean(back)
    met = mean >= 100 * RECOVERY and times <= RATIO
    return (
        f"{ROWS[name].condition.label}: {mean:.0f} % of the loss is back at {times:.2f} × the time "
        f"without a prior; the goal, {RECOVERY:.0%} at no more than {RATIO:g} ×, is "
        f"{'met' if met else 'missed'}."
    ).replace("80%", "80 %")


def text(found: Results, costs: Mapping[str, Sequence[float]], recipe: Recipe) -> str:
    """The block of docs/xdnn-experiments.md."""
    seeds = {name: len(each) for name, each in found.items()}
    verdicts = [verdict(found, costs, name) for name in ("omenn", "xgradient", "eg-1", "eg-4")]
    some = next(iter(found.values()))
    where = next(iter(some.values()))["environment"]
    count = f"{min(seeds.values())} to {max(seeds.values())}"
    if min(seeds.values()) == max(seeds.values()):
        count = f"{max(seeds.values())}"
    return "\n\n".join(
        [
            table(HEADER, rows(found, costs, recipe)),
            f"![Accuracy against time, and maps](images/{PICTURE.name})",
            " ".join(filter(None, verdicts)),
            _note(recipe, count, where),
            f"`{COMMAND}`, then with `--no-train --write`.",
        ]
    )


def _note(recipe: Recipe, seeds: str, where: str) -> str:
    likes = ", ".join(
        f"{row.condition.label.strip('*')} that of {ROWS[row.like].condition.label}"
        for row in ROWS.values()
        if row.like
    )
    return (
        "Every picture has a mark of two paints in a corner, or "
        f"{cue_data.MARKS['anywhere']} equal ones anywhere in the background; it tells the bird's "
        "class in training and a random other one in *lying*. Convolutional networks of "
        f"{2 * len(recipe.widths)} layers (widths {', '.join(map(str, recipe.widths))}), "
        f"{recipe.train_scenes} scenes, {recipe.epochs} epochs; mean ± standard deviation over "
        f"seeds ({seeds}) on {recipe.test_scenes} test scenes.\n\nRecovered: (accuracy − that with "
        "cue and no prior) / (that with marks of random classes − that with cue and no prior), on "
        "lying marks, within a seed and an architecture. A prior is the mean over samples of Σ "
        f"|Σ_block a| over blocks of {BLOCK} × {BLOCK} pixels of attributions a outside the bird "
        "(of each channel for the input gradient, else of their sum), for "
        f"{FRACTION:.1%} of each batch, of the logit less the mean logit; its weight rises over "
        f"the first {recipe.rise:.0%} of the steps.\n\nWeights are those "
        f"with the best accuracy on {recipe.validation_scenes} *lying* validation scenes, which "
        f"somebody must have to choose so, after {TUNING_EPOCHS} epochs, seed 0, "
        f"of {_words(WEIGHTS)} (input gradient: {_words(ROWS['gradient'].weights)}); {likes}. "
        "Time ratio: CPU time of a step, as a multiple of that with cue and no prior on the "
        "regular network; all conditions take a step in turn, median of "
        f"{ROUNDS} rounds. Seconds an epoch are those of these steps. ({where})"
    )


def _words(weights: Sequence[float]) -> str:
    return ", ".join(f"{weight:g}" for weight in weights)
