"""Training of the bundled networks on generated birds: seeded, resumable, with a progress bar.

The loss is the cross-entropy averaged over all classes that agree with the visible parts
(FunnyBirds' multi-target loss), plus, for every visible part, the cross-entropy of its instance
under a linear layer on the same features. These part layers add 26 dense targets to the 50 sparse
ones, make the training several times shorter, and are discarded at the end. The final weights are
an exponential moving average over the steps.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.progress import Progress, TaskID
from torch import Tensor, nn
from torch.nn import functional as F

from omenn.data.birds import INSTANCES, PARTS
from omenn.data.birds.arrays import SceneArrays, scene_arrays
from omenn.errors import InputError, ModelError
from omenn.files.atomic import write_checkpoint
from omenn.models.architectures import ARCHITECTURES, Classifier
from omenn.models.augmentation import Move, drawn_move, normalised, tinted
from omenn.models.bird_priors import described, state_digest, takes_mask
from omenn.models.bundled import SIZE
from omenn.models.cards import Trained, write_result
from omenn.models.fit import (
    Diverged,
    ExplicitAttention,
    Stateful,
    Training,
    adamw,
    descend,
    epoch_generator,
    follow,
    rate,
)
from omenn.models.randomness import check_seed
from omenn.models.recipes import Recipe, recipe_of
from omenn.progress import progress_bar

if TYPE_CHECKING:
    from omenn.xdnn import AttributionPrior


def accuracy(network: nn.Module, scenes: SceneArrays, batch_size: int = 250) -> float:
    """Share of scenes whose largest logit is their class; float32, evaluation mode."""
    device = next(network.parameters()).device
    was_training = network.training
    network.eval()
    right = 0
    with torch.no_grad():
        for start in range(0, len(scenes), batch_size):
            images = normalised(scenes.images[start : start + batch_size].to(device))
            labels = scenes.labels[start : start + batch_size].to(device)
            right += int((network(images).argmax(1) == labels).sum())
    network.train(was_training)
    return right / len(scenes)


class Student(nn.Module):
    """The network with its part layers, which exist only in training."""

    def __init__(self, network: Classifier, instances: Sequence[int]) -> None:
        super().__init__()
        self.network = network
        self.parts = nn.ModuleList(nn.Linear(network.head.in_features, n) for n in instances)

    def forward(
        self, images: Tensor, compatible: Tensor, parts: Tensor, part_loss: float
    ) -> Tensor:
        features = self.network.features(images)
        loss = F.cross_entropy(self.network.head(features).float(), compatible)
        for layer, instance in zip(self.parts, parts.unbind(1), strict=True):
            seen = (instance >= 0).sum().clamp(min=1)
            errors = F.cross_entropy(
                layer(features).float(), instance, ignore_index=-1, reduction="sum"
            )
            loss = loss + part_loss * errors / (seen * len(self.parts))
        return loss


class _Run:
    """A training in progress: the student, its averaged network, the optimiser."""

    def __init__(
        self,
        arch: str,
        seed: int,
        recipe: Recipe,
        device: torch.device,
        checkpoint: Path,
        prior: AttributionPrior | None = None,
    ) -> None:
        self.arch, self.seed, self.recipe, self.device = arch, seed, recipe, device
        self.prior = copy.deepcopy(prior)  # the random numbers of the caller's must not advance
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            student = Student(ARCHITECTURES[arch](), [INSTANCES[part] for part in PARTS])
        student.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.student = student.to(device)
        self.average = copy.deepcopy(self.student.network).requires_grad_(False)
        self.optimiser = adamw(self.student, recipe.learning_rate, recipe.weight_decay)
        self.step = 0
        self.training = Training(self._settings(), self._parts(), checkpoint, device)

    def _settings(self) -> dict[str, Any]:
        settings = {"arch": self.arch, "seed": self.seed, **asdict(self.recipe)}
        return settings | {"prior": described(self.prior), "prior state": state_digest(self.prior)}

    def _parts(self) -> dict[str, Stateful]:
        # "model", so that a checkpoint is also a weights file
        parts: dict[str, Stateful] = {"model": self.average, "student": self.student}
        parts["optimiser"] = self.optimiser
        return parts if self.prior is None else parts | {"prior": self.prior}

    def train_epoch(self, scenes: SceneArrays, progress: Progress, task: TaskID) -> float:
        """One pass over the scenes; returns the mean loss."""
        recipe, size, epoch = self.recipe, self.recipe.batch_size, self.training.epoch
        generator = epoch_generator(self.seed, epoch)
        order = torch.randperm(len(scenes), generator=generator)
        batches = len(scenes) // size
        self.student.train()
        total = 0.0
        for number in range(batches):
            rows = order[number * size : (number + 1) * size]
            self.step = epoch * batches + number
            total += self._step(scenes, rows, self.step, recipe.epochs * batches, generator)
            progress.advance(task)
        return total / batches

    def _step(
        self, scenes: SceneArrays, rows: Tensor, step: int, steps: int, generator: torch.Generator
    ) -> float:
        recipe, device = self.recipe, self.device
        move = drawn_move(len(rows), scenes.images.shape[-1], generator)
        images = tinted(move(normalised(scenes.images[rows].to(device))), generator)
        targets = scenes.compatible[rows].to(device), scenes.parts[rows].to(device)
        half = recipe.precision == "bfloat16"
        explicit = ExplicitAttention() if half and device.type == "cpu" else nullcontext()
        with torch.autocast(device.type, torch.bfloat16, enabled=half), explicit:
            loss = self.student(images, *targets, recipe.part_loss)
        if self.prior is not None:
            loss = loss + self._term(self.prior, scenes, rows, images, move)
        for group in self.optimiser.param_groups:
            group["lr"] = rate(step, steps, recipe.learning_rate, recipe.warmup)
        value = descend(loss, self.optimiser, self.student.parameters(), recipe.clip)
        follow(self.average, self.student.network, step, recipe.averaging)
        return value

    def _term(
        self,
        prior: AttributionPrior,
        scenes: SceneArrays,
        rows: Tensor,
        images: Tensor,
        move: Move,
    ) -> Tensor:
        """The prior, outside autocast: as a derivative of the network it needs float32."""
        context = {}
        if scenes.masks is not None:
            context["mask"] = move(scenes.masks[rows].to(self.device))
        labels = scenes.labels[rows].to(self.device)
        try:
            return prior(self.student.network, images, labels, **context)
        except InputError as error:  # attributions or a term that are not finite
            raise Diverged(f"in the prior, {str(error).rstrip('.')}") from error


def train_birds(
    arch: str,
    out: Path,
    *,
    seed: int = 0,
    epochs: int | None = None,
    train_scenes: int | None = None,
    learning_rate: float | None = None,
    prior: AttributionPrior | None = None,
    device: str = "cpu",
    cache: Path | None = None,
    console: Console | None = None,
) -> Path:
    """Train a bundled architecture on generated birds; returns the path of the weights.

    Writes ``<out>/<arch>.safetensors``, its card ``<out>/<arch>.json``, and a checkpoint after
    every epoch. An interrupted run continues when it is started with the same arguments, on a CPU
    to the same weights, bit for bit. The recipe is ``RECIPES[arch]``; ``epochs``, ``train_scenes``
    and ``learning_rate`` change it. ``prior`` is added to the loss of every step, in float32, for
    the scenes' classes; a prior that takes a ``mask`` gets that of the birds (B, 1, S, S).
    ``cache`` is the folder of the drawn scenes (default: ``<out>/scenes``).

    Raises ModelError for an unknown architecture and for a loss that is no longer finite,
    InputError for a number out of range, WeightsError for the checkpoint of another training,
    OutputError if nothing can be written.
    """
    check_seed(seed)
    recipe = recipe_of(arch, epochs=epochs, train_scenes=train_scenes, learning_rate=learning_rate)
    out = Path(out)
    checkpoint = out / f"{arch}.checkpoint.pt"
    run = _Run(arch, seed, recipe, torch.device(device), checkpoint, prior)
    with progress_bar(console) as progress:
        scenes = partial(
            scene_arrays, seed=seed, size=SIZE, cache=cache or out / "scenes", progress=progress
        )
        _train(run, scenes, progress)
        test = scenes("test", recipe.test_scenes)  # used once
    found = Trained(
        arch=arch,
        seed=seed,
        recipe=recipe,
        prior=described(prior),
        validation=run.training.history[-1]["validation"],
        test=accuracy(run.average, test),
        seconds=run.training.seconds,
        device=run.device.type,
    )
    return write_result(run.average, found, out)


def _train(run: _Run, scenes: Callable[..., SceneArrays], progress: Progress) -> None:
    """The remaining epochs, each followed by validation and a checkpoint."""
    recipe, state = run.recipe, run.training
    train = scenes("train", recipe.train_scenes, masks=takes_mask(run.prior))
    validation = scenes("validation", recipe.validation_scenes)
    batches = recipe.train_scenes // recipe.batch_size
    done, total = state.epoch * batches, recipe.epochs * batches
    task = progress.add_task(run.arch, total=total, completed=done)

    def train_epoch() -> dict[str, float]:
        loss = run.train_epoch(train, progress, task)
        share = accuracy(run.average, validation)
        return {"epoch": state.epoch + 1, "loss": loss, "validation": share}

    try:
        for noted in state.fit(recipe.epochs, train_epoch):
            progress.console.print(
                f"{run.arch} epoch {state.epoch}/{recipe.epochs}: loss {noted['loss']:.3f}, "
                f"validation top-1 {noted['validation']:.1%}, {state.seconds / 60:.1f} min"
            )
    except Diverged as stop:
        raise _stopped(run, str(stop), batches) from stop


def _stopped(run: _Run, what: str, batches: int) -> ModelError:
    """The error for a loss or gradient that is NaN or infinite."""
    remedy = f"a smaller learning rate than {run.recipe.learning_rate:g}"
    if run.prior is not None:
        remedy = f"a smaller --prior-weight than {run.prior.weight:g} or {remedy}"
    left = "No step was finished, so no weights were written."
    if run.step and run.training.checkpoint is not None:
        kept = run.training.checkpoint.with_name(f"{run.arch}.stopped.pt")
        write_checkpoint({"model": run.average.state_dict()}, kept)
        left = f"The weights before that step are in {kept}."
    return ModelError(
        f"the training of {run.arch} stopped at step {run.step % batches + 1} of {batches} in "
        f"epoch {run.training.epoch + 1}: {what}. {left}",
        argument="learning_rate",
        got=f"{run.recipe.learning_rate:g}",
        remedy=f"Choose {remedy}, and another folder.",
    )
