"""What do additive terms buy? Each birds network and its X twin, trained alike.

python -m experiments.xdnn.twins                    three pairs of twins, three seeds: two hours
python -m experiments.xdnn.twins --short            one seed with few scenes, in minutes
python -m experiments.xdnn.twins --budget full      the epochs and scenes of the bundled networks
python -m experiments.xdnn.twins --archs birds-vit --seeds 1
python -m experiments.xdnn.twins --no-train --write the table of what is finished, into docs/xdnn.md

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

from experiments import timing
from experiments.report import ROOT, table, write_block
from experiments.xdnn.networks import DOCUMENT, PAIRS
from experiments.xdnn.twins_figure import Accuracies, draw
from omenn.models.recipes import RECIPES
from omenn.models.training import train_birds

COMMAND = "python -m experiments.xdnn.twins"
PICTURE = ROOT / "docs" / "images" / "xdnn-twins.png"
HEADER = [
    "network",
    "parameters",
    "test top-1, %",
    "X minus regular, points",
    "validation after one epoch, %",
    "minutes",
]
GOAL = 2.0  # points


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
            timing.fail(
                COMMAND,
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


def spread(values: Sequence[float], digits: int = 2, sign: bool = False) -> str:
    """Mean ± standard deviation; the number alone if there is one."""
    form = f"{'+' if sign else ''}.{digits}f"
    mean = f"{statistics.fmean(values) + 0.0:{form}}".replace("-", "−")
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


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
                    spread(list(found[arch].values())),
                    spread(points, sign=True) if points else "",
                    spread(first, 1) if first else "",
                    spread([card["training"]["minutes"] for card in own], 1),
                ]
            )
    return made


def text(cards: Cards, words: str) -> str:
    """The block of docs/xdnn.md: table, picture, and how they came about."""
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


def main(words: Sequence[str] | None = None) -> None:
    a = _parsed(words)
    budget = BUDGETS[a.budget]
    scenes = a.train_scenes or budget.scenes
    epochs = {name: a.epochs or count for name, count in budget.epochs.items()}
    wanted = jobs(a.archs, a.seeds, Budget(scenes, epochs, budget.folder), a.out)
    cards: dict[tuple[str, int], Mapping[str, Any]] = {}
    with timing.resumable(COMMAND):
        for job in wanted:
            card = job.card() if a.no_train else trained(job)
            if card is not None:
                cards[job.arch, job.seed] = card
    if not cards:
        timing.fail(COMMAND, f"nothing is finished in {a.out}: leave --no-train out.")
    print(table(HEADER, rows(cards)))
    print(f"{len(cards)} of {len(wanted)} trainings, {scenes} scenes; ± standard deviation.")
    if a.budget == "short":
        print("Short form: so few scenes tell that it runs, not how good the networks become.")
    picture = PICTURE if a.write else a.out / "twins.png"
    panels = {"test, after all epochs": accuracies(cards)}
    if early(cards):
        panels["validation, after the first epoch"] = early(cards)
    draw(panels, GOAL, picture)
    print(f"wrote {picture}")
    if a.write:
        command = COMMAND if a.budget == "medium" else f"{COMMAND} --budget {a.budget}"
        write_block(DOCUMENT, "twins", text(cards, command))


def _parsed(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=COMMAND, description=str(__doc__).split("\n")[0])
    parser.add_argument("--seeds", type=int, help="how many (default 3, short form 1)")
    parser.add_argument("--archs", nargs="+", default=list(PAIRS), help="regular networks")
    parser.add_argument("--budget", choices=BUDGETS, default="medium", help="scenes and epochs")
    parser.add_argument("--short", action="store_const", const="short", dest="budget")
    parser.add_argument("--epochs", type=int, help="for all, instead of the budget's")
    parser.add_argument("--train-scenes", type=int, help="instead of the budget's")
    parser.add_argument("--out", type=Path, help="folder (default runs/xdnn/twins…)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-train", action="store_true", help="report what is finished")
    parser.add_argument("--write", action="store_true", help="update docs/xdnn.md and its picture")
    a = parser.parse_args(words)
    if a.seeds is None:
        a.seeds = 1 if a.budget == "short" else 3
    for name in a.archs:
        if name not in PAIRS:
            timing.fail(
                COMMAND, f"no network {name!r} with a twin. Choose from: {', '.join(PAIRS)}."
            )
    numbers = {"--seeds": a.seeds, "--epochs": a.epochs, "--train-scenes": a.train_scenes}
    for name, value in {**numbers, "--threads": a.threads}.items():
        if value is not None and value < 1:
            timing.fail(COMMAND, f"{name} is {value}; it must be at least 1.")
    changed = a.epochs is not None or a.train_scenes is not None
    if a.write and (changed or a.budget == "short"):
        timing.fail(COMMAND, "--write publishes a whole budget: leave the shortening options out.")
    if a.out is None:
        if changed:
            timing.fail(COMMAND, "--epochs and --train-scenes make other networks: give an --out.")
        a.out = ROOT / "runs" / "xdnn" / BUDGETS[a.budget].folder
    torch.set_num_threads(a.threads)
    return a


if __name__ == "__main__":
    main()
