"""Experiment 5: a background that tells the class in training and lies in testing.

python -m experiments.xdnn.cue                       all conditions, two seeds: hours on one core
python -m experiments.xdnn.cue --short               few scenes, one epoch: a minute or two
python -m experiments.xdnn.cue --conditions cue omenn --seeds 1
python -m experiments.xdnn.cue --no-train --write    what is finished, into docs/xdnn-experiments.md

What is finished stays in ``runs/xdnn/cue``: an interrupted run goes on with the next training, and
one with more ``--seeds`` adds to it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

import omenn
from experiments import timing
from experiments.command import Command
from experiments.report import environment, table
from experiments.xdnn import cue_data, cue_tables
from experiments.xdnn.cue_conditions import ORDER, ROWS
from experiments.xdnn.cue_data import Birds
from experiments.xdnn.cue_figure import Point, Strip, draw
from experiments.xdnn.cue_tables import PICTURE, RATIO, ROUNDS, TUNING_EPOCHS, Results
from experiments.xdnn.cue_training import (
    Centred,
    Condition,
    Recipe,
    Training,
    accuracy,
    network_of,
)
from omenn.data import birds
from omenn.files.atomic import write_checkpoint, write_files
from omenn.models.augmentation import normalised

COMMAND = Command("xdnn.cue", __doc__, "threads", "short", "work", "write")
COMMAND.choose("condition", ROWS, ORDER, option="conditions")
COMMAND.add("--seeds", type=int, help="how many (default 2, short form 1)")
COMMAND.add("--no-train", action="store_true", help="report what is finished")
TESTS: tuple[cue_data.Cue, ...] = ("lying", "true", "none")
RECIPE = Recipe()
SHORT = Recipe(epochs=1, train_scenes=512, validation_scenes=100, test_scenes=200)
SHOWN = ("cue", "gradient", "xgradient", "omenn")
PICTURES = 8


class Experiment:
    """What is trained with one recipe, and what is known of it."""

    def __init__(self, recipe: Recipe, work: Path, train: bool = True) -> None:
        self.recipe, self.work, self.train = recipe, work, train
        self._birds: dict[birds.Split, Birds] = {}

    def birds(self, split: birds.Split) -> Birds:
        """The scenes of a split, without marks."""
        if split in self._birds:
            return self._birds[split]
        count = {
            "train": self.recipe.train_scenes,
            "validation": self.recipe.validation_scenes,
            "test": self.recipe.test_scenes,
        }[split]
        self._birds[split] = cue_data.drawn(split, count, self.work / "scenes")
        return self._birds[split]

    def condition(self, name: str) -> Condition | None:
        """With its weight; None if that is not chosen yet and must not be trained for."""
        row = ROWS[name]
        if row.like is not None:
            like = self.condition(row.like)
            return like and replace(row.condition, weight=like.weight)
        if not row.weights:
            return row.condition
        found = self.tuned(name)
        if len(found) < len(row.weights):
            return None
        return replace(row.condition, weight=max(found, key=found.__getitem__))

    def tuned(self, name: str) -> dict[float, float]:
        """Weight → accuracy on lying validation scenes after a short training."""
        row, found = ROWS[name], {}
        recipe = replace(self.recipe, epochs=min(TUNING_EPOCHS, self.recipe.epochs))
        for weight in row.weights:
            condition = replace(row.condition, weight=weight)
            one = self._kept(
                f"tuning/{name}-{weight:g}", condition, recipe, 0, ("validation",), False
            )
            if one is not None:
                found[weight] = one["accuracy"]["validation"]["lying"]
        return found

    def result(self, name: str, seed: int) -> dict[str, Any] | None:
        """Accuracies and seconds of one training; None if it is not there and must not be made."""
        condition = self.condition(name)
        if condition is None:
            return None
        splits = ("validation", "test")
        return self._kept(f"{name}-{seed}", condition, self.recipe, seed, splits, True)

    def _marked(
        self, split: birds.Split, cue: cue_data.Cue, seed: int, place: cue_data.Place
    ) -> Birds:
        return cue_data.marked(self.birds(split), cue, seed, place)

    def weights(self, name: str, seed: int) -> Path:
        return self.work / f"{name}-{seed}.safetensors"

    def _kept(
        self,
        key: str,
        condition: Condition,
        recipe: Recipe,
        seed: int,
        splits: Sequence[birds.Split],
        keep_weights: bool,
    ) -> dict[str, Any] | None:
        path = self.work / f"{key}.json"
        settings = _settings(condition, recipe, seed)
        if path.exists():
            known = json.loads(path.read_text(encoding="utf-8"))
            if known["settings"] != settings:
                COMMAND.fail(f"{path} is of other settings. Remove it, or choose another --work.")
            return known
        if not self.train:
            return None
        training, epochs = self._trained(key, condition, recipe, seed)
        network = training.averaged()
        found = {
            split: {
                cue: accuracy(network, self._marked(split, cue, 1 + seed, condition.place))
                for cue in TESTS
            }
            for split in splits
        }
        print(f"{key}: {found}", flush=True)
        if keep_weights:
            state = {k: v.contiguous() for k, v in network.state_dict().items()}
            write_files({path.with_suffix(".safetensors"): save(state)})
        made = {"settings": settings, "accuracy": found, "seconds": epochs}
        made |= {"environment": environment()}
        write_files({path: (json.dumps(made, indent=1) + "\n").encode()})
        path.with_suffix(".checkpoint.pt").unlink(missing_ok=True)
        return made

    def _trained(
        self, key: str, condition: Condition, recipe: Recipe, seed: int
    ) -> tuple[Training, list[float]]:
        """After all epochs, those before an interruption included, and their CPU seconds."""
        marked = self._marked("train", condition.cue, seed, condition.place)
        training = Training(condition, recipe, seed, marked)
        path = self.work / f"{key}.checkpoint.pt"
        settings, epochs = _settings(condition, recipe, seed), []
        if path.exists():
            kept = torch.load(path, weights_only=True)
            if kept["settings"] == settings:
                training.load(kept["state"])
                epochs = kept["epochs"]
        for number in range(len(epochs), recipe.epochs):
            epochs.append(training.epoch())
            losses = torch.tensor(training.losses[-training.steps :]).mean(0).tolist()
            words = f"loss {losses[0]:.3f}, prior {losses[1]:.3f}, {epochs[-1]:.0f} s"
            print(f"{key}, epoch {number + 1} of {recipe.epochs}: {words}", flush=True)
            state = {"settings": settings, "state": training.state(), "epochs": epochs}
            write_checkpoint(state, path)
        return training, epochs

    def costs(self, names: Sequence[str], rounds: int = ROUNDS) -> dict[str, list[float]]:
        """CPU seconds of a step of each condition, in every round; {} if not to be measured.

        All take a step in each round.
        """
        path = self.work / "costs.json"
        settings = {n: asdict(c) for n in names if (c := self.condition(n)) is not None}
        settings = json.loads(json.dumps({"rows": settings, "recipe": asdict(self.recipe)}))
        if path.exists():
            known = json.loads(path.read_text(encoding="utf-8"))
            if known["settings"] == settings or not self.train:
                return known["seconds"]
        if not self.train:
            return {}
        steps = {name: self._step(name) for name in settings["rows"]}
        found = timing.paired(steps, rounds, clock=time.process_time)
        made = {"settings": settings, "seconds": found, "environment": environment()}
        write_files({path: (json.dumps(made, indent=1) + "\n").encode()})
        return found

    def _step(self, name: str) -> Callable[[], None]:
        condition = self.condition(name)
        assert condition is not None
        training = Training(condition, self.recipe, 0, self.birds("train"))
        rows = torch.arange(self.recipe.batch_size)
        generator = torch.Generator().manual_seed(0)
        return lambda: training.step(rows, generator)

    def shown(self, found: Results) -> tuple[Tensor | None, list[Strip]]:
        """The first lying test pictures, and maps of the networks of seed 0 for what they say."""
        names = [n for n in SHOWN if 0 in found.get(n, {}) and self.weights(n, 0).exists()]
        if not names:
            return None, []
        test = cue_data.marked(self.birds("test"), "lying", 1)
        rows = torch.arange(PICTURES)
        strips = []
        for name in names:
            condition = ROWS[name].condition
            network = network_of(condition, self.recipe, 0)
            network.load_state_dict(load_file(self.weights(name, 0)))
            centred, x = Centred(network).eval(), normalised(test.images[rows])
            with torch.no_grad():
                said = centred(x).argmax(1)
            e = omenn.explain(centred, x, said)
            label, cue = test.labels[rows], test.cues[rows]
            says = [
                "says: bird" if one == bird else "says: mark" if one == mark else "says: neither"
                for one, bird, mark in zip(said, label, cue, strict=True)
            ]
            strips.append(Strip(condition.label, e.matrix.detach(), says))
        return test.images[rows], strips


def _settings(condition: Condition, recipe: Recipe, seed: int) -> dict[str, Any]:
    known = {k: v for k, v in asdict(condition).items() if k != "label"}
    made = {"condition": known, "recipe": asdict(recipe), "seed": seed}
    return json.loads(json.dumps(made))  # as it is read again


def main(words: Sequence[str] | None = None) -> None:
    a = COMMAND.parse(words)
    recipe = SHORT if a.short else RECIPE
    work = a.work / "short" if a.short and a.work == COMMAND.parser.get_default("work") else a.work
    experiment = Experiment(recipe, work, not a.no_train)
    found: dict[str, dict[int, Any]] = {}
    with COMMAND.resumable():
        for seed in range(a.seeds or (1 if a.short else 2)):
            for name in a.conditions:
                one = experiment.result(name, seed)
                if one is not None:
                    found.setdefault(name, {})[seed] = one
        costs = experiment.costs(a.conditions)
    if not found:
        COMMAND.fail(f"nothing is finished in {work}: omit --no-train.")
    for sentence in filter(None, (cue_tables.verdict(found, costs, name) for name in found)):
        print(sentence)
    picture = PICTURE if a.write else work / "cue.png"
    draw(_points(found, costs), RATIO, *experiment.shown(found), picture)
    print(f"wrote {picture}")
    if a.short:
        print("Short form: so few scenes show that it runs, not what a prior does.")
        print(table(cue_tables.HEADER, cue_tables.rows(found, costs, recipe)))
        return
    COMMAND.publish(a, "xdnn-experiments.md", cue=cue_tables.text(found, costs, recipe))


def _points(found: Results, costs: Mapping[str, Sequence[float]]) -> dict[str, Point]:
    """Of the conditions whose time is known."""
    return {
        name: Point(
            ROWS[name].condition.label.strip("*"),
            times,
            list(cue_tables.accuracies(found, name).values()),
        )
        for name in found
        if (times := cue_tables.ratio(costs, name)) is not None
    }


if __name__ == "__main__":
    main()
