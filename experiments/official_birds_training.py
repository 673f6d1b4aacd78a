"""The training behind ``experiments.official_birds``: seeded, resumable after every epoch.

The loss is the cross-entropy averaged over the classes that agree with the visible parts, plus,
for every visible part, the cross-entropy of its instance under a linear layer that is thrown
away at the end (it shortens the training several times). The weights kept are an exponential
moving average over the steps.
"""

from __future__ import annotations

import copy
import hashlib
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from experiments.official_birds import (
    MEAN,
    SIZE,
    STD,
    ResNet,
    ViT,
    build,
    load,
    preprocessing,
    read_card,
)
from experiments.official_birds_data import Renders, held_out, read
from omenn.data.funnybirds import FunnyBirds
from omenn.errors import WeightsError
from omenn.models.cards import wilson
from omenn.models.fit import (
    ExplicitAttention,
    Training,
    adamw,
    descend,
    epoch_generator,
    follow,
    machine,
    write_network,
)
from omenn.models.training import Student
from omenn.progress import progress_bar


@dataclass(frozen=True)
class Recipe:
    """All that decides the outcome beside seed, pictures and the rounding of the machine."""

    size: int
    epochs: int
    learning_rate: float
    weight_decay: float
    batch_size: int = 64
    warmup: float = 0.08
    averaging: float = 0.998
    part_loss: float = 3.0
    clip: float = 1.0


RECIPES = {
    "resnet": Recipe(SIZE["resnet"], epochs=30, learning_rate=2e-3, weight_decay=0.02),
    "vit": Recipe(SIZE["vit"], epochs=12, learning_rate=1e-3, weight_decay=0.05),
    "convnet": Recipe(SIZE["convnet"], epochs=30, learning_rate=1e-3, weight_decay=0.02),
}


def normalised(images: Tensor) -> Tensor:
    """Pixels 0..255 (B, 3, S, S) as the networks read them: (v / 255 - MEAN) / STD."""
    return (images.float() / 255 - MEAN[0]) / STD[0]


