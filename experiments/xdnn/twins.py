"""What do additive terms buy? Each birds network and its X twin, trained alike.

python -m experiments.xdnn.twins                    three pairs of twins, three seeds: two hours
python -m experiments.xdnn.twins --short            one seed with few scenes, in minutes
python -m experiments.xdnn.twins --budget full      the epochs and scenes of the bundled networks
python -m experiments.xdnn.twins --archs birds-vit --seeds 1
python -m experiments.xdnn.twins --no-train --write what is finished, into docs/xdnn-experiments.md

Each training is that of ``omenn train birds`` and lies in <out>/<architecture>-<seed>/. It goes on
where it was interrupted; a finished one is read from its card.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from experiments.command import DOCS, Command
from experiments.figures import INK, REGULAR, X, figure, legend, save, tidy
from experiments.report import ROOT, deviation, table
from experiments.xdnn.networks import PAIRS
from omenn.models.recipes import RECIPES
from omenn.models.training import train_birds

COMMAND = Command("xdnn.twins", __doc__, "threads", "write")
COMMAND.choose("network", PAIRS, PAIRS, option="archs")
PICTURE = DOCS / "images" / "xdnn-twins.png"
HEADER = [
    "network",
    "parameters",
    "test top-1, %",
    "X minus regular, points",
    "validation after one epoch, %",
    "minutes",
]
GOAL = 2.0  # points
COLOURS = (REGULAR, X)
LABELS = ("regular", "without additive terms (X)")


@dataclass(frozen=True)
class Budget:
    """Scenes and epochs (of a regular network and its twin) of one table."""

    scenes: int
    epochs: Mapping[str, int]
    folder: str


BUDGETS = {
    "short": Budget(2_560, dict.fromkeys(PAIRS, 2), "twins-short"),
    "medium": Budget(20_000, {"birds-resnet": 3, "birds-convnet": 5, "birds-vit": 4}, "twins"),
    "full": Budget(30_000, {name: RECIPES[name].epochs for name in PAIRS}, "twins-full"),
}


@dataclass(frozen=True)
class Job:
    """One training: what ``train_birds`` is told, and where its results lie."""

    arch: str
    seed: int
    epochs: int
    scenes: int
    out: Path

    @property
    def folder(self) -> Path:
        return self.out / f"{self.arch}-{self.seed}"

    def card(self) -> dict[str, Any] | None:
        """The card of the finished training, None if there is none. SystemExit for another's.

        Beside what the training wrote it has "first", of ``first_epoch``.
        """
        path = self.folder / f"{self.arch}.json"
        if not path.exists():
            return None
        found = json.loads(path.read_text(encoding="utf-8"))
        recipe, wanted = found["recipe"], self.recipe()
        other = [name for name, value in wanted.items() if recipe.get(name) != value]
        if other:
            COMMAND.fail(
                f"{path} is of another training ({other[0]} {recipe.get(other[0])} instead of "
                f"{wanted[other[0]]}). Choose another --out, or remove that folder.",
            )
        return found | {"first": self.first_epoch()}

    def first_epoch(self) -> float | None:
        """Validation top-1 after one epoch, which the checkpoint remembers."""
        path = self.folder / f"{self.arch}.checkpoint.pt"
        if not path.exists():
            return None
        return torch.load(path, weights_only=True)["history"][0]["validation"]

    def recipe(self) -> dict[str, Any]:
        usual = RECIPES[self.arch]
        return {
            "epochs": self.epochs,
            "train_scenes": self.scenes,
            "learning_rate": usual.learning_rate,
        }


def jobs(archs: Iterable[str], seeds: int, budget: Budget, out: Path) -> list[Job]:
    """All trainings, the first seed of all networks before the second."""
    return [
        Job(arch, seed, budget.epochs[regular], budget.scenes, out)
        for seed in range(seeds)
        for regular in archs
        for arch in (regular, PAIRS[regular])
    ]


def trained(job: Job) -> dict[str, Any]:
    """The card of a job, after its training if it was not finished."""
    found = job.card()
    if found is not None:
        return found
    print(f"{job.arch}, seed {job.seed} → {job.folder}", flush=True)
    train_birds(
        job.arch,
        job.folder,
        seed=job.seed,
        epochs=job.epochs,
        train_scenes=job.scenes,
        cache=job.out / "scenes",
    )
    found = job.card()
    assert found is not None
    print(f"{job.arch}, seed {job.seed}: test top-1 {found['result']['test_top1']:.2%}", flush=True)
    return found


Cards = Mapping[tuple[str, int], Mapping[str, Any]]
"""(network, seed) → card."""


Accuracies = Mapping[str, Mapping[int, float]]
"""Network → seed → top-1 in percent."""


def accuracies(cards: Cards) -> Accuracies:
    """Test top-1 of every training in percent."""
    found: dict[str, dict[int, float]] = {}
    for (arch, seed), card in cards.items():
        found.setdefault(arch, {})[seed] = 100 * card["result"]["test_top1"]
    return found


def early(cards: Cards) -> Accuracies:
    """Validation top-1 after one epoch in percent, where it is known."""
    found: dict[str, dict[int, float]] = {}
    for (arch, seed), card in cards.items():
        if card["first"] is not None:
            found.setdefault(arch, {})[seed] = 100 * card["first"]
    return found


def differences(found: Accuracies, regular: str) -> list[float]:
    """X minus regular in points, for every seed that both have."""
    one, other = found.get(regular, {}), found.get(PAIRS[regular], {})
    return [other[seed] - one[seed] for seed in sorted(one.keys() & other.keys())]


def rows(cards: Cards) -> list[list[str]]:
    found = accuracies(cards)
    made = []
    for regular, twin in PAIRS.items():
        for arch in (regular, twin):
            if arch not in found:
                continue
            own = [card for (name, _), card in cards.items() if name == arch]
            points = differences(found, regular) if arch == twin else []
            first = list(early(cards).get(arch, {}).values())
            made.append(
                [
                    arch,
                    f"{own[0]['parameters']:,}",
                    deviation(list(found[arch].values()), 2),
                    deviation(points, 2, sign=True) if points else "",
                    deviation(first) if first else "",
                    deviation([card["training"]["minutes"] for card in own]),
                ]
            )
    return made


def text(cards: Cards, words: str) -> str:
    """The block of docs/xdnn-experiments.md: table, picture, and how they came about."""
    found = accuracies(cards)
    means = {
        regular: statistics.fmean(points)
        for regular in PAIRS
        if (points := differences(found, regular))
    }
    within = [name for name, mean in means.items() if mean >= -GOAL]
    seeds = sorted({seed for _, seed in cards})
    one = next(iter(cards.values()))
    epochs = ", ".join(
        f"{regular.removeprefix('birds-')} {card['recipe']['epochs']}"
        for regular in PAIRS
        if (card := next((c for (n, _), c in cards.items() if n == regular), None))
    )
    rates = {arch: card["recipe"]["learning_rate"] for (arch, _), card in cards.items()}
    other = ", ".join(
        f"{twin} {rates[twin]:g} instead of {rates[regular]:g}"
        for regular, twin in PAIRS.items()
        if rates.get(twin) != rates.get(regular) and {regular, twin} <= rates.keys()
    )
    return "\n\n".join(
        [
            table(HEADER, rows(cards)),
            "![Top-1 of each training, on test and after one epoch](images/xdnn-twins.png)",
            f"The X twin is within {GOAL:g} points of its regular twin, on the mean over seeds, in "
            f"{len(within)} of {len(means)} architectures. Mean ± standard deviation over "
            f"{len(seeds)} seed{'s' if len(seeds) > 1 else ''} (of weights, training and test "
            f"scenes), {one['result']['test_scenes']} test scenes each, read once; differences are "
            f"taken within a seed. {one['recipe']['train_scenes']} training scenes, epochs: "
            f"{epochs}, the same for twins; learning rates differ in: {other or 'none'}. "
            f"Minutes are those of one training on {one['training']['device'].upper()}, "
            f"{one['training']['threads']} thread, torch "
            f"{one['training']['torch']}, on a machine that did other work as well.",
            f"`{words}`",
        ]
    )


def draw(panels: Mapping[str, Accuracies], goal: float, path: Path) -> None:
    """A panel each; dashed, where the first has the mean of the regular network minus ``goal``."""
    drawn = figure(4.6 * len(panels), 3.7)
    grid = drawn.subplots(1, len(panels), squeeze=False)[0]
    for number, (panel, (title, found)) in enumerate(zip(grid, panels.items(), strict=True)):
        panel.set_title(title, fontsize=10, color=INK)
        _dots(panel, found, goal if number == 0 else None)
    for side in (0, 1):
        grid[0].plot([], [], "o-", color=COLOURS[side], lw=2.2, ms=6, label=LABELS[side])
    grid[0].plot([], [], "--", color=INK, lw=1, label=f"regular − {goal:g} points")
    legend(drawn, grid[0], columns=3)
    save(drawn, path)


def _dots(panel: Any, found: Accuracies, goal: float | None) -> None:
    pairs = [pair for pair in PAIRS.items() if any(found.get(name) for name in pair)]
    for place, pair in enumerate(pairs):
        for side, name in enumerate(pair):
            values = [found[name][seed] for seed in sorted(found.get(name, ()))]
            if not values:
                continue
            colour = COLOURS[side]
            middle, mean = place + 0.4 * (side - 0.5), statistics.fmean(values)
            steps = [middle + 0.08 * (k - (len(values) - 1) / 2) for k in range(len(values))]
            panel.plot(steps, values, "o", color=colour, ms=5, mew=0, alpha=0.8)
            panel.hlines(mean, middle - 0.16, middle + 0.16, color=colour, lw=2.2)
            panel.annotate(
                f"{mean:.1f}" if goal is None else f"{mean:.2f}",
                (middle, max(values)),
                xytext=(0, 6),
                textcoords="offset points",
                ha="center",
                fontsize=8.5,
                color=colour,
            )
            if goal is not None and side == 0:
                panel.hlines(mean - goal, place - 0.4, place + 0.4, color=INK, lw=1, ls="--")
    panel.set_xticks(range(len(pairs)), [regular for regular, _ in pairs], color=INK)
    panel.set_xlim(-0.55, len(pairs) - 0.45)
    panel.margins(y=0.12)
    panel.set_ylabel("top-1, %", fontsize=9, color=INK)
    tidy(panel, size=9, grid="y")


def main(words: Sequence[str] | None = None) -> None:
    a = _parsed(words)
    budget = BUDGETS[a.budget]
    scenes = a.train_scenes or budget.scenes
    epochs = {name: a.epochs or count for name, count in budget.epochs.items()}
    wanted = jobs(a.archs, a.seeds, Budget(scenes, epochs, budget.folder), a.out)
    cards: dict[tuple[str, int], Mapping[str, Any]] = {}
    with COMMAND.resumable():
        for job in wanted:
            card = job.card() if a.no_train else trained(job)
            if card is not None:
                cards[job.arch, job.seed] = card
    if not cards:
        COMMAND.fail(f"nothing is finished in {a.out}: omit --no-train.")
    if a.budget == "short":
        print("Short form: so few scenes show that it runs, not how good the networks become.")
    picture = PICTURE if a.write else a.out / "twins.png"
    panels = {"test, after all epochs": accuracies(cards)}
    if early(cards):
        panels["validation, after the first epoch"] = early(cards)
    draw(panels, GOAL, picture)
    print(f"{len(cards)} of {len(wanted)} trainings, {scenes} scenes; wrote {picture}")
    more = "" if a.budget == "medium" else f" --budget {a.budget}"
    COMMAND.publish(a, "xdnn-experiments.md", twins=text(cards, f"python -m {COMMAND.name}{more}"))


COMMAND.add("--seeds", type=int, help="how many (default 3, short form 1)")
COMMAND.add("--budget", choices=BUDGETS, default="medium", help="scenes and epochs")
COMMAND.add("--short", action="store_const", const="short", dest="budget")
COMMAND.add("--epochs", type=int, help="for all, instead of the budget's")
COMMAND.add("--train-scenes", type=int, help="instead of the budget's")
COMMAND.add("--out", type=Path, help="folder (default runs/xdnn/twins…)")
COMMAND.add("--no-train", action="store_true", help="report what is finished")


def _parsed(words: Sequence[str] | None) -> argparse.Namespace:
    a = COMMAND.parse(words)
    a.seeds = a.seeds or (1 if a.budget == "short" else 3)
    changed = a.epochs is not None or a.train_scenes is not None
    if a.write and (changed or a.budget == "short"):
        COMMAND.fail("--write publishes a whole budget: omit the shortening options.")
    if a.out is None:
        if changed:
            COMMAND.fail("--epochs and --train-scenes make other networks: give an --out.")
        a.out = ROOT / "runs" / "xdnn" / BUDGETS[a.budget].folder
    return a


if __name__ == "__main__":
    main()