def varied(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirrored, turned by up to 4 degrees, scaled by up to a tenth, shifted by up to a twentieth
    of the side, and varied a little in contrast and tint; (B, 3, S, S) in [-1, 1] → the same
    shape. Stronger changes slowed the training: the camera of the scenes varies enough.
    """
    batch = len(images)

    def between(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(batch, *shape, generator=generator)

    angle, zoom = between(-math.pi / 45, math.pi / 45), between(-0.1, 0.1).exp()
    mirror = torch.where(between(0, 1) < 0.5, -1.0, 1.0)
    cos, sin = angle.cos() * zoom, angle.sin() * zoom
    linear = torch.stack([cos * mirror, -sin, sin * mirror, cos], 1).view(batch, 2, 2)
    shift = between(-0.1, 0.1, 2, 1)  # the side has length 2
    grid = F.affine_grid(torch.cat([linear, shift], 2), list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    tint = between(-0.05, 0.05, 1, 1, 1) + between(-0.03, 0.03, 3, 1, 1)
    changed = moved * between(0.9, 1.1, 1, 1, 1) + tint
    return changed.contiguous(memory_format=torch.channels_last)


def accuracy(network: nn.Module, images: Tensor, labels: Tensor, batch: int = 100) -> float:
    """Share of pictures (N, 3, S, S; 0..255) whose largest logit is their class; float32."""
    network.eval()
    with torch.no_grad():
        logits = torch.cat([network(normalised(chunk)) for chunk in images.split(batch)])
    return float((logits.argmax(1) == labels).float().mean())


class _Run:
    """A training in progress: student, averaged network, optimiser."""

    def __init__(
        self, arch: str, seed: int, recipe: Recipe, data: Renders, held: int, stem: Path | None
    ) -> None:
        self.arch, self.recipe, self.seed = arch, recipe, seed
        self.settings = {"arch": arch, "seed": seed, "data": data.digest, "validation": held}
        self.settings |= asdict(recipe)
        half = _first_half(stem, data.digest, held) if stem else None
        self.settings["stem"] = hashlib.sha256(stem.read_bytes()).hexdigest() if stem else ""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = build(arch, recipe.size, data.compatible.shape[1])
            if half and isinstance(network, ViT):
                network.begin_with(half)
            student = Student(network, data.instances)
        self.student = student.to(memory_format=torch.channels_last)  # pyright: ignore
        self.average = copy.deepcopy(network).requires_grad_(False)
        self.optimiser = adamw(student, recipe.learning_rate, recipe.weight_decay)

    def training(self, checkpoint: Path) -> Training:
        """How far it has come, the checkpoint of an interrupted run included."""
        parts = {"student": self.student, "average": self.average, "optimiser": self.optimiser}
        return Training(self.settings, parts, checkpoint)

    def train_epoch(self, data: Renders, epoch: int) -> float:
        """One pass over the pictures; returns the mean loss."""
        size = self.recipe.batch_size
        generator = epoch_generator(self.seed, epoch)
        chunks = torch.randperm(len(data), generator=generator).split(size)
        if len(chunks) > 1 and len(chunks[-1]) < size:
            chunks = chunks[:-1]
        self.student.train()
        total = 0.0
        for number, rows in enumerate(chunks):
            step = epoch * len(chunks) + number
            total += self._step(data[rows], step / (self.recipe.epochs * len(chunks)), generator)
            follow(self.average, self.student.network, step, self.recipe.averaging)
        return total / len(chunks)

    def _step(self, batch: Renders, done: float, generator: torch.Generator) -> float:
        recipe = self.recipe
        with torch.no_grad():
            images = varied(normalised(batch.images), generator)
        with torch.autocast("cpu", torch.bfloat16), ExplicitAttention():
            loss = self.student(images, batch.compatible, batch.parts, recipe.part_loss)
        for group in self.optimiser.param_groups:
            group["lr"] = recipe.learning_rate * _schedule(done, recipe.warmup)
        return descend(loss, self.optimiser, self.student.parameters(), recipe.clip)


def _schedule(done: float, warmup: float) -> float:
    """Share of the learning rate: a linear rise, then half a cosine down to zero."""
    if done < warmup:
        return done / warmup + 1e-3
    return 0.5 * (1 + math.cos(math.pi * (done - warmup) / (1 - warmup)))


def _first_half(weights: Path, digest: str, held: int) -> ResNet:
    """A trained residual network which has not seen the pictures held out here."""
    data = read_card(weights)["data"]
    network, _ = load(weights, "resnet")
    if (data["digest"], data["held_out"]) != (digest, _held_out(held)):
        raise WeightsError(
            f"'{weights}' was trained on pictures that are held out here: {data['held_out']} of "
            f"{data['digest']}, here {_held_out(held)} of {digest}. "
            "Train it with the same --zip and --validation."
        )
    assert isinstance(network, ResNet)
    return network


def _held_out(count: int) -> str:
    return f"{count} complete birds, as many of each class"


def train(
    pictures: Path,
    arch: str,
    out: Path,
    *,
    recipe: Recipe | None = None,
    seed: int = 0,
    validation: int = 1000,
    minutes: float = math.inf,
    stem: Path | None = None,
    test: Path | None = None,
) -> Path | None:
    """Train ``arch`` on the zip ``pictures``; the path of the weights, None if minutes ran out.

    Writes ``<out>/<arch>-<size>.safetensors`` and its card ``.json``; a checkpoint after every
    epoch. ``stem``: weights of the residual network that a ViT's stem begins with. ``test`` names a
    folder in FunnyBirds' layout, read once after the last epoch.

    Raises InputError for pictures or numbers that cannot be used, WeightsError for the checkpoint
    of another training, OutputError where nothing can be written.
    """
    recipe = recipe or RECIPES[arch]
    testing = FunnyBirds(test) if test else None
    target = out / f"{arch}-{recipe.size}"
    with progress_bar() as progress:
        renders = read(pictures, recipe.size, out / "cache", progress)
    run = _Run(arch, seed, recipe, renders, validation, stem)
    training, held = (renders[rows] for rows in held_out(renders, validation))
    del renders
    state = run.training(target.with_suffix(".checkpoint.pt"))
    for noted in _epochs(run, state, training, held, minutes):
        print(
            f"{target.name} epoch {state.epoch}/{recipe.epochs}: loss {noted['loss']:.3f}, "
            f"validation top-1 {noted['validation']:.1%}, {state.seconds / 60:.1f} min",
            flush=True,
        )
    if state.epoch < recipe.epochs:
        print(f"{minutes:g} minutes are over; the same command goes on", flush=True)
        return None
    card = _card(run, state, len(training))
    if testing is not None:
        card["official_test"] = _on_folder(run, testing)
        print(f"{target.name} official test pictures: {card['official_test']}", flush=True)
    return write_network(run.average, card, target.with_suffix(".safetensors"))


def _epochs(
    run: _Run, state: Training, training: Renders, held: Renders, minutes: float
) -> Iterator[dict[str, float]]:
    """The epochs that are left, as far as the minutes reach."""

    def train_epoch() -> dict[str, float]:
        loss = run.train_epoch(training, state.epoch)
        share = accuracy(run.average, held.images, held.labels)
        return {"loss": round(loss, 4), "validation": share}

    end = time.monotonic() + 60 * minutes
    epochs = state.fit(run.recipe.epochs, train_epoch)
    while time.monotonic() <= end and (noted := next(epochs, None)) is not None:
        yield noted


def _on_folder(run: _Run, data: FunnyBirds) -> dict[str, Any]:
    """How many pictures of a FunnyBirds folder the averaged network gets right."""
    prepare = preprocessing(run.recipe.size, "the training")
    network = run.average.eval()
    with torch.no_grad():
        right = sum(
            int(network(prepare(data.image(index))).argmax()) == data.label(index)
            for index in range(len(data))
        )
    return _figure(right / len(data), len(data))


def _figure(share: float, count: int) -> dict[str, Any]:
    low, high = wilson(share, count)
    return {"top1": share, "pictures": count, "interval_95": [round(low, 4), round(high, 4)]}


def _card(run: _Run, state: Training, training: int) -> dict[str, Any]:
    """What one has to know of the weights: where they come from, how good they are."""
    held = run.settings["validation"]
    return {
        "arch": run.arch,
        "classes": run.average.head.out_features,
        "parameters": sum(p.numel() for p in run.average.parameters()),
        "input": {"size": run.recipe.size, "mean": MEAN, "std": STD, "resize": "bilinear"},
        "data": {
            "pictures": "FunnyBirds' official renders, about half of them miss parts",
            "digest": run.settings["data"],
            "training": training,
            "held_out": _held_out(held),
        },
        "recipe": asdict(run.recipe) | {"seed": run.seed},
        "stem": _beginning(run),
        "validation": _figure(state.history[-1]["validation"], held),
        "history": state.history,
        "training": {"minutes": round(state.seconds / 60, 1)} | machine("cpu"),
    }


def _beginning(run: _Run) -> str:
    if not run.settings["stem"]:
        return "drawn at random"
    half = "stem and first two stages of the resnet trained on the same pictures"
    return f"{half}, sha256 {run.settings['stem']}; then trained with all else"
